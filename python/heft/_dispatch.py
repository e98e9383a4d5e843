"""Accelerate's dispatch over the checkpoint's own files: ``load_checkpoint_and_dispatch()`` and ``dispatch()``."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

import torch

from . import _heft
from ._checkpoint import Checkpoint
from ._checkpoint import open as _open
from ._convert import torch_dtype
from ._errors import MismatchError, warn
from ._modules import _initialize, _slots, _ties, _torch_shape, _with_ties
from ._patched import Patch, here, patched
from ._weights import Stored, Weights

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping
    from typing import Any

    from torch import nn

    from ._operations import Plan

    Device = int | str | torch.device
    DeviceMap = Mapping[str, Device]

__all__ = ["dispatch", "load_checkpoint_and_dispatch"]

_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")


# ---- what Accelerate decides -----------------------------------------------------------------------------


def _device_map(model: nn.Module, strategy: str, max_memory: Any, no_split: Any, dtype: Any, buffers: bool) -> Any:
    """Let Accelerate make a device map."""
    import accelerate.utils

    theirs: Any = accelerate.utils
    if strategy not in _STRATEGIES:
        raise ValueError(
            "If passing a string for `device_map`, please choose 'auto', 'balanced', 'balanced_low_0' or 'sequential'."
        )
    if strategy != "sequential":
        max_memory = theirs.get_balanced_memory(
            model,
            max_memory=max_memory,
            no_split_module_classes=no_split,
            dtype=dtype,
            low_zero=strategy == "balanced_low_0",
        )
    return theirs.infer_auto_device_map(
        model, max_memory=max_memory, no_split_module_classes=no_split, dtype=dtype, offload_buffers=buffers
    )


def _find_files(checkpoint: str | os.PathLike[str]) -> tuple[str, list[str]]:
    """Find the file or index that Accelerate would read. Return it, and the weight files."""
    path = os.fspath(checkpoint)
    if os.path.isdir(path):
        names = os.listdir(path)
        whole = [name for name in ("pytorch_model.bin", "model.safetensors") if name in names]
        indexes = [name for name in names if name.endswith(".index.json")]
        if not whole and not indexes:
            raise ValueError(
                f"{checkpoint} is not a folder containing a `.index.json` file or a pytorch_model.bin or a"
                " model.safetensors file"
            )
        if not whole and len(indexes) > 1:
            raise ValueError(f"{checkpoint} containing more than one `.index.json` file, delete the irrelevant ones.")
        path = os.path.join(path, (whole or indexes)[0])
    elif not os.path.isfile(path):
        raise ValueError(
            "`checkpoint` should be the path to a file containing a whole state dict, or the index of a sharded "
            "checkpoint, or a folder containing a sharded checkpoint or the whole state dict, but got"
            f" {checkpoint}."
        )
    if not path.endswith(".json"):
        return path, [path]
    with open(path) as file:
        index = json.load(file)
    index = index.get("weight_map", index) if isinstance(index, dict) else {}
    shards = sorted({shard for shard in index.values() if isinstance(shard, str)})
    return path, [os.path.join(os.path.dirname(path), shard) for shard in shards]


def _check_metadata(checkpoint: Checkpoint, files: list[str], logger: Any) -> None:
    """Accelerate's rules of the metadata of safetensors files."""
    for path in files:
        if not path.endswith(".safetensors"):
            continue
        if len(files) == 1:
            metadata = checkpoint.metadata
        else:
            with _open(path) as file:
                metadata = file.metadata
        if not metadata:
            logger.warning(
                f"The safetensors archive passed at {path} does not contain metadata. "
                "Make sure to save your model with the `save_pretrained` method. Defaulting to 'pt' metadata."
            )
        elif metadata.get("format") not in ("pt", "tf", "flax"):
            raise OSError(
                f"The safetensors archive passed at {path} does not contain the valid metadata. Make sure "
                "you save your model with the `save_pretrained` method."
            )
        elif metadata["format"] != "pt":
            raise ValueError(f"The checkpoint passed was saved with {metadata['format']}, we need a the pt format.")


def _device_of(name: str, device_map: DeviceMap) -> Device:
    """Return the device of the innermost module, or the tensor itself, that the map names."""
    module = name
    while module and module not in device_map:
        module = module.rpartition(".")[0]
    if module not in device_map:
        raise ValueError(f"{name} doesn't have any device set.")
    return device_map[module]


