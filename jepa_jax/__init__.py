"""I-JEPA in JAX and Flax: pretraining, checkpoints, probes, and encoders to use elsewhere."""

from typing import Any

__all__ = ["Encoder", "load_encoder"]


def __getattr__(name: str) -> Any:
    """Imports the encoder, and JAX with it, only where it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import jepa_jax.encoder

    return getattr(jepa_jax.encoder, name)
