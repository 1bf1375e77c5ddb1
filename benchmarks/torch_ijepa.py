"""The I-JEPA training step in PyTorch: what ours is measured against, in two forms.

`published`: as the paper's authors describe their run, and as one first writes it: eager, explicit
softmax attention, all patches embedded before the context's are picked, the moving average in a
loop over the parameters. `best`: what a PyTorch engineer would make of it: compiled as a whole,
fused attention, only the context's pixels embedded, no token computed in the predictor's last block
that nothing reads, fused optimizer and average.

Both are the same function of the same parameters, which are named and shaped as in the published
checkpoints. Written from the paper (Assran et al., 2023) and those checkpoints' layout.
"""

from typing import Any, Literal

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_jax.config import Config
from jepa_jax.models.positions import sincos_positions

Form = Literal["published", "best"]
LAYER_NORM_EPS, TARGET_LAYER_NORM_EPS = 1e-6, 1e-5


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, *, best: bool):
        super().__init__()
        self.num_heads, self.best = num_heads, best
        self.qkv = nn.Linear(dim, 3 * dim)  # its rows are ordered (3, heads, head_dim)
        self.proj = nn.Linear(dim, dim)

    def heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, N, parts * D] -> `parts` times [B, heads, N, head_dim]."""
        return x.unflatten(2, (parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        """All tokens [B, N, D] -> the last `num_queries` of them [B, Q, D]."""
        if num_queries is None:
            query, key, value = self.heads(self.qkv(x), 3)
        else:
            dim, weight, bias = x.shape[2], self.qkv.weight, self.qkv.bias
            (query,) = self.heads(F.linear(x[:, -num_queries:], weight[:dim], bias[:dim]), 1)
            key, value = self.heads(F.linear(x, weight[dim:], bias[dim:]), 2)
        if self.best:
            x = F.scaled_dot_product_attention(query, key, value)
        else:
            scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
            x = scores.softmax(dim=-1) @ value
        return self.proj(x.transpose(1, 2).flatten(2))  # [B, Q, D]


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, *, best: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads, best=best)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        """All tokens [B, N, D] -> the last `num_queries` of them [B, Q, D]."""
        y = self.attn(self.norm1(x), num_queries)
        x = y + (x if num_queries is None else x[:, -num_queries:])
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Only holds the convolution, which gives the parameters their published names."""

    def __init__(self, patch_size: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)


