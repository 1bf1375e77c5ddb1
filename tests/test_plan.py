"""`--plan`: what a run needs, against formulas worked out by hand, for eight devices."""

import json
import subprocess
import sys

import jax
import pytest
from conftest import REPOSITORY, load_config_file

from jepa_jax.config import resolve
from jepa_jax.errors import UserError
from jepa_jax.planning.chips import CHIPS
from jepa_jax.planning.devices import topology_devices, virtual_devices
from jepa_jax.planning.needs import plan, table
from jepa_jax.train import main as train_main

D, DEPTH, P, P_DEPTH, FLOAT = 64, 3, 32, 2, 4
IMAGES = 1000


def make_config(**mesh):
    config = load_config_file("fashion_mnist")
    config.epochs = 10
    config.batch_size = 16
    config.data.image_size = (16, 16)  # a 4 x 4 grid of 4 x 4 pixels
    config.model.update({"embed_dim": D, "depth": DEPTH, "num_heads": 8})
    config.objective.predictor.update({"embed_dim": P, "depth": P_DEPTH, "num_heads": 8})
    config.objective.masks.context_tokens = 6
    config.mesh.update(mesh)
    return resolve(config)


# Values of kernels, and of what is kept whole on every device: biases, LayerNorm, the mask vector.
KERNELS = {
    "encoder": 48 * D + DEPTH * 12 * D**2,
    "predictor": D * P + P_DEPTH * 12 * P**2 + P * D,
}
OTHERS = {
    "encoder": D + DEPTH * (3 * D + D + 4 * D + D + 4 * D) + 2 * D,
    "predictor": P + P_DEPTH * (3 * P + P + 4 * P + P + 4 * P) + 2 * P + D + P,
}


@pytest.fixture(scope="module")
def data_parallel():
    return plan(make_config(), jax.devices(), "v5e", num_images=IMAGES, mfu=0.4)


@pytest.fixture(scope="module")
def fsdp():
    return plan(make_config(fsdp=8), jax.devices(), "A100-80G", num_images=IMAGES)