def _hooked(model: nn.Module, device_map: DeviceMap, buffers: bool, main_device: Any = None) -> dict[str, Device]:
    """Return the map, where what no hook would bring in from disk is in memory.

    Hooks are on modules. A tensor that the map itself names gets none, unless a module around it is on disk:
    Accelerate makes such maps of modules that have both tensors and modules, and leaves these tensors empty.
    """
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    stay: set[str] = set() if buffers else {name for name, _ in model.named_buffers(remove_duplicate=False)}  # in memory anyway

    def around(name: str) -> Device | None:
        while name:
            name = name.rpartition(".")[0]
            if name in device_map and name in modules:
                return device_map[name]
        return None

    alone = [
        name
        for name, device in device_map.items()
        if device == "disk" and name not in modules and name not in stay and around(name) != "disk"
    ]
    if alone:
        more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
        warn([f"in memory, because only modules can be on disk: {', '.join(alone[:3])}{more}"])
    if main_device is None:
        main_device = next((device for device in device_map.values() if device not in ("cpu", "disk")), "cpu")
    return {**device_map, **dict.fromkeys(alone, main_device)}


# ---- placing ---------------------------------------------------------------------------------------------


class _Placed(NamedTuple):
    """A tensor of the model, and where its value comes from."""

    name: str
    source: _heft.Tensor
    device: Device


def _set(model: nn.Module, name: str, device: Device, value: Any = None, dtype: Any = None, more: Any = None) -> None:
    from accelerate.utils import set_module_tensor_to_device

    set_module_tensor_to_device(model, name, device, value=value, dtype=dtype, fp16_statistics=more)


def _fits(source: _heft.Tensor, own: torch.Tensor) -> bool:
    return tuple(own.shape) == _torch_shape(source)


def _check_shape(name: str, source: _heft.Tensor, own: torch.Tensor) -> None:
    shape = torch.Size(_torch_shape(source))
    if not _fits(source, own):
        raise ValueError(
            f'Trying to set a tensor of shape {shape} in "{name.rpartition(".")[2]}" (which has shape {own.shape}),'
            " this looks incorrect."
        )


def _place(
    model: nn.Module, checkpoint: Checkpoint, device_map: DeviceMap, strict: bool
) -> tuple[list[_Placed], list[str], list[str]]:
    """Return what is to be done with each tensor of the checkpoint, and unexpected and missing names."""
    own = model.state_dict()
    sources = _with_ties(checkpoint, _ties(model))
    placed, unexpected = [], []
    for name, source in sources.items():
        if "SCB" in name:  # statistics of a weight of 8 bits
            continue
        if name in own:
            _check_shape(name, checkpoint[source], own[name])
            placed.append(_Placed(name, checkpoint[source], _device_of(name, device_map)))
            continue
        unexpected.append(name)
        if strict:
            device = _device_of(name, device_map)
            _set(model, name, "meta" if device == "disk" else device)  # raises: there is no such tensor
    return placed, unexpected, [name for name in own if name not in sources]


def _tensor(model: nn.Module, name: str) -> torch.Tensor:
    prefix, _, key = name.rpartition(".")
    module = model.get_submodule(prefix)
    tensor: torch.Tensor | None = module._parameters.get(key)
    if tensor is None:
        tensor = module._buffers[key]
    assert tensor is not None
    return tensor


