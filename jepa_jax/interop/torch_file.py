"""`torch.save` files, read without running what is in them.

Such a file is a zip archive of raw arrays and a pickle that says how to assemble them, and a pickle
can ask for any code to be run. PyTorch reads it with `weights_only=True`, which runs none. Before
that the archive itself is checked, checksums included, since PyTorch maps the arrays into memory
without looking at them; which is also why a file is never in memory as a whole.
"""

import pathlib
import pickle
import re
import stat
import zipfile
from typing import Any

from jepa_jax.errors import UserError


def import_torch() -> Any:
    """PyTorch, which this format needs.

    Raises:
      UserError: it is not installed, or so old that hostile files get past `weights_only`
        (CVE-2025-32434, CVE-2026-24747).
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "PyTorch reads and writes this format, and is not installed: "
            "pip install -r requirements-interop.txt"
        ) from error
    version = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if version < (2, 10):
        raise UserError(
            f"PyTorch {torch.__version__} can be made to run code by the files that it reads: 2.10 "
            "or later is needed; pip install -r requirements-interop.txt"
        )
    return torch


def check_archive(path: pathlib.Path) -> None:
    """Looks at the zip archive by itself: whole, uncompressed, and named as PyTorch names.

    Raises:
      UserError: it is something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            folders = {name.split("/")[0] for name in names}
            plain = len(names) == len(set(names)) and len(folders) == 1
            for member in members:
                kind = stat.S_IFMT(member.external_attr >> 16)
                parts = member.filename.split("/")
                plain &= member.compress_type == zipfile.ZIP_STORED and kind in (0, stat.S_IFREG)
                plain &= len(parts) > 1 and not {"", ".", ".."} & set(parts)
                plain &= "\\" not in member.filename
            damaged = archive.testzip() if plain else None
    except Exception as error:  # a damaged archive fails in many ways
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UserError(
            f"{path}: not a whole file of torch.save ({reason}); if it is of PyTorch before 1.6, "
            "save it again with a newer one"
        ) from error
    if not plain:
        raise UserError(f"{path}: a zip archive, but not one that torch.save writes")
    if damaged:
        raise UserError(f"{path}: {damaged} is damaged: its checksum is wrong")


def load(path: pathlib.Path) -> dict[Any, Any]:
    """The dictionary in a file that `check_archive` found whole; its arrays are mapped, not read.

    Raises:
      UserError: PyTorch can't read it, or would have to run code of the file's choice.
    """
    torch = import_torch()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # PyTorch's readers raise many kinds
        text = str(error)
        if "weights_only" in text.lower() or isinstance(error, pickle.UnpicklingError):
            wanted = re.search(r"(?:GLOBAL|instantiate class|class) ([\w.]+)", text)
            raise UserError(
                f"{path}: holds more than tensors and plain values"
                f"{f' ({wanted[1]})' if wanted else ''}, and reading that could run any code; "
                "save the state dicts alone"
            ) from error
        reason = text.split("\n")[0][:200] or type(error).__name__
        raise UserError(f"{path}: PyTorch can't read it: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dictionary of networks")
    return content
