"""Shapes and numbers of parameters of the published sizes, against formulas and the literature."""

import jax
import jax.numpy as jnp
import pytest

from jepa_jax.config.sizes import vit_size
from jepa_jax.models.predictor import Predictor
from jepa_jax.models.vision_transformer import VisionTransformer


def transformer_size(width, depth, hidden):
    attention = 4 * width**2 + 4 * width  # qkv and proj, with biases
    mlp = 2 * width * hidden + hidden + width
    return depth * (attention + mlp + 4 * width) + 2 * width  # LayerNorms: two a block, one after


@pytest.mark.parametrize("pixels", [224, 448])
@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize(
    ("size", "width", "depth", "hidden", "predictor_depth"),
    [
        ("ti", 192, 12, 768, 6),
        ("s", 384, 12, 1536, 6),
        ("b", 768, 12, 3072, 6),
        ("l", 1024, 24, 4096, 12),
        ("h", 1280, 32, 5120, 12),
        ("g", 1408, 40, 6144, 16),
    ],
)
def test_all_published_sizes_have_their_shapes_and_numbers_of_parameters(
    size, width, depth, hidden, predictor_depth, patch, pixels
):
    side = pixels // patch
    encoder_fields, predictor_fields = vit_size(size)
    encoder = VisionTransformer(grid=(side, side), patch_size=patch, **encoder_fields)
    predictor = Predictor(grid=(side, side), output_dim=width, **predictor_fields)
    image = jax.ShapeDtypeStruct((2, pixels, pixels, 3), jnp.float32)
    context_index = jax.ShapeDtypeStruct((2, 60), jnp.int32)
    target_index = jax.ShapeDtypeStruct((2, 4, 30), jnp.int32)

    def init_with_output(image, context_index, target_index):
        key = jax.random.key(0)
        tokens, variables = encoder.init_with_output(key, image)
        context = encoder.apply(variables, image, context_index)
        prediction, predictor_variables = predictor.init_with_output(
            key, context, context_index, target_index
        )
        return (tokens, context, prediction), (variables, predictor_variables)

    outputs, variables = jax.eval_shape(init_with_output, image, context_index, target_index)
    assert [x.shape for x in outputs] == [
        (2, side * side, width),
        (2, 60, width),
        (2, 4, 30, width),
    ]
    counts = [sum(x.size for x in jax.tree.leaves(tree)) for tree in variables]
    narrow = 384
    assert counts == [
        (3 * patch**2 + 1) * width + transformer_size(width, depth, hidden),
        (width + 1) * narrow  # embed
        + narrow  # the mask vector
        + transformer_size(narrow, predictor_depth, 4 * narrow)
        + (narrow + 1) * width,  # proj
    ]


@pytest.mark.parametrize(
    ("size", "patch", "with_class_token_and_positions"),
    [  # timm's counts at 224 pixels without the classification head
        ("ti", 16, 5_524_416),
        ("s", 16, 21_665_664),
        ("b", 16, 85_798_656),
        ("l", 16, 303_301_632),
        ("h", 14, 630_764_800),
    ],
)
def test_encoders_have_the_literature_s_numbers_of_parameters(
    size, patch, with_class_token_and_positions
):
    fields, _ = vit_size(size)
    side = 224 // patch
    encoder = VisionTransformer(grid=(side, side), patch_size=patch, **fields)
    shapes = jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3))))
    class_token_and_positions = (1 + 1 + side**2) * fields["embed_dim"]
    expected = with_class_token_and_positions - class_token_and_positions
    assert sum(x.size for x in jax.tree.leaves(shapes)) == expected