def _value(source: _heft.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Read a tensor, cast; without a cast it is mapped copy-on-write."""
    return source.torch() if torch_dtype(source.dtype) == dtype else source.torch(dtype)


def _bring_in(
    model: nn.Module,
    checkpoint: Checkpoint,
    placed: Iterable[_Placed],
    on_disk: set[str],
    dtype: torch.dtype | None,
    as_stored: bool,
) -> None:
    """Give the tensors of a model their values; those on disk get a dtype only.

    as_stored: without a dtype, those on disk and CPU get that of the checkpoint, as by Accelerate's offload folder.
    """
    made: dict[tuple[str, torch.dtype], torch.Tensor] = {}
    for name, source, device in placed:
        stored = torch_dtype(source.dtype)
        target: Any = dtype
        if name in on_disk or (device in ("cpu", "disk") and as_stored):
            _set(model, name, "meta", dtype=stored if dtype is None else dtype)
            target = None
        if name in on_disk:
            continue
        wanted = _tensor(model, name).dtype if target is None else target
        if target is not None and str(stored).startswith(("torch.uint", "torch.int", "torch.bool")):
            wanted = stored  # Accelerate never casts these
        if (source.name, wanted) not in made:
            made[source.name, wanted] = _value(source, wanted)
        statistics = name.replace("weight", "SCB") if "weight" in name and source.dtype == "int8" else ""
        more = checkpoint[statistics].torch() if statistics in checkpoint else None
        _set(model, name, "cpu" if device == "disk" else device, made[source.name, wanted], target, more)


def _on_disk(model: nn.Module, device_map: DeviceMap, buffers: bool) -> dict[str, torch.Tensor]:
    """Return what hooks bring in for each use, in the order of the modules."""
    return {
        name: holder[key]
        for name, holder, key, persistent in _slots(model)
        if persistent
        and (buffers or isinstance(holder[key], torch.nn.Parameter))
        and _device_of(name, device_map) == "disk"
    }


def _fill_buffers(model: nn.Module, on_disk: Container[str] = ()) -> None:
    """Let modules compute their buffers that are on meta and neither loaded nor on disk."""
    lacking = [
        (name, holder, key)
        for name, holder, key, _ in _slots(model)
        if holder[key].device.type == "meta" and not isinstance(holder[key], torch.nn.Parameter) and name not in on_disk
    ]
    if lacking:
        _initialize(model, lacking)


def _weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    device_map: DeviceMap,
    sources: Mapping[str, _heft.Tensor],
    buffers: bool,
    others: Container[str] = (),
) -> Weights:
    """Make the mapping that hooks read from. sources: of what is in the checkpoint. others: what is read elsewhere."""
    entries: dict[str, Stored | torch.Tensor] = {}
    ties = _ties(model)
    tied_to_memory = []
    devices = set(device_map.values())
    for name, own in _on_disk(model, device_map, buffers).items():
        if name in others:
            continue
        here_too = [twin for twin in ties.get(name, ()) if _device_of(twin, device_map) != "disk"]
        twins = [tensor for tensor in (_tensor(model, twin) for twin in here_too) if tensor.device.type != "meta"]
        if twins:
            entries[name] = twins[0].detach()
            tied_to_memory.append(name)
        elif name in sources:
            is_buffer = not isinstance(own, torch.nn.Parameter)
            entries[name] = Stored(sources[name].name, own.dtype, is_buffer)
        elif own.device.type != "meta":  # the checkpoint lacks it
            entries[name] = own.detach()
    if devices - {"cpu", "disk"}:  # then modules on the CPU are brought to the main device, too
        for name, own in model.state_dict().items():
            if isinstance(own, torch.Tensor) and _device_of(name, device_map) == "cpu":
                entries[name] = own
    return Weights(checkpoint, entries, tied_to_memory)


# ---- the calls -------------------------------------------------------------------------------------------


def _load_state_dict(checkpoint_file: Any, device_map: Any = None) -> Any:
    """Accelerate's own function, except for a ``.bin`` in load_checkpoint_and_dispatch() of this thread."""
    if not getattr(here, "dispatching", False) or os.fspath(checkpoint_file).endswith(".safetensors"):
        return _state_dict_patch.original(checkpoint_file, device_map)
    from .torch import load

    return load(checkpoint_file)


_state_dict_patch = Patch(_load_state_dict)


def _load_whole(model: nn.Module, checkpoint: str | os.PathLike[str], options: dict[str, Any]) -> None:
    """Load without a device map: Accelerate's own way, with files that heft reads."""
    import accelerate.utils.modeling

    theirs: Any = accelerate.utils.modeling
    with patched(), _state_dict_patch.on(lambda: theirs.load_state_dict, (theirs.__name__,), everywhere=False):
        here.dispatching = True
        try:
            theirs.load_checkpoint_in_model(model, os.fspath(checkpoint), device_map=None, **options)
        finally:
            del here.dispatching


def _load(
    model: nn.Module, path: str, files: list[str], device_map: DeviceMap, options: dict[str, Any]
) -> tuple[Weights | None, list[str]]:
    """Load by a device map. Return the mapping for what is on disk, and the unexpected names."""
    import accelerate.utils.modeling

    theirs: Any = accelerate.utils.modeling
    tied = theirs.find_tied_parameters(model)
    groups = [list(group) for group in {tuple(group) for group in _ties(model).values()}]
    buffers, dtype, disk = options["offload_buffers"], options["dtype"], "disk" in device_map.values()
    checkpoint = _open(path)
    try:
        _check_metadata(checkpoint, files, theirs.logger)
        placed, unexpected, missing = _place(model, checkpoint, device_map, options["strict"])
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            warn([f"{path}: not in the checkpoint: {', '.join(missing[:5])}{more}"])
        on_disk = set(_on_disk(model, device_map, buffers)) if disk else set()
        _bring_in(model, checkpoint, placed, on_disk, dtype, options["offload_state_dict"])
        _fill_buffers(model, on_disk)
        theirs.retie_parameters(model, [*tied, *groups])
        weights = None
        if disk:
            sources = {name: source for name, source, _ in placed}
            weights = _weights(model, checkpoint, device_map, sources, buffers)
    except BaseException:
        checkpoint.close()
        raise
    if not disk:
        checkpoint.close()
    return weights, unexpected


def load_checkpoint_and_dispatch(
    model: nn.Module,
    checkpoint: str | os.PathLike[str],
    device_map: str | DeviceMap | Plan | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
    no_split_module_classes: list[str] | None = None,
    offload_folder: str | os.PathLike[str] | None = None,
    offload_buffers: bool = False,
    dtype: str | torch.dtype | None = None,
    offload_state_dict: bool | None = None,
    skip_keys: str | list[str] | None = None,
    preload_module_classes: list[str] | None = None,
    force_hooks: bool = False,
    strict: bool = False,
    full_state_dict: bool = True,
    broadcast_from_rank0: bool = False,
) -> Any:
    """Load a checkpoint into a model and dispatch it, as Accelerate's function of this name does.

    Nothing is written: modules on "disk" are read from the checkpoint's own files whenever they run, and cast while
    they are read; the next ones are read ahead. Modules on the CPU are mapped copy-on-write if nothing is cast.

    Args:
        model: on meta (``accelerate.init_empty_weights()``, ``torch.device("meta")``) or not.
        checkpoint: a weight file, an index, or a folder with one of them, as there.
        device_map: {module: device}, what heft.plan() returns, "auto", "balanced", "balanced_low_0" or "sequential"; None: no
            dispatch.
        offload_folder: not needed, and not used.
        offload_state_dict: decides, as there, whether modules on the CPU keep the checkpoint's dtype where dtype is
            None; None: if something is on disk.
        all others: as there.

    Buffers on disk are loaded, too. A name tied to one in the checkpoint gets its value, wherever both are. Buffers
    that state dicts do not have, and that are on meta, are computed by the modules' own initializers.

    Returns:
        The model, with Accelerate's hooks if something is on disk or on several devices.

    Raises:
        ValueError, with Accelerate's messages: device maps, paths, shapes, names if strict; the model is as it was.
        HeftError: as heft.open(); MismatchError: nothing computes a buffer that is on meta.
    """
    import accelerate.utils.modeling

    theirs: Any = accelerate.utils.modeling
    devices: Any = getattr(device_map, "device_map", device_map)  # a Plan has one
    if isinstance(device_map, str):
        devices = _device_map(model, device_map, max_memory, no_split_module_classes, dtype, offload_buffers)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.replace("torch.", ""))
    if devices is None:
        rest = {"strict": strict, "full_state_dict": full_state_dict, "broadcast_from_rank0": broadcast_from_rank0}
        _load_whole(model, checkpoint, {"dtype": dtype, **rest})
        _fill_buffers(model)
        return model
    devices = _hooked(model, devices, offload_buffers)
    if offload_state_dict is None:
        offload_state_dict = "disk" in devices.values()
    tied = theirs.find_tied_parameters(model)
    if theirs.check_tied_parameters_in_config(model) and not tied:
        theirs.logger.warning(
            "The model weights are not tied. Please use the `tie_weights` method before using the"
            " `infer_auto_device` function."
        )
    theirs.check_tied_parameters_on_same_device(tied, devices)
    path, files = _find_files(checkpoint)
    weights, unexpected = _load(
        model,
        path,
        files,
        devices,
        {
            "offload_buffers": offload_buffers,
            "dtype": dtype,
            "strict": strict,
            "offload_state_dict": offload_state_dict,
        },
    )
    if unexpected and not strict:
        theirs.logger.warning(
            f"Some weights of the model checkpoint at {checkpoint} were not used when"
            f" initializing {type(model).__name__}: {set(unexpected)}. This may or may not be an issue - make sure that"
            " the checkpoint does not have unnecessary parameters, or that the model definition correctly corresponds"
            " to the checkpoint."
        )
    return _dispatch_model(
        model,
        devices,
        weights,
        offload_buffers=offload_buffers,
        skip_keys=skip_keys,
        preload_module_classes=preload_module_classes,
        force_hooks=force_hooks,
    )


