"""Checkpoints into modules of torch: ``load_sharded_checkpoint()`` and ``load_into()``."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings

import torch
from torch import nn

from . import _heft
from ._checkpoint import Checkpoint
from ._checkpoint import open as _open
from ._checkpoint import state_dict
from ._convert import dtype_name, torch_dtype
from ._errors import MismatchError, log, warn
from ._progress import Reporting
from ._sharing import Together

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from ._checkpoint import Progress, Source

__all__ = ["LoadReport", "load_into", "load_sharded_checkpoint"]

_IncompatibleKeys: Any = torch.nn.modules.module._IncompatibleKeys


class LoadReport(_IncompatibleKeys):  # type: ignore[misc]
    """What ``Module.load_state_dict()`` returns: a pair of lists, missing_keys and unexpected_keys; and
    ``initialized``, the names that the module's own initializers filled."""

    initialized: list[str]

    def __new__(cls, missing: list[str], unexpected: list[str], initialized: list[str]) -> LoadReport:
        report: LoadReport = super().__new__(cls, missing, unexpected)
        report.initialized = initialized
        return report

    def __repr__(self) -> str:
        if not any((self.missing_keys, self.unexpected_keys, self.initialized)):
            return "<All keys matched successfully>"
        return (
            f"LoadReport(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys},"
            f" initialized={self.initialized})"
        )

    __str__ = __repr__


# ---- a module's tensors ------------------------------------------------------------------------------


def _slots(module: nn.Module) -> Iterator[tuple[str, dict[str, Any], str, bool]]:
    """Yield (full name, dict that holds the tensor, key there, whether state dicts have it), in their order."""
    for prefix, child in module.named_modules(remove_duplicate=False):
        dot = prefix + "." if prefix else ""
        for key, value in child._parameters.items():
            if value is not None:
                yield dot + key, child._parameters, key, True
        for key, value in child._buffers.items():
            if value is not None:
                yield dot + key, child._buffers, key, key not in child._non_persistent_buffers_set


_PLAIN = (nn.Module._load_from_state_dict, nn.modules.batchnorm._NormBase._load_from_state_dict)


def _is_plain(module: nn.Module) -> bool:
    """Whether state dicts of the module are its tensors under their own names: no hooks, no code of its own."""
    for child in module.modules():
        kind = type(child)
        if (
            kind._load_from_state_dict not in _PLAIN
            or kind._save_to_state_dict is not nn.Module._save_to_state_dict
            or kind.state_dict is not nn.Module.state_dict
            or kind.load_state_dict is not nn.Module.load_state_dict
            or kind.set_extra_state is not nn.Module.set_extra_state
            or kind.get_extra_state is not nn.Module.get_extra_state
            or child._state_dict_hooks
            or child._state_dict_pre_hooks
            or child._load_state_dict_pre_hooks
            or child._load_state_dict_post_hooks
        ):
            return False
    return True


def _same_memory(tensor: torch.Tensor) -> Any:
    """A key that tensors have in common if they are the same elements."""
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return id(tensor)
    if tensor.device.type == "meta" or not tensor.nelement():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _tied_names(module: nn.Module) -> dict[str, list[str]]:
    """Return {name: all names of the same tensor}, for tied names only."""
    groups: dict[Any, list[str]] = {}
    for name, holder, key, persistent in _slots(module):
        if persistent:
            groups.setdefault(_same_memory(holder[key]), []).append(name)
    return {name: names for names in groups.values() if len(names) > 1 for name in names}


def _with_ties(names: Iterable[str], tied: dict[str, list[str]]) -> dict[str, str]:
    """Return {name: the checkpoint's name for it}: the checkpoint's names, and those tied to one of them."""
    result = {name: name for name in names}
    for name, group in tied.items():
        if name not in result:
            source = next((other for other in group if result.get(other) == other), None)
            if source is not None:
                result[name] = source
    return result


def _bytes_of(tensor: _heft.Tensor) -> torch.Tensor:
    return tensor.torch().contiguous().flatten().view(torch.uint8)


