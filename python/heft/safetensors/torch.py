"""The interface of ``safetensors.torch``, over heft."""

from __future__ import annotations

import os

import torch

from . import SafetensorError as SafetensorError
from . import open_bytes, safe_open, write_bytes, write_file
from .._convert import collector_paused, import_torch
from .._heft import DTYPES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["load", "load_file", "load_model", "save", "save_file", "save_model"]

_DTYPES = {
    getattr(torch, name): safetensors for name, (safetensors, _) in DTYPES.items() if safetensors and hasattr(torch, name)
}


def _end(tensor: torch.Tensor) -> int:
    """The address behind the last element; strides are never negative."""
    start = tensor.data_ptr()
    if not tensor.nelement():
        return start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start + (last + 1) * tensor.element_size()


def _shared(tensors: dict[str, torch.Tensor]) -> list[set[str]]:
    """Groups of names whose tensors overlap in memory, as safetensors finds them: also groups of one."""
    storages: dict[tuple[torch.device, int, int], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.device.type == "meta":
            continue
        storage = tensor.untyped_storage()
        if storage.data_ptr() != 0 and storage.nbytes() != 0:
            storages.setdefault((tensor.device, storage.data_ptr(), storage.nbytes()), []).append(name)
    groups: list[set[str]] = []
    for names in storages.values():
        areas = sorted((tensors[name].data_ptr(), _end(tensors[name]), name) for name in names)
        last = -1
        for start, stop, name in areas:
            if start >= last:
                groups.append({name})
            else:
                groups[-1].add(name)
            last = stop
    return groups


def _check(tensors: dict[str, torch.Tensor]) -> None:
    """Refuse what safetensors refuses, with its exceptions."""
    if not isinstance(tensors, dict):
        raise ValueError(f"Expected a dict of [str, torch.Tensor] but received {type(tensors)}")
    sparse = []
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"Key `{name}` is invalid, expected torch.Tensor but received {type(tensor)}")
        if tensor.layout != torch.strided:
            sparse.append(name)
    if sparse:
        raise ValueError(
            f"You are trying to save a sparse tensors: `{sparse}` which this library does not support."
            " You can make it a dense tensor before saving with `.to_dense()` but be aware this might"
            " make a much larger file than needed."
        )
    shared = [group for group in _shared(tensors) if len(group) > 1]
    if shared:
        raise RuntimeError(
            "Some tensors share memory, this will lead to duplicate memory on disk and potential differences when"
            f" loading them again: {shared}. A potential way to correctly save your model is to use `save_model`."
        )
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(
                f"You are trying to save a non contiguous tensor: `{name}` which is not allowed. It either means you"
                " are trying to save tensors which are reference of each other in which case it's recommended to save"
                " only the full tensors, and reslice at load time, or simply call `.contiguous()` on your tensor to"
                " pack it before saving."
            )
        _DTYPES[tensor.dtype]  # KeyError, as there


def save_file(
    tensors: dict[str, torch.Tensor], filename: str | os.PathLike[str], metadata: dict[str, str] | None = None
) -> None:
    """Save tensors to a file; the bytes are those that safetensors writes.

    The old file, or the whole new one, is there at every moment.

    Raises:
        ValueError: not a dict of dense, contiguous tensors; RuntimeError: tensors that share memory;
        SafetensorError: the file cannot be written.
    """
    _check(tensors)
    write_file(tensors, filename, metadata)


def save(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file. Raises as :func:`save_file`."""
    _check(tensors)
    return write_bytes(tensors, metadata)


def load_file(
    filename: str | os.PathLike[str], device: str | int = "cpu", *, backend: str = "mmap"
) -> dict[str, torch.Tensor]:
    """Load all tensors of a file, copy-on-write on the file (backend "mmap") or into memory ("pread")."""
    with safe_open(filename, "pt", device, backend=backend) as file:
        return file.get_tensors()


def load(data: bytes) -> dict[str, torch.Tensor]:
    """Load all tensors from the content of a file, each into memory of its own."""
    checkpoint = open_bytes(data)
    try:
        with collector_paused():
            return {name: import_torch(checkpoint.tensor(number).read()) for name, number in checkpoint.names().items()}
    finally:
        checkpoint.close()


def _duplicates(tensors: dict[str, torch.Tensor], preferred: Iterable[str] = ()) -> dict[str, list[str]]:
    """{name to keep: names that show the same memory}."""
    wanted = set(preferred)
    result: dict[str, list[str]] = {}
    for group in _shared(tensors):
        complete = {
            name
            for name in group
            if tensors[name].data_ptr() == tensors[name].untyped_storage().data_ptr()
            and tensors[name].nelement() * tensors[name].element_size() == tensors[name].untyped_storage().nbytes()
        }
        if not complete:
            raise RuntimeError(
                "Error while trying to find names to remove to save state dict, but found no suitable name to keep"
                f" for saving amongst: {group}. None is covering the entire storage. Refusing to save/load the model"
                " since you could be storing much more memory than needed."
            )
        keep = sorted(complete & wanted or complete)[0]
        rest = sorted(group - {keep})
        if rest:
            result.setdefault(keep, []).extend(rest)
    return result


def save_model(
    model: torch.nn.Module, filename: str, metadata: dict[str, str] | None = None, force_contiguous: bool = True
) -> None:
    """Save a module; of names on the same memory one is saved, the others are in the metadata."""
    state = dict(model.state_dict())
    pairs = None if metadata is None else dict(metadata)
    for kept, dropped in _duplicates(state).items():
        for name in dropped:
            pairs = pairs or {}
            pairs.setdefault(name, kept)
            del state[name]
    if force_contiguous:
        state = {name: tensor.contiguous() for name, tensor in state.items()}
    try:
        save_file(state, filename, pairs)
    except ValueError as error:
        raise ValueError(
            f"{error} Or use save_model(..., force_contiguous=True), read the docs for potential caveats."
        ) from error


def load_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str],
    strict: bool = True,
    device: str | int = "cpu",
    *,
    backend: str = "mmap",
) -> tuple[set[str], list[str]]:
    """Load a file into a module. Returns (missing, unexpected) names, as safetensors does."""
    state = load_file(filename, device, backend=backend)
    duplicates = _duplicates(model.state_dict(), state)
    missing_list, unexpected = model.load_state_dict(state, strict=False)
    missing = set(missing_list)
    for dropped in duplicates.values():
        for name in dropped:
            if name in missing:
                missing.remove(name)
            else:
                unexpected.append(name)
    if strict and (missing or unexpected):
        error = f"Error(s) in loading state_dict for {model.__class__.__name__}:"
        for what, names in (("Missing", missing), ("Unexpected", unexpected)):
            if names:
                error += f"\n    {what} key(s) in state_dict: " + ", ".join(f'"{name}"' for name in sorted(names))
        raise RuntimeError(error)
    return missing, unexpected
