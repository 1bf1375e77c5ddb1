"""The training step of I-JEPA in PyTorch, to compare ours with. Written from the paper alone.

It comes in two forms, which compute the same numbers:

- "published": as research code is written. Eager; attention with an explicit softmax; all patches
  are embedded, with a convolution, before the context's are picked; the average is a Python loop.
- "best": as PyTorch at its fastest. `torch.compile`; `scaled_dot_product_attention`; only the
  context's patches are embedded; fused AdamW; the average by one `foreach` operation.

In bfloat16 both run under autocast, with float32 parameters. Names of parameters are those of the
published checkpoints, so that recorded steps can be replayed.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_jax.config import Config
from jepa_jax.models.positions import sincos_positions


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, *, fused: bool):
        super().__init__()
        self.num_heads, self.fused = num_heads, fused
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:  # [B, N, D] -> [B, N, D]
        B, N, D = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, D // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, N, head_dim]
        if self.fused:
            x = F.scaled_dot_product_attention(query, key, value)
        else:
            scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
            x = scores.softmax(dim=-1) @ value
        return self.proj(x.transpose(1, 2).reshape(B, N, D))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, *, fused: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, fused=fused)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: Config, *, best: bool):
        super().__init__()
        model = config.model
        self.best, self.patch_size = best, model.patch_size
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, model.embed_dim, model.patch_size, model.patch_size)
        positions = torch.from_numpy(sincos_positions(config.grid, model.embed_dim))
        self.register_buffer("pos_embed", positions[None])  # [1, N, D]
        self.blocks = nn.ModuleList(
            Block(model.embed_dim, model.num_heads, model.mlp_ratio, fused=best)
            for _ in range(model.depth)
        )
        self.norm = nn.LayerNorm(model.embed_dim, eps=1e-6)

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] and [B, K] -> [B, K, D]; all N tokens without an index."""
        x = self.embed_patches(images, index) if self.best else self.embed_image(images, index)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def embed_image(self, images: Tensor, index: Tensor | None) -> Tensor:
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)  # [B, N, D]
        x = x + self.pos_embed
        return x if index is None else gather_tokens(x, index)

    def embed_patches(self, images: Tensor, index: Tensor | None) -> Tensor:
        B, C, H, W = images.shape
        p = self.patch_size
        patches = images.reshape(B, C, H // p, p, W // p, p)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(B, -1, C * p * p)  # [B, N, C p p]
        positions = self.pos_embed
        if index is not None:
            patches = gather_tokens(patches, index)
            positions = positions[0][index]  # [B, K, D]
        weight = self.patch_embed.proj.weight.flatten(1)
        return F.linear(patches, weight, self.patch_embed.proj.bias) + positions


class Predictor(nn.Module):
    def __init__(self, config: Config, *, best: bool):
        super().__init__()
        width, dim = config.model.embed_dim, config.predictor.embed_dim
        self.predictor_embed = nn.Linear(width, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        positions = torch.from_numpy(sincos_positions(config.grid, dim))
        self.register_buffer("predictor_pos_embed", positions[None])
        self.predictor_blocks = nn.ModuleList(
            Block(dim, config.predictor.num_heads, 4.0, fused=best)
            for _ in range(config.predictor.depth)
        )
        self.predictor_norm = nn.LayerNorm(dim, eps=1e-6)
        self.predictor_proj = nn.Linear(dim, width)

    def forward(self, context: Tensor, context_index: Tensor, target_index: Tensor) -> Tensor:
        """[B, K, D], [B, K] and [B, M, T] -> [B, M, T, D]."""
        B, M, T = target_index.shape
        positions = self.predictor_pos_embed[0]
        x = self.predictor_embed(context) + positions[context_index]  # [B, K, P]
        K, P = x.shape[1:]
        queries = self.mask_token + positions[target_index.flatten(1)]  # [B, M T, P]
        x = x[:, None].expand(B, M, K, P)
        x = torch.cat([x, queries.reshape(B, M, T, P)], dim=2).flatten(0, 1)  # [B M, K + T, P]
        for block in self.predictor_blocks:
            x = block(x)
        x = self.predictor_norm(x)[:, K:]
        return self.predictor_proj(x).reshape(B, M, T, -1)


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:  # [B, N, D], [B, K] -> [B, K, D]
    return x.gather(1, index[..., None].expand(*index.shape, x.shape[-1]))


class Step:
    """The three networks, AdamW and the moving average, and the step that advances them."""

    def __init__(
        self,
        config: Config,
        *,
        best: bool,
        device: str,
        compiled: bool = True,
        dynamic: bool = False,
    ):
        """`compiled` and `dynamic` concern the form "best": not compiled, and for many shapes."""
        self.config, self.best, self.device = config, best, device
        self.encoder = Encoder(config, best=best).to(device)
        self.target_encoder = Encoder(config, best=best).to(device).requires_grad_(False)
        self.predictor = Predictor(config, best=best).to(device)
        self.trained = [*self.encoder.parameters(), *self.predictor.parameters()]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.trained if p.ndim > 1]},
                {"params": [p for p in self.trained if p.ndim <= 1], "decays": False},
            ],
            betas=(config.optimizer.b1, config.optimizer.b2),
            eps=config.optimizer.eps,
            fused=best,
        )
        self.loss: Callable[..., Tensor] = self.compute_loss
        if best and compiled:
            self.loss = torch.compile(self.compute_loss, dynamic=dynamic)

    def load(self, networks: dict[str, dict[str, Any]]) -> None:
        """Parameters by network and published name, as tensors or NumPy arrays."""
        for name, state in networks.items():
            network = getattr(self, name)
            buffers = dict(network.named_buffers())
            state = {key: torch.as_tensor(value) for key, value in state.items()}
            network.load_state_dict(buffers | state)

    def compute_loss(self, images: Tensor, context_index: Tensor, target_index: Tensor) -> Tensor:
        B, M, T = target_index.shape
        with torch.no_grad():
            targets = self.target_encoder(images)  # [B, N, D]
            targets = F.layer_norm(targets.float(), targets.shape[-1:], eps=1e-5)
            targets = gather_tokens(targets, target_index.flatten(1)).reshape(B, M, T, -1)
        context = self.encoder(images, context_index)
        predictions = self.predictor(context, context_index, target_index).float()
        if self.config.objective.loss == "l2":
            return F.mse_loss(predictions, targets)
        return F.smooth_l1_loss(predictions, targets)

    def take(
        self, batch: dict[str, Tensor], lr: float, weight_decay: float, momentum: float
    ) -> Tensor:
        """One step on a batch of `to_torch`; returns the loss before it, not waited for."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = weight_decay if group.get("decays", True) else 0.0
        mixed = torch.autocast(self.device, torch.bfloat16)
        with mixed if self.config.model.dtype == "bfloat16" else contextlib.nullcontext():
            loss = self.loss(**batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            averages, sources = (
                list(self.target_encoder.parameters()),
                list(self.encoder.parameters()),
            )
            if self.best:
                torch._foreach_lerp_(averages, sources, 1.0 - momentum)
            else:
                for average, source in zip(averages, sources, strict=True):
                    average.mul_(momentum).add_((1.0 - momentum) * source)
        return loss.detach()


def to_torch(batch: dict[str, np.ndarray], device: str) -> dict[str, Tensor]:
    """Our batch as PyTorch likes it: channels before rows and columns, 64-bit indices."""
    images = np.ascontiguousarray(batch["image"].transpose(0, 3, 1, 2))
    return {
        "images": torch.from_numpy(images).to(device),
        "context_index": torch.from_numpy(batch["context_index"].astype(np.int64)).to(device),
        "target_index": torch.from_numpy(batch["target_index"].astype(np.int64)).to(device),
    }


def to_published(params: dict[str, Any], patch_size: int) -> dict[str, np.ndarray]:
    """Parameters of our encoder or of our predictor, under the published names."""
    state: dict[str, np.ndarray] = {}

    def dense(name: str, tree: dict[str, Any], inputs: int) -> None:
        state[f"{name}.weight"] = np.asarray(tree["kernel"]).reshape(inputs, -1).T
        state[f"{name}.bias"] = np.asarray(tree["bias"]).reshape(-1)

    def layer_norm(name: str, tree: dict[str, Any]) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = (
            np.asarray(tree[key]) for key in ("scale", "bias")
        )

    transformer, prefix = params["transformer"], ""
    dim = len(np.asarray(transformer["norm"]["bias"]))
    if "mask_token" in params:
        prefix = "predictor_"
        width = np.asarray(params["embed"]["kernel"]).shape[0]
        dense("predictor_embed", params["embed"], width)
        dense("predictor_proj", params["proj"], dim)
        state["mask_token"] = np.asarray(params["mask_token"]).reshape(1, 1, dim)
    else:
        kernel = np.asarray(params["patch_embed"]["kernel"])  # [p p C, D]
        kernel = kernel.reshape(patch_size, patch_size, -1, dim).transpose(3, 2, 0, 1)
        state["patch_embed.proj.weight"] = kernel  # [D, C, p, p]
        state["patch_embed.proj.bias"] = np.asarray(params["patch_embed"]["bias"])
    layer_norm(f"{prefix}norm", transformer["norm"])
    blocks = transformer["blocks"]
    for i in range(len(np.asarray(blocks["norm1"]["bias"]))):
        name = f"{prefix}blocks.{i}"

        def layer(*path: str, i: int = i) -> dict[str, np.ndarray]:
            tree = blocks
            for key in path:
                tree = tree[key]
            return {key: np.asarray(value)[i] for key, value in tree.items()}

        layer_norm(f"{name}.norm1", layer("norm1"))
        layer_norm(f"{name}.norm2", layer("norm2"))
        dense(f"{name}.attn.qkv", layer("attention", "qkv"), dim)
        dense(f"{name}.attn.proj", layer("attention", "proj"), dim)
        dense(f"{name}.mlp.fc1", layer("mlp", "fc1"), dim)
        fc2 = layer("mlp", "fc2")
        dense(f"{name}.mlp.fc2", fc2, len(fc2["kernel"]))
    return state
