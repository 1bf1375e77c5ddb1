"""Arithmetic of a training step, counted from the configuration: for plans and for MFU.

Counted are the multiplications and additions of the matrix products, two operations each, on the
tokens that are really computed. Left out, as usual: biases, LayerNorm, softmax, GELU, optimizer
(together about a per cent at published widths), and what rematerialisation computes again.
"""

from collections.abc import Mapping
from typing import NamedTuple

from jepa_jax.config import Config


class StepFlops(NamedTuple):
    """Floating-point operations per image of an optimizer step.

    Attributes:
      target: the target encoder on all patches; forward alone.
      context: the context encoder on K patches; forward and backward.
      predictor: M passes over K + T tokens, of which the last block puts out the T; forward and
        backward.
    """

    target: float
    context: float
    predictor: float

    @property
    def total(self) -> float:
        return sum(self)


def step_flops(config: Config, target_lengths: Mapping[int, float]) -> StepFlops:
    """Operations per image, on average over the steps.

    A backward pass costs twice its forward pass: every product has a gradient for each of its two
    factors. Except for the patch embedding, because pixels need no gradient.

    Args:
      config: a checked configuration; images x this are the operations of a step.
      target_lengths: tokens of a target block T -> share of the steps, as
        `MaskSampler.target_lengths` tells.
    """
    model, predictor, masks = config.model, config.predictor, config.masks
    N, K, M = config.grid[0] * config.grid[1], masks.context_tokens, masks.num_targets
    patch = 3 * model.patch_size**2  # values of a patch

    def encoder(tokens: int) -> int:
        return _transformer(model.depth, model.embed_dim, model.mlp_ratio, tokens)

    def embed(tokens: int) -> int:
        return 2 * tokens * patch * model.embed_dim

    def predict(T: int) -> int:
        ends = 2 * (K + M * T) * model.embed_dim * predictor.embed_dim  # into, and out of it
        all_but_one = _transformer(predictor.depth - 1, predictor.embed_dim, 4.0, K + T)
        return M * (all_but_one + _block(predictor.embed_dim, 4.0, K + T, T)) + ends

    return StepFlops(
        target=encoder(N) + embed(N),
        context=3 * encoder(K) + 2 * embed(K),
        predictor=3 * sum(share * predict(T) for T, share in target_lengths.items()),
    )


def _transformer(depth: int, width: int, mlp_ratio: float, tokens: int) -> int:
    """A forward pass of one sequence; with an MLP ratio of 4: depth (24 n D^2 + 4 n^2 D)."""
    return depth * _block(width, mlp_ratio, tokens, tokens)


def _block(width: int, mlp_ratio: float, tokens: int, selected: int) -> int:
    """A block's forward pass of one sequence, of which only `selected` tokens are put out."""
    keys_and_values = 2 * tokens * 2 * width**2
    query_and_output = 2 * selected * 2 * width**2
    attention = 2 * 2 * selected * tokens * width  # scores; weighted values
    mlp = 2 * 2 * selected * width * int(width * mlp_ratio)
    return keys_and_values + query_and_output + attention + mlp