def _dispatch_model(model: nn.Module, device_map: DeviceMap, weights: Weights | None, **options: Any) -> Any:
    from accelerate import dispatch_model

    if weights is not None:  # with an index, though an empty one, no folder is asked for and nothing is written
        options.update(state_dict=weights, offload_index={})
    return dispatch_model(model, device_map=device_map, **options)


def _differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    def content(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)

    return a.dtype != b.dtype or not torch.equal(content(a), content(b))


def dispatch(
    model: nn.Module,
    device_map: DeviceMap | Plan,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    *,
    main_device: Any = None,
    offload_buffers: bool = False,
    skip_keys: str | list[str] | None = None,
    preload_module_classes: list[str] | None = None,
    force_hooks: bool = False,
) -> Any:
    """Dispatch a model, as ``accelerate.dispatch_model()`` does; what is on disk stays in the checkpoint's own files.

    Nothing is written. Parameters on meta, and buffers beside them, get their values from the checkpoint, in the dtypes
    of the model; other tensors stay, and those that go to disk must be equal to the checkpoint's.

    Args:
        device_map: {module: device}, or what heft.plan() returns.
        checkpoint: as for heft.open(); None: where a model of Transformers came from (``model.name_or_path``).
        all others: as there.

    Returns:
        The model.

    Raises:
        ValueError: as there, and for shapes that differ from the model's.
        MismatchError: the checkpoint lacks what would be on disk, or differs from it; all names are in the message, and
        the model is as it was. HeftError: as heft.open().
    """
    devices: Any = getattr(device_map, "device_map", device_map)
    devices = _hooked(model, devices, offload_buffers, main_device)
    options = {
        "main_device": main_device,
        "offload_buffers": offload_buffers,
        "skip_keys": skip_keys,
        "preload_module_classes": preload_module_classes,
        "force_hooks": force_hooks,
    }
    on_meta = _to_load(model)
    if "disk" not in devices.values() and not on_meta:
        return _dispatch_model(model, devices, None, **options)
    if checkpoint is None:
        checkpoint = getattr(model, "name_or_path", None) or None
        if checkpoint is None:
            raise TypeError("the checkpoint of the model is not known: pass it to dispatch()")
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else _open(checkpoint)
    own = {name: holder[key] for name, holder, key, stored in _slots(model) if stored}
    ties = _ties(model)
    sources = {name: opened[source] for name, source in _with_ties(opened, ties).items() if name in own}
    for name, source in sources.items():
        _check_shape(name, source, own[name])
    disk = _on_disk(model, devices, offload_buffers)
    _check_disk(disk, sources, set(on_meta))
    for name in on_meta:
        if name not in disk and name in sources:
            device = _device_of(name, devices)  # of buffers on disk that are not brought in: Accelerate moves them
            _set(model, name, "cpu" if device == "disk" else device, _value(sources[name], own[name].dtype))
    _fill_buffers(model, disk)
    for name in disk:
        _set(model, name, "meta")
    weights = _weights(model, opened, devices, sources, offload_buffers) if disk else None
    return _dispatch_model(model, devices, weights, **options)


def _to_load(model: nn.Module) -> list[str]:
    """Return what is on meta, and the buffers of modules that have a parameter on meta, or none where all are there."""
    names = []
    whole = all(value.device.type == "meta" for value in model.parameters())
    for prefix, module in model.named_modules(remove_duplicate=False):
        there = [p.device.type == "meta" for p in module._parameters.values() if p is not None]
        empty = any(there) or (whole and not there)
        transient = module._non_persistent_buffers_set
        for key, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None and key not in transient and (value.device.type == "meta" or (empty and key in module._buffers)):
                names.append(f"{prefix}.{key}" if prefix else key)
    return names


def _check_disk(
    disk: Mapping[str, torch.Tensor], sources: Mapping[str, _heft.Tensor], to_load: Container[str]
) -> None:
    missing = [name for name in disk if name not in sources]
    if missing:
        raise MismatchError(f"not in the checkpoint, and so not to be on disk: {', '.join(missing)}", item=missing[0])
    others = [
        name
        for name, own in disk.items()
        if name not in to_load and _differ(own, sources[name].torch(own.dtype))
    ]
    if others:
        raise MismatchError(
            f"the model has other values than the checkpoint, which would be lost on disk: {', '.join(others)}",
            item=others[0],
        )
