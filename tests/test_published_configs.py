"""The recipes of the published runs: sizes, shapes, schedules, and the meshes that they run on."""

import dataclasses
import pathlib
import sys

import jax
import pytest
from conftest import REPOSITORY, load_config_file

from jepa_jax.batch.masks import MultiBlock, check_feasible
from jepa_jax.config import resolve
from jepa_jax.config.files import load_config
from jepa_jax.errors import UserError
from jepa_jax.objectives.ema import momentum_at
from jepa_jax.objectives.registry import make_objective
from jepa_jax.training.schedules import make_schedules
from jepa_jax.training.sharding import check_divisible, mesh_shape

IMAGENET_1K, IMAGENET_22K = 1_281_167, 14_197_122


@dataclasses.dataclass(frozen=True)
class Published:
    """What the paper says of a run: the encoder's parameters as it rounds them, and dimensions."""

    million_parameters: int
    patch: int
    width: int
    depth: int
    heads: int
    hidden: int  # of the MLP
    predictor_depth: int
    grid: int
    epochs: int
    warmup: int


RUNS = {
    "in1k_vitb16_ep600": Published(86, 16, 768, 12, 12, 3072, 6, 14, 600, 40),
    "in1k_vitl16_ep600": Published(303, 16, 1024, 24, 16, 4096, 12, 14, 600, 40),
    "in1k_vith14_ep300": Published(630, 14, 1280, 32, 16, 5120, 12, 16, 300, 40),
    "in1k_vith16_448_ep300": Published(630, 16, 1280, 32, 16, 5120, 12, 28, 300, 40),
    "in22k_vith14_ep66": Published(630, 14, 1280, 32, 16, 5120, 12, 16, 66, 3),
    "in22k_vitg16_ep44": Published(1011, 16, 1408, 40, 16, 6144, 16, 14, 44, 3),
}


@pytest.fixture(params=RUNS)
def name(request):
    return request.param


@pytest.fixture
def config(name):
    return resolve(load_config_file(name))


def test_no_published_run_is_forgotten_here():
    files = {path.stem for path in (REPOSITORY / "configs").glob("in*k_vit*.py")}
    assert files == RUNS.keys()  # those of other objectives: test_school_configs


def test_dimensions_are_the_published_ones(name, config):
    run, model, predictor = RUNS[name], config.model, config.objective.predictor
    assert (model.patch_size, model.embed_dim, model.depth) == (run.patch, run.width, run.depth)
    assert model.num_heads == predictor.num_heads == run.heads
    assert int(model.embed_dim * model.mlp_ratio) == run.hidden
    assert (predictor.embed_dim, predictor.depth) == (384, run.predictor_depth)
    assert config.grid == (run.grid, run.grid)
    assert (config.epochs, config.optimizer.warmup_epochs) == (run.epochs, run.warmup)
    assert (config.batch_size, config.compute.dtype) == (2048, "bfloat16")
    assert config.logging.knn_every_steps is None


def num_parameters(depth, width, hidden):
    attention = 4 * width * width + 4 * width
    mlp = 2 * width * hidden + hidden + width
    return (
        depth * (attention + mlp + 4 * width) + 2 * width
    )  # two LayerNorms a block, one at the end


def test_parameters_are_as_many_as_the_formula_says(name, config):
    run = RUNS[name]
    params = jax.eval_shape(make_objective(config).init, jax.random.key(0))
    count = {part: sum(x.size for x in jax.tree.leaves(tree)) for part, tree in params.items()}
    embed = 3 * run.patch**2 * run.width + run.width
    encoder = embed + num_parameters(run.depth, run.width, run.hidden)
    assert count["encoder"] == encoder
    assert encoder / 1e6 == pytest.approx(run.million_parameters, abs=1)
    ends = (run.width * 384 + 384) + (384 * run.width + run.width) + 384  # in, out, mask vector
    assert count["predictor"] == ends + num_parameters(run.predictor_depth, 384, 1536)


def test_nearly_all_mask_draws_leave_enough_context(config):
    # The context is what the worst of 128 draws leaves, on average.
    assert 0.96 < check_feasible(MultiBlock(config.objective.masks, config.grid)) < 1


def test_context_is_what_the_published_truncation_leaves(name, config):
    """About 0.26 of the patches at 14 x 14, rising a little on finer grids."""
    share = config.objective.masks.context_tokens / (config.grid[0] * config.grid[1])
    assert {14: 0.260, 16: 0.270, 28: 0.298}[RUNS[name].grid] == pytest.approx(share, abs=0.001)


