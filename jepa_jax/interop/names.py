"""Which tensor of another library holds which part of our parameters.

Three layouts hold the same numbers: the reference's (and timm's) names, the names under which
Hugging Face stores an `IJepaModel`, and those of its modules since transformers 5. A `ViTMAE` has
those of Hugging Face, below prefixes. Ours differ from
all in that the blocks are stacked, kernels are [inputs, outputs], and a patch is flattened as (row,
column, channel). Everything here is a copy of numbers: there and back is exact.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from jepa_jax.config import Config, IJepaConfig, MaeConfig
from jepa_jax.errors import UserError

# The encoders of a trained I-JEPA: the moving average, which the paper evaluates, and the context
# encoder, which the gradient trains.
NETWORKS = ("target_encoder", "encoder")


class Style(NamedTuple):
    """How one library names the parts of a vision transformer."""

    pos_embed: str
    block: str  # of number {}
    norm: str
    norm1: str
    qkv: tuple[str, ...]  # one fused tensor, or three
    proj: str
    norm2: str
    fc1: str
    fc2: str
    patch_embed: str = ""


PUBLISHED = Style(
    pos_embed="pos_embed",
    block="blocks.{}.",
    norm="norm",
    norm1="norm1",
    qkv=("attn.qkv",),
    proj="attn.proj",
    norm2="norm2",
    fc1="mlp.fc1",
    fc2="mlp.fc2",
    patch_embed="patch_embed.proj",
)
PREDICTOR = PUBLISHED._replace(
    pos_embed="predictor_pos_embed", block="predictor_blocks.{}.", norm="predictor_norm"
)
HUGGINGFACE = Style(
    pos_embed="embeddings.position_embeddings",
    block="encoder.layer.{}.",
    norm="layernorm",
    norm1="layernorm_before",
    qkv=tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    proj="attention.output.dense",
    norm2="layernorm_after",
    fc1="intermediate.dense",
    fc2="output.dense",
    patch_embed="embeddings.patch_embeddings.projection",
)
HUGGINGFACE_5 = HUGGINGFACE._replace(
    block="layers.{}.",
    qkv=tuple(f"attention.{part}_proj" for part in "qkv"),
    proj="attention.o_proj",
    fc1="mlp.fc1",
    fc2="mlp.fc2",
)
# A `ViTMAEForPreTraining`'s encoder and its decoder, as transformers 4 and the published files name
# them, and as the modules are named since transformers 5 ...
VIT_MAE_ENCODERS = tuple(
    style._replace(
        pos_embed=f"vit.{style.pos_embed}",
        block=f"vit.{style.block}",
        norm=f"vit.{style.norm}",
        patch_embed=f"vit.{style.patch_embed}",
    )
    for style in (HUGGINGFACE, HUGGINGFACE_5)
)
# ... which has a third name for the decoder's blocks: its `save_pretrained` writes it.
VIT_MAE_DECODERS = tuple(
    style._replace(
        pos_embed="decoder.decoder_pos_embed", block=f"decoder.{block}", norm="decoder.decoder_norm"
    )
    for style, block in (
        (HUGGINGFACE, "decoder_layers.{}."),
        (HUGGINGFACE_5, "decoder_layers.{}."),
        (HUGGINGFACE, "decoder_encoder.layer.{}."),
    )
)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of another library, and the place of its numbers in ours."""

    name: str
    shape: tuple[int, ...]
    permutation: tuple[int, ...]  # of its axes; reshaped after that, it is ours
    path: tuple[str, ...]  # of our array ...
    index: tuple[Any, ...]  # ... and the part of that array

    def store(self, theirs: np.ndarray, ours: np.ndarray) -> None:
        """Copies their numbers into our array."""
        view = ours[self.index]
        view[...] = theirs.transpose(self.permutation).reshape(view.shape)

    def fetch(self, ours: np.ndarray) -> np.ndarray:
        """A copy of their tensor from our array."""
        permuted = ours[self.index].reshape([self.shape[i] for i in self.permutation])
        return np.array(permuted.transpose(np.argsort(self.permutation)), order="C")


def encoder_tensors(config: Config, style: Style) -> list[Tensor]:
    """All of an encoder's tensors; the positions only where they are learned."""
    model = config.model
    dim, p = model.embed_dim, model.patch_size
    tensors = [
        Tensor(
            f"{style.patch_embed}.weight",
            (dim, 3, p, p),
            (2, 3, 1, 0),
            ("patch_embed", "kernel"),
            (...,),
        ),
        _vector(f"{style.patch_embed}.bias", dim, ("patch_embed", "bias")),
        *_transformer(
            style, model.depth, dim, model.num_heads, hidden_dim=int(dim * model.mlp_ratio)
        ),
    ]
    if model.positions == "learned":
        shape = (1, config.grid[0] * config.grid[1], dim)
        tensors.append(Tensor(style.pos_embed, shape, (0, 1, 2), ("pos_embed",), (...,)))
    return tensors


