"""The model sizes of the literature, to be written into a config."""

from typing import Any

# name: (width, depth, heads, MLP ratio, predictor depth). The predictor is 384 wide in every
# published run, with as many heads as its encoder; half as wide as the encoder in the smallest.
SIZES = {
    "mini": (128, 4, 4, 4.0, 2),  # ours, for a CPU
    "ti": (192, 12, 3, 4.0, 6),
    "s": (384, 12, 6, 4.0, 6),
    "b": (768, 12, 12, 4.0, 6),
    "l": (1024, 24, 16, 4.0, 12),
    "h": (1280, 32, 16, 4.0, 12),
    "g": (1408, 40, 16, 48 / 11, 16),
}


def vit_size(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Dimensions of the encoder and of its predictor, by the size's usual letter.

    Args:
      name: in `SIZES`.

    Returns:
      Fields of `ModelConfig` and fields of `PredictorConfig`.
    """
    width, depth, heads, mlp_ratio, predictor_depth = SIZES[name]
    encoder = {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": mlp_ratio}
    return encoder, {
        "embed_dim": 64 if name == "mini" else 384,
        "depth": predictor_depth,
        "num_heads": heads,
    }


def heads_of_width(width: int) -> int | None:
    """Attention heads of the published encoder of this width; None if there is none."""
    published = (size for name, size in SIZES.items() if name != "mini")
    return {size[0]: size[2] for size in published}.get(width)