class Encoder(nn.Module):
    def __init__(self, config: Config, *, best: bool):
        super().__init__()
        model = config.model
        self.best, self.patch_size, dim = best, model.patch_size, model.embed_dim
        self.patch_embed = PatchEmbed(model.patch_size, dim)
        positions = torch.from_numpy(sincos_positions(config.grid, dim))[None]
        self.register_buffer("pos_embed", positions)
        self.blocks = nn.ModuleList(
            Block(dim, model.num_heads, model.mlp_ratio, best=best) for _ in range(model.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Images [B, 3, H, W], patches [B, K] to encode (None: all N) -> tokens [B, K, D]."""
        x = self.embed_picked(images, index) if self.best else self.embed_all(images, index)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def embed_all(self, images: Tensor, index: Tensor | None) -> Tensor:
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2) + self.pos_embed  # [B, N, D]
        return x if index is None else gather_tokens(x, index)

    def embed_picked(self, images: Tensor, index: Tensor | None) -> Tensor:
        """Pixels need no gradient: picked first, they leave no scatter to the backward pass."""
        patches, positions = patchify(images, self.patch_size), self.pos_embed  # [B, N, 3 * p * p]
        if index is not None:
            patches, positions = gather_tokens(patches, index), positions[0][index]
        weight, bias = self.patch_embed.proj.weight, self.patch_embed.proj.bias
        return F.linear(patches, weight.flatten(1), bias) + positions  # [B, K, D]


class Predictor(nn.Module):
    def __init__(self, config: Config, *, best: bool):
        super().__init__()
        predictor, self.best = config.objective.predictor, best
        dim, outer_dim = predictor.embed_dim, config.model.embed_dim
        self.predictor_embed = nn.Linear(outer_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        positions = torch.from_numpy(sincos_positions(config.grid, dim))[None]
        self.register_buffer("predictor_pos_embed", positions)
        self.predictor_blocks = nn.ModuleList(
            Block(dim, predictor.num_heads, 4.0, best=best) for _ in range(predictor.depth)
        )
        self.predictor_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.predictor_proj = nn.Linear(dim, outer_dim)

    def forward(self, context: Tensor, context_index: Tensor, target_index: Tensor) -> Tensor:
        """Context [B, K, D] at [B, K], blocks [B, M, T] to predict -> tokens [B, M, T, D]."""
        (B, M, T), positions = target_index.shape, self.predictor_pos_embed[0]  # [N, P]
        context = self.predictor_embed(context) + positions[context_index]  # [B, K, P]
        queries = self.mask_token + positions[target_index.flatten(0, 1)]  # [B * M, T, P]
        context = context.repeat_interleave(M, dim=0)  # [B * M, K, P]
        x = torch.cat([context, queries], dim=1)  # [B * M, K + T, P]
        for block in self.predictor_blocks[:-1]:
            x = block(x)
        x = self.predictor_blocks[-1](x, T if self.best else None)
        x = self.predictor_proj(self.predictor_norm(x)[:, -T:])
        return x.unflatten(0, (B, M))


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """[B, 3, H, W] -> [B, N, 3 * p * p], each patch in the order of a convolution's weights."""
    B, C, H, W = images.shape
    rows, columns = H // patch_size, W // patch_size
    x = images.reshape(B, C, rows, patch_size, columns, patch_size)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(B, rows * columns, C * patch_size**2)


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """[B, N, D], [B, K] -> [B, K, D]."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


def target_tokens(tokens: Tensor) -> Tensor:
    """LayerNorm without parameters over the features of each token."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:], eps=TARGET_LAYER_NORM_EPS)


def prediction_loss(predictions: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Mean over images, blocks, tokens and features, in float32."""
    distance = F.mse_loss if kind == "l2" else F.smooth_l1_loss
    return distance(predictions.float(), targets)


class TorchStep:
    """The three networks, and the step that trains them.

    Args:
      config: as ours; without gradient clipping, accumulation and stochastic depth.
      compile_mode: of `torch.compile`, for `best`; None runs it eagerly.
    """

    def __init__(
        self, config: Config, form: Form, *, device: str, compile_mode: str | None = "default"
    ):
        self.config, self.device, best = config, torch.device(device), form == "best"
        self.encoder = Encoder(config, best=best).to(device)
        self.predictor = Predictor(config, best=best).to(device)
        self.target_encoder = Encoder(config, best=best).to(device).requires_grad_(False)
        self.trained = [*self.encoder.parameters(), *self.predictor.parameters()]
        optimizer = config.optimizer
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.trained if p.ndim > 1]},
                {"params": [p for p in self.trained if p.ndim == 1]},  # biases, LayerNorms
            ],
            betas=(optimizer.b1, optimizer.b2),
            eps=optimizer.eps,
            fused=True if best else None,
        )
        self.follow = self.follow_at_once if best else self.follow_in_a_loop
        self.loss = self.eager_loss
        if best and compile_mode:
            self.loss = torch.compile(self.eager_loss, fullgraph=True, mode=compile_mode)

    def networks(self) -> dict[str, nn.Module]:
        """By their names in the published checkpoints."""
        return {name: getattr(self, name) for name in ("encoder", "predictor", "target_encoder")}

    def load(self, states: dict[str, dict[str, Tensor]]) -> None:
        for name, network in self.networks().items():
            network.load_state_dict(states[name])

    def to_device(self, batch: dict[str, np.ndarray]) -> dict[str, Tensor]:
        """A batch in our layout ([B, H, W, 3], int32) -> in PyTorch's ([B, 3, H, W], int64)."""
        images = np.ascontiguousarray(batch["image"].transpose(0, 3, 1, 2))
        tensors = {"image": torch.from_numpy(images)} | {
            name: torch.from_numpy(batch[name].astype(np.int64))
            for name in ("context_index", "target_index")
        }
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def eager_loss(self, batch: dict[str, Tensor]) -> Tensor:
        images, context_index = batch["image"], batch["context_index"]
        target_index = batch["target_index"]  # [B, M, T]
        low_precision = self.config.compute.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low_precision):
            with torch.no_grad():
                targets = target_tokens(self.target_encoder(images))  # [B, N, D]
                targets = gather_tokens(targets, target_index.flatten(1))
                targets = targets.unflatten(1, target_index.shape[1:])  # [B, M, T, D]
            context = self.encoder(images, context_index)  # [B, K, D]
            predictions = self.predictor(context, context_index, target_index)
        return prediction_loss(predictions, targets, self.config.objective.loss)

    def step(
        self, batch: dict[str, Tensor], *, lr: float, weight_decay: float, momentum: float
    ) -> Tensor:
        """One training step; its loss, left on the device."""
        decays = (weight_decay, 0.0)
        for group, decay in zip(self.optimizer.param_groups, decays, strict=True):
            group["lr"], group["weight_decay"] = lr, decay
        loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.follow(momentum)
        return loss.detach().clone()  # a CUDA graph writes the next loss to the same place

    @torch.no_grad()
    def follow_in_a_loop(self, momentum: float) -> None:
        pairs = zip(self.encoder.parameters(), self.target_encoder.parameters(), strict=True)
        for parameter, average in pairs:
            average.mul_(momentum).add_((1.0 - momentum) * parameter.detach())

    @torch.no_grad()
    def follow_at_once(self, momentum: float) -> None:
        averages = list(self.target_encoder.parameters())
        torch._foreach_lerp_(averages, list(self.encoder.parameters()), 1.0 - momentum)


def from_ours(params: dict[str, Any], config: Config) -> dict[str, dict[str, Tensor]]:
    """Our parameters {"encoder": ..., "predictor": ...} as state dicts of the three networks.

    The target encoder starts as the encoder.
    """
    encoder, predictor, p = params["encoder"], params["predictor"], config.model.patch_size
    kernel = encoder["patch_embed"]["kernel"]  # [p * p * 3, D]
    encoder_state = {
        "patch_embed.proj.weight": kernel.reshape(p, p, 3, -1).transpose(3, 2, 0, 1),
        "patch_embed.proj.bias": encoder["patch_embed"]["bias"],
        "pos_embed": sincos_positions(config.grid, config.model.embed_dim)[None],
        **_transformer(encoder["transformer"], "blocks", "norm"),
    }
    predictor_state = {
        **_dense(predictor["embed"], "predictor_embed"),
        "mask_token": predictor["mask_token"].reshape(1, 1, -1),
        "predictor_pos_embed": sincos_positions(config.grid, config.objective.predictor.embed_dim)[
            None
        ],
        **_transformer(predictor["transformer"], "predictor_blocks", "predictor_norm"),
        **_dense(predictor["proj"], "predictor_proj"),
    }
    states = {"encoder": encoder_state, "predictor": predictor_state}
    tensors = {
        network: {name: torch.tensor(np.ascontiguousarray(x)) for name, x in state.items()}
        for network, state in states.items()
    }
    return tensors | {"target_encoder": tensors["encoder"]}


def _dense(ours: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Inputs and outputs of several dimensions (heads, head_dim) are flattened."""
    bias = ours["bias"].reshape(-1)
    return {f"{name}.weight": ours["kernel"].reshape(-1, len(bias)).T, f"{name}.bias": bias}


def _layer_norm(ours: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {f"{name}.weight": ours["scale"], f"{name}.bias": ours["bias"]}


def _transformer(ours: dict[str, Any], blocks: str, norm: str) -> dict[str, np.ndarray]:
    """Splits the blocks' parameters, which ours stacks along a first axis."""
    state = _layer_norm(ours["norm"], norm)
    for i in range(len(ours["blocks"]["norm1"]["scale"])):
        block, name = jax.tree.map(lambda leaf, i=i: leaf[i], ours["blocks"]), f"{blocks}.{i}"
        state |= {
            **_layer_norm(block["norm1"], f"{name}.norm1"),
            **_dense(block["attention"]["qkv"], f"{name}.attn.qkv"),
            **_dense(block["attention"]["proj"], f"{name}.attn.proj"),
            **_layer_norm(block["norm2"], f"{name}.norm2"),
            **_dense(block["mlp"]["fc1"], f"{name}.mlp.fc1"),
            **_dense(block["mlp"]["fc2"], f"{name}.mlp.fc2"),
        }
    return state