def ijepa_settings(config: Config) -> IJepaConfig:
    """The objective's section of a configuration that can be converted.

    Raises:
      UserError: it is of another objective, or its encoder has a class token.
    """
    if not isinstance(config.objective, IJepaConfig):
        raise UserError(
            f"config.objective.name = {config.objective.name}: the formats of other libraries hold "
            "models of ijepa alone"
        )
    if config.model.class_token:
        raise UserError(
            "config.model.class_token = True: the formats of other libraries hold models of ijepa "
            "without one"
        )
    return config.objective


def predictor_tensors(config: Config) -> list[Tensor]:
    """All of a published predictor's tensors but its fixed positions."""
    predictor, outer = ijepa_settings(config).predictor, config.model.embed_dim
    dim = predictor.embed_dim
    return [
        _token("mask_token", dim, ("mask_token",)),
        *_dense("predictor_embed", outer, dim, ("embed",), (...,)),
        *_transformer(PREDICTOR, predictor.depth, dim, predictor.num_heads, hidden_dim=4 * dim),
        *_dense("predictor_proj", dim, outer, ("proj",), (...,)),
    ]


def vit_mae_tensors(
    config: Config, settings: MaeConfig, encoder: Style, decoder: Style
) -> dict[str, list[Tensor]]:
    """All of a ViTMAE's tensors but its fixed positions: those of its encoder and its decoder.

    Args:
      settings: the objective's section of the configuration.
      encoder, decoder: of `VIT_MAE_ENCODERS` and `VIT_MAE_DECODERS`.
    """
    outer, dim = config.model.embed_dim, settings.decoder.embed_dim
    values = 3 * config.model.patch_size**2
    blocks = _transformer(
        decoder, settings.decoder.depth, dim, settings.decoder.num_heads, hidden_dim=4 * dim
    )
    return {
        "encoder": [
            _token("vit.embeddings.cls_token", outer, ("cls_token",)),
            *encoder_tensors(config, encoder),
        ],
        "decoder": [
            _token("decoder.mask_token", dim, ("mask_token",)),
            *_dense("decoder.decoder_embed", outer, dim, ("embed",), (...,)),
            *blocks,
            *_dense("decoder.decoder_pred", dim, values, ("proj",), (...,)),
        ],
    }


def _transformer(
    style: Style, depth: int, dim: int, num_heads: int, *, hidden_dim: int
) -> list[Tensor]:
    head_dim, tensors = dim // num_heads, []
    for i in range(depth):
        block, ours = style.block.format(i), ("transformer", "blocks")
        tensors += _norm(block + style.norm1, dim, (*ours, "norm1"), (i,))
        if len(style.qkv) == 1:
            qkv = (*ours, "attention", "qkv")
            tensors += _dense(block + style.qkv[0], dim, 3 * num_heads * head_dim, qkv, (i,))
        else:
            for part, name in enumerate(style.qkv):
                qkv, all_ = (*ours, "attention", "qkv"), slice(None)
                tensors += [
                    Tensor(
                        f"{block}{name}.weight",
                        (dim, dim),
                        (1, 0),
                        (*qkv, "kernel"),
                        (i, all_, part),
                    ),
                    Tensor(f"{block}{name}.bias", (dim,), (0,), (*qkv, "bias"), (i, part)),
                ]
        tensors += [
            *_dense(block + style.proj, dim, dim, (*ours, "attention", "proj"), (i,)),
            *_norm(block + style.norm2, dim, (*ours, "norm2"), (i,)),
            *_dense(block + style.fc1, dim, hidden_dim, (*ours, "mlp", "fc1"), (i,)),
            *_dense(block + style.fc2, hidden_dim, dim, (*ours, "mlp", "fc2"), (i,)),
        ]
    return tensors + _norm(style.norm, dim, ("transformer", "norm"), (...,))


def _dense(
    name: str, inputs: int, outputs: int, path: tuple[str, ...], index: tuple[Any, ...]
) -> list[Tensor]:
    return [
        Tensor(f"{name}.weight", (outputs, inputs), (1, 0), (*path, "kernel"), index),
        Tensor(f"{name}.bias", (outputs,), (0,), (*path, "bias"), index),
    ]


def _norm(name: str, dim: int, path: tuple[str, ...], index: tuple[Any, ...]) -> list[Tensor]:
    return [
        Tensor(f"{name}.weight", (dim,), (0,), (*path, "scale"), index),
        Tensor(f"{name}.bias", (dim,), (0,), (*path, "bias"), index),
    ]


def _token(name: str, dim: int, path: tuple[str, ...]) -> Tensor:
    return Tensor(name, (1, 1, dim), (0, 1, 2), path, (...,))


def _vector(name: str, dim: int, path: tuple[str, ...]) -> Tensor:
    return Tensor(name, (dim,), (0,), path, (...,))
