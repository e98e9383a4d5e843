"""Tensors of heft as tensors of torch and arrays of numpy, which are imported here and nowhere earlier."""

from __future__ import annotations

import contextlib
import gc

from . import _heft

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    import numpy
    import torch

    from ._heft import Tensor

_NUMPY = frozenset(
    "float64 float32 float16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool complex64 complex128".split()
)

# dtypes that DLPack has no code for, which torch takes from a buffer
_NO_DLPACK = frozenset("bits8 bits16 bits1x8 bits2x4 bits4x2".split())


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector while many tensors are made, all of which stay.

    Their number alone would start collections, which visit every object of the program: with torch imported, that
    takes as long as it takes to make 20,000 tensors.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def dtype_name(dtype: Any) -> str | None:
    """Return PyTorch's name of a dtype of torch, of numpy, of Python or by name; None for None."""
    if dtype is None:
        return None
    if isinstance(dtype, str):
        return _heft.dtype_name(dtype)
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    if not isinstance(name, str):
        raise TypeError(f"{dtype!r} is not a dtype")
    if name in ("float", "int"):
        name += "64"
    elif name == "complex":
        name = "complex128"
    try:
        return _heft.dtype_name(name)
    except ValueError:
        raise TypeError(f"{dtype!r} is not a dtype that weight files can hold") from None