def _warn_of_ties(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Say which tensors of the module get one of several values, as with ``load_state_dict()``."""
    groups = {tuple(group): None for group in _tied_names(module).values()}
    for group in groups:
        *others, last = [name for name in group if name in checkpoint] or [""]
        for name in others:
            one, two = checkpoint[name], checkpoint[last]
            alike = one.dtype == two.dtype and one.shape == two.shape
            if not alike or not torch.equal(_bytes_of(one), _bytes_of(two)):
                warn([
                    f"{checkpoint.folder or 'the checkpoint'}: {name!r} and {last!r} have different values, but are"
                    f" one tensor of the module, which gets that of {last!r}"
                ])


@contextlib.contextmanager
def _on_meta(module: nn.Module) -> Iterator[None]:
    """Give the module tensors without memory, and then its own again."""
    kept = []
    try:
        for _, holder, key, _ in _slots(module):
            value = holder[key]
            kept.append((holder, key, value))
            empty = torch.empty_like(value, device="meta")
            holder[key] = nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
        yield
    finally:
        for holder, key, value in reversed(kept):
            holder[key] = value


def _torch_shape(tensor: _heft.Tensor) -> tuple[int, ...]:
    """The shape that torch has for it: values of 4 bits are pairs there."""
    if tensor.dtype == "float4_e2m1fn_x2" and tensor.shape:
        return *tensor.shape[:-1], (tensor.shape[-1] + 1) // 2
    return tensor.shape


def _empty_state(checkpoint: Checkpoint, sources: dict[str, str]) -> dict[str, torch.Tensor]:
    """A state dict of tensors without memory."""
    state = {}
    for name, source in sources.items():
        tensor = checkpoint[source]
        state[name] = torch.empty(_torch_shape(tensor), dtype=torch_dtype(tensor.dtype), device="meta")
    return state_dict(checkpoint, state)


def _check(module: nn.Module, state: dict[str, torch.Tensor], strict: bool, assign: bool = False) -> Any:
    """Load tensors without memory, so that torch itself says what does not fit. Writes nothing.

    Code of the module's own may look at values, or grow the module: it runs on a twin. None: it cannot do without values.
    """
    with _on_meta(module), torch.no_grad():
        if _is_plain(module):
            return module.load_state_dict(state, strict=strict, assign=assign)
        twin = module
        with contextlib.suppress(Exception):  # what cannot be copied is tried itself
            twin = copy.deepcopy(module)
        try:
            return twin.load_state_dict(state, strict=strict, assign=assign)
        except Exception as error:
            if str(error).startswith("Error(s) in loading state_dict") and "meta tensor" not in str(error):
                raise
            log(f"{type(module).__name__} cannot be checked before it is loaded: {error}")
            return None


# ---- filling -----------------------------------------------------------------------------------------


def _is_fast(source: _heft.Tensor, target: torch.Tensor) -> bool:
    """Whether heft can read into this memory."""
    name = str(target.dtype).rpartition(".")[2]
    return (
        type(target) in (torch.Tensor, nn.Parameter)
        and target.device.type == "cpu"
        and target.layout == torch.strided
        and target.is_contiguous()
        and not (target.is_conj() or target.is_neg() or target.is_inference() or target.is_quantized)
        and name in _heft.DTYPES
        and _heft.DTYPES[name][1] % 8 == 0
        and source.nbytes > 0
        and tuple(target.shape) == source.shape
        and (name == source.dtype or _heft.can_cast(source.dtype, name))
    )


def _fill(pairs: list[tuple[str, _heft.Tensor, torch.Tensor]], progress: Progress | None) -> None:
    """Read tensors into memory that exists, cast. Of pairs with the same memory, the last one counts."""
    last = {_same_memory(target): (name, source, target) for name, source, target in pairs}
    _log_casts((source, target.dtype) for _, source, target in last.values())
    fast: list[tuple[str, _heft.Tensor, torch.Tensor]] = []
    slow: list[tuple[str, _heft.Tensor, torch.Tensor]] = []
    end: int | None = None
    for name, source, target in last.values():
        (fast if _is_fast(source, target) else slow).append((name, source, target))
    areas = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for _, _, t in fast)
    for start, stop in areas:
        if end is not None and start < end:  # views of each other: the order of writing counts
            slow, fast = list(last.values()), []
            break
        end = stop
    if fast:
        with Reporting(progress) as report:
            _heft.read_into([(source, target.detach().__dlpack__()) for _, source, target in fast], report)
        torch.autograd.graph.increment_version([target for _, _, target in fast])
    with torch.no_grad():
        for name, source, target in slow:
            if target.device.type == "meta":
                warnings.warn(
                    f"for {name}: copying from a non-meta parameter in the checkpoint to a meta parameter in the"
                    " current model, which is a no-op. (Did you mean to pass `assign=True` to assign items in the"
                    " state dictionary to their corresponding key in the module instead of copying them in place?)",
                    stacklevel=4,
                )
            else:
                target.copy_(_fitting(source, target))


def _fitting(source: _heft.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The value for a tensor of a module. As for torch, one number in a list is a scalar, which PyTorch 0.3 had not."""
    value = source.torch()
    return value[0] if not target.ndim and value.ndim == 1 else value


def _log(where: str | None, missing: list[str], unexpected: list[str], initialized: list[str]) -> None:
    """Give what a load left out to the logger "heft", a line for each kind."""
    kinds = (
        ("are not in the checkpoint, and stay as they are", [name for name in missing if name not in initialized]),
        ("are not in the checkpoint, and were initialized", initialized),
        ("of the checkpoint are not in the module", unexpected),
    )
    for what, names in kinds:
        if names:
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            warn([f"{where or 'checkpoint'}: {len(names)} tensors {what}: {some}"])


def _log_casts(pairs: Iterable[tuple[_heft.Tensor, torch.dtype]]) -> None:
    """Give casts to the logger "heft", a line for each pair of dtypes: a warning where values may change."""
    counts: dict[tuple[str, str], int] = {}
    for source, dtype in pairs:
        name = str(dtype).rpartition(".")[2]
        if name != source.dtype:
            counts[source.dtype, name] = counts.get((source.dtype, name), 0) + 1
    for (old, new), count in counts.items():
        told = log if _keeps_values(old, new) else lambda line: warn([line])
        told(f"{count} tensors were cast from {old} to {new}")


def _keeps_values(old: str, new: str) -> bool:
    """Whether every value of one dtype is one of the other's."""
    a, b = torch_dtype(old), torch_dtype(new)
    if a == torch.bool:
        return True
    if a.is_complex or b.is_complex or a.is_floating_point != b.is_floating_point:
        return False
    if a.is_floating_point:
        try:
            x, y = torch.finfo(a), torch.finfo(b)
        except TypeError:  # a dtype of 4 bits
            return False
        return bool(x.eps >= y.eps and x.max <= y.max and x.tiny * x.eps >= y.tiny * y.eps)
    i, j = torch.iinfo(a), torch.iinfo(b)
    return i.min >= j.min and i.max <= j.max


# ---- load_sharded_checkpoint ---------------------------------------------------------------------------


def load_sharded_checkpoint(
    model: nn.Module, folder: str | os.PathLike[str], strict: bool = True, prefer_safe: bool = True
) -> Any:
    """Load a sharded checkpoint into a model, as Transformers' function of this name does.

    Values are cast into the model's parameters in place. A name that is tied to a loaded one is not missing.

    Args:
        folder: with ``model.safetensors.index.json`` or ``pytorch_model.bin.index.json``.
        strict: missing and unexpected names are an error.
        prefer_safe: if both are there, take safetensors.

    Returns:
        A pair (missing_keys, unexpected_keys).

    Raises:
        ValueError: no index; RuntimeError: names, if strict, or shapes that do not fit: all of them at once,
        and nothing was written then; HeftError: as heft.open().
    """
    _need_module(model)
    bin_name, safe_name = "pytorch_model.bin.index.json", "model.safetensors.index.json"
    paths = {name: os.path.join(folder, name) for name in (bin_name, safe_name)}
    there = [name for name, path in paths.items() if os.path.isfile(path)]
    if not there:
        raise ValueError(f"Can't find a checkpoint index ({bin_name} or {safe_name}) in {os.fspath(folder)}.")
    chosen = safe_name if safe_name in there and (prefer_safe or bin_name not in there) else bin_name
    with _open(paths[chosen]) as checkpoint:
        sources = _with_ties(checkpoint, _tied_names(model))
        names = model.state_dict().keys()
        missing = [name for name in names if name not in sources]
        unexpected = [name for name in checkpoint if name not in names]
        if strict and (missing or unexpected):
            message = f"Error(s) in loading state_dict for {type(model).__name__}"
            for what, which in (("Missing", missing), ("Unexpected", unexpected)):
                if which:
                    message += f"\n{what} key(s): " + ",".join(f'"{name}"' for name in which) + "."
            raise RuntimeError(message)
        lazy = _has_lazy(model)
        if not lazy:  # what has no shape yet is for torch to say
            _check(model, _empty_state(checkpoint, {name: name for name in checkpoint}), strict=False)
            _warn_of_ties(model, checkpoint)
        if lazy or not _is_plain(model):
            state = state_dict(checkpoint, {name: tensor.torch() for name, tensor in checkpoint.items()})
            model.load_state_dict(state, strict=False)
        else:
            slots = [(name, holder[key]) for name, holder, key, persistent in _slots(model) if persistent]
            _fill([(name, checkpoint[name], value) for name, value in slots if name in checkpoint], None)
    _log(os.fspath(folder), missing, unexpected, [])
    return _IncompatibleKeys(missing, unexpected)


def _need_module(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{type(module).__name__} is not a module of torch")


def _has_lazy(module: nn.Module) -> bool:
    return any(nn.parameter.is_lazy(holder[key]) for _, holder, key, _ in _slots(module))


# ---- load_into -----------------------------------------------------------------------------------------

_UNTOUCHED = 0xA5  # the bytes of a tensor before its initializer runs


def _mark(value: torch.Tensor) -> None:
    torch.empty(0, dtype=torch.uint8, device="cpu").set_(value.untyped_storage()).fill_(_UNTOUCHED)


def _fresh(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor with memory, like this one on meta."""
    empty = torch.empty_like(value, device="cpu")
    _mark(empty)
    return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty


def _is_untouched(value: torch.Tensor) -> bool:
    if value.device.type == "meta":
        return True
    storage = value.untyped_storage()
    data = torch.empty(0, dtype=torch.uint8, device=value.device).set_(storage)
    return bool(data.numel()) and bool(data.eq(_UNTOUCHED).all())


def _initializers(path: list[nn.Module]) -> Iterator[Callable[[], Any]]:
    """Yield what initializes the last module of a path from the root, in the order of constructors.

    Models of Transformers know all of their modules. Elsewhere a module resets itself, and modules around it that
    have ``_init_weights(module)``, as many models do, then apply that.
    """
    module = path[-1]
    models = [parent for parent in reversed(path) if callable(getattr(parent, "_init_weights", None))]
    models_own = [parent for parent in models if hasattr(parent, "_initialize_weights")]
    if models_own:
        yield lambda: models_own[0]._init_weights(module)  # type: ignore[operator]
        return
    yield from _resets(module)
    for parent in models:
        yield lambda parent=parent: parent._init_weights(module)  # type: ignore[misc]


def _resets(module: nn.Module) -> Iterator[Callable[[], Any]]:
    for name in ("reset_parameters", "_reset_parameters"):
        reset = getattr(module, name, None)
        if callable(reset):
            yield reset
            return


def _paths(module: nn.Module, path: list[nn.Module]) -> Iterator[list[nn.Module]]:
    """Yield the path from the root to each module, children first."""
    path = [*path, module]
    for child in module.children():
        yield from _paths(child, path)
    yield path


def _initialize(module: nn.Module, lacking: list[tuple[str, dict[str, Any], str]]) -> None:
    """Give tensors on meta memory and values, by the initializers of their modules.

    All other tensors are on meta meanwhile, so that initializers do not change them.
    """
    ours = {(id(holder), key) for _, holder, key in lacking}
    made: dict[int, torch.Tensor] = {}
    for _, holder, key in lacking:
        value = holder[key]
        if id(value) not in made:
            made[id(value)] = _fresh(value)
        holder[key] = made[id(value)]
    kept = []
    try:
        for _, holder, key, _ in _slots(module):
            value = holder[key]
            if (id(holder), key) not in ours and value.device.type != "meta":
                kept.append((holder, key, value))
                empty = torch.empty_like(value, device="meta")
                holder[key] = nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
        holders = {id(holder) for _, holder, _ in lacking}

        def lacks(child: nn.Module) -> bool:
            return any(id(m._parameters) in holders or id(m._buffers) in holders for m in child.modules())

        wanted = [path for path in _paths(module, []) if lacks(path[-1])]
        with torch.no_grad():
            for path in wanted:
                for initialize in _initializers(path):
                    initialize()
            for path in wanted:  # a model that does not know all of its modules
                direct = [h[k] for _, h, k in lacking if h is path[-1]._parameters or h is path[-1]._buffers]
                if any(map(_is_untouched, direct)):
                    for reset in _resets(path[-1]):
                        reset()
    finally:
        for holder, key, value in kept:
            holder[key] = value
    untouched = [name for name, holder, key in lacking if _is_untouched(holder[key])]
    if untouched:
        raise MismatchError(
            "tensors on meta are not in the checkpoint, and no reset_parameters() or _init_weights() of the module"
            f" fills them: {', '.join(untouched)}",
            item=untouched[0],
        )


def load_into(
    module: nn.Module,
    path: Source | Checkpoint,
    strict: bool = True,
    assign: bool = False,
    *,
    share: bool = False,
    variant: str | None = None,
    subfolder: str | None = None,
    progress: Progress | None = None,
) -> LoadReport:
    """Load a checkpoint into a module, on meta or not, as ``Module.load_state_dict()`` does.

    Tensors that have memory are written in place, cast to their dtype. Those on meta get memory: mapped
    copy-on-write if the checkpoint has their dtype, else cast. What is on meta and not in the checkpoint gets
    its value from the module's own initializers (``reset_parameters()``, ``_init_weights()``), as do buffers that
    state dicts do not have. A name that is tied to one in the checkpoint is not missing. Afterwards nothing is on
    meta.

    Args:
        path: as for heft.open(), or an open checkpoint.
        strict: names that are missing or unexpected are an error.
        assign: replace all tensors, and keep the checkpoint's dtypes.
        share: what is on meta and has to be cast is in one copy for all processes of this user on this host; a
            write to it goes to private pages. Tensors that have memory are written in place, as without.
        progress: called with (what, done bytes, total bytes), and what it raises cancels; None: a bar of tqdm on a
            terminal; True: always; False: none.

    Returns:
        A pair (missing_keys, unexpected_keys) as of ``load_state_dict()``, with the list ``initialized``: names of
        what initializers filled.

    Raises:
        RuntimeError: names or shapes do not fit; MismatchError: nothing initializes what the checkpoint lacks.
        Both name everything that is wrong, and the module is as it was, unless code of the module's own needs values
        to load them (lazy modules, those that read a number in the state dict): such modules are loaded as torch does,
        and what does not fit is known only then. HeftError: as for heft.open().
    """
    _need_module(module)
    if isinstance(path, Checkpoint):
        return _load_into(module, path, strict, assign, share, progress)
    with _open(path, variant=variant, subfolder=subfolder, progress=progress) as checkpoint:
        return _load_into(module, checkpoint, strict, assign, share, progress)


def _ties(module: nn.Module) -> dict[str, list[str]]:
    """All names of each tensor with several, also those that a model of Transformers would tie."""
    tied = _tied_names(module)
    declared = getattr(module, "all_tied_weights_keys", None)
    for name, source in (declared if isinstance(declared, dict) else {}).items():
        group = sorted({name, source, *tied.get(name, ()), *tied.get(source, ())})
        tied.update(dict.fromkeys(group, group))
    return tied


def _load_into(
    module: nn.Module, checkpoint: Checkpoint, strict: bool, assign: bool, share: bool, progress: Progress | None
) -> LoadReport:
    sources = _with_ties(checkpoint, _ties(module))
    report = None if _has_lazy(module) else _check(module, _empty_state(checkpoint, sources), strict, assign)
    if report is None:
        return _load_unchecked(module, checkpoint, sources, strict, assign)
    if not assign:
        _warn_of_ties(module, checkpoint)
    plain = _is_plain(module)
    slots = list(_slots(module))
    missing = set(report.missing_keys)
    lacking = [
        (name, holder, key)
        for name, holder, key, persistent in slots
        if holder[key].device.type == "meta"
        and (not persistent or name in missing or (plain and name not in sources))
    ]
    before = [(holder, key, holder[key]) for _, holder, key, _ in slots]
    shared = _share(slots, checkpoint, sources, progress) if share and not assign else {}
    try:
        if lacking:
            _initialize(module, lacking)
        if plain:
            _bring_in(slots, checkpoint, sources, assign, shared, progress)
        else:
            _bring_in_by_torch(module, checkpoint, sources, assign, shared)
        _need_memory(module)
    except BaseException:
        for holder, key, value in before:
            holder[key] = value
        raise
    return _report(checkpoint, report, slots, lacking)


def _report(checkpoint: Checkpoint, keys: Any, slots: list[Any], lacking: list[Any]) -> LoadReport:
    """Torch's report, with what was initialized; the log gets it, too."""
    persistent = {name for name, _, _, persistent in slots if persistent}
    initialized = [name for name, _, _ in lacking]
    _log(checkpoint.folder, keys.missing_keys, keys.unexpected_keys, [n for n in initialized if n in persistent])
    return LoadReport(keys.missing_keys, keys.unexpected_keys, initialized)


def _need_memory(module: nn.Module) -> None:
    left = [name for name, holder, key, _ in _slots(module) if holder[key].device.type == "meta"]
    if left:
        raise MismatchError(f"nothing fills these tensors on meta: {', '.join(left)}", item=left[0])


def _load_unchecked(
    module: nn.Module, checkpoint: Checkpoint, sources: dict[str, str], strict: bool, assign: bool
) -> LoadReport:
    """Load a module whose own code needs values, as torch does: what does not fit is known only then."""
    result = _bring_in_by_torch(module, checkpoint, sources, assign, {}, strict=strict)
    slots = list(_slots(module))
    lacking = [(name, holder, key) for name, holder, key, _ in slots if holder[key].device.type == "meta"]
    if lacking:
        _initialize(module, lacking)
    _need_memory(module)
    return _report(checkpoint, result, slots, lacking)


def _share(
    slots: list[tuple[str, dict[str, Any], str, bool]],
    checkpoint: Checkpoint,
    sources: dict[str, str],
    progress: Progress | None,
) -> dict[tuple[str, torch.dtype], torch.Tensor]:
    """Return {(name in the checkpoint, dtype): tensor in the host's copy} for the casts of what is on meta."""
    together = Together(True, progress)
    wanted: dict[tuple[str, torch.dtype], _heft.Tensor] = {}
    for name, holder, key, persistent in slots:
        value = holder[key]
        if not persistent or name not in sources or value.device.type != "meta":
            continue
        lazy, dtype = checkpoint[sources[name]], dtype_name(value.dtype)
        if dtype is not None and dtype != lazy.dtype and _heft.can_cast(lazy.dtype, dtype):
            together.want(lazy, dtype)
            wanted.setdefault((sources[name], value.dtype), lazy)
    _log_casts((lazy, dtype) for (_, dtype), lazy in wanted.items())
    taken = {place: together.take(lazy, str(place[1]).rpartition(".")[2]) for place, lazy in wanted.items()}
    return {place: tensor for place, tensor in taken.items() if tensor is not None}


def _bring_in(
    slots: list[tuple[str, dict[str, Any], str, bool]],
    checkpoint: Checkpoint,
    sources: dict[str, str],
    assign: bool,
    shared: dict[tuple[str, torch.dtype], torch.Tensor],
    progress: Progress | None,
) -> None:
    """Write or replace the tensors of a module whose names are those of its state dict."""
    pairs: list[tuple[str, _heft.Tensor, torch.Tensor]] = []
    made: dict[Any, torch.Tensor] = {}
    replaced = []
    slots = [slot for slot in slots if slot[3] and slot[0] in sources]
    # names of one tensor of the module stay that, and the last one counts, as if each was written in place
    chosen = {id(holder[key]): sources[name] for name, holder, key, _ in slots}
    for name, holder, key, _ in slots:
        value = holder[key]
        name_there = sources[name] if assign else chosen[id(value)]
        source = checkpoint[name_there]
        if not assign and value.device.type != "meta":
            pairs.append((name, source, value))
            continue
        place = name_there, None if assign else value.dtype, isinstance(value, nn.Parameter), value.requires_grad
        if place not in made:
            if assign or torch_dtype(source.dtype) == value.dtype:
                new = _fitting(source, value)
            elif (name_there, value.dtype) in shared:
                new = shared[name_there, value.dtype]
            else:
                new = torch.empty(value.shape, dtype=value.dtype, device="cpu")
                pairs.append((name, source, new))
            made[place] = nn.Parameter(new, value.requires_grad) if isinstance(value, nn.Parameter) else new
        replaced.append((holder, key, made[place]))
    _fill(pairs, progress)
    for holder, key, value in replaced:
        holder[key] = value


def _bring_in_by_torch(
    module: nn.Module,
    checkpoint: Checkpoint,
    sources: dict[str, str],
    assign: bool,
    shared: dict[tuple[str, torch.dtype], torch.Tensor],
    strict: bool = False,
) -> Any:
    """The same for modules that have their own ways with state dicts. Return torch's report."""
    own = {name: holder[key] for name, holder, key, persistent in _slots(module) if persistent}
    on_meta = any(value.device.type == "meta" for value in own.values())
    state: dict[str, torch.Tensor] = {}
    made: dict[tuple[str, torch.dtype | None], torch.Tensor] = {
        (source, dtype): tensor for (source, dtype), tensor in shared.items()
    }
    for name, source in sources.items():
        dtype = None if assign or name not in own else own[name].dtype
        if (source, dtype) not in made:
            made[source, dtype] = checkpoint[source].torch(dtype)
        state[name] = made[source, dtype]
    return module.load_state_dict(state_dict(checkpoint, state), strict=strict, assign=assign or on_meta)
