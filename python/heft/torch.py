"""State dicts in PyTorch's own files: ``load`` and ``save``. Nothing in a file is ever executed."""

from __future__ import annotations

import os

from . import _heft
from ._checkpoint import Checkpoint
from ._checkpoint import load as _load
from ._checkpoint import open as _open
from ._checkpoint import state_dict
from ._errors import RefusedError
from ._operations import add
from ._progress import Reporting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import IO, Any

    import torch

    from ._checkpoint import Progress

__all__ = ["load", "save"]


def load(
    f: str | os.PathLike[str] | IO[bytes],
    map_location: Any = None,
    *,
    weights_only: bool = True,
    mmap: bool | None = None,
    dtype: Any = None,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """Load the tensors of a ``.bin``, ``.pt`` or ``.pth`` file, of every version of PyTorch.

    The pickle is interpreted over a fixed list of names and calls nothing. A state dict is found also under
    "state_dict", "model" and the like; a value that is not a tensor is skipped, and the logger "heft" warns.

    Args:
        f: a path, or an open file, which is read from its position on.
        map_location: a device for all tensors; a function or a dict is asked for the place of what is on "cpu", for that is
            where all tensors are at first, wherever they were when they were saved.
        weights_only: False is refused: it means running the code in the file.
        mmap: False: into memory of their own; otherwise copy-on-write on the file.
        dtype: cast floating-point tensors to this dtype.

    Returns:
        {name: tensor}, in the order of the file; names that share a storage there share one here. A state dict has its
        ``_metadata``: the version of each module, by which modules read what older ones saved.

    Raises:
        RefusedError: weights_only=False, or a pickle that only an attack would contain.
        the exceptions of heft.open().
    """
    if not weights_only:
        raise RefusedError("weights_only=False would run code from the file; only torch.load() does that")
    device = _place(map_location)
    mode: Any = "copy" if mmap is False else "map"
    if not isinstance(f, (str, os.PathLike)):
        with _open(f.read()) as checkpoint:
            return state_dict(checkpoint, _load(checkpoint, dtype=dtype, mode=mode, device=device, progress=progress))
    path = os.fspath(f)
    os.stat(path)  # a file, never a name of the hub's
    with _open(path) as checkpoint:
        return state_dict(checkpoint, _load(checkpoint, dtype=dtype, mode=mode, device=device, progress=progress))


def _place(map_location: Any) -> Any:
    """The device that a map_location of any kind has for what is on "cpu"."""
    if isinstance(map_location, dict):
        return map_location.get("cpu")
    if not callable(map_location):
        return map_location
    import torch

    empty: Any = torch.UntypedStorage
    moved = map_location(empty(0), "cpu")
    if moved is not None and not isinstance(moved, (torch.UntypedStorage, torch.TypedStorage)):
        raise TypeError(f"map_location returned {type(moved).__name__}, expected a storage or None")
    return None if moved is None else moved.device


def save(
    obj: Mapping[str, torch.Tensor], f: str | os.PathLike[str] | IO[bytes], *, progress: Progress | None = None
) -> None:
    """Save a state dict as ``torch.save`` does: a file that ``torch.load(weights_only=True)`` opens.

    If obj is a module's ``state_dict()``, the file has its ``_metadata``: the version of each module. Tied tensors are
    written once. At every moment, the old file or the whole new one is there.

    Raises:
        TypeError: a value is not a tensor; IoError: writing failed.
    """
    if isinstance(obj, Checkpoint) or not hasattr(obj, "items"):
        obj = dict(obj)
    if not isinstance(f, (str, os.PathLike)):
        _save_to(obj, f, progress)
        return
    parent = os.path.dirname(os.path.abspath(f))
    if not os.path.isdir(parent):
        raise RuntimeError(f"Parent directory {parent} does not exist.")
    metadata = getattr(obj, "_metadata", None) or {}
    writer = _heft.Writer(
        f,
        format="bin",
        single_file=True,
        force=True,
        modules=list(metadata) or None,
        module_versions=[_version(facts) for facts in metadata.values()],
    )
    try:
        for name, tensor in obj.items():
            add(writer, name, tensor)
        with Reporting(progress) as report:
            writer.commit(report)
    finally:
        writer.close()


def _version(facts: Any) -> int:
    """The version of a module in ``_metadata``; 1, as modules have by default, for what is none."""
    version = facts.get("version") if hasattr(facts, "get") else None
    return version if isinstance(version, int) and 0 <= version < 1 << 32 else 1


def _save_to(obj: Mapping[str, torch.Tensor], f: IO[bytes], progress: Progress | None) -> None:
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory(prefix="heft-") as place:
        path = os.path.join(place, "x.pt")
        save(obj, path, progress=progress)
        with open(path, "rb") as file:
            shutil.copyfileobj(file, f)
