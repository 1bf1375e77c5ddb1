"""Published checkpoints to Orbax and back, judged by the recording and by PyTorch."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY, ijepa_loss
from reference_trace import Trace, config_of

from jepa_jax.config import resolve
from jepa_jax.config.files import load_config
from jepa_jax.convert import official_to_orbax, orbax_to_official
from jepa_jax.encoder import load_encoder
from jepa_jax.errors import UserError
from jepa_jax.interop.converted import read_source
from jepa_jax.interop.official import parameter_groups
from jepa_jax.objectives.ijepa import target_tokens
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training import checkpoint
from jepa_jax.training.items import read_item
from jepa_jax.training.resume import check_resumable
from jepa_jax.training.setup import set_up

torch = pytest.importorskip("torch")
from benchmarks.torch_ijepa import TorchStep  # noqa: E402

TRACE = pathlib.Path(__file__).parent / "data" / "reference_tiny"
BASE = load_config(str(REPOSITORY / "configs" / "in1k_vith14_ep300.py"), [])


def to_orbax(source, destination, **options):
    defaults = {
        "base": BASE,
        "base_is_given": False,
        "num_heads": 3,
        "allow_partial": False,
        "network": None,
    }
    return official_to_orbax(source, destination, **(defaults | options))


def read(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def trace():
    return Trace(TRACE)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Both recorded checkpoints as workdirs."""
    folder = tmp_path_factory.mktemp("converted")
    results = {
        name: to_orbax(TRACE / f"{name}.pth.tar", folder / name) for name in ("start", "end")
    }
    return folder, results


@pytest.fixture
def content():
    """The last recorded checkpoint, to be changed."""
    return read(TRACE / "end.pth.tar")


def assert_same(ours, theirs, where="file"):
    """The same keys in the same order, the same plain values, the same bytes of tensors."""
    assert type(ours) is type(theirs), where
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs), where
        for name in theirs:
            assert_same(ours[name], theirs[name], f"{where}/{name}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    elif isinstance(theirs, torch.Tensor):
        assert ours.dtype == theirs.dtype, where
        assert ours.shape == theirs.shape, where
        assert ours.numpy().tobytes() == theirs.contiguous().numpy().tobytes(), where
    else:
        assert ours == theirs, where


@pytest.mark.parametrize("name", ["start", "end"])
def test_there_and_back_every_tensor_has_the_same_bytes(converted, tmp_path, name):
    """All of it: networks, drifted positions, moments, steps, options, epoch."""
    orbax_to_official(converted[0] / name, tmp_path / "back.pth.tar", epoch=None)
    assert_same(read(tmp_path / "back.pth.tar"), read(TRACE / f"{name}.pth.tar"))


def test_names_without_prefix_stay_without(content, tmp_path):
    for network in ("encoder", "predictor", "target_encoder"):
        content[network] = {k.removeprefix("module."): v for k, v in content[network].items()}
    torch.save(content, tmp_path / "bare.pth.tar")
    to_orbax(tmp_path / "bare.pth.tar", tmp_path / "ours")
    orbax_to_official(tmp_path / "ours", tmp_path / "back.pth.tar", epoch=None)
    assert_same(read(tmp_path / "back.pth.tar"), content)


def test_the_architecture_is_found_from_the_shapes(converted, trace):
    config = checkpoint.read_config(checkpoint.find(converted[0] / "end"))
    expected = config_of(trace)
    assert config.grid == expected.grid
    assert config.data.image_size == expected.data.image_size
    for part, names in (
        ("model", ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")),
        ("objective", ("predictor",)),
        ("optimizer", ("b1", "b2", "eps")),
    ):
        for name in names:
            assert getattr(getattr(config, part), name) == getattr(getattr(expected, part), name)
    assert config.batch_size == 4
    assert converted[1]["end"]["step"] == 6
    assert converted[1]["start"]["step"] == 0


def test_converted_networks_compute_what_was_recorded(converted, trace):
    """Outputs of both encoders at step 0; the predictor's, through the training objective."""
    images, arrays = trace.arrays["step0/image"], trace.arrays
    encode, params = load_encoder(converted[0] / "start")
    target = np.asarray(encode(params, images))
    np.testing.assert_allclose(target, arrays["target_encoder_output"], atol=1e-5)
    np.testing.assert_allclose(
        target_tokens(jnp.asarray(target)), arrays["target_normalised"], atol=1e-5
    )

    folder = checkpoint.find(converted[0] / "start")
    objective = make_objective(config_of(trace))
    like = jax.eval_shape(objective.init, jax.random.key(0))
    all_params = read_item(folder / "params", like)
    batch = {
        name: jnp.asarray(arrays[f"step0/{name}"])
        for name in ("image", "context_index", "target_index")
    }
    loss = jax.jit(ijepa_loss(objective))(all_params, params, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, arrays["step0/loss_smooth_l1"], rtol=1e-5)


def test_the_two_encoders_are_not_mixed_up(converted, trace):
    """After six steps they differ, and each is the one that was asked for."""
    for network in ("encoder", "target_encoder"):
        _, params = load_encoder(converted[0] / "end", network=network)
        recorded = trace.end[network]["blocks.1.mlp.fc1.weight"].T
        np.testing.assert_array_equal(
            params["transformer"]["blocks"]["mlp"]["fc1"]["kernel"][1], recorded
        )


def test_pytorch_takes_the_optimizer_and_steps_on(converted, tmp_path):
    """Groups built by the published rule; PyTorch checks their number, sizes and moments."""
    orbax_to_official(converted[0] / "end", tmp_path / "back.pth.tar", epoch=7)
    content = read(tmp_path / "back.pth.tar")
    assert content["epoch"] == 7
    named = [list(content[network].items()) for network in ("encoder", "predictor")]
    groups = [
        [p for n, p in of_network if ("bias" in n or p.ndim == 1) == excluded]
        for excluded in (False, True)
        for of_network in named
    ]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups])
    optimizer.load_state_dict(content["opt"])
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if state:  # all but the fixed positions
                assert state["exp_avg"].shape == parameter.shape
                assert state["step"] == 6
            parameter.grad = torch.zeros_like(parameter) if state else None
    optimizer.step()
    assert {int(s["step"]) for s in optimizer.state.values() if s} == {7}


