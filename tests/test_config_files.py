"""Configurations from files and the command line, and from files of older formats."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest

from jepa_jax.config import resolve, to_dict
from jepa_jax.config.files import load_config, override
from jepa_jax.config.formats import upgrade, with_format
from jepa_jax.errors import UserError


def test_an_old_file_is_told_where_each_field_went(tiny):
    old = tiny.to_dict()
    old["masks"] = old["objective"].pop("masks")
    old["ema"] = {"start_momentum": 0.99}
    old["model"]["dtype"] = "bfloat16"
    with pytest.raises(UserError) as error:
        resolve(old)
    assert str(error.value) == (
        "moved fields: config.masks is now config.objective.masks; config.ema is now "
        "config.objective.ema; config.model.dtype is now config.compute.dtype"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mesh__data", -1),
        ("logging__knn_every_steps", 0),
        ("checkpoint__keep_every_steps", 0),
        ("optimizer__clip_norm", 0.0),
        ("optimizer__reference_batch_size", 0),
        ("profile__steps", (0, 0)),
        ("profile__steps", [0, 0]),
        ("data__path", ""),
    ],
)
def test_what_stood_for_none_in_old_files_still_does(tiny, field, value):
    section, name = field.split("__")
    as_text = override(tiny.to_dict(), [f"--config.{section}.{name}={value}"])
    as_number = tiny.to_dict()
    as_number[section][name] = value
    for config in (as_number, as_text):
        assert getattr(getattr(resolve(config), section), name) is None


def test_overrides_have_the_type_of_their_field(tiny):
    config = resolve(
        override(
            tiny.to_dict(),
            [
                "--config.data.path=2024",
                "--config.epochs=3",
                "--config.optimizer.lr=1e-2",
                "--config.data.image_size=(14,28)",
                "--config.compute.scan_layers=true",
                "--config.logging.knn_every_steps=None",
                "--config.objective.loss=smooth_l1",
            ],
        )
    )
    assert (config.data.path, config.epochs, config.optimizer.lr) == ("2024", 3, 1e-2)
    assert config.data.image_size == (14, 28)
    assert config.compute.scan_layers is True
    assert config.logging.knn_every_steps is None
    assert config.objective.loss == "smooth_l1"


def test_an_override_of_the_wrong_type_is_refused_with_what_was_typed(tiny):
    with pytest.raises(UserError, match=r"config.epochs = 'many': must be of type int"):
        resolve(override(tiny.to_dict(), ["--config.epochs=many"]))


FORMAT_1 = {
    "seed": 3,
    "data": {"path": "", "train_split": "", "image_size": [28, 28]},
    "model": {"depth": 2, "dtype": "bfloat16", "remat": "dots", "scan_layers": True},
    "predictor": {"depth": 1},
    "masks": {"context_tokens": 4},
    "ema": {"start_momentum": 0.99},
    "objective": {"name": "ijepa", "loss": "l2"},
    "optimizer": {"clip_norm": 0.0, "reference_batch_size": 0, "lr": 0.1},
    "mesh": {"data": -1, "fsdp": 2},
    "logging": {"knn_every_steps": 0, "every_steps": 5},
}


def test_a_configuration_of_format_1_is_upgraded():
    before = copy.deepcopy(FORMAT_1)
    assert upgrade(FORMAT_1) == {
        "seed": 3,
        "data": {"path": None, "train_split": None, "image_size": [28, 28]},
        "model": {"depth": 2},
        "compute": {"dtype": "bfloat16", "remat": "dots", "scan_layers": True},
        "objective": {
            "name": "ijepa",
            "loss": "l2",
            "predictor": {"depth": 1},
            "masks": {"context_tokens": 4},
            "ema": {"start_momentum": 0.99},
        },
        "optimizer": {"clip_norm": None, "reference_batch_size": None, "lr": 0.1},
        "mesh": {"data": None, "fsdp": 2},
        "logging": {"knn_every_steps": None, "every_steps": 5},
    }
    assert before == FORMAT_1  # a pure function


def test_todays_format_is_read_as_it_was_written_and_a_later_one_is_refused(tiny):
    config = to_dict(resolve(tiny))
    assert upgrade(with_format(config)) == config
    with pytest.raises(UserError, match="checkpoint of format 4: this version reads 1 to 3"):
        upgrade({**config, "format": 4})


def test_threads_may_read_files_of_one_folder_at_once(tmp_path):
    (tmp_path / "base.py").write_text(
        "import ml_collections\n\n\ndef get_config():\n"
        "    return ml_collections.ConfigDict({'epochs': 3})\n"
    )
    slow = tmp_path / "slow.py"
    slow.write_text("import time\n\ntime.sleep(0.05)\nfrom .base import get_config\n")
    with ThreadPoolExecutor(3) as pool:
        loaded = list(pool.map(lambda _: load_config(str(slow), []), range(3)))
    assert loaded == [{"epochs": 3}] * 3
