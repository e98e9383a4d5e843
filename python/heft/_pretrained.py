"""Models of Transformers: ``from_pretrained()`` and ``save_pretrained()``."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading

import torch

from . import _heft
from ._checkpoint import open as _open
from ._convert import to_torch, torch_dtype
from ._errors import HeftError, RefusedError, UnsupportedError, warn
from ._modules import _is_untouched, _mark
from ._offload import offloading, stays
from ._operations import WriteReport, _bytes, add
from ._patched import Patch, here, patched
from ._progress import Reporting
from ._sharing import Together
from .safetensors import _Slice, translate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, Literal

    from ._checkpoint import Progress
    from .safetensors import safe_open

__all__ = ["from_pretrained", "save_pretrained"]

_OWN: Any = object()  # left to the class's own from_pretrained()


# ---- from_pretrained -----------------------------------------------------------------------------------


def _name(dtype: torch.dtype) -> str:
    return str(dtype).rpartition(".")[2]


class _How:
    """How a call of from_pretrained() brings tensors in."""

    def __init__(self, copy: bool, share: bool) -> None:
        self.copy = copy
        self.share = share
        self.together = Together(share)
        self.fused = 0  # bytes of what Transformers puts together of several tensors, cast
        self.read: set[str] = set()  # names in the ``.bin`` files
        self.unread: dict[str, str] = {}  # names of what is not read of them, and the file
        self.lacking: list[tuple[Any, str]] = []  # models, and names of what has to be initialized


class _Whole(torch.Tensor):
    """A tensor in its file, mapped, which ``to()`` reads and casts in one step."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _lazy: _heft.Tensor
    _how: _How

    @staticmethod
    def make(lazy: _heft.Tensor, how: _How) -> _Whole:
        whole: _Whole = torch.Tensor._make_subclass(_Whole, to_torch(lazy))
        whole._lazy, whole._how = lazy, how
        return whole

    def __getitem__(self, key: Any) -> Any:
        return self if key is Ellipsis else self.as_subclass(torch.Tensor)[key]

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Return a plain tensor."""
        plain = self.as_subclass(torch.Tensor)
        if args or not set(kwargs) <= {"device", "dtype"}:
            return plain.to(*args, **kwargs)
        dtype, device = kwargs.get("dtype"), kwargs.get("device")
        if device is not None and torch.device(device).type == "meta":
            return plain.to(device=device, dtype=dtype)
        if stays(self._lazy.name):
            return torch.empty(plain.shape, dtype=dtype or plain.dtype, device="meta")
        cast = dtype is not None and dtype != plain.dtype
        owner = self._lazy._owner
        if owner is None or owner.closed:  # the file was closed: the mapping is there still
            return plain.to(device=device, dtype=dtype)
        if not cast and not self._how.copy:
            return plain if device is None else plain.to(device)
        if dtype is not None and cast and not _heft.can_cast(self._lazy.dtype, _name(dtype)):
            return plain.to(device=device, dtype=dtype)
        ready = self._how.together.take(self._lazy, _name(dtype)) if dtype is not None and cast else None
        if ready is not None:
            return ready if device is None else ready.to(device)
        return to_torch(self._lazy, dtype, device, copy=True)


class _WholeSlice(_Slice):
    """A tensor of safetensors to be indexed, of which ``[...]`` is cast by heft."""

    __slots__ = ("_how", "_lazy")

    def __init__(self, file: safe_open, lazy: _heft.Tensor, how: _How) -> None:
        super().__init__(file, lazy)
        self._lazy, self._how = lazy, how

    def __getitem__(self, key: Any) -> Any:
        if key is not Ellipsis or self._file._framework != "torch" or self._file._device is not None:
            return super().__getitem__(key)
        try:
            return _Whole.make(self._lazy, self._how)
        except HeftError as error:
            if isinstance(error, OSError):
                raise
            raise translate(error) from error


def _load_state_dict(
    checkpoint_file: str | os.PathLike[str],
    map_location: Any = "cpu",
    weights_only: bool = True,
    disable_mmap: bool | None = None,
) -> Any:
    """Transformers' own function, except for a ``.bin`` in from_pretrained() of this thread."""
    how = getattr(here, "how", None)
    if how is None or os.fspath(checkpoint_file).endswith(".safetensors"):
        return _state_dict_patch.original(checkpoint_file, map_location, weights_only, disable_mmap)
    if not weights_only:
        raise RefusedError("weights_only=False would run code from the file", os.fspath(checkpoint_file))
    os.stat(checkpoint_file)
    checkpoint = _open(checkpoint_file)
    how.read.update(checkpoint)
    how.unread.update(dict.fromkeys(checkpoint.skipped, os.fspath(checkpoint_file)))
    if str(map_location) == "meta":
        return {
            name: torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype), device="meta")
            for name, tensor in checkpoint.items()
        }
    state: dict[str, Any] = {name: _Whole.make(tensor, how) for name, tensor in checkpoint.items()}
    on_cpu = map_location is None or str(map_location) == "cpu"
    return state if on_cpu else {name: tensor.to(device=map_location) for name, tensor in state.items()}


