"""What a resumed run may change: all that does not change the run itself."""

import logging
import pathlib
from typing import Any

from jepa_jax.batch.spec import DataIdentity
from jepa_jax.config import Config, differences, to_dict
from jepa_jax.errors import UserError
from jepa_jax.training.checkpoint import read_config, read_data

log = logging.getLogger(__name__)

# Another value of these would be another run. A data set may move (`data.path`), and its test part
# is for probes alone; weights to start from have done their part.
_FIXED = (
    *("seed", "batch_size", "data.", "model.", "init.", "objective."),
    "optimizer.first_moment_dtype",  # that of an array in the checkpoint
)
_FREE = (
    "data.path",
    "data.subset.files",  # the list may move too: the images tell whether it is the same
    "data.tfds_dir",
    "data.bad_share",
    "data.test_split",
    "data.eval_crop",
    "init.weights",
)


def check_resumable(
    folder: pathlib.Path,
    config: Config,
    data: DataIdentity | None = None,
    *,
    accept_changed_data: bool = False,
) -> dict[str, tuple[Any, Any]]:
    """Refuses to go on from a checkpoint of another run.

    Args:
      data: of the images that there are now; None: not known.
      accept_changed_data: go on with other images than the checkpoint's.

    Returns:
      The fields that differ and may: dotted name -> (saved, now). `data.source` may if the images
      are the same ones.

    Raises:
      UserError: the images or a field that makes it another run have changed, or there is no
        optimizer state.
    """
    if not (folder / "optimizer_state").is_dir():
        raise UserError(
            f"checkpoint {folder} holds no optimizer state: its encoder can be used, but its "
            "training can't be continued; choose another --workdir"
        )
    same = data is not None and _check_data(folder, config, data, accept=accept_changed_data)
    free = (*_FREE, "data.source") if same or accept_changed_data else _FREE
    changed = differences(_comparable(read_config(folder)), _comparable(config))
    for name, (saved, now) in changed.items():
        if name.startswith(_FIXED) and name not in free:
            raise UserError(
                f"config.{name} = {now}: the run in {folder.parent.parent} has {saved}; set it "
                "back to resume that run, or choose another --workdir"
            )
    return changed


def _check_data(folder: pathlib.Path, config: Config, now: DataIdentity, *, accept: bool) -> bool:
    """Whether the images are those that the checkpoint was trained on; others must be accepted."""
    saved = read_data(folder)
    if saved is None:
        log.warning(
            "checkpoint %s does not say which images it was trained on: it could not be checked "
            "that these %d are the same",
            folder,
            now.num_examples,
        )
        return False
    if saved == now:
        return True
    if saved.num_examples != now.num_examples:
        what = f"{now.num_examples} training images, and the run in {folder.parent.parent} has "
        what += f"{saved.num_examples}"
    else:
        what = f"{now.num_examples} training images, as many as the run in {folder.parent.parent} "
        what += "has, but others: their names differ"
    if not accept:
        raise UserError(
            f"config.data.path = {config.data.path!r}: {what}; put the images back, choose another "
            "--workdir, or say --accept-changed-data to go on with these"
        )
    log.warning("the data changed after step %s: %s", folder.name, what)
    return False


def _comparable(config: Config) -> dict[str, Any]:
    """The configuration with sizes in place of the ratios that they follow from.

    Ratios are rounded, or recovered from the shapes of a converted checkpoint; sizes are exact.
    """
    fields = to_dict(config)
    model = fields["model"]
    model["mlp_hidden_dim"] = int(model["embed_dim"] * model.pop("mlp_ratio"))
    return fields
