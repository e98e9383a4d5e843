"""Files of PyTorch: ``load`` and ``save`` of whatever torch has in them. Nothing in a file is ever executed."""

from __future__ import annotations

import os
import pickle

from . import _heft
from ._checkpoint import Checkpoint, state_dict
from ._checkpoint import load as _load
from ._convert import collector_paused, torch_dict
from ._errors import FormatError, HeftError, LimitError, RefusedError, UnsupportedError, warn
from ._operations import add
from ._progress import Reporting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any, NoReturn, SupportsIndex

    import torch

    from ._checkpoint import Progress

__all__ = ["Skipped", "load", "save"]


class Skipped:
    """What stands in a loaded value for an object that heft does not read: one of a class that only the code of a
    program has, or a sparse, quantized or nested tensor. It says which class that is, and raises if it is used.

    Attributes:
        class_name: the class, or the function that makes such a tensor.
    """

    __slots__ = ("class_name",)
    class_name: str

    def __init__(self, class_name: str) -> None:
        self.class_name = class_name

    def __repr__(self) -> str:
        return f"<heft.torch.Skipped {self.class_name}>"

    def _why(self, what: str) -> str:
        return f"{what}: heft did not read this object of {self.class_name!r} from the file, and ran none of its code"

    def __getattr__(self, name: str) -> NoReturn:
        if name in Skipped.__slots__:
            raise AttributeError(name)
        raise AttributeError(self._why(f"no attribute {name!r}"))

    def __getitem__(self, key: object) -> NoReturn:
        raise TypeError(self._why("no items"))

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError(self._why("not callable"))

    def __copy__(self) -> Skipped:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Skipped:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(self._why("cannot be saved"))


# ---- load -------------------------------------------------------------------------------------------
# For one fault, torch.load() raises RuntimeError if it is in a zip's directory, and UnpicklingError if it is in a pickle.


class BrokenFileError(FormatError, RuntimeError, pickle.UnpicklingError):
    """A malformed file."""


class CutFileError(BrokenFileError, EOFError):
    """A file is empty, or ends too early."""


class UnsupportedFileError(UnsupportedError, pickle.UnpicklingError):
    """No file of PyTorch, or one with something that heft does not support."""


class RefusedFileError(RefusedError, RuntimeError, pickle.UnpicklingError):
    """A file that only an attack would contain."""


class ExcessiveFileError(LimitError, RuntimeError, pickle.UnpicklingError):
    """A file claims more than a limit allows."""


_AS_TORCH: dict[type[HeftError], type[HeftError]] = {
    FormatError: BrokenFileError,
    UnsupportedError: UnsupportedFileError,
    RefusedError: RefusedFileError,
    LimitError: ExcessiveFileError,
}


def _as_torch(error: HeftError, size: int) -> HeftError:
    """The same error, also of the classes that torch.load() raises for such a file."""
    kind = next(kind for base, kind in _AS_TORCH.items() if isinstance(error, base))
    if kind is BrokenFileError and (size == 0 or (error.offset is not None and error.offset >= size)):
        kind = CutFileError
    return kind(error.message, error.path, error.item, error.offset, error.errno)


