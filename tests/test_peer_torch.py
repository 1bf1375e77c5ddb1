"""The PyTorch peers compute what ours computes, and the command that compares them is fair.

The two forms take the recorded steps of the reference again, and a step beside ours.
"""

import json
import pathlib
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY, load_config_file
from reference_trace import Trace, config_of

from jepa_jax.config import resolve
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.setup import set_up
from jepa_jax.training.state import TrainState

torch = pytest.importorskip("torch")

from benchmarks import peer_torch, train_step  # noqa: E402
from benchmarks.torch_ijepa import TorchStep, from_ours, target_tokens  # noqa: E402

FORMS = ["published", "best"]  # best runs eagerly: compiling five sizes would take a minute
TRACE = pathlib.Path(__file__).parent / "data" / "reference_tiny"


def load_networks(name):
    checkpoint = torch.load(TRACE / name, map_location="cpu", weights_only=True)
    return {
        network: {key.removeprefix("module."): x for key, x in checkpoint[network].items()}
        for network in ("encoder", "predictor", "target_encoder")
    }


@pytest.fixture(scope="module")
def trace():
    return Trace(TRACE)


def trace_batch(trace, step):
    names = ("image", "context_index", "target_index")
    return {name: trace.arrays[f"step{step}/{name}"] for name in names}


@pytest.mark.parametrize("form", FORMS)
def test_a_peer_replays_the_recorded_steps(trace, form):
    peer = TorchStep(config_of(trace), form, device="cpu", compile_mode=None)
    start, end = load_networks("start.pth.tar"), load_networks("end.pth.tar")
    peer.load(start)

    batch = peer.to_device(trace_batch(trace, 0))
    with torch.no_grad():
        target = peer.target_encoder(batch["image"])
        context = peer.encoder(batch["image"], batch["context_index"])
        prediction = peer.predictor(context, batch["context_index"], batch["target_index"])
    outputs = {
        "target_encoder_output": target,
        "target_normalised": target_tokens(target),
        "context_encoder_output": context,
        "predictor_output": prediction,
    }
    for name, output in outputs.items():
        np.testing.assert_allclose(output, trace.arrays[name], rtol=0, atol=1e-5, err_msg=name)

    for step in range(trace.meta["steps"]):
        given = {
            name: float(trace.arrays[f"step{step}/{name}"])
            for name in ("lr", "weight_decay", "momentum")
        }
        loss = peer.step(peer.to_device(trace_batch(trace, step)), **given)
        recorded = trace.arrays[f"step{step}/loss_smooth_l1"]
        np.testing.assert_allclose(loss, recorded, rtol=1e-6, err_msg=f"step {step}")

    for network, module in peer.networks().items():
        state = module.state_dict()
        for name in dict(module.named_parameters()):
            before, after = start[network][name], end[network][name]
            deviation = (state[name] - after).abs().max()
            assert deviation <= 1e-5, (network, name)
            assert deviation <= 2e-3 * (after - before).abs().max(), (network, name)


def random_params(objective):
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(
        structure, [jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32) for x in leaves]
    )


@pytest.fixture(scope="module")
def case(one_device):
    """A step of ours on a grid that is not square: configuration, batch, states, metrics.

    With a large epsilon, gradients that are 0 but for rounding change nothing.
    """
    config = load_config_file("fashion_mnist")
    config.batch_size = 3
    config.data.image_size = (28, 21)
    config.model.update({"patch_size": 7, "embed_dim": 16, "depth": 2, "num_heads": 2})
    config.objective.predictor.update({"embed_dim": 8, "depth": 2, "num_heads": 2})
    config.objective.masks.update({"context_tokens": 4, "num_targets": 2})
    config.optimizer.update({"eps": 1e-3, "weight_decay": 0.4})
    config.objective.ema.start_momentum = 0.9
    config = resolve(config)
    batch = train_step.make_batch(config, 2)

    objective = make_objective(config)
    setup = set_up(config, objective, steps_per_epoch=10, mesh=one_device, donate=False)
    params = random_params(objective)
    before = TrainState(
        step=jnp.zeros([], jnp.int32),
        params=params,
        optimizer_state=setup.optimizer.init(params),
        objective_state=objective.state(setup.schedules.horizon).init(params),
    )
    after, metrics = setup.step(before, batch)
    return config, batch, jax.device_get((before, after)), jax.device_get(metrics)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_of_a_peer_is_a_step_of_ours(case, form):
    config, batch, (before, after), metrics = case
    peer = TorchStep(config, form, device="cpu", compile_mode=None)
    peer.load(from_ours(before.params, config))
    given = {name: float(metrics[name]) for name in ("lr", "weight_decay", "momentum")}
    loss = peer.step(peer.to_device(batch), **given)

    np.testing.assert_allclose(loss, metrics["loss"], rtol=1e-5)
    expected = from_ours(after.params, config)
    target = after.params | {"encoder": after.objective_state.target}
    expected["target_encoder"] = from_ours(target, config)["encoder"]
    for network, module in peer.networks().items():
        for name, parameter in module.state_dict().items():
            np.testing.assert_allclose(
                parameter, expected[network][name], rtol=0, atol=2e-6, err_msg=f"{network}.{name}"
            )


