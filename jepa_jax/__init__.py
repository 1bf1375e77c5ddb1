"""I-JEPA in JAX and Flax: pretraining, checkpoints, probes, and encoders to use elsewhere."""

from typing import TYPE_CHECKING, Any

from jepa_jax.errors import UserError

if TYPE_CHECKING:
    from jepa_jax.encoder import Encoder, create_encoder, list_models, load_encoder

__version__ = "0.1.0"  # pyproject.toml reads it from here: a checkout runs without installation
__all__ = [
    "Encoder",
    "UserError",
    "__version__",
    "create_encoder",
    "list_models",
    "load_encoder",
]


def __getattr__(name: str) -> Any:
    """Imports the encoder, and JAX with it, only where it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import jepa_jax.encoder

    return getattr(jepa_jax.encoder, name)


def __dir__() -> list[str]:
    return sorted(__all__)
