"""The interface of the library safetensors, over heft: ``safe_open``, ``SafetensorError``.

``heft.safetensors.torch`` and ``heft.safetensors.numpy`` are its submodules. What differs is in
docs/python.md.
"""

from __future__ import annotations

import os

from .. import _heft
from .._convert import collector_paused, import_torch, to_numpy
from .._errors import HeftError, IoError
from .._progress import Reporting

try:  # then the library's own `except` clauses catch heft's errors too
    from safetensors import SafetensorError as _Error
except ImportError:
    _Error = Exception  # type: ignore[assignment,misc]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType, TracebackType
    from typing import Any

    from . import numpy as numpy
    from . import torch as torch

__all__ = ["SafetensorError", "safe_open"]

_FRAMEWORKS = {"pt": "torch", "torch": "torch", "pytorch": "torch", "np": "numpy", "numpy": "numpy"}


def __getattr__(name: str) -> ModuleType:
    if name in ("torch", "numpy"):
        import importlib

        return importlib.import_module("." + name, __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class SafetensorError(HeftError, _Error):
    """What safetensors raises; also a HeftError, with status, path, item and offset."""


def translate(error: HeftError, kind: type[SafetensorError] = SafetensorError) -> SafetensorError:
    """Make a SafetensorError of a HeftError."""
    result = kind(error.message, error.path, error.item, error.offset, error.errno)
    result.status = error.status
    return result


def _is_device(device: Any) -> bool:
    if isinstance(device, int) and not isinstance(device, bool):
        return device >= 0
    if not isinstance(device, str):
        return False
    kind, colon, number = device.partition(":")
    known = kind in ("cpu", "cuda", "mps", "npu", "xpu", "xla", "mlu", "musa", "hpu", "privateuseone")
    return known and (number.isdecimal() or not colon)


class _Slice:
    """A tensor to be indexed: what ``get_slice()`` returns. It stays valid after the file is closed."""

    __slots__ = ("_file", "_kept", "_tensor")

    def __init__(self, file: safe_open, tensor: _heft.Tensor) -> None:
        self._file = file
        self._tensor = tensor.map()
        self._kept: Any = None

    def get_shape(self) -> list[int]:
        """Return the shape, as the file has it."""
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        """Return safetensors' name of the dtype, such as "F32"."""
        return _heft.DTYPES[self._tensor.dtype][0]

    def __getitem__(self, key: Any) -> Any:
        if self._kept is None:
            self._kept = self._file._whole(self._tensor)
        if self._file._framework != "numpy":
            part = self._kept[key]
            return self._file._placed(part if self._file._backend == "mmap" else part.clone())
        import numpy as np

        try:
            return np.array(self._kept[key])  # a copy; one element is an array, too
        except (IndexError, ValueError) as error:
            raise SafetensorError(str(error)) from error


class safe_open:
    """Open a safetensors file lazily.

    Args:
        filename: str or os.PathLike.
        framework: "pt" or "np".
        device: where the tensors of torch are to be.
        backend: "mmap": copy-on-write on the file; "pread": read into memory of their own.

    Raises:
        FileNotFoundError, OSError; SafetensorError for a malformed file.
    """

    __slots__ = ("_backend", "_checkpoint", "_device", "_framework", "_names")

    def __init__(
        self,
        filename: str | os.PathLike[str],
        framework: str,
        device: str | int = "cpu",
        *,
        backend: str = "mmap",
    ) -> None:
        path = os.fspath(filename)
        if not isinstance(path, str):
            raise TypeError(f"argument 'filename': {type(path).__name__!r} object is not an instance of 'str'")
        if framework not in _FRAMEWORKS:
            raise SafetensorError(f"framework {framework} is invalid")
        if not _is_device(device):
            raise SafetensorError(f"device {device} is invalid")
        if backend not in ("mmap", "pread"):
            raise SafetensorError(f'backend "{backend}" is invalid (expected one of: "mmap", "pread")')
        self._framework = _FRAMEWORKS[framework]
        self._device = None if device == "cpu" else device
        self._backend = backend
        self._checkpoint: _heft.Checkpoint | None = _open_file(path)
        self._names: dict[str, int] = self._checkpoint.names()

    def __enter__(self) -> safe_open:
        return self

    def __exit__(
        self, _exc_type: type[BaseException] | None, _exc_value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._checkpoint is not None:
            self._checkpoint.close()
        self._checkpoint = None

    def _file(self) -> _heft.Checkpoint:
        if self._checkpoint is None:
            raise SafetensorError("File is closed")
        return self._checkpoint

    def _lazy(self, name: str) -> _heft.Tensor:
        checkpoint = self._file()
        if not isinstance(name, str):
            raise TypeError(f"argument 'name': {type(name).__name__!r} object is not an instance of 'str'")
        number = self._names.get(name)
        if number is None:
            raise SafetensorError(f"File does not contain tensor {name}")
        return checkpoint.tensor(number)

    def _whole(self, tensor: _heft.Tensor) -> Any:
        try:
            if self._framework == "numpy":
                return to_numpy(tensor)
            return import_torch(tensor)
        except HeftError as error:
            if isinstance(error, OSError):
                raise
            raise translate(error) from error

    def _placed(self, tensor: Any) -> Any:
        return tensor if self._device is None or self._framework == "numpy" else tensor.to(self._device)

    def keys(self) -> list[str]:
        """Return the names, sorted."""
        self._file()
        return sorted(self._names)

    def offset_keys(self) -> list[str]:
        """Return the names in the order of their bytes."""
        self._file()
        return list(self._names)

    def metadata(self) -> dict[str, str] | None:
        """Return the metadata of the file, None without."""
        pairs: dict[str, str] = self._file().facts()["metadata"]
        return pairs or None

    def get_tensor(self, name: str) -> Any:
        """Return a tensor: an array of numpy has memory of its own, as has each tensor of the backend "pread"."""
        lazy = self._lazy(name)
        own = self._framework == "numpy" or self._backend == "pread"
        return self._placed(self._whole(lazy.read() if own else lazy))

    def get_tensors(self) -> dict[str, Any]:
        """Return all tensors, in the order of their bytes."""
        with collector_paused():
            return {name: self.get_tensor(name) for name in self.offset_keys()}

    def get_slice(self, name: str) -> _Slice:
        """Return an object that gives a part of the tensor when it is indexed."""
        return _Slice(self, self._lazy(name))


def _open_file(path: str) -> _heft.Checkpoint:
    os.stat(path)  # no such file: never a name of the hub's; the error is the system's own
    if os.path.isdir(path):
        raise IsADirectoryError(21, "Is a directory", path)
    try:
        checkpoint = _heft.open(path)
    except HeftError as error:
        if isinstance(error, OSError):
            raise
        raise translate(error) from error
    files = checkpoint.facts()["files"]
    if len(files) != 1 or files[0]["format"] != "safetensors":
        checkpoint.close()
        raise SafetensorError("the file is not a safetensors file", path)
    return checkpoint


def open_bytes(data: bytes) -> _heft.Checkpoint:
    """Open the content of a safetensors file."""
    if not isinstance(data, bytes):
        raise TypeError(f"argument 'bytes': {type(data).__name__!r} object is not an instance of 'bytes'")
    try:
        checkpoint = _heft.open_bytes(data)
    except HeftError as error:
        raise translate(error) from error
    if checkpoint.facts()["files"][0]["format"] != "safetensors":
        checkpoint.close()
        raise SafetensorError("the data is not a safetensors file")
    return checkpoint


def write(writer: _heft.Writer, tensors: dict[str, Any], metadata: dict[str, str] | None) -> None:
    """Add all tensors and the metadata to a writer of one safetensors file, and write it."""
    from .._operations import add

    try:
        if metadata is not None:
            for key, value in metadata.items():
                for text in (key, value):
                    if not isinstance(text, str):
                        raise TypeError(
                            f"argument 'metadata': {type(text).__name__!r} object is not an instance of 'str'"
                        )
        writer.metadata("format", None)
        for key, value in (metadata or {}).items():
            writer.metadata(key, value)
        for name, tensor in tensors.items():
            if not isinstance(name, str):
                raise TypeError(f"argument 'tensor_dict': {type(name).__name__!r} object is not an instance of 'str'")
            add(writer, name, tensor)
        with Reporting(None) as report:
            writer.commit(report)
    except HeftError as error:
        raise translate(error) from error
    finally:
        writer.close()


def write_file(tensors: dict[str, Any], filename: str | os.PathLike[str], metadata: dict[str, str] | None) -> None:
    """Write one safetensors file, whatever its name is."""
    parent = os.path.dirname(os.path.abspath(filename))
    if not os.path.isdir(parent):
        raise translate(IoError("no such folder", os.fsdecode(parent), errno=2))
    try:
        writer = _heft.Writer(filename, format="safetensors", single_file=True, force=True, ties="copy")
    except HeftError as error:
        raise translate(error) from error
    write(writer, tensors, metadata)


def write_bytes(tensors: dict[str, Any], metadata: dict[str, str] | None) -> bytes:
    """Return the content of a safetensors file. It is written to a temporary file, in memory if possible."""
    import tempfile

    memory = "/dev/shm"
    folder = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="heft-", dir=folder) as place:
        path = os.path.join(place, "x.safetensors")
        write_file(tensors, path, metadata)
        with open(path, "rb") as file:
            return file.read()
