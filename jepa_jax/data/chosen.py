"""Changes to those images of a batch that drew them, at the cost of those alone."""

from collections.abc import Callable

import tensorflow as tf


def change(
    images: tf.Tensor,
    chosen: tf.Tensor,
    function: Callable[..., tf.Tensor],
    *parameters: tf.Tensor,
) -> tf.Tensor:
    """Applies a function to some of the images.

    Args:
      images: [n, H, W, C].
      chosen: bool [n].
      function: takes the m >= 1 chosen images, [m, H, W, C], and their parameters.
      parameters: [n, ...].
    """

    def changed() -> tf.Tensor:
        rows = tf.where(chosen)  # [m, 1]
        some = function(*(tf.gather(x, rows[:, 0]) for x in (images, *parameters)))
        return tf.tensor_scatter_nd_update(images, rows, some)

    # Convolution and mirror refuse m = 0, which is common where a batch is one image.
    return tf.cond(tf.reduce_any(chosen), changed, lambda: images)