def load(
    f: str | os.PathLike[str] | IO[bytes],
    map_location: Any = None,
    pickle_module: None = None,
    *,
    weights_only: bool | None = True,
    mmap: bool | None = None,
    dtype: Any = None,
    progress: Progress | None = None,
    **pickle_load_args: Any,
) -> Any:
    """Load what ``torch.load(f, weights_only=True)`` loads: the same value, from files of every version of PyTorch.

    The pickle is interpreted over a fixed list of names and calls nothing. An object of a class that is not in the list
    is a :class:`Skipped`, and the logger "heft" warns once of each class; a pickled module is its state dict.

    Args:
        f: a path, or an open file, which is read from its position on.
        map_location: a device for all tensors; a function or a dict is asked for the place of what is on "cpu", for that is
            where all tensors are at first, wherever they were when they were saved.
        pickle_module: only None: another one would run the code in the file.
        weights_only: False is refused: it means running the code in the file.
        mmap: False: into memory of their own; otherwise copy-on-write on the file.
        dtype: cast floating-point tensors to this dtype.
        progress: as for :func:`heft.load`.
        pickle_load_args: only ``encoding``, of texts that Python 2 wrote: "utf-8" by default; "bytes" for bytes.

    Returns:
        The value, with its own classes of dicts and their attributes (``_metadata``), lists, tuples, sets, numbers and
        tensors. What is one object in the file is one here; tensors that share a storage there share one here.

    Raises:
        RefusedError: weights_only=False, pickle_module, or a pickle that only an attack would contain.
        UnsupportedError: the value is itself an object of another class.
        the exceptions of heft.open(). Those that are about the file are also a RuntimeError and a
        pickle.UnpicklingError; of an empty file, also an EOFError.
    """
    if weights_only is not None and not weights_only:
        raise RefusedError("weights_only=False would run code from the file; only torch.load() does that")
    if pickle_module is not None:
        raise RefusedError("a pickle_module would run code from the file; only torch.load() does that")
    encoding = _encoding(pickle_load_args)
    device = _place(map_location)
    source = os.fsdecode(f) if isinstance(f, (str, os.PathLike)) else f.read()
    size = os.stat(source).st_size if isinstance(source, str) else len(source)  # a file, never a name of the hub's
    try:
        return _load_value(source, mmap, dtype, device, encoding, progress)
    except tuple(_AS_TORCH) as error:
        raise _as_torch(error, size).with_traceback(error.__traceback__) from None


def _load_value(
    source: str | bytes, mmap: bool | None, dtype: Any, device: Any, encoding: str, progress: Progress | None
) -> Any:
    """The value of a file or of bytes."""
    with _open(source, progress) as checkpoint:
        mode: Any = "copy" if mmap is False else "map"
        tensors = list(_load(checkpoint, dtype=dtype, mode=mode, progress=progress).values())
        with collector_paused():
            if mmap is False and dtype is None:
                _keep_views(checkpoint, tensors)
            tensors = _move(tensors, device)
            if not checkpoint._raw.has_value:  # another format, or several files: their tensors by name
                return state_dict(checkpoint, dict(zip(checkpoint, tensors)))
            return checkpoint._raw.value(_Maker(tensors), encoding)


def _encoding(pickle_load_args: dict[str, Any]) -> str:
    """The encoding of texts of Python 2; TypeError for any other argument, as pickle raises it."""
    import codecs

    others = [name for name in pickle_load_args if name != "encoding"]
    if others:
        raise TypeError(f"load() got an unexpected keyword argument {others[0]!r}")
    encoding = pickle_load_args.get("encoding", "utf-8")
    if not isinstance(encoding, str):
        raise TypeError(f"encoding must be a str, not {type(encoding).__name__}")
    if encoding != "bytes":
        codecs.lookup(encoding)
    return encoding


def _open(source: str | bytes, progress: Progress | None) -> Checkpoint:
    """Open a file or bytes for the whole value."""
    if isinstance(source, str):
        with Reporting(progress) as report:
            raw = _heft.open(source, progress=report, whole_value=True)
    else:
        raw = _heft.open_bytes(source, whole_value=True)
    checkpoint = Checkpoint(raw)
    warn(checkpoint.warnings)
    return checkpoint


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


