"""from_pretrained() with modules on disk: they stay in the checkpoint's own files, and hooks read them through heft."""

from __future__ import annotations

import contextlib
import functools
import json
import os

import torch

from ._checkpoint import Checkpoint
from ._checkpoint import open as _open
from ._dispatch import _device_of, _fits, _hooked, _set, _tensor, _value, _weights
from ._modules import _with_ties
from ._patched import Patch, here

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from . import _heft

__all__ = ["offloading", "stays"]


class _Disk:
    """What one call leaves on disk."""

    def __init__(self, model: Any, checkpoint: Checkpoint, buffers: bool) -> None:
        self.model = model
        self.checkpoint = checkpoint
        self.buffers = buffers
        self.sources: dict[str, _heft.Tensor] = {}  # by the model's names
        self.names: set[str] = set()  # in the checkpoint


def stays(name: str) -> bool:
    """Whether a tensor of the checkpoint stays on disk in this thread's call, so that its bytes are not needed."""
    disk: _Disk | None = getattr(here, "disk", None)
    return disk is not None and name in disk.names


def _open_files(files: list[str]) -> Checkpoint:
    """Open weight files that are one checkpoint."""
    if len(files) == 1:
        return _open(files[0])
    folder, names = os.path.dirname(files[0]), {os.path.basename(file) for file in files}
    for index in sorted(name for name in os.listdir(folder) if name.endswith(".index.json")):
        path = os.path.join(folder, index)
        with open(path) as file:
            content = json.load(file)
        if isinstance(content, dict) and set(content.get("weight_map", {}).values()) == names:
            return _open(path)
    return _open(folder)


def _find(disk: _Disk, device_map: Any, weight_mapping: Any) -> None:
    """Find the tensors of the checkpoint that are tensors of the model on disk, as they are or renamed."""
    import transformers.core_model_loading

    theirs: Any = transformers.core_model_loading
    model = disk.model
    own = model.state_dict()
    buffers = {name for name, _ in model.named_buffers()}
    changes = list(weight_mapping or ())
    renamings = [change for change in changes if isinstance(change, theirs.WeightRenaming)]
    converters = [change for change in changes if isinstance(change, theirs.WeightConverter)]
    for name in disk.checkpoint:
        target, pattern = theirs.rename_source_key(name, renamings, converters, model.base_model_prefix, own)
        if target not in own and name in own:
            target, pattern = theirs.rename_source_key(name, [], [], model.base_model_prefix, own)
        if pattern is None and target in own and theirs.get_device(device_map, target) == "disk":
            if (disk.buffers or target not in buffers) and _fits(disk.checkpoint[name], own[target]):
                disk.sources[target] = disk.checkpoint[name]
                disk.names.add(name)


def _get_device_map(model: Any, device_map: Any, *args: Any, **kwargs: Any) -> Any:
    """Transformers' own function, except in from_pretrained() of this thread: what hooks do not bring in is in memory."""
    result = _map_patch.original(model, device_map, *args, **kwargs)
    options: Any = getattr(here, "offload", None)
    offloads = options is not None and isinstance(result, dict) and "disk" in result.values()
    return _hooked(model, result, options["buffers"]) if offloads else result


def _disk_offload(
    model: Any, folder: Any, files: list[str] | None, device_map: Any, sharded_metadata: Any, weight_mapping: Any = None
) -> Any:
    """Transformers' own function, except in from_pretrained() of this thread: no folder is made.

    What it returns has an entry for each weight that need not be written.
    """
    options: Any = getattr(here, "offload", None)
    if options is not None:
        options["model"] = model
    if options is None or not files:
        return _offload_patch.original(model, folder, files, device_map, sharded_metadata, weight_mapping)
    if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):
        raise NotADirectoryError(20, "Not a directory", os.fspath(folder))
    here.disk = disk = _Disk(model, _open_files(files), options["buffers"])
    _find(disk, device_map, weight_mapping)
    return {name: {} for name in disk.sources}


def _offload_param(target: str, param: Any, loading_info: Any, folder: Any, index: Any, ops: Any) -> Any:
    """Transformers' own function, except in from_pretrained() of this thread: shapes are compared, as of what is not on disk.

    What does not fit is an error, or initialized and in memory, as Transformers decides then.
    """
    model = (getattr(here, "offload", None) or {}).get("model")
    if model is not None and getattr(ops, "quantization_operation", None) is None:
        prefix, _, key = target.rpartition(".")
        module = model.get_submodule(prefix)
        own = module._parameters.get(key, module._buffers.get(key))
        if own is not None and own.shape != param.shape:
            loading_info.missing_keys.discard(target)
            loading_info.mismatched_keys.add((target, param.shape, own.shape))
            return index
    return _param_patch.original(target, param, loading_info, folder, index, ops)


