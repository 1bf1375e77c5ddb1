"""Reads a recording of the reference, and maps its parameters onto ours.

The checkpoints are zip files of raw arrays and a pickle that says how to assemble them. Reading
them here, with an unpickler that knows four names and runs no other code, spares the test PyTorch.
"""

import collections
import json
import pathlib
import pickle
import zipfile
from typing import Any

import numpy as np
from conftest import load_config_file

from jepa_jax.config import Config, resolve

_STORAGE_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
}


class _TorchUnpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, prefix: str):
        super().__init__(archive.open(f"{prefix}/data.pkl"))
        self._archive, self._prefix = archive, prefix

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a checkpoint")

    def persistent_load(self, reference: tuple[Any, ...]) -> np.ndarray:
        _, dtype, key, _, _ = reference
        return np.frombuffer(self._archive.read(f"{self._prefix}/data/{key}"), dtype)


def _rebuild_tensor(storage: np.ndarray, offset: int, shape: Any, stride: Any, *_: Any):
    strides = [storage.itemsize * s for s in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides).copy()


def read_torch_file(path: pathlib.Path) -> dict[str, Any]:
    """The contents of a `torch.save` file, with NumPy arrays for tensors."""
    with zipfile.ZipFile(path) as archive:
        prefix = archive.namelist()[0].split("/")[0]
        return _TorchUnpickler(archive, prefix).load()


class Trace:
    """One recorded run."""

    def __init__(self, folder: pathlib.Path):
        self.meta = json.loads((folder / "meta.json").read_text())
        self.arrays = dict(np.load(folder / "trace.npz"))
        self.start = self._networks(read_torch_file(folder / "start.pth.tar"))
        self.end = self._networks(read_torch_file(folder / "end.pth.tar"))

    @staticmethod
    def _networks(checkpoint: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
        return {
            network: {
                name.removeprefix("module."): value for name, value in checkpoint[network].items()
            }
            for network in ("encoder", "predictor", "target_encoder")
        }

    def gradient(self, network: str) -> dict[str, np.ndarray]:
        """Of step 0, by the published names."""
        prefix = f"grad/{network}/"
        return {
            name.removeprefix(prefix): value
            for name, value in self.arrays.items()
            if name.startswith(prefix)
        }


def config_of(trace: Trace) -> Config:
    """Our configuration of the recorded run, from its meta.json."""
    meta = trace.meta
    config = load_config_file("fashion_mnist")
    config.epochs = meta["epochs"]
    config.batch_size = meta["batch_size"]
    config.data.image_size = (meta["image_size"], meta["image_size"])
    config.model.patch_size = meta["patch_size"]
    config.model.embed_dim = meta["embed_dim"]
    config.model.depth = meta["depth"]
    config.model.num_heads = meta["num_heads"]
    config.model.mlp_ratio = meta["mlp_ratio"]
    config.compute.scan_layers = True  # the steps' blocks have five sizes: five compilations
    config.objective.predictor.embed_dim = meta["predictor_embed_dim"]
    config.objective.predictor.depth = meta["predictor_depth"]
    config.objective.predictor.num_heads = meta["num_heads"]
    config.objective.masks.context_tokens = trace.arrays["step0/context_index"].shape[-1]
    config.objective.loss = "smooth_l1"
    config.optimizer.start_lr = meta["start_lr"]
    config.optimizer.lr = meta["lr"]
    config.optimizer.final_lr = meta["final_lr"]
    config.optimizer.warmup_epochs = float(meta["warmup_epochs"])
    config.optimizer.weight_decay = meta["weight_decay"]
    config.optimizer.final_weight_decay = meta["final_weight_decay"]
    config.optimizer.ipe_scale = meta["ipe_scale"]
    config.objective.ema.start_momentum, config.objective.ema.final_momentum = meta["ema"]
    return resolve(config)


def encoder_to_ours(state: dict[str, np.ndarray], num_heads: int) -> dict[str, Any]:
    """Parameters (or gradients) of a published encoder as ours."""
    weight = state["patch_embed.proj.weight"]  # [D, C, p, p]
    return {
        "patch_embed": {
            "kernel": weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0]),  # [p * p * C, D]
            "bias": state["patch_embed.proj.bias"],
        },
        "transformer": _transformer(state, "blocks", "norm", num_heads),
    }


def predictor_to_ours(state: dict[str, np.ndarray], num_heads: int) -> dict[str, Any]:
    """Parameters (or gradients) of a published predictor as ours."""
    return {
        "embed": _dense(state, "predictor_embed"),
        "mask_token": state["mask_token"].reshape(-1),
        "transformer": _transformer(state, "predictor_blocks", "predictor_norm", num_heads),
        "proj": _dense(state, "predictor_proj"),
    }


def _dense(state: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}


def _layer_norm(state: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}


def _transformer(
    state: dict[str, np.ndarray], blocks: str, norm: str, num_heads: int
) -> dict[str, Any]:
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith(f"{blocks}."))
    dim = len(state[f"{norm}.weight"])

    def block(i: int) -> dict[str, Any]:
        name = f"{blocks}.{i}"
        qkv, proj = _dense(state, f"{name}.attn.qkv"), _dense(state, f"{name}.attn.proj")
        return {
            "norm1": _layer_norm(state, f"{name}.norm1"),
            "attention": {
                "qkv": {
                    "kernel": qkv["kernel"].reshape(dim, 3, num_heads, -1),
                    "bias": qkv["bias"].reshape(3, num_heads, -1),
                },
                "proj": {
                    "kernel": proj["kernel"].reshape(num_heads, -1, dim),
                    "bias": proj["bias"],
                },
            },
            "norm2": _layer_norm(state, f"{name}.norm2"),
            "mlp": {
                "fc1": _dense(state, f"{name}.mlp.fc1"),
                "fc2": _dense(state, f"{name}.mlp.fc2"),
            },
        }

    return {
        "blocks": _stack([block(i) for i in range(depth)]),
        "norm": _layer_norm(state, norm),
    }


def _stack(trees: list[dict[str, Any]]) -> dict[str, Any]:
    """Trees of the layers as one tree of arrays with a leading layer axis."""
    return {
        name: _stack([tree[name] for tree in trees])
        if isinstance(trees[0][name], dict)
        else np.stack([tree[name] for tree in trees])
        for name in trees[0]
    }
