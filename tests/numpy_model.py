"""The networks stated once more, in float64 NumPy with plain loops, to judge the package by."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy.special import erf, softmax


def random_params(module, *inputs, seed=0):
    """Parameters far from their initialisation, so that no part of the network hides another."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0.2, 0.4, x.shape), jnp.float32), shapes)


def numpy_layer_norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def numpy_transformer(x, p, num_heads, *, blocks=None):
    """x [N, D], one sequence: the loops below are over layers and heads.

    A list `blocks` receives each block's output, before the last LayerNorm.
    """
    depth, width = p["blocks"]["norm1"]["scale"].shape
    head_dim = width // num_heads
    for layer in range(depth):
        block = jax.tree.map(lambda leaf: leaf[layer], p["blocks"])  # noqa: B023
        y = numpy_layer_norm(x, block["norm1"])
        kernel = block["attention"]["qkv"]["kernel"].reshape(width, 3 * width)
        qkv = y @ kernel + block["attention"]["qkv"]["bias"].reshape(3 * width)
        heads = []
        for head in range(num_heads):
            query, key, value = (
                qkv[:, part * width + head * head_dim :][:, :head_dim] for part in range(3)
            )
            heads.append(softmax(query @ key.T / math.sqrt(head_dim), axis=-1) @ value)
        kernel = block["attention"]["proj"]["kernel"].reshape(width, width)
        x = x + np.concatenate(heads, axis=-1) @ kernel + block["attention"]["proj"]["bias"]
        y = numpy_layer_norm(x, block["norm2"])
        y = y @ block["mlp"]["fc1"]["kernel"] + block["mlp"]["fc1"]["bias"]
        y = y * (1 + erf(y / math.sqrt(2))) / 2
        x = x + y @ block["mlp"]["fc2"]["kernel"] + block["mlp"]["fc2"]["bias"]
        if blocks is not None:
            blocks.append(x)
    return numpy_layer_norm(x, p["norm"])


def numpy_positions(grid, width):
    """Element by element: sines then cosines of the column, then those of the row."""
    table = np.empty((grid[0] * grid[1], width))
    for row in range(grid[0]):
        for column in range(grid[1]):
            token = table[row * grid[1] + column]
            for i in range(width // 4):
                frequency = 1 / 10000 ** (i / (width // 4))
                token[i] = math.sin(column * frequency)
                token[width // 4 + i] = math.cos(column * frequency)
                token[width // 2 + i] = math.sin(row * frequency)
                token[3 * width // 4 + i] = math.cos(row * frequency)
    return table


def numpy_encoder(p, image, index, positions, *, grid, patch_size, num_heads):
    """image [H, W, 3]; each patch is cut out by itself."""
    tokens = []
    for patch in index:
        row, column = divmod(int(patch), grid[1])
        pixels = image[row * patch_size :, column * patch_size :][:patch_size, :patch_size]
        embedded = pixels.reshape(-1) @ p["patch_embed"]["kernel"] + p["patch_embed"]["bias"]
        tokens.append(embedded + positions[patch])
    return numpy_transformer(np.stack(tokens), p["transformer"], num_heads)


def numpy_head(p, x, activation="relu"):
    """x [n, D]: dense layers, with batch statistics between them where there are any."""
    last = sum(name.startswith("fc") for name in p)
    for layer in range(1, last + 1):
        dense = p[f"fc{layer}"]
        x = x @ dense["kernel"] + dense.get("bias", 0)
        if layer == last:
            return x
        if f"norm{layer}" in p:
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
            x = x * p[f"norm{layer}"]["scale"] + p[f"norm{layer}"]["bias"]
        x = np.maximum(x, 0) if activation == "relu" else x * (1 + erf(x / math.sqrt(2))) / 2
    return x


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def numpy_predictor(p, context, context_index, block, *, grid, num_heads):
    """One image, one target block."""
    positions = numpy_positions(grid, len(p["mask_token"]))
    seen = context @ p["embed"]["kernel"] + p["embed"]["bias"] + positions[context_index]
    x = np.concatenate([seen, p["mask_token"] + positions[block]])
    x = numpy_transformer(x, p["transformer"], num_heads)[len(context_index) :]
    return x @ p["proj"]["kernel"] + p["proj"]["bias"]


def as_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def pillow_resize(table, grid, new_grid):
    """Each feature as a picture, enlarged by Pillow's bicubic filter."""
    channels = [
        np.asarray(Image.fromarray(channel).resize(new_grid[::-1], Image.Resampling.BICUBIC))
        for channel in np.moveaxis(table.reshape(*grid, -1), -1, 0)
    ]
    return np.stack(channels, axis=-1).reshape(new_grid[0] * new_grid[1], -1)