def test_parameters_and_steps_are_counted(data_parallel):
    assert data_parallel["parameters"] == {
        part: KERNELS[part] + OTHERS[part] for part in ("encoder", "predictor")
    }
    assert data_parallel["steps"] == 10 * (IMAGES // 16)
    assert data_parallel["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(("name", "shares"), [("data_parallel", 1), ("fsdp", 8)])
def test_state_is_parameters_moments_and_average_with_kernels_divided(name, shares, request):
    needs = request.getfixturevalue(name)
    copies = {"encoder": 4, "predictor": 3}  # parameters, two moments; and the encoder's average
    expected = sum(
        copies[part] * FLOAT * (KERNELS[part] // shares + OTHERS[part]) for part in copies
    )
    counters = needs["state_bytes_per_device"] - expected
    assert 0 < counters <= 5 * FLOAT  # steps: the loop's, Adam's, three schedules'


def test_memory_is_the_state_the_batch_and_what_the_step_needs_in_between(data_parallel, fsdp):
    for needs in (data_parallel, fsdp):
        memory = needs["memory_per_device"]
        T = 4  # of the largest target block
        batch = 2 * (16 * 16 * 3 + FLOAT * (6 + 4 * T))  # two images of bytes per device
        arguments = needs["state_bytes_per_device"] + batch
        assert memory["arguments"] == pytest.approx(arguments, rel=0.01)
        # Metrics alone: the state is donated, and its place used again.
        assert memory["new_outputs"] < 0.01 * arguments
        assert memory["temporaries"] > 0
        assert memory["peak"] == sum(
            memory[name] for name in ("arguments", "new_outputs", "temporaries", "program")
        )
        assert memory["fits"] is True


def test_collectives_are_those_of_the_mesh(data_parallel, fsdp):
    gradients = FLOAT * sum(data_parallel["parameters"].values())
    moved = data_parallel["collectives_per_step"]
    assert moved.keys() == {"all-reduce"}
    assert moved["all-reduce"]["payload_bytes"] == pytest.approx(gradients, rel=0.01)
    assert moved["all-reduce"]["sent_bytes"] == pytest.approx(2 * 7 / 8 * gradients, rel=0.01)
    assert fsdp["collectives_per_step"]["all-gather"]["payload_bytes"] > FLOAT * KERNELS["encoder"]


def test_times_are_the_chip_s_limits(data_parallel):
    chip, needs = CHIPS["v5e"], data_parallel
    flops = 16 * sum(needs["flops_per_image"].values())
    assert needs["flops_per_step"] == pytest.approx(flops)
    at_least = needs["step_seconds_at_least"]
    assert at_least["compute"] == pytest.approx(flops / 8 / 197e12)
    sent = needs["collectives_per_step"]["all-reduce"]["sent_bytes"]
    assert needs["link_seconds_as_compiled"] == pytest.approx(sent / chip.link_bandwidth)
    assert "links" not in at_least  # not by what the CPU's compiler sends
    assert at_least["memory"] == pytest.approx(2 * needs["state_bytes_per_device"] / 819e9)
    steps = needs["steps"]
    assert needs["run_hours_at_least"] == pytest.approx(steps * max(at_least.values()) / 3600)
    slowest = max(at_least["compute"] / 0.4, at_least["memory"])
    assert needs["run_hours_at_mfu"] == pytest.approx(steps * slowest / 3600)
    assert needs["run_hours_at_peak_compute"] == pytest.approx(steps * at_least["compute"] / 3600)


def test_the_table_says_it_all_in_lines_that_fit_a_terminal(data_parallel, fsdp):
    text = table(data_parallel)
    for part in ("8 x v5e", "data 8, fsdp 1", "fits 17.18 GB", "all-reduce", "at 40% of the peak"):
        assert part in text
    assert "of the peak" not in table(fsdp)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("loop", [True, False])
def test_a_plan_for_tpus_says_that_unrolled_blocks_are_faster(data_parallel, loop):
    text = table(data_parallel | {"compiler": "tpu", "scan_layers": loop})
    assert ("--config.compute.scan_layers=False" in text) == loop
    assert max(map(len, text.splitlines())) <= 120
    assert "scan_layers" not in table(data_parallel)


def test_what_does_not_fit_is_said():
    needs = plan(make_config(), jax.devices(), "v5e", num_images=IMAGES)
    assert needs["memory_per_device"]["fits"]
    tiny = CHIPS["v5e"]._replace(memory=needs["memory_per_device"]["peak"] - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CHIPS, "tiny", tiny)
        needs = plan(make_config(), jax.devices(), "tiny", num_images=IMAGES)
        assert needs["memory_per_device"]["fits"] is False
        assert "DOES NOT FIT" in table(needs)


class OutOfMemory:
    """A jitted step of which the compiler finds that it does not fit."""

    def lower(self, state, batch):
        return self

    def compile(self, compiler_options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 19.29G of 15.75G hbm.\nDetails")


def test_a_compiler_that_gives_up_for_lack_of_memory_is_quoted(monkeypatch):
    monkeypatch.setattr("jepa_jax.training.setup.make_train_step", lambda *_, **__: OutOfMemory())
    needs = plan(make_config(), jax.devices(), "v5e", num_images=IMAGES)
    assert needs["memory_per_device"] == {
        "fits": False,
        "compiler_says": "Used 19.29G of 15.75G hbm.",
    }
    assert "DOES NOT FIT 17.18 GB: Used 19.29G" in table(needs)
    json.dumps(needs)


@pytest.mark.parametrize(
    ("mesh", "chip", "images", "mfu", "says"),
    [
        ({}, "v5x", IMAGES, None, r"--chip v5x: must be one of v4, v5e, "),
        ({}, "v5e", IMAGES, 40.0, r"--mfu 40.0: must be above 0 and at most 1"),
        ({}, "v5e", 15, None, r"config.batch_size = 16: the data set has only 15 images"),
        (
            {"fsdp": 3},
            "v5e",
            IMAGES,
            None,
            r"config.mesh = .* must divide the number of devices, 8",
        ),
        ({"tensor": 2, "data": 8}, "v5e", IMAGES, None, r"config.mesh = .*set data to 4"),
    ],
)
def test_mistakes_are_refused_in_one_line(mesh, chip, images, mfu, says):
    with pytest.raises(UserError, match=says) as error:
        plan(make_config(**mesh), jax.devices(), chip, num_images=images, mfu=mfu)
    assert "\n" not in str(error.value)


def test_a_topology_without_its_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--topology v5e:2x4: needs libtpu.*pip install libtpu$"):
        topology_devices("v5e:2x4")


def test_gpus_without_their_compiler_say_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    says = rf"--topology H100:8: needs JAX's CUDA plugin.*jax-cuda12-plugin=={jax.__version__}$"
    with pytest.raises(UserError, match=says):
        topology_devices("H100:8")


@pytest.mark.parametrize("shape", ["", ":", ":0", ":8x", ":x8", ":2x4x8", ":eight", ":-1"])
def test_gpus_are_told_by_hosts_and_number(shape):
    says = rf"--topology H100{shape}: must be NAME:GPUS of one host, .* as H100:4x8"
    with pytest.raises(UserError, match=says):
        topology_devices(f"H100{shape}")


@pytest.mark.parametrize("chip", ["A100-80G", "H100", "H200"])
def test_a_step_is_compiled_for_gpus_that_are_not_there(chip):
    pytest.importorskip("jax_cuda12_plugin")
    devices, name = topology_devices(f"{chip}:2x4")
    assert name == chip
    assert {device.device_kind for device in devices} == {CHIPS[chip].device_kind}
    found = plan(make_config(fsdp=4), devices, chip, num_images=IMAGES)
    assert (found["compiler"], found["devices"]) == ("gpu", 8)
    assert found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    assert found["memory_per_device"]["fits"]
    # What no CPU's program has: gradients are reduced and divided at once.
    assert {"all-gather", "reduce-scatter"} <= found["collectives_per_step"].keys()
    assert "compiled for GPU" in table(found)


def test_no_devices_are_refused():
    with pytest.raises(UserError, match="--devices 0: must be at least 1"):
        virtual_devices(0)


CONFIG = str(REPOSITORY / "configs" / "fashion_mnist.py")


def test_the_command_plans_for_devices_that_are_not_there():
    arguments = ["--plan", "--devices=32", "--images=10000", "--config.model.depth=1"]
    done = subprocess.run(
        [sys.executable, "-m", "jepa_jax.train", "--config", CONFIG, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    needs = json.loads(done.stdout)  # one line, and nothing else
    assert (needs["devices"], needs["mesh"]["data"], needs["chip"]) == (32, 32, "v5e")
    assert needs["steps"] == 24 * (10000 // 64)
    assert "32 x v5e" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--plan"], "--plan: needs either --devices N or --topology NAME:SHAPE"),
        (["--plan", "--devices=8", "--topology=v5e:2x4"], "--plan: needs either"),
        (["--plan", "--topology=v5e:2x4", "--chip=v5e"], "--chip v5e: --topology says which"),
        (["--devices=8"], "--devices goes with --plan"),
        (["--config.epochs=1"], "required: --workdir"),
    ],
)
def test_the_command_s_mistakes_are_one_line(arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--config", CONFIG, *arguments])
    with pytest.raises(SystemExit) as stop:
        train_main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
