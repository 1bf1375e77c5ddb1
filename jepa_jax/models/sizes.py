"""The former place of `vit_size`: config files of others import it from here."""

from jepa_jax.config.sizes import vit_size

__all__ = ["vit_size"]