def _resave(weight: torch.Tensor, name: str, folder: Any, index: Any) -> Any:
    """Transformers' own function for weights that it converts: they have no file yet."""
    if getattr(here, "disk", None) is not None and folder is not None:
        os.makedirs(folder, exist_ok=True)
    return _resave_patch.original(weight, name, folder, index)


def _tied_equal(source: torch.Tensor, target: torch.Tensor) -> bool:
    """Transformers' own function, except in from_pretrained() of this thread: one of them may be on disk."""
    disk: _Disk | None = getattr(here, "disk", None)
    if disk is not None and (source.device.type == "meta") != (target.device.type == "meta"):
        names = {id(value): name for name, value in disk.model.named_parameters() if name in disk.sources}
        source, target = (
            value if id(value) not in names else _value(disk.sources[names[id(value)]], value.dtype)
            for value in (source, target)
        )
    return bool(_tied_patch.original(source, target))


def _dispatch_model(
    model: Any,
    device_map: Any,
    main_device: Any = None,
    state_dict: Any = None,
    offload_dir: Any = None,
    offload_index: Any = None,
    offload_buffers: bool = False,
    skip_keys: Any = None,
    preload_module_classes: Any = None,
    force_hooks: bool = False,
) -> Any:
    """Accelerate's function, except in from_pretrained() of this thread: over the checkpoint's own files.

    Transformers looks at the names of the parameters.
    """
    options = {
        "main_device": main_device,
        "state_dict": state_dict,
        "offload_dir": offload_dir,
        "offload_index": offload_index,
        "offload_buffers": offload_buffers,
        "skip_keys": skip_keys,
        "preload_module_classes": preload_module_classes,
        "force_hooks": force_hooks,
    }
    disk: _Disk | None = getattr(here, "disk", None)
    if disk is None:
        return _dispatch_patch.original(model, device_map=device_map, **options)
    ties = getattr(model, "all_tied_weights_keys", None) or {}
    groups = {name: [name, source] for name, source in ties.items()}
    sources = {name: disk.sources[source] for name, source in _with_ties(disk.sources, groups).items()}
    for name, source in sources.items():  # tied to one on disk, and not there itself
        device = _device_of(name, device_map)
        if device != "disk" and _tensor(model, name).device.type == "meta":
            _set(model, name, device, _value(source, _tensor(model, name).dtype))
    written = {name: entry for name, entry in (offload_index or {}).items() if entry}
    weights = _weights(model, disk.checkpoint, device_map, sources, disk.buffers, set(written))
    options.update(state_dict=weights, offload_index=written)
    here.disk = None  # a class may load another model in the same call
    return _dispatch_patch.original(model, device_map=device_map, **options)


_offload_patch, _resave_patch, _dispatch_patch = Patch(_disk_offload), Patch(_resave), Patch(_dispatch_model)
_tied_patch, _param_patch, _map_patch = Patch(_tied_equal), Patch(_offload_param), Patch(_get_device_map)


@contextlib.contextmanager
def offloading(buffers: bool) -> Iterator[None]:
    """Let this thread's Transformers leave weights on disk in their files. ``here`` is restored by the caller."""
    import transformers.core_model_loading
    import transformers.integrations.accelerate
    import transformers.modeling_utils

    models: Any = transformers.modeling_utils
    loading: Any = transformers.core_model_loading
    devices: Any = transformers.integrations.accelerate
    places: list[tuple[Patch, Any, str]] = [
        (_offload_patch, models, "accelerate_disk_offload"),
        (_resave_patch, loading, "offload_weight"),
        (_param_patch, loading, "offload_and_maybe_resave_param"),
        (_map_patch, models, "_get_device_map"),
        (_tied_patch, models, "_tied_params_are_equal"),
        (_dispatch_patch, devices, "dispatch_model"),  # there if Accelerate is installed
    ]
    with contextlib.ExitStack() as stack:
        for patch, module, name in places:
            if patch in (_offload_patch, _resave_patch) or hasattr(module, name):  # these two are in every version
                find = functools.partial(getattr, module, name)
                stack.enter_context(patch.on(find, (module.__name__,), everywhere=False))
        here.offload = {"buffers": buffers}
        yield