def test_an_optimizer_before_its_first_step_has_moments_of_zero(converted, one_device):
    """PyTorch has no entries for it then. Whatever was in memory would be trained on."""
    folder = checkpoint.find(converted[0] / "start")
    config = checkpoint.read_config(folder)
    objective = make_objective(config)
    like = set_up(config, objective, steps_per_epoch=10, mesh=one_device).like
    state = checkpoint.restore(folder, like, objective)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(state.optimizer_state))


def test_our_own_run_is_written_in_the_published_form(tiny, tmp_path, one_device):
    """PyTorch modules with the published names load it, every name, and compute the same.

    A first moment in bfloat16 becomes what the file has, float32.
    """
    tiny.optimizer.first_moment_dtype = "bfloat16"
    config = resolve(tiny)
    objective = make_objective(config)
    state = set_up(config, objective, steps_per_epoch=10, mesh=one_device).create()
    adam = jax.tree.map(
        lambda x: jnp.full_like(x, 0.3) if x.dtype == jnp.bfloat16 else x, state.optimizer_state
    )
    state = state._replace(step=state.step + 2, optimizer_state=adam)
    manager = checkpoint.make_manager(tmp_path / "run", config)
    checkpoint.save(manager, state, config, objective)
    manager.wait_until_finished()
    manager.close()
    orbax_to_official(tmp_path / "run", tmp_path / "ours.pth.tar", epoch=None)

    content = read(tmp_path / "ours.pth.tar")
    assert all(name.startswith("module.") for name in content["encoder"])
    assert len(content["opt"]["state"]) == sum(map(len, parameter_groups(config))) - 2
    for entry in content["opt"]["state"].values():
        assert entry["exp_avg"].dtype == torch.float32
        assert (entry["exp_avg"] == float(jnp.bfloat16(0.3))).all()
    names = ("encoder", "predictor", "target_encoder")
    judge = TorchStep(config, "published", device="cpu")
    judge.load({n: {k[len("module.") :]: v for k, v in content[n].items()} for n in names})
    images = np.random.default_rng(0).normal(size=(2, 28, 28, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = judge.target_encoder(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    encode, params = load_encoder(tmp_path / "run")
    np.testing.assert_allclose(encode(params, images), theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["encoder"].pop("module.blocks.1.attn.qkv.bias"),
            r"encoder: missing: blocks\.1\.attn\.qkv\.bias",
        ),
        (
            lambda c: c["predictor"].update({"module.extra": torch.zeros(2)}),
            r"predictor: unexpected: extra",
        ),
        (
            lambda c: c["target_encoder"].update({"module.norm.weight": torch.zeros(47)}),
            r"target_encoder: misshapen: norm\.weight \(47,\), which must be \(48,\)",
        ),
        (
            lambda c: c["predictor"].pop("module.predictor_pos_embed"),
            r"missing: predictor_pos_embed",
        ),
        (
            lambda c: c["encoder"]["module.pos_embed"].add_(0.02),
            r"pos_embed differs from the sine-cosine",
        ),
        (
            lambda c: c.pop("encoder") and c.pop("target_encoder"),
            r"holds no encoder; its keys are predictor",
        ),
        (lambda c: c["opt"]["param_groups"].pop(), r"opt: has parameter groups of \[14, 12, 27\]"),
        (
            lambda c: c["opt"]["state"].pop(1),
            r"opt: no moments of encoder's patch_embed\.proj\.weight",
        ),
        (
            lambda c: c["opt"]["state"][1].update(step=torch.tensor(5.0)),
            r"different numbers of steps",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_refused(content, tmp_path, change, message):
    change(content)
    torch.save(content, tmp_path / "changed.pth.tar")
    with pytest.raises(UserError, match=message) as error:
        to_orbax(tmp_path / "changed.pth.tar", tmp_path / "ours")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["changed.pth.tar"]


def test_allow_partial_takes_what_fits(content, tmp_path, converted):
    weight = content["target_encoder"].pop("module.blocks.0.mlp.fc2.weight")
    content["target_encoder"]["module.head.weight"] = torch.zeros(3)
    del content["opt"]
    torch.save(content, tmp_path / "part.pth.tar")
    to_orbax(tmp_path / "part.pth.tar", tmp_path / "ours", allow_partial=True)
    folder = checkpoint.find(tmp_path / "ours")
    partial = read_source(folder)["partial"]
    assert partial == {
        "target_encoder": ["missing: blocks.0.mlp.fc2.weight", "unexpected: head.weight"]
    }
    _, params = load_encoder(tmp_path / "ours")
    _, whole = load_encoder(converted[0] / "end")
    same = jax.tree.map(lambda a, b: bool((a == b).all()), params, whole)
    kernel = params["transformer"]["blocks"]["mlp"]["fc2"]["kernel"]
    assert same["transformer"]["blocks"]["mlp"]["fc2"].pop("kernel") is False
    assert all(jax.tree.leaves(same))
    np.testing.assert_array_equal(
        kernel[1], whole["transformer"]["blocks"]["mlp"]["fc2"]["kernel"][1]
    )
    assert 0.015 < np.std(kernel[0]) < 0.025  # its random initialisation
    assert not np.allclose(kernel[0], weight.numpy().T)


def test_without_an_optimizer_training_is_refused_and_a_probe_is_not(content, tmp_path):
    del content["opt"]
    torch.save(content, tmp_path / "a.pth.tar")
    assert to_orbax(tmp_path / "a.pth.tar", tmp_path / "ours")["step"] is None
    folder = checkpoint.find(tmp_path / "ours")
    with pytest.raises(UserError, match=r"holds no optimizer state"):
        check_resumable(folder, checkpoint.read_config(folder))
    load_encoder(tmp_path / "ours")


def test_a_bare_state_dict_is_the_encoder_that_it_is_said_to_be(content, tmp_path):
    torch.save(content["encoder"], tmp_path / "vit.pth")
    assert to_orbax(tmp_path / "vit.pth", tmp_path / "a")["networks"] == ["encoder"]
    assert load_encoder(tmp_path / "a")[0].network == "encoder"  # there is no other
    with pytest.raises(UserError, match=r"holds only the encoder"):
        load_encoder(tmp_path / "a", network="target_encoder")
    options = {"network": "target_encoder"}
    assert to_orbax(tmp_path / "vit.pth", tmp_path / "b", **options)["networks"] == [
        "target_encoder"
    ]
    load_encoder(tmp_path / "b")
    orbax_to_official(tmp_path / "b", tmp_path / "back.pth.tar", epoch=None)
    assert_same(read(tmp_path / "back.pth.tar")["target_encoder"], content["encoder"])


def test_a_bare_state_dict_may_have_learned_positions(content, tmp_path):
    state = {name.removeprefix("module."): x for name, x in content["encoder"].items()}
    state["pos_embed"] = torch.rand(1, 64, 48)
    torch.save(state, tmp_path / "vit.pth")
    to_orbax(tmp_path / "vit.pth", tmp_path / "ours")
    _, params = load_encoder(tmp_path / "ours", network="encoder")
    np.testing.assert_array_equal(params["pos_embed"], state["pos_embed"][0])
    with pytest.raises(UserError, match=r"positions = learned; the reference knows only"):
        orbax_to_official(tmp_path / "ours", tmp_path / "back.pth.tar", epoch=None)


def test_heads_are_asked_for_where_no_shape_and_no_published_width_tells(tmp_path):
    with pytest.raises(UserError, match=r"--num-heads: is needed, since no published model is 48"):
        to_orbax(TRACE / "end.pth.tar", tmp_path / "ours", num_heads=None)
    with pytest.raises(UserError, match=r"num_heads = 5: must divide"):
        to_orbax(TRACE / "end.pth.tar", tmp_path / "ours", num_heads=5)


def test_what_exists_is_not_overwritten(tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "precious").touch()
    with pytest.raises(UserError, match=r"already exists"):
        to_orbax(TRACE / "end.pth.tar", tmp_path / "ours")
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["precious"]
