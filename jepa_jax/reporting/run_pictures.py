"""The report's pictures of one run's features: maps, neighbours, what the predictor guesses."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jepa_jax.config import Config
from jepa_jax.data.pipeline import eval_batches
from jepa_jax.data.sources import Source
from jepa_jax.evaluation.features import pooled_features
from jepa_jax.reporting.feature_maps import SCALES, component_maps, cosine_maps, encode_levels
from jepa_jax.reporting.gallery import shown_examples
from jepa_jax.reporting.neighbors import nearest
from jepa_jax.reporting.page import Group, Neighbor, Picture, Strip
from jepa_jax.reporting.pictures import blank_patches, displayable
from jepa_jax.reporting.predictor_maps import Guesses
from jepa_jax.reporting.tiles import heat, marked, save_strip

Encode = Callable[[Any, Any], Any]  # (weights, pixels [B, H, W, C]) -> tokens [B, N, D]

_TILES = 6  # in a strip
_QUERIES, _REFERENCES = 8, 4000
_BATCH = 100


def map_groups(
    folder: pathlib.Path, encode: Encode, weights: Any, config: Config, test: Source
) -> list[Group]:
    """Principal components at several resolutions, and cosines to two patches."""
    levels = encode_levels(encode, weights, config, test, shown_examples(test))
    pictures = displayable(levels[0].pixels)[:_TILES]
    strips = [_strip(folder / "maps_images.png", "images", pictures)]
    for scale, level, colours in zip(SCALES, levels, component_maps(levels), strict=True):
        title = f"{level.grid[0]} x {level.grid[1]} patches" + (
            ", as trained" if scale == 1 else f", {scale:g} times the side"
        )
        strips.append(_strip(folder / f"maps_pca_{scale:g}x.png", title, colours[:_TILES]))
    components = Group(
        "Principal components of the patch features",
        "Three principal components as red, green and blue; a position's mean is taken off. Good: "
        "a part of an object has one colour, also in other images, and other parts have others; "
        "finer images give finer maps in the same colours. Bad: noise, stripes that are the same "
        "in all images, or maps that fall apart above the trained size.",
        tuple(strips),
    )
    strips, patch = [], config.model.patch_size
    rows, columns = config.grid
    for name, (row, column) in {
        "the middle": (rows // 2, columns // 2),
        "the upper left": (rows // 4, columns // 4),
    }.items():
        box = (row * patch, column * patch, patch, patch)
        frames = [marked(picture, box) for picture in pictures]
        stem = f"maps_cosine_{row}_{column}"
        strips.append(_strip(folder / f"{stem}_patch.png", f"a patch in {name}", frames))
        maps = [heat(cosine) for cosine in cosine_maps(levels[0], row, column)[:_TILES]]
        strips.append(_strip(folder / f"{stem}.png", "cosine of every patch with it", maps))
    cosines = Group(
        "Which patches are like a chosen one",
        "Red: cosine 1, white: 0, blue: -1; a position's mean is taken off. Good: the object or "
        "part that the framed patch lies on is red, the rest white or blue. Bad: only the patch "
        "itself is red, or a spot around it whatever the image shows.",
        tuple(strips),
    )
    return [components, cosines]


def neighbor_group(
    folder: pathlib.Path,
    encode: Encode,
    weights: Any,
    config: Config,
    *,
    train: Source,
    test: Source,
) -> Group:
    """Nearest training images of random test images, by the cosine of pooled features."""
    pool = jax.jit(lambda weights, images: encode(weights, images).mean(axis=1))
    rng = np.random.default_rng(config.seed)

    def read(source: Source, index: np.ndarray, bad: list[int]) -> Any:
        return eval_batches(config.data, source, index=index, batch_size=_BATCH, bad=bad)

    def features(source: Source, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Of so many random images [n, D], and which they are; bad ones are left out."""
        index, bad = rng.permutation(source.num_examples)[:most], list[int]()
        pooled = pooled_features(pool, weights, read(source, index, bad))
        good = ~np.isin(index, bad)
        return pooled[good], index[good]

    of_queries, asked = features(test, _QUERIES)
    of_known, known = features(train, _REFERENCES)
    index, cosine = nearest(of_queries, of_known, _TILES - 1)
    (queries,) = read(test, asked, [])
    found = np.concatenate(list(read(train, known[index.ravel()], [])))
    found = found.reshape(*index.shape, *found.shape[1:])
    strips, agreed = [], []
    for row, example in enumerate(asked):
        pictures = displayable(np.concatenate([queries[row][None], found[row]]))
        path = folder / f"neighbors_{row}.png"
        save_strip(path, list(pictures))
        own = _class_of(test, int(example))
        tiles = [Neighbor(own or f"test image {example}", None)]
        for number, near in zip(cosine[row], known[index[row]], strict=True):
            name = _class_of(train, int(near))
            agrees = None if name is None or own is None else name == own
            agreed += [] if agrees is None else [agrees]
            tiles.append(Neighbor(f"{name or ''} {number:.2f}".strip(), agrees))
        strips.append(Strip(Picture(path), tuple(tiles)))
    share = f" Here {np.mean(agreed):.0%} are of the same class." if agreed else ""
    return Group(
        "Nearest training images",
        f"Left a random test image, then the nearest of {len(known):,} training images, with the "
        "cosine of their average-pooled features. Good: the same kind of thing, however it is "
        "placed, and cosines that differ. Bad: only the same brightness or outline, or cosines "
        f"that are all near 1.{share}",
        tuple(strips),
    )


