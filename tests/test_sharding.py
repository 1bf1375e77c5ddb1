import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_config_file

from jepa_jax.config import MeshConfig, resolve
from jepa_jax.errors import UserError
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.setup import set_up
from jepa_jax.training.sharding import batch_sharding, check_divisible, local_rows, make_mesh


def mesh_config(data, fsdp, tensor):
    return MeshConfig(data=data, fsdp=fsdp, tensor=tensor)


STEPS = 10


@pytest.fixture(scope="module")
def config():
    config = load_config_file("fashion_mnist")
    config.batch_size = 8
    config.data.image_size = (12, 16)  # a 3 x 4 grid
    config.model.update({"embed_dim": 16, "depth": 2, "num_heads": 8})
    config.compute.scan_layers = True
    config.objective.predictor.update({"embed_dim": 8, "depth": 1, "num_heads": 8})
    config.objective.masks.context_tokens = 4
    # Adam's first steps divide gradients by their own size; a large eps keeps rounding small.
    config.optimizer.eps = 1e-3
    return resolve(config)


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)

    def batch():
        patches = np.stack([rng.permutation(12) for _ in range(8)])
        return {
            "image": rng.normal(size=(8, 12, 16, 3)).astype(np.float32),
            "context_index": np.sort(patches[:, :4]).astype(np.int32),  # [B, K]
            "target_index": np.sort(patches[:, 4:].reshape(8, 2, 4)).astype(np.int32),  # [B, M, T]
        }

    return [batch() for _ in range(STEPS)]


@pytest.fixture(scope="module")
def make_step(config):
    """Optimizer and compiled step of a mesh, compiled once each."""
    made = {}

    def make(mesh, accumulation_steps=1):
        key = (mesh, accumulation_steps)
        if key not in made:
            changed_config = changed(config, "optimizer", accumulation_steps=accumulation_steps)
            objective = make_objective(config)
            setup = set_up(changed_config, objective, steps_per_epoch=STEPS, mesh=mesh)
            made[key] = (setup.create, setup.like, setup.step)
        return made[key]

    return make


def take_steps(step, state, batches, mesh):
    """The losses of some steps, and the state after them."""
    losses = []
    for batch in batches:
        state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
        losses.append(float(metrics["loss"]))
    return losses, state


def train(make_step, mesh, batches, accumulation_steps=1):
    """The losses of ten steps, and the states before and after them."""
    create, _, step = make_step(mesh, accumulation_steps)
    start = create()
    losses, state = take_steps(step, jax.tree.map(jnp.copy, start), batches, mesh)
    return losses, start, state


@pytest.fixture(scope="module")
def on_one_device(make_step, one_device, batches):
    return train(make_step, one_device, batches)


@pytest.fixture(
    scope="module",
    params=[((8, 1, 1), 1), ((2, 4, 1), 1), ((2, 2, 2), 2), ((1, 1, 8), 1)],
    ids=["data 8", "2 x fsdp 4", "2 x 2 x 2 in two micro-batches", "tensor 8"],
)
def on_eight_devices(request, make_step, batches):
    (data, fsdp, tensor), accumulation_steps = request.param
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))
    return mesh, train(make_step, mesh, batches, accumulation_steps)


def test_every_mesh_starts_from_the_same_parameters(on_one_device, on_eight_devices):
    _, (_, start, _) = on_eight_devices
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), start, on_one_device[1])


def test_every_mesh_takes_the_same_steps(on_one_device, on_eight_devices):
    _, (losses, _, state) = on_eight_devices
    np.testing.assert_allclose(losses, on_one_device[0], rtol=1e-5)
    assert len(set(losses)) == STEPS
    chex.assert_trees_all_close(state, on_one_device[2], rtol=1e-5, atol=1e-5)
    _, before, after = jax.device_get(on_one_device)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, before.params)
    assert max(jax.tree.leaves(moved)) > 1e-3  # what is compared has changed by far more