def _view(tensor: torch.Tensor, storage: Any, device: Any = None) -> torch.Tensor:
    """The same view of another storage."""
    import torch

    empty = torch.empty(0, dtype=tensor.dtype, device=device or tensor.device)
    return empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def _keep_views(checkpoint: Checkpoint, tensors: list[torch.Tensor]) -> None:
    """Of tensors that were copied row by row, make views of one storage, and strides, what they are in the file."""
    raw = checkpoint._raw
    copies: dict[int, set[int]] = {}
    ties = raw.ties()
    for number, tie in ties.items():
        copies.setdefault(tie, set()).add(tensors[number].untyped_storage()._cdata)
    others = {}
    for number in range(len(tensors)):
        stored = raw.tensor(number)
        place = stored._stored
        is_run = place is not None and place[2] is not None
        if not is_run or (number in ties and len(copies[ties[number]]) > 1):
            others[str(number)] = stored.map()
    storages: dict[int, Any] = {}
    for name, tensor in torch_dict(others).items():
        storage: Any = tensor.untyped_storage()
        if storage._cdata not in storages:
            storages[storage._cdata] = storage, storage.clone()  # the first keeps its number from others
        tensors[int(name)] = _view(tensor, storages[storage._cdata][1])


def _move(tensors: list[torch.Tensor], device: Any) -> list[torch.Tensor]:
    """Tensors on a device; those that share a storage share one there."""
    if device is None:
        return tensors
    import torch

    target = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    counts: dict[int, int] = {}
    for tensor in tensors:
        key = tensor.untyped_storage()._cdata
        counts[key] = counts.get(key, 0) + 1
    storages: dict[int, Any] = {}
    moved = []
    for tensor in tensors:
        storage: Any = tensor.untyped_storage()
        if target.type == "cpu" or counts[storage._cdata] == 1:
            moved.append(tensor.to(target))
            continue
        there = storages.get(storage._cdata)
        if there is None:
            on_meta = target.type == "meta"
            empty: Any = torch.UntypedStorage
            there = empty(storage.nbytes(), device="meta") if on_meta else storage.to(device=target)
            storages[storage._cdata] = there
        moved.append(_view(tensor, there, target))
    return moved


class _Maker:
    """Makes what Python itself has not, of a part of a pickle's value; called by the extension module."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._tensors = tensors
        self._types: dict[str, Any] = {}

    def __call__(self, kind: str, *parts: Any) -> Any:
        make: Callable[..., Any] = getattr(self, f"_make_{kind.lower()}")
        return make(*parts)

    def _make_integer(self, number: bytes) -> int:
        return int.from_bytes(number, "little", signed=True)

    def _make_tensor(self, number: int, is_parameter: bool, requires_grad: bool, state: Any) -> torch.Tensor:
        import torch

        tensor = self._tensors[number]
        try:
            if is_parameter:
                tensor = torch.nn.Parameter(tensor, requires_grad)
            elif requires_grad:
                tensor.requires_grad_()
        except RuntimeError as error:  # integers have no gradient
            raise TypeError(str(error)) from None
        attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        if slots or (attributes is not None and not isinstance(attributes, dict)):
            raise TypeError("the attributes of a tensor are no dict")
        _set_attributes(tensor, attributes)
        return tensor

    def _make_storage(self, number: int) -> Any:
        import torch

        tensor = self._tensors[number]
        storage: Any = tensor.untyped_storage()
        if storage.nbytes() != tensor.numel() * tensor.element_size():
            storage = tensor.clone().untyped_storage()  # a window of a storage, in files before torch 0.4
        typed: Any = torch.TypedStorage
        return typed(wrap_storage=storage, dtype=tensor.dtype, _internal=True)

    def _make_size(self, sizes: list[int]) -> torch.Size:
        import torch

        return torch.Size(sizes)

    def _of_torch(self, name: str, kind: Any) -> Any:
        import torch

        value = getattr(torch, name.rpartition(".")[2], None)
        if not isinstance(value, kind):
            raise UnsupportedError(f"this version of torch has no {name}")
        return value

    def _make_dtype(self, name: str) -> torch.dtype:
        import torch

        dtype: torch.dtype = self._of_torch(name, torch.dtype)
        return dtype

    def _make_scheme(self, name: str) -> Any:
        import torch

        return self._of_torch(name, torch.qscheme)

    def _make_layout(self, name: str) -> torch.layout:
        import torch

        layout: torch.layout = self._of_torch(name, torch.layout)
        return layout

    def _make_device(self, name: str) -> torch.device:
        import torch

        try:
            return torch.device(name)
        except RuntimeError:
            raise UnsupportedError(f"this version of torch has no device {name!r}") from None

    def _make_type(self, name: str) -> Any:
        import builtins
        import collections

        return getattr(builtins, name, None) or getattr(collections, name)

    def _make_object(self, class_name: str) -> Skipped:
        return Skipped(class_name)

    def _make_ordereddict(self, items: dict[Any, Any], factory: None, attributes: Any) -> Any:
        from collections import OrderedDict

        return _set_attributes(OrderedDict(items), attributes)

    def _make_counter(self, items: dict[Any, Any], factory: None, attributes: Any) -> Any:
        from collections import Counter

        counter: Any = Counter()
        dict.update(counter, items)  # its own update() would add
        return _set_attributes(counter, attributes)

    def _make_defaultdict(self, items: dict[Any, Any], factory: Any, attributes: Any) -> Any:
        from collections import defaultdict

        return _set_attributes(defaultdict(factory, items), attributes)


def _set_attributes(value: Any, attributes: dict[str, Any] | None) -> Any:
    """Set attributes as they lie in an object's dict: no code of its class sees them."""
    if attributes:
        if not hasattr(value, "__dict__") or not all(isinstance(name, str) for name in attributes):
            raise TypeError(f"a {type(value).__name__} is given attributes that it cannot have")
        value.__dict__.update(attributes)
    return value


