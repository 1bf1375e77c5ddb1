"""Peak memory of the converters, beside the size of what they read.

    python -m benchmarks.convert_memory --size g --folder /scratch

Writes a checkpoint as the reference does, three networks and an AdamW, of random numbers, and sends
it through all four verbs of `jepa_jax.convert`, each in a process of its own. ViT-g takes 17 GB a
file, and room for two. Two peaks are given: of all that a process has in memory, and without the
pages of mapped files, which the system may drop whenever it needs room. Lines of progress go to
standard error; the last line, on standard output, is JSON.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch

from jepa_jax.config import Config, resolve
from jepa_jax.config.files import load_config
from jepa_jax.config.sizes import vit_size
from jepa_jax.interop.names import Tensor
from jepa_jax.interop.official import in_order, parameter_groups
from jepa_jax.models.positions import sincos_positions

SAMPLE_SECONDS = 0.05
NETWORKS = ("encoder", "predictor", "target_encoder")


def make_config(size: str) -> Config:
    """ViT of one of the published sizes, at 224 pixels."""
    config = load_config("configs/in1k_vith14_ep300.py", [])
    encoder, predictor = vit_size(size)
    config["model"] |= encoder | {"patch_size": 14 if size == "h" else 16}
    config["objective"]["predictor"] |= predictor
    config["objective"]["masks"]["context_tokens"] = 51
    return resolve(config)


def write_checkpoint(config: Config, path: pathlib.Path) -> None:
    """Random numbers, the same for all tensors, so that they need no memory here."""
    tensors = {name: in_order(config, name) for name in NETWORKS}
    largest = max(int(np.prod(t.shape)) for of_one in tensors.values() for t in of_one)
    numbers = np.random.default_rng(0).normal(0, 0.02, largest).astype(np.float32)

    def fill(tensor: Tensor) -> torch.Tensor:
        if not tensor.path:
            table = sincos_positions(config.grid, tensor.shape[2])[None]
            return torch.from_numpy(table)
        # Each call makes another storage, which `torch.save` writes by itself.
        return torch.from_numpy(numbers[: int(np.prod(tensor.shape))].reshape(tensor.shape))

    content = {
        name: {f"module.{tensor.name}": fill(tensor) for tensor in of_one}
        for name, of_one in tensors.items()
    }
    state, groups, number = {}, [], 0
    for group in parameter_groups(config):
        numbered = list(enumerate(group, start=number))
        number += len(group)
        groups.append({"params": [i for i, _ in numbered], "betas": (0.9, 0.999), "eps": 1e-8})
        for i, (_, tensor) in numbered:
            if tensor.path:
                moments = {"exp_avg": fill(tensor), "exp_avg_sq": fill(tensor)}
                state[i] = {"step": torch.tensor(7.0), **moments}
    content["opt"] = {"state": state, "param_groups": groups}
    torch.save(content | {"epoch": 1}, path)


def size_of(path: pathlib.Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def run(*command: str) -> tuple[float, float, float]:
    """Seconds that it took, and its two peaks in bytes."""
    start, peak, anonymous = time.perf_counter(), 0, 0
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log)
        while process.poll() is None:
            try:
                status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            except OSError:  # it ended just now
                break
            fields = dict(line.split(":", 1) for line in status.splitlines())
            if "VmHWM" in fields:
                peak = max(peak, int(fields["VmHWM"].split()[0]) << 10)
                anonymous = max(anonymous, int(fields["RssAnon"].split()[0]) << 10)
            time.sleep(SAMPLE_SECONDS)
        if process.wait():
            log.seek(0)
            sys.exit(log.read().decode())
    return time.perf_counter() - start, peak, anonymous


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["ti", "s", "b", "l", "h", "g"], default="b")
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    arguments = parser.parse_args()
    config, rows = make_config(arguments.size), {}
    _, *floor = run("-c", "import jax, torch, jepa_jax.convert; jax.devices()")
    print(f"a process that does nothing: {floor[0] / 1e9:.2f} GB", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = pathlib.Path(name)
        official, orbax, hf = folder / "a.pth.tar", folder / "orbax", folder / "hf"
        write_checkpoint(config, official)
        for verb, source, destination in (
            ("official-to-orbax", official, orbax),
            ("orbax-to-hf", orbax, hf),
            ("hf-to-orbax", hf, folder / "from_hf"),
            ("orbax-to-official", orbax, folder / "back.pth.tar"),
        ):
            if verb == "orbax-to-hf":
                official.unlink()  # room is short
            # Of Orbax, count what is read: orbax-to-hf reads one network.
            read = hf if verb == "orbax-to-hf" else source
            arguments_of = ["-m", "jepa_jax.convert", verb, str(source), str(destination)]
            num_bytes = size_of(source) if source.exists() and read is source else None
            seconds, peak, anonymous = run(*arguments_of)
            num_bytes = num_bytes or size_of(read)
            rows[verb] = {
                "gigabytes": round(num_bytes / 1e9, 2),
                "peak_gigabytes": round(peak / 1e9, 2),
                "peak_ratio": round(peak / num_bytes, 2),
                "anonymous_gigabytes": round(anonymous / 1e9, 2),
                "anonymous_ratio": round(anonymous / num_bytes, 2),
                "seconds": round(seconds, 1),
            }
            print(f"{verb}: {rows[verb]}", file=sys.stderr)
            if verb == "hf-to-orbax":
                shutil.rmtree(hf)
                shutil.rmtree(destination)
    print(json.dumps({"size": arguments.size, "floor_gigabytes": round(floor[0] / 1e9, 2), **rows}))


if __name__ == "__main__":
    main()