@pytest.mark.parametrize(
    ("before", "after"),
    [((8, 1, 1), None), (None, (8, 1, 1)), ((2, 4, 1), (4, 2, 1))],
    ids=["8 to 1", "1 to 8", "2 x 4 to 4 x 2"],
)
def test_case_16_a_checkpoint_goes_on_on_another_mesh(
    before, after, config, make_step, one_device, on_one_device, batches, tmp_path
):
    def mesh_of(shape):
        return make_mesh(mesh_config(*shape)) if shape else one_device

    create, _, step = make_step(mesh_of(before))
    first, state = take_steps(step, create(), batches[:5], mesh_of(before))
    manager = checkpoint.make_manager(tmp_path, config)
    checkpoint.save(manager, state, config, make_objective(config))
    manager.close()

    _, like, step = make_step(mesh_of(after))
    state = checkpoint.restore(checkpoint.find(tmp_path), like, make_objective(config))
    second, state = take_steps(step, state, batches[5:], mesh_of(after))
    np.testing.assert_allclose(first + second, on_one_device[0], rtol=1e-5)
    chex.assert_trees_all_close(state, on_one_device[2], rtol=1e-5, atol=1e-5)


def test_creating_the_state_needs_little_more_than_a_share(config):
    config = changed(config, "model", embed_dim=256, depth=4)
    mesh, objective = make_mesh(MeshConfig(data=1, fsdp=8, tensor=1)), make_objective(config)
    create = set_up(config, objective, steps_per_epoch=10, mesh=mesh).create
    arrays = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(create))]
    memory = create.lower().compile().memory_analysis()
    assert memory.output_size_in_bytes < 1.1 * sum(arrays) / 8
    # No whole copy of even the largest array exists on the way.
    assert memory.temp_size_in_bytes < max(arrays)


# Which dimensions of an encoder's arrays are divided: by fsdp, by tensor.
SPLIT = {
    ("patch_embed", "kernel"): (1, None),  # [p * p * C, D]
    ("attention", "qkv", "kernel"): (1, 3),  # [L, D, 3, heads, head_dim]
    ("attention", "qkv", "bias"): (None, 2),  # [L, 3, heads, head_dim]
    ("attention", "proj", "kernel"): (3, 1),  # [L, heads, head_dim, D]
    ("mlp", "fc1", "kernel"): (1, 2),  # [L, D, hidden]
    ("mlp", "fc1", "bias"): (None, 1),  # [L, hidden]
    ("mlp", "fc2", "kernel"): (2, 1),  # [L, hidden, D]
    ("mlp", "fc2", "bias"): (None, None),  # [L, D]
}


def test_parameters_moments_and_the_average_are_divided_from_start_to_end(on_eight_devices):
    mesh, (_, start, end) = on_eight_devices
    for state in (start, end):
        adam = state.optimizer_state[0]
        encoders = (
            state.params["encoder"],
            adam.mu["encoder"],
            adam.nu["encoder"],
            state.objective_state.target,
        )
        for encoder in encoders:
            for path, (fsdp, tensor) in SPLIT.items():
                leaf = encoder if path[0] == "patch_embed" else encoder["transformer"]["blocks"]
                for name in path:
                    leaf = leaf[name]
                expected = list(leaf.shape)
                if fsdp is not None:
                    expected[fsdp] //= mesh.shape["fsdp"]
                if tensor is not None:
                    expected[tensor] //= mesh.shape["tensor"]
                shapes = {shard.data.shape for shard in leaf.addressable_shards}
                assert shapes == {tuple(expected)}, path
                assert len(leaf.addressable_shards) == 8


def test_a_device_holds_its_share_of_the_state(on_eight_devices):
    mesh, (_, _, state) = on_eight_devices
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    here = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    shares = mesh.shape["fsdp"] * mesh.shape["tensor"]
    # At this width LayerNorm and biases, which are kept whole, are a tenth of the parameters.
    assert 1 / shares <= here / whole <= 1 / shares + 0.15


def test_the_batch_is_divided_over_data_and_fsdp(batches):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    image = jax.device_put(batches[0]["image"], batch_sharding(mesh))
    assert {shard.data.shape for shard in image.addressable_shards} == {(2, 12, 16, 3)}
    assert len({shard.index[0].start for shard in image.addressable_shards}) == 4