def guess_group(folder: pathlib.Path, config: Config, guesses: Guesses) -> Group:
    """What the predictor guesses of hidden blocks."""
    pictures = displayable(guesses.pixels)
    seen, hidden, maps = [], [], []
    for row, picture in enumerate(pictures[:_TILES]):
        seen.append(blank_patches(picture, guesses.context_index[row], config))
        hidden.append(blank_patches(picture, guesses.block_index[row], config))
        values = np.full(config.grid[0] * config.grid[1], np.nan)
        values[guesses.block_index[row]] = guesses.cosine[row]
        maps.append(heat(values.reshape(config.grid)))
    strips = [
        _strip(folder / "guesses_seen.png", "what the context encoder sees", seen),
        _strip(folder / "guesses_hidden.png", "a block that is hidden from it", hidden),
        _strip(folder / "guesses_cosine.png", "cosine of prediction and target", maps),
    ]
    references, patch = displayable(guesses.reference_pixels), config.model.patch_size
    columns = config.grid[1]
    for row, picture in enumerate(pictures[:3]):
        around = [(picture, int(guesses.block_index[row, guesses.asked]))]
        for image, index in zip(
            guesses.nearest_image[row], guesses.nearest_patch[row], strict=True
        ):
            around.append((references[image], int(index)))
        tiles = [
            marked(shown, (patch * (index // columns), patch * (index % columns), patch, patch))
            for shown, index in around
        ]
        title = f"a hidden patch of image {row + 1}, then the training patches nearest to its guess"
        strips.append(_strip(folder / f"guesses_nearest_{row}.png", title, tiles))
    return Group(
        "What the predictor guesses",
        f"Mean cosine of prediction and target {guesses.cosine.mean():.2f}; with the targets of "
        f"another image at the same positions {guesses.control.mean():.2f}. Good: clearly "
        "more than with another image, so that it is guessed from what is seen and not from the "
        "position alone, and nearest patches that show the same kind of thing. Bad: no difference.",
        tuple(strips),
    )


def _strip(path: pathlib.Path, title: str, pictures: Any) -> Strip:
    save_strip(path, list(pictures))
    return Strip(Picture(path, title))


def _class_of(source: Source, index: int) -> str | None:
    if source.classes is None:
        return None
    label = int(source.classes[index])
    return source.class_names[label] if label < len(source.class_names) else str(label)