# ---- save -------------------------------------------------------------------------------------------


def save(
    obj: object,
    f: str | os.PathLike[str] | IO[bytes],
    pickle_module: Any = None,
    pickle_protocol: int = 2,
    _use_new_zipfile_serialization: bool = True,
    _disable_byteorder_record: bool = False,
    *,
    progress: Progress | None = None,
) -> None:
    """Save as ``torch.save`` does: a file that ``torch.load`` opens. At every moment, the old file or the whole new one
    is there.

    heft itself writes a state dict: a dict of tensors, or what a module's ``state_dict()`` returns, with ``_metadata``,
    the version of each module. Tied tensors are written once. Anything else ``torch.save`` writes, into a folder beside
    the file, from where it is moved; an open file is written when that is complete.

    Args:
        obj: anything that torch.save() takes, or a mapping with lazy tensors of heft.
        f: a path, or a file that is open for writing.
        pickle_module, pickle_protocol, _use_new_zipfile_serialization, _disable_byteorder_record: torch.save()'s own.
        progress: as for :func:`heft.load`; of what heft writes.

    Raises:
        IoError: writing failed; what torch.save() raises.
    """
    own = {
        "pickle_protocol": pickle_protocol,
        "_use_new_zipfile_serialization": _use_new_zipfile_serialization,
        "_disable_byteorder_record": _disable_byteorder_record,
    }
    is_plain = pickle_module is None and own == _SAVED_AS
    if pickle_module is not None:
        own["pickle_module"] = pickle_module
    state = _state_dict(obj) if is_plain else None
    if not isinstance(f, (str, os.PathLike)):
        _save_to(obj, state, f, own, progress)
        return
    path = os.path.realpath(os.fspath(f))  # a link stays one
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        raise RuntimeError(f"Parent directory {parent} does not exist.")
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        with open(path, "wb") as file:  # a device or a pipe: there is nothing to keep
            _save_to(obj, state, file, own, progress)
    elif state is not None:
        _write(state, path, progress)
    else:
        _replace(obj, path, own)


_SAVED_AS = {"pickle_protocol": 2, "_use_new_zipfile_serialization": True, "_disable_byteorder_record": False}


