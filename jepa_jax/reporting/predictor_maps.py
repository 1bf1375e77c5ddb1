"""What a predictor guesses of hidden blocks: how near it is, and to which training patches."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jepa_jax.config import Config
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import Source
from jepa_jax.data.stream import make_stream
from jepa_jax.objectives.objective import Objective, at_path, replace_at_path
from jepa_jax.reporting.neighbors import nearest
from jepa_jax.training.items import read_item

_BATCH, _NEAREST = 50, 5


class Networks(NamedTuple):
    """What `Objective.predict` needs of a checkpoint."""

    params: Any
    objective_state: Any


class Guesses(NamedTuple):
    """Of the first hidden block of each image.

    Attributes:
      pixels: [n, H, W, C], the crops.
      context_index: [n, K], the patches that are seen.
      block_index: [n, T], those of the block.
      cosine: [n, T], between prediction and target at each position of the block.
      control: the same with the targets of another image at the same positions.
      asked: [n], the position, of T, whose prediction `nearest_images` and the rest are about.
      reference_pixels: [m, H, W, C], training images.
      nearest_image, nearest_patch: [n, k], of which image, which patch.
    """

    pixels: np.ndarray
    context_index: np.ndarray
    block_index: np.ndarray
    cosine: np.ndarray
    control: np.ndarray
    asked: int
    reference_pixels: np.ndarray
    nearest_image: np.ndarray
    nearest_patch: np.ndarray


def read_networks(folder: pathlib.Path, objective: Objective) -> Networks | None:
    """All networks of a checkpoint; None: it does not hold all of them, or predicts nothing.

    Args:
      folder: of one checkpoint.
    """
    own = {
        name: path[1:] for name, path in objective.encoders.items() if path[0] == "objective_state"
    }
    if objective.predict is None or not all((folder / n).is_dir() for n in ("params", *own)):
        return None
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    params = read_item(folder / "params", shapes)
    state = objective.state(1.0).init(params)
    for name, path in own.items():
        state = replace_at_path(state, path, read_item(folder / name, at_path(state, path)))
    return Networks(params, state)


def guess_blocks(
    objective: Objective,
    networks: Networks,
    config: Config,
    *,
    train: Source,
    test: Source,
    number: int,
    references: int,
) -> Guesses:
    """Predicts hidden blocks of test images, masked as in training.

    Args:
      number: of test images.
      references: training images among whose patches the nearest ones are looked for.
    """
    assert objective.predict is not None
    predict = jax.jit(objective.predict)
    stream = make_stream(objective.needs, config.data, test, seed=config.seed, batch_size=number)
    batch = next(stream.batches(0, 1, None))
    pixels = batch[objective.needs.views[0].name]
    context, blocks = batch["context_index"], batch["target_index"]
    predictions, targets = predict(*networks, pixels, context, blocks)
    _, others = predict(*networks, np.roll(pixels, 1, axis=0), context, blocks)
    T = blocks.shape[2]
    guessed = np.asarray(predictions)[:, 0]  # [n, T, D]
    reference_pixels, patches = _reference_patches(
        predict, networks, config, train, context[:1], references
    )
    found, _ = nearest(guessed[:, T // 2], patches.reshape(-1, patches.shape[-1]), _NEAREST)
    image, patch = np.divmod(found, patches.shape[1])
    return Guesses(
        pixels,
        context,
        blocks[:, 0],
        np.asarray(_cosine(predictions, targets))[:, 0],
        np.asarray(_cosine(predictions, others))[:, 0],
        T // 2,
        reference_pixels,
        image,
        patch,
    )


def _reference_patches(
    predict: Any, networks: Networks, config: Config, train: Source, context: np.ndarray, most: int
) -> tuple[np.ndarray, Float[np.ndarray, "m N D"]]:
    """Training images, and each patch of theirs as a target.

    Args:
      context: [1, K], any: targets do not depend on it.
    """
    number = min(most, train.num_examples)
    index = np.random.default_rng(config.seed).permutation(train.num_examples)[:number]
    size, N = min(_BATCH, number), config.grid[0] * config.grid[1]
    everywhere = np.broadcast_to(np.arange(N, dtype=np.int32), (size, 1, N))
    context = np.broadcast_to(context, (size, context.shape[1]))
    images, targets = [], []
    for pixels in eval_batches(config.data, train, index=index, batch_size=size, bad=[]):
        if len(pixels) == size:  # targets may be standardised over the batch: only whole ones
            images.append(pixels)
            targets.append(np.asarray(predict(*networks, pixels, context, everywhere)[1])[:, 0])
    return np.concatenate(images), np.concatenate(targets)


def _cosine(x: Any, y: Any) -> Any:
    norms = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
    return jnp.sum(x * y, axis=-1) / jnp.maximum(norms, 1e-12)