# ---- torch ------------------------------------------------------------------------------------------


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype of a name."""
    import torch

    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"this version of torch has no dtype {name}")
    return dtype


def import_torch(tensor: Tensor, copy: bool | None = None) -> torch.Tensor:
    """Import one tensor, on a storage of its own; copy=False: BufferError instead of a copy."""
    import torch

    dtype = torch_dtype(tensor.dtype)
    if tensor.dtype in _NO_DLPACK and tensor.nbytes:
        buffer: Any = tensor.read()
        return torch.frombuffer(buffer, dtype=dtype).reshape(tensor.shape)
    return torch.utils.dlpack.from_dlpack(tensor.__dlpack__(max_version=(1, 0), copy=copy))


def _on_storage(tensor: Tensor, storage: torch.UntypedStorage, offset: int, strides: Iterable[int]) -> torch.Tensor:
    import torch

    dtype = torch_dtype(tensor.dtype)
    return torch.empty(0, dtype=dtype, device="cpu").set_(
        storage, offset // dtype.itemsize, tensor.shape, tuple(strides)
    )


def _fits_storage(tensor: Tensor, offset: int, address: int) -> bool:
    bits = _heft.DTYPES[tensor.dtype][1]
    if tensor.dtype == "complex128" and address % 16:
        return False  # torch would fault: DLPack exports a copy
    return bits % 8 == 0 and offset % (bits // 8) == 0


def _tied(tensor: Tensor) -> torch.Tensor | None:
    """Import a tensor that shares its storage: the names of one storage get one torch storage.

    The torch storages stay with the checkpoint until it is closed, as its mapping does.
    """
    owner, number = tensor._owner, tensor._number
    if owner is None or number is None:
        return None
    cache = owner._cache
    ties = cache.get("ties")
    if ties is None:
        ties = cache["ties"] = owner.ties()
    if number not in ties:
        return None
    memory = tensor.map()
    layout = memory._layout
    if layout is None or not layout[3] & _heft.MAPPED or not _fits_storage(tensor, layout[1], layout[4]):
        return None  # a copy on the heap has a storage of its own
    storage = cache.get(ties[number])
    if storage is None:
        storage = cache.setdefault(ties[number], import_torch(memory._storage()).untyped_storage())
    return _on_storage(memory, storage, layout[1], layout[2])


def to_torch(tensor: Tensor, dtype: Any = None, device: Any = None, copy: bool | None = None) -> torch.Tensor:
    """Return a torch.Tensor.

    Args:
        dtype: cast to this dtype. heft casts while it reads; torch casts what heft does not.
        device: where the result is to be; None: the CPU.
        copy: None: without a copy where possible; True: in memory of its own; False: without a copy, or
            ValueError.
    """
    name = dtype_name(dtype)
    if name is not None and name != tensor.dtype:
        if copy is False:
            raise ValueError(f"{tensor.name}: copy=False, but a cast to {name} makes a copy")
        if _heft.can_cast(tensor.dtype, name):
            result = import_torch(tensor.read(name))
        else:
            result = import_torch(tensor).to(torch_dtype(name))
    elif copy:
        result = import_torch(tensor.read())
    else:
        tied = _tied(tensor)
        try:
            result = import_torch(tensor, copy) if tied is None else tied
        except BufferError as error:
            if copy is None:
                raise
            raise ValueError(f"{tensor.name}: {error}") from None
    return result if device is None else result.to(device)


def torch_dict(tensors: dict[str, Tensor]) -> dict[str, torch.Tensor]:
    """Import tensors in memory: those of one storage get one torch storage."""
    with collector_paused():
        return _torch_dict(tensors)


def _torch_dict(tensors: dict[str, Tensor]) -> dict[str, torch.Tensor]:
    keys: dict[str, int] = {}
    counts: dict[int, int] = {}
    for name, tensor in tensors.items():
        layout = tensor._layout
        assert layout is not None
        # the host's copy is one storage of heft for all tensors in it: there the address tells ties
        key = layout[4] if layout[3] & _heft.SHARED else layout[0]
        keys[name] = key
        counts[key] = counts.get(key, 0) + 1
    storages: dict[int, tuple[torch.UntypedStorage, int]] = {}
    result: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        key = keys[name]
        layout = tensor._layout
        assert layout is not None
        shared = bool(layout[3] & _heft.SHARED)
        offset = 0 if shared else layout[1]
        if counts[key] == 1 or not tensor.nbytes or not _fits_storage(tensor, offset, layout[4]):
            result[name] = import_torch(tensor)
            continue
        if key not in storages:
            whole = import_torch(tensor if shared else tensor._storage())
            storages[key] = (whole.untyped_storage(), tensor.nbytes)
        storage, _ = storages[key]
        result[name] = _on_storage(tensor, storage, offset, layout[2])
    return result


# ---- numpy ------------------------------------------------------------------------------------------


def _numpy_dtype(name: str) -> Any:
    if name in _NUMPY:
        import numpy

        return numpy.dtype(name)
    try:
        import ml_dtypes  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise TypeError(f"numpy has no dtype {name}: install ml_dtypes, which adds it") from None
    kind = getattr(ml_dtypes, name, None)
    if kind is None or _heft.DTYPES[name][1] % 8:
        raise TypeError(f"numpy has no dtype {name}")
    return kind


def to_numpy(tensor: Tensor, dtype: Any = None, copy: bool | None = None) -> numpy.ndarray[Any, Any]:
    """Return a numpy.ndarray.

    Args:
        dtype: cast to this dtype.
        copy: None: without a copy where possible, and then copy-on-write; True: in memory of its own;
            False: without a copy, or ValueError.
    """
    import numpy

    name = dtype_name(dtype)
    if name is not None and name != tensor.dtype:
        if copy is False:
            raise ValueError(f"{tensor.name}: copy=False, but a cast to {name} makes a copy")
        if not _heft.can_cast(tensor.dtype, name):
            return to_numpy(tensor).astype(_numpy_dtype(name))
        kind = _numpy_dtype(name)
        memory = tensor.read(name)
    else:
        kind = _numpy_dtype(tensor.dtype)
        if copy is False and tensor.lazy and not tensor._is_run:
            raise ValueError(f"{tensor.name}: copy=False, but the file does not hold these elements as one run of bytes")
        memory = tensor.read() if copy else tensor.map()
    if memory.dtype in _NUMPY:
        return numpy.asarray(memoryview(memory))
    if not memory.nbytes:
        return numpy.empty(memory.shape, kind)
    run: Any = memory if memory._is_run else memory.read()
    array: numpy.ndarray[Any, Any] = numpy.frombuffer(run, kind).reshape(memory.shape)
    return array


def to_array(tensor: Tensor, dtype: Any = None, copy: bool | None = None) -> numpy.ndarray[Any, Any]:
    """The method ``__array__``."""
    array = to_numpy(tensor, None, copy)
    return array if dtype is None or array.dtype == dtype else array.astype(dtype)