def _state_dict(obj: Any) -> Any:
    """The state dict that heft writes as torch.save() does; None for what torch.save() writes itself."""
    if isinstance(obj, Checkpoint):
        return obj
    if not hasattr(obj, "items") or not hasattr(obj, "keys"):
        return None
    names = list(obj.keys())
    if not all(isinstance(name, str) for name in names) or not names:
        return None
    kinds = {type(obj[name]) for name in names}
    if _heft.Tensor in kinds or any(kind.__module__ == "numpy" for kind in kinds):
        return obj  # torch.save() could not
    import torch

    tensors = [obj[name] for name in names]
    if kinds != {torch.Tensor} or not all(map(_is_plain, tensors)) or _overlap(tensors):
        return None
    return obj if _is_plain_dict(obj) else None


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has nothing but values that heft writes, row by row."""
    import torch

    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.requires_grad
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
        and tensor.is_contiguous()
        and not getattr(tensor, "__dict__", None)
    )


def _overlap(tensors: list[torch.Tensor]) -> bool:
    """Whether different views have bytes in common: heft would write them twice, and they would be apart when loaded."""
    ranges: dict[int, set[tuple[Any, ...]]] = {}
    for tensor in tensors:
        view = (tensor.data_ptr(), tensor.nbytes, tuple(tensor.shape), tensor.dtype)
        ranges.setdefault(tensor.untyped_storage()._cdata, set()).add(view)
    for views in ranges.values():
        end = 0
        for start, size, *_ in sorted(views, key=lambda view: view[:2]):
            if start < end:
                return True
            end = start + size
    return False


def _is_plain_dict(obj: Any) -> bool:
    """Whether a dict is of the kinds that heft writes: dict, and a module's state dict."""
    from collections import OrderedDict

    if type(obj) is dict:
        return True
    metadata = getattr(obj, "_metadata", None)
    return (
        type(obj) is OrderedDict
        and list(vars(obj)) == ["_metadata"]
        and type(metadata) is OrderedDict
        and bool(metadata)
        and all(isinstance(path, str) and _is_version(facts) for path, facts in metadata.items())
    )


def _is_version(facts: Any) -> bool:
    """Whether what ``_metadata`` has of a module is its version and nothing else."""
    version = facts.get("version") if type(facts) is dict and list(facts) == ["version"] else None
    return type(version) is int and 0 <= version < 1 << 32


def _write(state: Any, path: str, progress: Progress | None) -> None:
    metadata = getattr(state, "_metadata", None) or {}
    writer = _heft.Writer(
        path,
        format="bin",
        single_file=True,
        force=True,
        modules=list(metadata) or None,
        module_versions=[facts["version"] for facts in metadata.values()],
    )
    try:
        for name, tensor in state.items():
            add(writer, name, tensor)
        with Reporting(progress) as report:
            writer.commit(report)
    finally:
        writer.close()


def _replace(obj: object, path: str, own: dict[str, Any]) -> None:
    """Write with torch.save() into a folder beside the file, and move the file to its place."""
    import tempfile

    import torch

    if os.path.isdir(path):
        torch.save(obj, path, **own)  # its error
    parent, name = os.path.split(path)
    with tempfile.TemporaryDirectory(prefix=".heft-", dir=parent) as place:
        new = os.path.join(place, name)
        torch.save(obj, new, **own)
        if os.path.exists(path):
            os.chmod(new, os.stat(path).st_mode & 0o7777)
        _flush(new)
        os.replace(new, path)
        _flush(parent)


def _flush(path: str) -> None:
    """Have a file, or the names in a folder, on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _save_to(obj: object, state: Any, f: IO[bytes], own: dict[str, Any], progress: Progress | None) -> None:
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory(prefix="heft-") as place:
        path = os.path.join(place, "archive.pt")
        if state is not None:
            _write(state, path, progress)
        else:
            import torch

            torch.save(obj, path, **own)
        with open(path, "rb") as file:
            shutil.copyfileobj(file, f)
