"""The interface of ``safetensors.numpy``, over heft."""

from __future__ import annotations

import os

from . import SafetensorError as SafetensorError
from . import open_bytes, safe_open, write_bytes, write_file
from .._convert import collector_paused, to_numpy
from .._heft import DTYPES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    import numpy

    Array = numpy.ndarray[Any, Any]

__all__ = ["load", "load_file", "save", "save_file"]


def _check(tensors: dict[str, Array]) -> None:
    for array in tensors.values():
        kind = array.dtype.name
        if not DTYPES.get(kind, ("", 0))[0]:
            raise SafetensorError(f'Unknown dtype "{kind}"')


def save_file(
    tensor_dict: dict[str, Array], filename: str | os.PathLike[str], metadata: dict[str, str] | None = None
) -> None:
    """Save arrays to a file; the bytes are those that safetensors writes. Strided arrays are written row by row."""
    _check(tensor_dict)
    write_file(tensor_dict, filename, metadata)


def save(tensor_dict: dict[str, Array], metadata: dict[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file."""
    _check(tensor_dict)
    return write_bytes(tensor_dict, metadata)


def load_file(filename: str | os.PathLike[str], *, backend: str = "mmap") -> dict[str, Array]:
    """Load all arrays of a file; they are writable, and the file does not change."""
    with safe_open(filename, "np", backend=backend) as file:
        if backend != "mmap":
            return file.get_tensors()
        with collector_paused():  # nobody else has this mapping: no copies are needed
            return {name: file._whole(file._lazy(name)) for name in file.offset_keys()}


def load(data: bytes) -> dict[str, Array]:
    """Load all arrays from the content of a file."""
    checkpoint = open_bytes(data)
    try:
        return {name: to_numpy(checkpoint.tensor(number).read()) for name, number in checkpoint.names().items()}
    finally:
        checkpoint.close()