def test_the_best_form_is_compiled_as_a_whole(case):
    """The graph that is compiled, run by PyTorch's own operators: writing C++ takes a minute."""
    config, batch, (before, _), _ = case
    gradients = []
    for backend in (None, "aot_eager"):
        peer = TorchStep(config, "best", device="cpu", compile_mode=None)
        peer.load(from_ours(before.params, config))
        loss = peer.loss
        if backend:
            loss = torch.compile(loss, fullgraph=True, backend=backend)
        value = loss(peer.to_device(batch))
        value.backward()
        gradients.append([value.detach(), *(parameter.grad for parameter in peer.trained)])
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-6)


ARGUMENTS = ["--size", "ti", "--image-size", "32", "--patch-size", "8", "--batch-size", "2"]
ARGUMENTS += ["--dtype", "float32", "--rounds", "1", "--steps", "1"]


def test_the_command_compares_processes(monkeypatch, tmp_path):
    """Two of the three, for time: the other form is another word in the same request."""
    monkeypatch.setattr(peer_torch, "CONTENDERS", ("ours", "best"))
    (tmp_path / "tensorflow.py").write_text("raise ImportError('a GPU machine has none')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("sys.argv", ["peer_torch", *ARGUMENTS])
    arguments = peer_torch.parse_arguments()
    arguments.cpu_devices = 2
    arguments.compile_mode = None  # eagerly: compiling twelve blocks takes a minute on one core
    result = json.loads(json.dumps(peer_torch.run(arguments)))
    ours, best = (result["contenders"][name] for name in ("ours", "best"))
    np.testing.assert_allclose(best["first_losses"], ours["first_losses"], rtol=1e-4)
    assert np.ptp(ours["first_losses"]) > 0.1  # they were trained
    ratio = best["seconds_per_step"]["median"] / ours["seconds_per_step"]["median"]
    assert result["speed_of_ours_over"]["best"]["median"] == pytest.approx(ratio, rel=1e-2)
    assert result["versions"]["torch"] == torch.__version__


class StandIn:
    """A contender of known losses and speed."""

    losses: typing.ClassVar = {"ours": 1.0, "published": 1.0, "best": 1.0}
    order: typing.ClassVar = []

    def __init__(self, setup, environment):
        self.contender = setup.contender
        versions = {"jax" if self.contender == "ours" else "torch": "0"}
        self.description = {"versions": versions, "device": "cpu", "threads": 1}

    def ask(self, request):
        if request["timed"]:
            StandIn.order.append(self.contender)
        # The machine gets slower and slower: ratios within a round must not notice.
        seconds = {"ours": 1.0, "published": 2.0, "best": 0.5}[self.contender]
        count = request["untimed"] + request["timed"]
        return {
            "losses": [self.losses[self.contender]] * count,
            "seconds": seconds * request["timed"] * (1 + (len(StandIn.order) - 1) // 3),
            "device_peak_bytes": None,
            "process_peak_bytes": 2_000_000_000,
        }

    def end(self):
        pass


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(peer_torch, "Worker", StandIn)
    monkeypatch.setattr(StandIn, "order", [])
    monkeypatch.setattr("sys.argv", ["peer_torch", *ARGUMENTS, "--rounds", "3"])


def test_contenders_take_turns_and_ratios_are_of_one_round(stand_in, capsys):
    peer_torch.main()
    assert StandIn.order == [
        *("ours", "published", "best"),
        *("published", "best", "ours"),
        *("best", "ours", "published"),
    ]
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    assert result["speed_of_ours_over"]["published"]["rounds"] == [2.0, 2.0, 2.0]
    assert result["speed_of_ours_over"]["best"]["median"] == 0.5
    assert result["contenders"]["ours"]["seconds_per_step"] == {"median": 2.0, "lowest": 1.0}
    assert result["contenders"]["ours"]["images_per_second"] == 1.0
    rows = [line for line in printed.err.splitlines() if line.startswith("published")]
    assert rows == ["published       4.0000    2.0000      0.50    2.00   2.000 (2.000 to 2.000)"]


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_losses_that_disagree_end_with_status_1(stand_in, monkeypatch, wrong):
    monkeypatch.setitem(StandIn.losses, "best", wrong)
    with pytest.raises(SystemExit) as end:
        peer_torch.main()
    assert str(end.value).startswith("error: the losses disagree at step 0: best")  # status 1
    assert StandIn.order == []  # before any time is taken


def test_without_torch_it_says_what_to_install(stand_in, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        peer_torch.main()
    assert end.value.code == 2
    assert "pip install -r requirements-interop.txt" in capsys.readouterr().err