def test_schedules_pass_through_the_published_values(name, config):
    images = IMAGENET_1K if name.startswith("in1k") else IMAGENET_22K
    epoch = images // config.batch_size
    assert epoch == {IMAGENET_1K: 625, IMAGENET_22K: 6932}[images]
    rate, decay, horizon = make_schedules(config, epoch)
    warmup, last = RUNS[name].warmup * epoch, config.epochs * epoch - 1
    assert float(rate(0)) == pytest.approx(2e-4, rel=1e-3)
    assert float(rate(warmup // 2)) == pytest.approx(6e-4, rel=1e-3)
    assert float(rate(warmup)) == pytest.approx(1e-3, rel=1e-6)
    assert float(rate(warmup)) > max(float(rate(warmup // 2)), float(rate(2 * warmup)))
    assert float(rate(last)) == pytest.approx(1e-6, rel=1e-3)
    assert float(decay(0)) == pytest.approx(0.04, rel=1e-3)
    assert float(decay(last // 2)) == pytest.approx(0.22, rel=1e-3)
    assert float(decay(last)) == pytest.approx(0.4, rel=1e-5)
    ema = config.objective.ema
    assert float(momentum_at(ema, 0, horizon)) == pytest.approx(0.996)
    assert float(momentum_at(ema, last, horizon)) == pytest.approx(1.0, abs=1e-6)


def test_the_masked_autoencoder_follows_the_recipe_of_its_paper():
    config = resolve(load_config_file("in1k_mae_vitb16_ep1600"))
    rate, decay, _ = make_schedules(config, epoch := IMAGENET_1K // config.batch_size)
    assert float(rate(40 * epoch)) == pytest.approx(1.5e-4 * 4096 / 256, rel=1e-6)
    assert float(rate(0)) == pytest.approx(2.4e-3 / (40 * epoch), rel=1e-5)
    assert float(rate(1600 * epoch - 1)) == pytest.approx(0, abs=1e-9)
    assert float(decay(0)) == float(decay(1600 * epoch - 1)) == pytest.approx(0.05)
    params = jax.eval_shape(make_objective(config).init, jax.random.key(0))
    count = {part: sum(x.size for x in jax.tree.leaves(tree)) for part, tree in params.items()}
    ends = (768 * 512 + 512) + (512 * 768 + 768) + 512  # in, out (3 x 16 x 16 values), mask token
    assert count["decoder"] == ends + num_parameters(8, 512, 2048)
    token = 768
    embed = 3 * 16**2 * 768 + 768
    assert count["encoder"] == token + embed + num_parameters(12, 768, 3072)


@pytest.mark.parametrize("devices", [8, 16, 256])
def test_meshes_divide_on_a_host_on_sixteen_gpus_and_on_a_pod(config, devices):
    shape = mesh_shape(config.mesh, devices)
    params = jax.eval_shape(make_objective(config).init, jax.random.key(0))
    check_divisible(
        params,
        jax.sharding.AbstractMesh(shape, ("data", "fsdp", "tensor")),
        batch_size=config.batch_size,
        accumulation_steps=config.optimizer.accumulation_steps,
    )


START = """\
import ml_collections
def get_config():
    return ml_collections.ConfigDict({{"seed": {seed}}})
"""


def fill(folder, **files):
    """Python files by name, and the path of the last."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.write_text(text)
    return str(path)


def their_modules():
    return [m for m in sys.modules if m.startswith("_configs_") or m in ("start", "changed", "old")]


def test_a_config_file_may_import_the_files_beside_it_and_they_are_forgotten(tmp_path):
    changed = (
        "from . import start\n"
        "from .start import get_config as of_start\n"
        "def get_config():\n"
        "    from . import start as again\n"  # while get_config runs, too
        "    assert again is start\n"
        "    return of_start()\n"
    )
    path = list(sys.path)
    one = fill(tmp_path / "one", start=START.format(seed=1), changed=changed)
    two = fill(tmp_path / "two", start=START.format(seed=2), changed=changed)
    assert load_config(one, []) == {"seed": 1}
    assert load_config(two, []) == {"seed": 2}  # not the module of the first folder
    fill(tmp_path / "one", start=START.format(seed=345))
    assert load_config(one, []) == {"seed": 345}  # nor what the file was before
    assert sys.path == path
    assert not their_modules()


def test_a_file_called_like_a_library_does_not_take_its_place(monkeypatch, tmp_path):
    shadow = "raise AssertionError('the file beside it, not the library')\n"
    mine = (
        "import ml_collections\n"
        "import numpy\n"
        "def get_config():\n"
        "    import colorsys\n"
        "    assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0)\n"
        "    return ml_collections.ConfigDict({'seed': int(numpy.ones(3).sum())})\n"
    )
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)  # not there yet, unlike NumPy
    path = fill(tmp_path, ml_collections=shadow, numpy=shadow, colorsys=shadow, mine=mine)
    assert load_config(path, []) == {"seed": 3}


def test_an_import_of_the_old_form_says_how_it_is_written_now(tmp_path):
    old = "import os\nimport start\ndef get_config():\n    return start.get_config()\n"
    path = fill(tmp_path / "old", start=START.format(seed=1), old=old)
    with pytest.raises(UserError) as error:
        load_config(path, [])
    assert str(error.value) == (
        f"--config {path}:2: ModuleNotFoundError: No module named 'start'; a file beside it is "
        "imported as `from .start import get_config`"
    )
    assert not their_modules()  # after an error, too


def test_a_run_starts_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(REPOSITORY / "configs")
    assert load_config("in22k_vitg16_ep44.py", [])["epochs"] == 44
    monkeypatch.chdir(tmp_path)
    assert load_config(str(pathlib.Path(REPOSITORY, "configs", "in22k_vitg16_ep44.py")), [])
