"""Pictures of what a model gets and gives: python -m jepa_jax.visualize --config configs/X.py

    --what batch     the views of the first images of a training batch, as they arrive (the default)
    --what masks     the patches of them that are seen, and that are predicted
    --what crops     whole images, and the boxes of their crops in several epochs
    --what features  principal components of a checkpoint's features, on test images, as colours
                     (the default with --checkpoint DIR in place of --config)

--config.a.b=VALUE changes a field first, so that an augmentation or a crop can be looked at before
it is trained with. --out FILE.png says where to draw.
"""

import argparse
import pathlib
from typing import Any

import numpy as np

from jepa_jax.batch.pixels import normalize
from jepa_jax.command_line import make_parser, run_command
from jepa_jax.config import Config, resolve, to_dict
from jepa_jax.config.files import load_config, override
from jepa_jax.data.facts import image_facts
from jepa_jax.data.originals import original
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import Source, open_source
from jepa_jax.data.stream import make_stream
from jepa_jax.encoder import load_encoder
from jepa_jax.errors import UserError
from jepa_jax.objectives.registry import make_objective
from jepa_jax.reporting.batch_pictures import crops_picture, masks_picture, views_picture
from jepa_jax.reporting.gallery import shown_examples
from jepa_jax.reporting.pictures import pca_picture
from jepa_jax.training import checkpoint

_ROWS = 8  # images of a batch
_EPOCHS, _BOXES = (2, 5), 6  # least and most epochs of crops; crops on an image, about


def draw_training(config: Config, what: str, path: pathlib.Path, *, step: int) -> dict[str, Any]:
    """Draws the batch of a step, its masks or its crops.

    Args:
      what: batch, masks or crops.
      step: of the run, from 0 on.

    Returns:
      The examples that are shown.

    Raises:
      UserError: the data can't be read or do not fit the objective, or it has no masks.
    """
    needs = make_objective(config).needs
    if what == "masks" and needs.masks is None:
        raise UserError(
            f"--what masks: config.objective.name = {config.objective.name} has no masks; must be "
            "batch or crops"
        )
    source = open_source(config.data, "train")
    stream = make_stream(needs, config.data, source, seed=config.seed, batch_size=config.batch_size)
    rows = np.arange(min(_ROWS, config.batch_size))
    batch = next(stream.batches(step, step + 1, rows))
    names = _names(source, batch)
    if what == "batch":
        views_picture(path, needs, batch, names)
    elif what == "masks":
        masks_picture(path, config, needs, batch, names)
    else:
        first = step // stream.steps_per_epoch
        crops = sum(view.number or 1 for view in needs.views)
        epochs = range(first, first + int(np.clip(_BOXES // crops, *_EPOCHS)))
        originals = [
            original(source, needs.views, index=int(i), epochs=epochs, seed=config.seed)
            for i in batch["example_index"]
        ]
        crops_picture(path, needs, originals, names)
    return {"step": step, "examples": batch["example_index"].tolist()}


def _names(source: Source, batch: dict[str, np.ndarray]) -> list[str]:
    """The class of each image, where there are classes, or its number."""
    names = []
    for row, index in enumerate(batch["example_index"]):
        name = f"example {index}"
        if batch["replaced"][row]:
            name += "\n(bad; the next)"
        elif source.classes is not None:
            label = int(batch["label"][row] if "label" in batch else source.classes[index])
            name = source.class_names[label] or name
        names.append(name)
    return names


def draw_features(
    path: pathlib.Path, checkpoint_path: pathlib.Path, network: str | None, overrides: list[str]
) -> dict[str, Any]:
    """Draws principal components of an encoder's features of images of the test split.

    Args:
      overrides: `--config.data.a=value`: other images than the checkpoint's.

    Raises:
      UserError: the checkpoint or the images can't be read, or there are less than two.
    """
    for argument in overrides:
        if not argument.startswith("--config.data."):
            raise UserError(f"{argument}: a checkpoint's features depend on --config.data.… alone")
    encode, params = load_encoder(checkpoint_path, network=network)
    config = resolve(override(to_dict(encode.config), overrides), image_facts)
    source = open_source(config.data, "test")
    if source.num_examples < 2:
        raise UserError(
            f"config.data.path = {config.data.path!r}: has {source.num_examples} test image; must "
            "be at least 2, whose features can differ"
        )
    index, bad = shown_examples(source), list[int]()
    images = next(eval_batches(config.data, source, index=index, batch_size=len(index), bad=bad))
    good = ~np.isin(index, bad)
    images, index = images[good], index[good]
    tokens = np.asarray(encode(params, normalize(images, config.data.mean, config.data.std)))
    pca_picture(path, images, {encode.network.replace("_", " "): tokens}, config.grid)
    return {"network": encode.network, "examples": index.tolist()}


def main() -> None:
    parser = make_parser("jepa_jax.visualize", __doc__)
    parser.add_argument("--config", help="a file in configs/")
    parser.add_argument(
        "--checkpoint",
        type=pathlib.Path,
        metavar="DIR",
        help="in place of --config: a workdir, one step's folder in it, what jepa_jax.convert "
        "wrote, or a Hugging Face folder or hub id",
    )
    parser.add_argument("--network", metavar="NAME", help="features: which encoder (see probe)")
    parser.add_argument("--what", choices=["batch", "masks", "crops", "features"])
    parser.add_argument(
        "--out", type=pathlib.Path, metavar="FILE.png", help="default: WHAT.png, here"
    )
    parser.add_argument(
        "--step", type=int, default=0, metavar="N", help="whose batch is drawn (default: 0)"
    )

    def command(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
        if (arguments.config is None) == (arguments.checkpoint is None):
            parser.error("needs either --config FILE or --checkpoint DIR")
        what = arguments.what or ("batch" if arguments.config else "features")
        if what == "features" and arguments.checkpoint is None:
            parser.error("--what features: needs --checkpoint DIR")
        if what != "features" and arguments.network is not None:
            parser.error("--network goes with --what features")
        if arguments.step < 0:
            raise UserError(f"--step {arguments.step}: must be at least 0")
        path = arguments.out or pathlib.Path(f"{what}.png")
        if path.suffix.lower() != ".png":
            raise UserError(f"--out {path}: must end in .png")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if what == "features":
                shown = draw_features(path, arguments.checkpoint, arguments.network, overrides)
            else:
                config = _configuration(arguments, overrides)
                shown = draw_training(config, what, path, step=arguments.step)
        except OSError as error:
            raise UserError(f"--out {path}: can't be written: {error.strerror}") from error
        return {"picture": str(path), "what": what, **shown}

    run_command(command, parser)


def _configuration(arguments: argparse.Namespace, overrides: list[str]) -> Config:
    if arguments.config is not None:
        fields = load_config(arguments.config, overrides)
    else:
        saved = to_dict(checkpoint.read_config(checkpoint.find(arguments.checkpoint)))
        fields = override(saved, overrides)
    return resolve(fields, image_facts)


if __name__ == "__main__":
    main()