def test_none_takes_the_devices_that_the_other_axes_leave():
    for given, shape in (
        ((None, 1, 1), (8, 1, 1)),
        ((None, 2, 2), (2, 2, 2)),
        ((None, 1, 8), (1, 1, 8)),
    ):
        mesh = make_mesh(mesh_config(*given))
        assert tuple(mesh.shape.values()) == shape
        assert mesh.axis_names == ("data", "fsdp", "tensor")


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ((4, 1, 1), "data 4, .* number of devices, 8; set data to 8, or to None"),
        ((16, 1, 1), "data 16, .* set data to 8"),
        ((2, 2, 4), "data 2, fsdp 2, tensor 4: .* set data to 1"),
        ((None, 3, 1), "fsdp x tensor = 3 must divide the number of devices, 8; 2 and 4 do"),
        ((None, 8, 2), "fsdp x tensor = 16 must divide the number of devices, 8; 8 do"),
    ],
)
def test_case_18_a_mesh_of_another_number_of_devices_is_refused_in_one_line(axes, says):
    with pytest.raises(UserError, match=rf"^config\.mesh = .*{says}") as error:
        make_mesh(mesh_config(*axes))
    assert "\n" not in str(error.value)


def changed(config, section, **fields):
    """With other fields of a section; "objective.predictor" is one within another."""
    outer, _, inner = section.partition(".")
    if inner:
        fields = {inner: dataclasses.replace(getattr(getattr(config, outer), inner), **fields)}
    return dataclasses.replace(
        config, **{outer: dataclasses.replace(getattr(config, outer), **fields)}
    )


def check(config, mesh):
    params = jax.eval_shape(make_objective(config).init, jax.random.key(0))
    steps = config.optimizer.accumulation_steps
    check_divisible(params, mesh, batch_size=config.batch_size, accumulation_steps=steps)


@pytest.mark.parametrize(
    ("batch_size", "accumulation_steps", "nearest"),
    [(6, 1, "4 or 8"), (12, 2, "8 or 16"), (3, 1, "4"), (9, 4, "16")],
)
def test_case_19_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(
    config, batch_size, accumulation_steps, nearest
):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))  # four shares
    config = changed(config, "optimizer", accumulation_steps=accumulation_steps)
    with pytest.raises(UserError) as error:
        check(dataclasses.replace(config, batch_size=batch_size), mesh)
    message = str(error.value)
    assert message.startswith(
        f"config.batch_size = {batch_size}: must be a multiple of {4 * accumulation_steps} "
    )
    assert f", {nearest} for example" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("section", "fields", "says"),
    [
        (
            "model",
            {"embed_dim": 24, "num_heads": 6},
            r"mesh.tensor = 4: must divide 6, of the shape .* of encoder/.*; 3 a",
        ),
        ("objective.predictor", {"num_heads": 2}, "mesh.tensor = 4: .* 2, .* predictor.*; 2 do"),
        ("model", {"mlp_ratio": 1.125}, "mesh.tensor = 4: .* 18, .*mlp/fc1.*; 3 and 6 do"),
    ],
)
def test_a_model_that_does_not_divide_is_refused_with_the_nearest_that_do(
    config, section, fields, says
):
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    with pytest.raises(UserError, match=rf"^config\.{says}"):
        check(changed(config, section, **fields), mesh)


def test_what_divides_is_accepted(config):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    config = changed(config, "optimizer", accumulation_steps=3)
    check(dataclasses.replace(config, batch_size=24), mesh)


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """As much of a device as building a mesh looks at."""

    id: int
    process_index: int
    slice_index: int
    platform: str
    device_kind: str = "fake"


@pytest.mark.parametrize(
    ("platform", "slices", "mesh"),
    # TPU slices of four devices, and hosts of four GPUs: the outer network is crossed by data only.
    [
        ("other", 2, (4, 2, 1)),
        ("other", 2, (2, 2, 2)),
        ("gpu", 1, (2, 1, 4)),
        ("gpu", 1, (2, 4, 1)),
    ],
)
def test_fsdp_and_tensor_stay_within_a_slice_or_host(platform, slices, mesh):
    # In the order of devices, neighbours are in different groups.
    devices = [FakeDevice(i, i % 2, i % 2 if slices > 1 else 0, platform) for i in range(8)]
    array = make_mesh(MeshConfig(data=mesh[0], fsdp=mesh[1], tensor=mesh[2]), devices).devices
    assert sorted(device.id for device in array.flat) == list(range(8))
    groups = np.vectorize(lambda device: device.process_index)(array)
    assert (groups == groups[:, :1, :1]).all()
    assert len(np.unique(groups)) == 2


def test_each_process_needs_the_rows_that_its_devices_hold():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    np.testing.assert_array_equal(local_rows(mesh, 12), np.arange(12))
