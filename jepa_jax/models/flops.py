"""Arithmetic of forward passes, counted from shapes: for plans and for MFU.

We count the multiplications and additions of the matrix products, two operations each, on the
tokens that are really computed. As usual we leave out biases, LayerNorm, softmax, GELU and the
optimizer (together about a per cent at published widths), and what rematerialisation computes
again.

A backward pass costs twice its forward pass: every product has a gradient for each of its two
factors. Except for the patch embedding, because pixels need no gradient.
"""

import itertools

from jepa_jax.config import ModelConfig


def encoder_flops(model: ModelConfig, tokens: int, *, backward: bool, channels: int) -> float:
    """An encoder's pass over one image, of which it sees `tokens` patches."""
    embed = 2 * tokens * channels * model.patch_size**2 * model.embed_dim
    tokens += int(model.class_token)
    blocks = transformer_flops(model.depth, model.embed_dim, model.mlp_ratio, tokens)
    return float(3 * blocks + 2 * embed if backward else blocks + embed)


def predictor_flops(
    *, width: int, depth: int, outer: int, output: int, context: int, targets: int, blocks: int = 1
) -> float:
    """Forward and backward pass of a predictor or decoder over one image.

    Args:
      width, depth: of its transformer, whose MLP ratio is 4.
      outer, output: width of its inputs and of its outputs.
      context: tokens that it sees.
      targets: tokens of a block, which the last transformer block outputs alone.
      blocks: passes, one for each target block.
    """
    ends = 2 * width * (context * outer + blocks * targets * output)
    all_but_one = transformer_flops(depth - 1, width, 4.0, context + targets)
    last = block_flops(width, 4.0, context + targets, targets)
    return float(3 * (blocks * (all_but_one + last) + ends))


def transformer_flops(depth: int, width: int, mlp_ratio: float, tokens: int) -> int:
    """A forward pass of one sequence; with an MLP ratio of 4: depth (24 n D^2 + 4 n^2 D)."""
    return depth * block_flops(width, mlp_ratio, tokens, tokens)


def block_flops(width: int, mlp_ratio: float, tokens: int, selected: int) -> int:
    """A block's forward pass of one sequence, of which it outputs only `selected` tokens."""
    keys_and_values = 2 * tokens * 2 * width**2
    query_and_output = 2 * selected * 2 * width**2
    attention = 2 * 2 * selected * tokens * width  # scores; weighted values
    mlp = 2 * 2 * selected * width * int(width * mlp_ratio)
    return keys_and_values + query_and_output + attention + mlp


def head_flops(*widths: int) -> float:
    """Forward and backward pass of dense layers on one feature, by their widths in turn."""
    return 6.0 * sum(inner * outer for inner, outer in itertools.pairwise(widths))
