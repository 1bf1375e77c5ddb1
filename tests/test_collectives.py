"""What a compiled step sends between devices, held against the formulas of each kind of mesh."""

import math

import jax
import jax.numpy as jnp
import pytest
from conftest import REPOSITORY, load_config_file

from jepa_jax.config import resolve
from jepa_jax.objectives.registry import make_objective
from jepa_jax.planning.collectives import Collective, by_kind, collectives
from jepa_jax.training.setup import set_up

B, K, M, T, N = 16, 6, 2, 4, 16
D, DEPTH, PREDICTOR_D, PREDICTOR_DEPTH = 64, 3, 32, 2
FLOAT = 4  # bytes
SMALL = 16 * FLOAT * 64  # what scalars (loss, norms) may take beside the formulas


def compile_step(mesh_shape, scan_layers, attention="xla"):
    """Text and memory of the compiled step, and the state's shapes."""
    config = load_config_file("fashion_mnist")
    config.batch_size = B
    config.data.image_size = (16, 16)
    config.model.update({"embed_dim": D, "depth": DEPTH, "num_heads": 8})
    config.compute.update({"scan_layers": scan_layers, "attention": attention})
    config.objective.predictor.update(
        {"embed_dim": PREDICTOR_D, "depth": PREDICTOR_DEPTH, "num_heads": 8}
    )
    config.objective.masks.context_tokens = K
    config.mesh.update(dict(zip(("data", "fsdp", "tensor"), mesh_shape, strict=True)))
    config = resolve(config)
    setup = set_up(config, make_objective(config), steps_per_epoch=100)
    batch = {
        "image": jax.ShapeDtypeStruct((B, 16, 16, 3), jnp.float32),
        "context_index": jax.ShapeDtypeStruct((B, K), jnp.int32),
        "target_index": jax.ShapeDtypeStruct((B, M, T), jnp.int32),
    }
    compiled = setup.step.lower(setup.like, batch).compile()
    return collectives(compiled.as_text()), compiled.memory_analysis(), setup.like


def num_bytes(tree, where=lambda name: True):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for path, leaf in leaves
        if where(jax.tree_util.keystr(path, simple=True, separator="/"))
    )


def is_divided(name):
    return name.endswith("kernel")


def payload(found, kind):
    return sum(one.payload * one.times for one in found if one.kind == kind)


@pytest.fixture(scope="module")
def data_parallel():
    return compile_step((8, 1, 1), scan_layers=False)


@pytest.fixture(
    scope="module",
    params=[(True, "xla"), (False, "xla"), (True, "pallas")],
    ids=["scan", "unrolled", "kernel"],
)
def fsdp(request):
    return compile_step((1, 8, 1), *request.param)


@pytest.fixture(scope="module")
def tensor_parallel():
    return compile_step((1, 1, 8), scan_layers=False)


def test_data_parallel_reduces_the_gradients_and_nothing_else(data_parallel):
    found, _, state = data_parallel
    assert {one.kind for one in found} == {"all-reduce"}
    assert 0 <= payload(found, "all-reduce") - num_bytes(state.params) <= SMALL
    assert {one.group for one in found} == {8}


def test_fsdp_gathers_parameters_for_each_pass_and_reduces_the_gradients_once(fsdp):
    found, _, state = fsdp
    kernels = num_bytes(state.params["encoder"], is_divided)
    predictor = num_bytes(state.params["predictor"], is_divided)
    patch_embed = num_bytes(state.params["encoder"]["patch_embed"], is_divided)
    ends = sum(num_bytes(state.params["predictor"][name], is_divided) for name in ("embed", "proj"))
    blocks = num_bytes(state.params["predictor"]["transformer"]["blocks"], is_divided)
    last_block = blocks // PREDICTOR_DEPTH
    # The target encoder forward; the context encoder and the predictor forward and backward. No
    # gradient goes on to the pixels, so that of patch_embed needs no kernel; and those of the
    # predictor's ends and last block, where forward and backward pass meet, may be kept between.
    most = 3 * kernels - patch_embed + 2 * predictor
    assert most - ends - last_block <= payload(found, "all-gather") <= most
    # A compiler that makes no reduce-scatter (the CPU's) reduces the whole gradient instead.
    reduced = payload(found, "reduce-scatter") + payload(found, "all-reduce")
    gradients = num_bytes(state.params)
    assert gradients <= reduced <= gradients + SMALL
    assert {one.kind for one in found} <= {"all-gather", "reduce-scatter", "all-reduce"}


