"""Images as files for pods, and a look at all of them: python -m jepa_jax.data VERB SRC [DST]

    pack SRC DST   writes the images, unchanged, into a few large files, which
                   config.data.source = "shards" reads; interrupted, it goes on where it stopped
    check SRC      reads every image once, and names those that are bad, odd, or there twice

SRC is a folder of images, DIR/<split>/<class>/<image> or DIR/<split>/<image>; for check also a
folder of shards; or the name of a data set of TFDS. docs/data.md tells more.
"""

import argparse
import json
import logging
import os
import pathlib
from typing import Any

from jepa_jax.command_line import make_parser, run_command
from jepa_jax.data.check import Duplicates, changed_files, check
from jepa_jax.data.check_report import report_lines, summary
from jepa_jax.data.packing import check_destination, pack
from jepa_jax.data.reading import kind_of, open_splits, split_names
from jepa_jax.errors import BadDataError, UserError

log = logging.getLogger("jepa_jax.data")  # which `python -m` calls __main__

# 2 GB of images of 110 kB, as ImageNet's are, of which ImageNet-21k has 865: all stay open.
_IMAGES_PER_SHARD = 16384


def pack_splits(
    source: str,
    destination: pathlib.Path,
    *,
    splits: list[str],
    images_per_shard: int,
    tfds_dir: str | None,
) -> dict[str, Any]:
    """Packs each split; returns what the JSON line says of it.

    Raises:
      UserError, StoppedRunError: see `pack` and `open_splits`.
    """
    kind = kind_of(source)
    if kind == "shards":
        raise UserError(f"{source}: is packed already")
    check_destination(destination)
    path = source if kind == "tfds" else os.path.realpath(pathlib.Path(source).expanduser())
    result = {}
    for split, opened in open_splits(source, splits, tfds_dir=tfds_dir).items():
        manifest = pack(
            opened,
            destination / split,
            came_from={"kind": kind, "path": path, "split": split},
            images_per_shard=images_per_shard,
        )
        result[split] = {
            "shards": len(manifest.shards),
            "images": manifest.count,
            "bytes": sum(shard.bytes for shard in manifest.shards),
            "bad": len(manifest.left_out),
        }
    return result


def check_splits(source: str, *, splits: list[str], tfds_dir: str | None) -> dict[str, Any]:
    """Reads and describes each split; returns what the JSON line says.

    Raises:
      UserError: see `open_splits`.
    """
    reports, duplicates, changed = {}, Duplicates(), []
    for split, opened in open_splits(source, splits, tfds_dir=tfds_dir).items():
        if kind_of(source) == "shards":
            root = pathlib.Path(source).expanduser() / split
            changed += [str(root / name) for name in changed_files(root)]
        reports[split] = check(split, opened, duplicates)
    groups = duplicates.find()
    for line in report_lines(reports, groups, changed):
        log.info("%s", line)
    return summary(reports, groups, changed)


def main() -> None:
    parser = make_parser("jepa_jax.data", __doc__)
    parser.add_argument("verb", choices=("pack", "check"), metavar="VERB", help="pack or check")
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("destination", nargs="?", type=pathlib.Path, metavar="DST")
    parser.add_argument(
        "--splits",
        metavar="A,B",
        help="sub-folders, or splits of TFDS (default: train and test, as far as they exist)",
    )
    parser.add_argument(
        "--images-per-shard",
        type=int,
        default=_IMAGES_PER_SHARD,
        metavar="N",
        help="pack: images in one file (default: %(default)s)",
    )
    parser.add_argument("--tfds-dir", metavar="DIR", help="where data sets of TFDS are prepared")

    def command(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
        if overrides:
            parser.error(f"unknown argument {overrides[0]}")
        if arguments.images_per_shard < 1:
            raise UserError(f"--images-per-shard {arguments.images_per_shard}: must be at least 1")
        if (arguments.destination is None) == (arguments.verb == "pack"):
            parser.error(f"{arguments.verb}: takes SRC{' DST' if arguments.verb == 'pack' else ''}")
        splits = split_names(arguments.source, arguments.splits)
        if arguments.verb == "pack":
            return pack_splits(
                arguments.source,
                arguments.destination,
                splits=splits,
                images_per_shard=arguments.images_per_shard,
                tfds_dir=arguments.tfds_dir,
            )
        found = check_splits(arguments.source, splits=splits, tfds_dir=arguments.tfds_dir)
        if found["bad"] or found["changed_files"]:
            print(json.dumps(found))  # as every command's last line, though this one fails
            raise BadDataError(
                f"{arguments.source}: {found['bad']} bad images of {found['images']}, "
                f"{len(found['changed_files'])} files that do not match their checksums"
            )
        return found

    run_command(command, parser)


if __name__ == "__main__":
    main()
