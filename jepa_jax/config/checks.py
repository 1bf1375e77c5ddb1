"""Numbers of a configuration that must fit each other."""

from jepa_jax.errors import UserError


def check_width(section: str, width: int, num_heads: int) -> None:
    """Refuses a width that its positions or its attention heads do not divide.

    Raises:
      UserError: with the field.
    """
    if width % 4:
        raise UserError(
            f"config.{section}.embed_dim = {width}: must be a positive multiple of 4 "
            "(sine and cosine of two coordinates)"
        )
    if width % num_heads:
        raise UserError(
            f"config.{section}.num_heads = {num_heads}: must divide config.{section}.embed_dim = "
            f"{width}"
        )


def check_patches(field: str, size: tuple[int, int], patch_size: int) -> None:
    """Refuses a height or width in pixels that patches do not fill.

    Raises:
      UserError: with the field and the side.
    """
    for side, pixels in zip(("height", "width"), size, strict=True):
        if pixels % patch_size:
            raise UserError(
                f"config.{field} = {size}: the {side} must be a positive multiple of "
                f"config.model.patch_size = {patch_size}"
            )