def test_fsdp_moves_parameters_and_gradients_but_no_activations(fsdp):
    found, _, state = fsdp
    sizes = {math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)}
    of_a_layer = {size // depth for size in sizes for depth in (DEPTH, PREDICTOR_DEPTH)}
    for one in found:
        for shape in one.shapes:
            if math.prod(shape) > 64:
                assert math.prod(shape) in sizes | of_a_layer, one


def test_moving_average_and_adam_move_no_bytes(fsdp, data_parallel):
    """All that moves belongs to a network's forward or backward pass, or is a scalar."""
    for found, _, _ in (fsdp, data_parallel):
        for one in found:
            is_scalar = all(math.prod(shape) == 1 for shape in one.shapes)
            assert is_scalar or all("jvp(" in name for name in one.readers or [one.source]), one


def test_tensor_parallel_reduces_activations_twice_a_layer_and_pass(tensor_parallel):
    """Attention and MLP end in a sum over heads and hidden units (Shoeybi et al., 2019)."""
    found, _, _ = tensor_parallel
    target = 2 * DEPTH * B * N * D
    context = 4 * DEPTH * B * K * D  # two forward, two backward
    # The last block: T tokens, but for the gradient of its keys and values, K + T; and apart from
    # that the gradient of its queries, T.
    predictor = (4 * (PREDICTOR_DEPTH - 1) * (K + T) + 4 * T + K + T) * B * M * PREDICTOR_D
    expected = FLOAT * (target + context + predictor)
    assert {one.kind for one in found} == {"all-reduce"}
    assert 0 <= payload(found, "all-reduce") - expected <= SMALL


def test_the_state_is_donated(fsdp, data_parallel, tensor_parallel):
    for (_, memory, state), shards in ((fsdp, 8), (data_parallel, 1), (tensor_parallel, 8)):
        state_bytes = sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(state)
        )
        assert num_bytes(state) / shards <= state_bytes
        # Every byte of the state, and nothing else, is given back in the place where it came.
        assert memory.alias_size_in_bytes == pytest.approx(state_bytes, rel=1e-3)
        batch = memory.argument_size_in_bytes - memory.alias_size_in_bytes
        assert batch < B * (16 * 16 * 3 + K + M * T) * 4 + 1000


PROGRAM = """HloModule jit_step, is_scheduled=true

%body (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %ag = bf16[8,4]{1,0} all-gather(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  ROOT %t = (s32[], f32[8,4]) tuple(%i, %y)
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %w = (s32[], f32[8,4]) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %rs = f32[2,4]{1,0} reduce-scatter(%z), replica_groups=[2,4]<=[8], dimensions={0}
  %ars = (f32[3]{0}, f32[5]{0}) all-reduce-start(%a, %b), replica_groups={{0,1},{2,3}}, metadata={op_name="jit(step)/sum"}
  %ard = (f32[3]{0}, f32[5]{0}) all-reduce-done(%ars)
  %ags = (f32[2]{0}, f32[16]{0}) all-gather-start(%c), replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %agd = f32[16]{0} all-gather-done(%ags)
}
"""  # noqa: E501


ARGUMENT = """ENTRY %main (p: f32[2,4], q: f32[2,4]) -> f32[8,4] {
  %ag = f32[8,4]{1,0} all-gather(%p), replica_groups=[1,4]<=[4], dimensions={0}, metadata={op_name="params"}
  %copy = f32[8,4]{0,1} copy(%ag), metadata={op_name="params"}
  %ag.1 = f32[8,4]{1,0} all-gather(%q), replica_groups=[1,4]<=[4], dimensions={0}, metadata={op_name="average"}
  %dot = f32[8,4]{1,0} dot(%x, %copy), metadata={op_name="jit(step)/jvp(loss)/dot"}
  ROOT %sum = f32[8,4]{1,0} add(%ag, %ag.1), metadata={op_name="jit(step)/average"}
}
"""  # noqa: E501


def test_what_moves_an_argument_says_what_reads_it():
    """As newer compilers name it: by the argument alone, and so its copies."""
    params, average = collectives(ARGUMENT)
    assert (params.source, average.source) == ("params", "average")
    assert params.readers == ("jit(step)/average", "jit(step)/jvp(loss)/dot")
    assert average.readers == ("jit(step)/average",)


