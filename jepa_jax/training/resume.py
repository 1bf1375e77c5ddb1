"""What a resumed run may change: all that does not change the run itself."""

import pathlib
from typing import Any

from jepa_jax.config import Config, differences, to_dict
from jepa_jax.errors import UserError
from jepa_jax.training.checkpoint import read_config

# Another value of these would be another run. A data set may move (`data.path`), and its test part
# is for probes alone; weights to start from have done their part.
_FIXED = ("seed", "batch_size", "data.", "model.", "init.", "objective.")
_FREE = ("data.path", "data.test_split", "data.eval_crop", "init.weights")
_SAME_IMAGES = {"folder", "shards"}  # values of `data.source`: packing changes no image


def check_resumable(folder: pathlib.Path, config: Config) -> dict[str, tuple[Any, Any]]:
    """Refuses to go on from a checkpoint of another run.

    Returns:
      The fields that differ and may: dotted name -> (saved, now).

    Raises:
      UserError: a field that makes it another run has changed, or there is no optimizer state.
    """
    if not (folder / "optimizer_state").is_dir():
        raise UserError(
            f"checkpoint {folder} holds no optimizer state: its encoder can be used, but its "
            "training can't be continued; choose another --workdir"
        )
    changed = differences(_comparable(read_config(folder)), _comparable(config))
    for name, (saved, now) in changed.items():
        if name == "data.source" and {saved, now} == _SAME_IMAGES:
            continue
        if name.startswith(_FIXED) and name not in _FREE:
            raise UserError(
                f"config.{name} = {now}: the run in {folder.parent.parent} has {saved}; set it "
                "back to resume that run, or choose another --workdir"
            )
    return changed


def _comparable(config: Config) -> dict[str, Any]:
    """The configuration with sizes in place of the ratios that they follow from.

    Ratios are rounded, or recovered from the shapes of a converted checkpoint; sizes are exact.
    """
    fields = to_dict(config)
    model = fields["model"]
    model["mlp_hidden_dim"] = int(model["embed_dim"] * model.pop("mlp_ratio"))
    return fields