_state_dict_patch = Patch(_load_state_dict)


def _spawn_materialize(
    thread_pool: Any, tensor: Any, device: Any = None, dtype: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """Transformers' own function, except for casts in from_pretrained() of this thread.

    Transformers calls it for each tensor before it takes the first one. So all casts of a file are known when the
    first of them is made, and are made in one call. It is left alone with what it fuses or distributes.
    """
    how: Any = getattr(here, "how", None)
    lazy: Any = getattr(tensor, "_lazy", None)
    cast = lazy is not None and dtype is not None and _heft.can_cast(lazy.dtype, _name(dtype))
    cast = cast and lazy.dtype != _name(dtype)
    # without threads, Transformers takes tensors one by one to spare memory
    one_by_one = how is not None and thread_pool is None and not how.share
    cast = cast and not stays(lazy.name)
    if how is None or not cast or one_by_one or (device is not None and torch.device(device).type != "cpu"):
        return _spawn_patch.original(thread_pool, tensor, device, dtype, *args, **kwargs)
    if any(value is not None for value in (*args, *kwargs.values())):
        how.fused += lazy.nbytes
        return _spawn_patch.original(thread_pool, tensor, device, dtype, *args, **kwargs)
    how.together.want(lazy, _name(dtype))
    return lambda: tensor[...].to(device=device, dtype=dtype)


_spawn_patch = Patch(_spawn_materialize)

# Transformers sets functions of its own aside while it makes a model, such as tie_weights(): two threads that do
# so at once may leave them set aside for ever.
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def _announcing(how: _How) -> Iterator[None]:
    """Let this thread's Transformers announce casts, if its version can."""
    try:
        loading: Any = importlib.import_module("transformers.core_model_loading")
    except ModuleNotFoundError:
        loading = None
    if not hasattr(loading, "spawn_materialize"):
        if how.share:
            raise UnsupportedError("share=True needs Transformers 5")
        yield
        return
    with _spawn_patch.on(lambda: loading.spawn_materialize, (loading.__name__,), everywhere=False):
        yield


@contextlib.contextmanager
def _marking(how: _How, models: Any) -> Iterator[None]:
    """Note what this thread's Transformers has to initialize, and give it bytes by which it is seen whether it does."""
    cls, name = models.PreTrainedModel, "_move_missing_keys_from_meta_to_device"
    original = getattr(cls, name, None)
    if original is None or not hasattr(cls, "named_non_persistent_buffers"):
        yield
        return

    def move(model: Any, missing_keys: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(model, missing_keys, *args, **kwargs)
        if getattr(here, "how", None) is not how or models.is_fsdp_enabled() or models.is_deepspeed_zero3_enabled():
            return result
        names = set(missing_keys) - model.all_tied_weights_keys.keys()
        for key in names.union(key for key, _ in model.named_non_persistent_buffers()):
            value = model.get_parameter_or_buffer(key)
            if type(value) in (torch.Tensor, torch.nn.Parameter) and value.device.type == "cpu":
                _mark(value)
                how.lacking.append((model, key))
        return result

    setattr(cls, name, move)
    try:
        yield
    finally:
        setattr(cls, name, original)


@contextlib.contextmanager
def _reading(how: _How, offload_buffers: bool) -> Iterator[None]:
    """Let this thread's Transformers read through heft, with heft's casts."""
    import transformers.modeling_utils as theirs

    before = here.__dict__.copy()
    with (
        patched(),
        _state_dict_patch.on(lambda: theirs.load_state_dict, (theirs.__name__,), everywhere=False),
        _announcing(how),
        _marking(how, theirs),
    ):
        here.slices = lambda file, lazy: _WholeSlice(file, lazy, how)
        here.how = how
        try:
            with offloading(offload_buffers):
                yield
        finally:
            here.__dict__.clear()
            here.__dict__.update(before)


def _warn_of_random(path: str | None, how: _How) -> None:
    """Say what neither the checkpoint nor the class gives a value: Transformers leaves it as its memory was."""
    names = []
    for model, name in how.lacking:
        with contextlib.suppress(AttributeError):  # it is no more
            value = model.get_parameter_or_buffer(name)
            if value.device.type == "cpu" and _is_untouched(value):
                names.append(name)
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        text = "random, for neither the checkpoint nor _init_weights() of the class has a value"
        warn([f"{path}: {text}: {', '.join(names[:5])}{more}"])


_PACKED = "._packed_params._packed_params.0"  # of torch's own quantized modules


def _check_unread(model: Any, how: _How) -> None:
    """Refuse a model with a parameter of which the files have a tensor or object of a kind that heft does not read."""
    if not how.unread:
        return
    known = model.state_dict().keys()
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    for name, path in how.unread.items():
        plain = f"{name.removesuffix(_PACKED)}.weight" if name.endswith(_PACKED) else name
        names = {plain, prefix + plain, plain.removeprefix(prefix)}
        if names & known and not names & how.read:
            text = "is stored as a tensor or object of a kind that heft does not read: the parameter would be random"
            raise UnsupportedError(text, path, name)


def from_pretrained(
    cls: Any,
    path: str | os.PathLike[str] | None,
    *args: Any,
    dtype: Any = _OWN,
    device_map: Any = None,
    max_memory: Mapping[Any, Any] | None = None,
    mode: Literal["map", "copy"] = "map",
    share: bool = False,
    revision: str | None = None,
    **kwargs: Any,
) -> Any:
    """Instantiate a model of Transformers, as ``cls.from_pretrained(path, ...)`` does, with tensors that heft reads.

    Transformers decides what belongs where: names, fused experts, ties, missing and mismatched tensors, devices. heft
    reads safetensors and ``.bin`` files; a tensor is cast once, from the file into its memory, or mapped
    copy-on-write if nothing is cast.

    Args:
        cls: a class of Transformers, also AutoModelForCausalLM and the like.
        path: a folder, or the name of a model on the hub, also ``org/name@revision``; None with a state_dict.
        mode: "map": what needs no cast is mapped; "copy": it is read into memory of its own.
        share: what is cast is in one copy for all processes of this user on this host, whatever started them, and
            what is not is mapped. A write to a parameter goes to private pages. Tensors that Transformers puts
            together of several (fused experts) are private; the logger "heft" says so.
        device_map, max_memory, offload_buffers: as there; device_map may be what heft.plan() returns. Modules on "disk"
            stay in the checkpoint's own files, also those of a ``.bin``, as in load_checkpoint_and_dispatch(). Only
            what Transformers converts, such as experts that it fuses, needs an offload_folder, and is written to it.
        dtype, revision and all others: as there, with the same defaults.

    Calls from several threads run one after the other, because those of Transformers disturb each other.

    Returns:
        What ``cls.from_pretrained()`` returns.

    Raises:
        the exceptions of ``cls.from_pretrained()``; for malformed files SafetensorError or HeftError, with path, tensor
        and byte; UnsupportedError for a parameter that a ``.bin`` has as a tensor or object of a class that heft does
        not read; RefusedError for weights_only=False, which would run the code in a ``.bin``; LimitError: the machine
        does not have the memory for casts.
    """
    if mode not in ("map", "copy"):
        raise ValueError(f"mode {mode!r} is not 'map' or 'copy'")
    if not callable(getattr(cls, "from_pretrained", None)):
        raise TypeError(f"{cls!r} has no from_pretrained()")
    if kwargs.get("weights_only") is False:
        raise RefusedError("weights_only=False would run code from the file", os.fspath(path or ""))
    name = None if path is None else os.fspath(path)
    if name is not None and revision is None and "@" in name and not os.path.exists(name):
        name, _, revision = name.rpartition("@")
    device_map = getattr(device_map, "device_map", device_map)  # a Plan has one
    for key, value in (("device_map", device_map), ("max_memory", max_memory), ("revision", revision)):
        if value is not None:
            kwargs[key] = value
    if dtype is not _OWN:
        kwargs["dtype"] = dtype
    how = _How(mode == "copy" and not share, share)
    with _one_at_a_time, _reading(how, bool(kwargs.get("offload_buffers"))):
        model = cls.from_pretrained(name, *args, **kwargs)
    _warn_of_random(name, how)
    _check_unread(model[0] if isinstance(model, tuple) else model, how)
    if share and how.fused:
        warn([f"{name}: Transformers puts tensors of {how.fused} bytes together: their result is private, not shared"])
    return model


# ---- save_pretrained -----------------------------------------------------------------------------------


def _save_file(tensors: dict[str, torch.Tensor], filename: Any, metadata: dict[str, str] | None = None) -> Any:
    """Safetensors' own function, except in save_pretrained() of this thread: that collects the tensors."""
    collected = getattr(here, "collected", None)
    if collected is None:
        return _save_patch.original(tensors, filename, metadata)
    collected.append((dict(tensors), os.path.basename(filename), dict(metadata or {})))
    return None


_save_patch = Patch(_save_file)


def _collect(model: Any, folder: str, options: dict[str, Any]) -> list[tuple[dict[str, Any], str, dict[str, str]]]:
    """Let the model save itself to a folder, everything but its weights. Return these."""
    import transformers.modeling_utils

    theirs: Any = transformers.modeling_utils
    collected: list[tuple[dict[str, Any], str, dict[str, str]]] = []
    with _save_patch.on(lambda: theirs.safe_save_file, (theirs.__name__,), everywhere=False):
        here.collected = collected
        try:
            model.save_pretrained(folder, max_shard_size=1 << 62, **options)
        finally:
            del here.collected
    return collected


def _tied_to(tensors: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """The model's tensors that share memory with one of these, whose names were left out."""
    areas = {(t.data_ptr(), t.shape, t.dtype) for t in tensors.values() if t.device.type == "cpu" and t.nelement()}
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in tensors
        and isinstance(tensor, torch.Tensor)
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and (tensor.data_ptr(), tensor.shape, tensor.dtype) in areas
    }


def _side_files(folder: str) -> Iterator[tuple[str, bytes]]:
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            raise UnsupportedError("the model saves a subfolder, which heft does not write", name)
        with open(path, "rb") as file:
            yield name, file.read()


def save_pretrained(
    model: Any,
    save_directory: str | os.PathLike[str],
    *,
    max_shard_size: int | str | None = None,
    format: Literal["safetensors", "bin"] = "safetensors",
    variant: str | None = None,
    progress: Progress | None = None,
    **kwargs: Any,
) -> WriteReport:
    """Save a model of Transformers, as ``model.save_pretrained(save_directory)`` does: whole, or not at all.

    Transformers decides what is saved: names, fused experts, configurations. heft writes it: at every moment, the folder
    has the old checkpoint or the whole new one. Offloaded weights are brought into memory. Other files in the folder
    stay.

    Args:
        max_shard_size: bytes, or "200MB" (powers of 1000), "200MiB" (of 1024); None: 50 GB.
        format: "safetensors", or "bin" for ``pytorch_model.bin``, with tied names tied.
        variant, all others: as for ``model.save_pretrained()``.
        progress: called with (what, done bytes, total bytes); what it raises cancels, and nothing is written.

    Raises:
        TypeError: not a model of Transformers; UnsupportedError: push_to_hub, adapters, distributed models;
        IoError: writing failed, also because the disk is full.
    """
    import tempfile

    if format not in ("safetensors", "bin"):
        raise ValueError(f"format {format!r} is not 'safetensors' or 'bin'")
    if not hasattr(model, "save_pretrained") or not hasattr(model, "num_parameters"):
        raise TypeError(f"{type(model).__name__} is not a model of Transformers: use heft.save_file() or heft.save_state_dict()")
    refused = [name for name in ("push_to_hub", "distributed_checkpoint") if kwargs.get(name)]
    if refused or not kwargs.get("is_main_process", True):
        raise UnsupportedError(f"heft.save_pretrained() does not support {refused[0] if refused else 'is_main_process=False'}")
    if os.path.exists(save_directory) and not os.path.isdir(save_directory):
        raise NotADirectoryError(20, "Not a directory", os.fspath(save_directory))
    limit = _bytes(max_shard_size)
    with tempfile.TemporaryDirectory(prefix="heft-") as folder:
        collected = _collect(model, folder, {**kwargs, "variant": variant})
        if len(collected) != 1 or not collected[0][1].startswith("model."):
            raise UnsupportedError("the model has no weights of its own, or does not save them as a state dict")
        tensors, _, metadata = collected.pop()
        side_files = list(_side_files(folder))
    writer = _heft.Writer(
        save_directory,
        format=format,
        max_shard_bytes=limit,
        variant=variant,
        force=True,
        ties="copy" if format == "safetensors" else "refuse",
        total_parameters=model.num_parameters(),
        keep_side_files=True,
    )
    try:
        if format == "safetensors":
            for key, value in metadata.items():
                writer.metadata(key, value)
        else:
            tensors.update(_tied_to(tensors, model))
        for name, tensor in tensors.items():
            add(writer, name, tensor)
        for name, content in side_files:
            writer.side_file(name, content)
        with Reporting(progress) as report:
            return WriteReport(writer.commit(report))
    finally:
        writer.close()
