"""Hugging Face hub ids, `facebook/ijepa_vith14_1k`, as folders: downloaded once, then cached."""

import os
import pathlib
import re

from jepa_jax.errors import UserError

# A repository may hold the same weights in other formats too, which are not read.
_FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json")
_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def local_path(path: str | os.PathLike) -> pathlib.Path:
    """The folder of a hub id; any other path as it is.

    A path that exists is never taken for an id, nor is one whose first folder exists: a name that
    is mistyped below `runs` is no business of the hub's.

    Raises:
      UserError: there is no such path, and what would be its hub id can't be fetched.
    """
    folder = pathlib.Path(path)
    name = folder.as_posix()
    if folder.exists() or folder.parent.exists() or not _ID.fullmatch(name):
        return folder
    where = f"{name}: no such path here, and as a Hugging Face hub id"
    by_hand = (
        f"download {', '.join(_FILES[:3])} from https://huggingface.co/{name} into a folder, "
        "and give that"
    )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"{where} it needs pip install huggingface_hub (or requirements-interop.txt); or "
            f"{by_hand}"
        ) from None
    try:
        # Without a network this gives what is in the cache already.
        snapshot = snapshot_download(name, allow_patterns=list(_FILES))
    except Exception as error:  # of the network, of its HTTP library, of the hub: a hundred kinds
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"{where} it can't be fetched ({type(error).__name__}: {reason}); {by_hand}"
        ) from error
    return pathlib.Path(snapshot)