def test_every_form_of_operation_is_read():
    assert collectives(PROGRAM) == [
        Collective("all-gather", ((8, 4),), 64, 5, 4, ""),
        Collective("reduce-scatter", ((2, 4),), 128, 1, 4, ""),
        Collective("all-reduce", ((3,), (5,)), 32, 1, 2, "jit(step)/sum"),
        Collective("all-gather", ((16,),), 64, 1, 8, ""),
    ]
    totals = by_kind(collectives(PROGRAM))
    assert totals["all-gather"] == {
        "operations": 6,
        "payload_bytes": 5 * 64 + 64,
        "sent_bytes": 5 * 64 * 3 / 4 + 64 * 7 / 8,
    }
    assert totals["all-reduce"]["sent_bytes"] == 2 * 32 / 2
    assert totals["reduce-scatter"]["sent_bytes"] == 128 * 3 / 4


# As XLA's GPU compiler (jax-cuda12-pjrt 0.10.2) writes it: operands in front of the results.
GPU = """ENTRY %main (p: f32[2,4]) -> f32[2,4] {
  %rss = ((bf16[8,4]{1,0}, bf16[16]{0}), (bf16[1,4]{1,0}, bf16[2]{0})) reduce-scatter-start(%a, %b), replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, dimensions={0}
  %ags = ((bf16[3,4]{1,0}, bf16[2]{0}), (bf16[24,4]{1,0}, /*index=1*/bf16[16]{0})) all-gather-start(%c, %d), replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, dimensions={0}
  %ars = bf16[5]{0} all-reduce-start(%e), replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}
  %rsd = (bf16[1,4]{1,0}, bf16[2]{0}) reduce-scatter-done(%rss)
}
"""  # noqa: E501


def test_a_gpu_s_asynchronous_operations_count_their_results_alone():
    assert collectives(GPU) == [
        Collective("reduce-scatter", ((1, 4), (2,)), 2 * (8 * 4 + 16), 1, 8, ""),
        Collective("all-gather", ((24, 4), (16,)), 2 * (24 * 4 + 16), 1, 8, ""),
        Collective("all-reduce", ((5,),), 10, 1, 8, ""),
    ]


@pytest.fixture(scope="module")
def on_tpu():
    """The context encoder's two loops of ViT-H/14's step, 32 x 8 v5e chips over data and fsdp.

    Recorded from the TPU's compiler (libtpu 0.0.42.1), and cut down to what concerns collectives.
    """
    return collectives((REPOSITORY / "tests" / "data" / "tpu_program.txt").read_text())


def test_a_tpu_s_fused_gathers_count_once_and_its_loops_run_once_a_layer(on_tpu):
    depth, width, bfloat16 = 32, 1280, 2
    kernels = bfloat16 * 12 * width**2  # queries, keys, values, projection, MLP: 3 + 1 + 4 + 4
    assert payload(on_tpu, "all-gather") == 2 * depth * kernels  # forward and backward
    assert {one.times for one in on_tpu} == {depth}
    assert all(one.kind != "all-gather" or one.group == 8 for one in on_tpu)


def test_a_tpu_s_fused_reduce_scatter_is_known_as_one(on_tpu):
    depth, width, bfloat16 = 32, 1280, 2
    # The slices of 160 rows, of 1280 / 8, are padded to 168 in the MLP's two; and the projection's
    # gradient is the compiler's choice to reduce whole.
    padded = 8 * 168 * 4 * width
    scattered = bfloat16 * (3 * width**2 + 2 * padded)
    assert payload(on_tpu, "reduce-scatter") == depth * scattered
    shapes = {one.shapes for one in on_tpu if one.kind == "reduce-scatter"}
    assert shapes == {((160, 3, 16, 80),), ((168, 5120),), ((5120, 168),)}
    within_host = [one for one in on_tpu if one.kind == "all-reduce" and one.group == 8]
    assert payload(within_host, "all-reduce") == depth * bfloat16 * width**2
    # What fsdp has scattered is then summed over data.
    over_data = [one for one in on_tpu if one.kind == "all-reduce" and one.group == 32]
    assert payload(over_data, "all-reduce") == depth * bfloat16 * 12 * width**2 // 8


def test_a_tpu_s_permutation_sends_its_operand_and_not_its_semaphores(on_tpu):
    moved = [one for one in on_tpu if one.kind == "collective-permute"]
    assert sorted(one.shapes for one in moved) == [((56, 5120),), ((5120, 56),)]
    assert all(one.payload == 2 * 56 * 5120 for one in moved)
