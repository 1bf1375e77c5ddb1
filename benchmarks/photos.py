"""README's chapter "Your own images" on parts of a folder of images, with several seeds.

    python -m benchmarks.photos --images DIR [--numbers 600 3000 30000] [--seeds 0 1 2]

DIR/train/<class>/* and DIR/test/<class>/*, for example CIFAR-10's. Of each class the first images
are taken, as many of each; of the test images up to 200 of a class. Then the commands are run as
they stand there, and what they answered is kept: a run that is complete is not repeated.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np

_TEST_IMAGES = 200  # of each class
_PROTOCOLS = ("knn", "linear")


def take(images: pathlib.Path, folder: pathlib.Path, number: int) -> None:
    """Makes a folder of links to `number` training images, and to test images."""
    classes = sorted(path.name for path in (images / "train").iterdir())
    for split, each in (("train", number // len(classes)), ("test", _TEST_IMAGES)):
        for name in classes:
            target = folder / split / name
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted((images / split / name).iterdir())[:each]:
                if not (target / file.name).exists():
                    os.symlink(file.absolute(), target / file.name)


def command(*arguments: str) -> dict[str, Any]:
    """The JSON line of one of the package's commands."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(photos: pathlib.Path, workdir: pathlib.Path, seed: int) -> dict[str, Any]:
    """Trains and probes; each number by protocol and representation."""
    train = ["jepa_jax.train", "--config=configs/photos.py", f"--workdir={workdir}"]
    command(*train, f"--config.data.path={photos}", f"--config.seed={seed}")
    found: dict[str, Any] = {}
    for protocol in _PROTOCOLS:
        config = f"--config=configs/probe/{protocol}.py"
        result = command("jepa_jax.probe", config, f"--checkpoint={workdir}")
        found[protocol] = {"pretrained": result["accuracy"], **result["controls"]}
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, a line for each number of images."""
    names = ("pretrained", "random_init", "raw_pixels")
    heads = [f"{p}, {name.replace('_', ' ')}" for p in _PROTOCOLS for name in names]
    lines = [f"| images | seeds | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    for number in sorted({row["images"] for row in rows}):
        group = [row for row in rows if row["images"] == number]
        means = [
            f"{np.mean([row[protocol][name] for row in group]):.3f}"
            for protocol in _PROTOCOLS
            for name in names
        ]
        lines.append(f"| {number:,} | {len(group)} | {' | '.join(means)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=pathlib.Path, required=True)
    parser.add_argument("--numbers", type=int, nargs="+", default=[600, 3000, 30000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=pathlib.Path, default="runs/photos_table")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        for number in arguments.numbers:
            photos = arguments.out / f"photos_{number}"
            take(arguments.images, photos, number)
            workdir = arguments.out / f"{number}_{seed}"
            result = workdir / "result.json"
            if not result.exists():
                found = measure(photos, workdir, seed)
                result.write_text(json.dumps({"images": number, "seed": seed, **found}))
            rows.append(json.loads(result.read_text()))
            print(table(rows), flush=True)


if __name__ == "__main__":
    main()
