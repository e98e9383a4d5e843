"""Whole checkpoints: write, convert, verify, compare, plan."""

from __future__ import annotations

import os

from . import _heft
from ._convert import dtype_name
from ._errors import warn
from ._progress import Reporting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Literal

    from ._checkpoint import Progress

    Path = str | os.PathLike[str]
    Size = int | str
    Device = int | str


def _bytes(size: Size | None) -> int:
    if size is None:
        return 0
    if isinstance(size, str):
        return _heft.parse_size(size)
    if isinstance(size, bool) or not hasattr(size, "__index__"):
        raise TypeError(f"a size must be an int or a str such as '200MB', not {size!r}")
    if size < 0:
        raise ValueError(f"a size cannot be negative: {size}")
    return int(size)


class _Report:
    """A report: its facts are attributes; two are equal if their facts are."""

    __slots__: tuple[str, ...] = ()

    def __init__(self, facts: Mapping[str, Any]) -> None:
        for name in self.__slots__:
            setattr(self, name, facts[name])

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({facts})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    __hash__ = None  # type: ignore[assignment]


class WriteReport(_Report):
    """What was written, or with dry_run what would be."""

    __slots__ = ("files", "index", "total_size", "warnings")
    #: name, size_bytes and tensors of each weight file, in order
    files: list[dict[str, Any]]
    #: the index file's name, None if there is one weight file
    index: str | None
    #: bytes of tensors
    total_size: int
    warnings: list[str]


class Problem(_Report):
    """A problem of a checkpoint."""

    __slots__ = ("fatal", "file", "kind", "message", "offset", "tensor")
    #: "missing_file", "crc", "stale_file", ...
    kind: str
    file: str
    tensor: str
    #: the byte in the file, None if there is none
    offset: int | None
    message: str
    #: False: only a note
    fatal: bool


class VerifyReport(_Report):
    """What verify() found. It is true if the checkpoint is valid."""

    __slots__ = ("bytes_read", "files", "ok", "problems", "tensors", "total_bytes")
    ok: bool
    problems: list[Problem]
    #: how many files and tensors
    files: int
    tensors: int
    bytes_read: int
    total_bytes: int

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__(facts)
        self.problems = [Problem(problem) for problem in facts["problems"]]

    def __bool__(self) -> bool:
        return self.ok


class Change(_Report):
    """A tensor that differs between two checkpoints."""

    __slots__ = ("cosine", "max_abs", "max_rel", "name", "what")
    name: str
    #: "dtype float32 -> bfloat16", "shape [2, 3] -> [3, 2]", "values"; several are joined with "; "
    what: str
    #: the largest |a - b| and |a - b| / max(|a|, |b|): nan if NaN meets a number, inf if infinity does
    #: None, as the others: not compared as numbers, since shapes differ or a dtype has none
    max_abs: float | None
    max_rel: float | None
    #: of the angle between the two as vectors; nan if it is undefined
    cosine: float | None


class DiffReport(_Report):
    """What diff() found. Names are in natural order."""

    __slots__ = ("added", "bytes_read", "changed", "common", "equal", "removed")
    #: nothing is added, removed or changed
    equal: bool
    #: names in the second checkpoint only
    added: list[str]
    #: names in the first checkpoint only
    removed: list[str]
    changed: list[Change]
    #: how many names both have
    common: int
    bytes_read: int

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__(facts)
        self.changed = [Change(change) for change in facts["changed"]]

    def __bool__(self) -> bool:
        raise TypeError("a report of differences is neither true nor false: use its `equal`")


class Plan(_Report):
    """A device map, and the memory that loading with it takes, all in bytes."""

    __slots__ = (
        "away_bytes",
        "device_map",
        "devices",
        "disk_bytes",
        "fits",
        "least_bytes",
        "machine_bytes",
        "mapped_bytes",
        "peak_bytes",
        "reason",
        "resident_bytes",
        "sizes",
        "stream_peak_bytes",
        "warnings",
    )
    #: {module: device}, as Accelerate takes it: "cpu", "disk", "mps", or the number of an accelerator
    device_map: dict[str, Device]
    #: {module: bytes}
    sizes: dict[str, int]
    #: {device: (budget, bytes placed)}
    devices: dict[Device, tuple[float, float]]
    #: most memory of this process while it loads, this process included
    peak_bytes: int
    #: the same, without what loading may turn out not to need
    least_bytes: int
    #: most memory while modules on disk are brought in, their budget not included
    stream_peak_bytes: int
    #: tensors with memory of their own, mapped, left on disk, on accelerators
    resident_bytes: int
    mapped_bytes: int
    disk_bytes: int
    away_bytes: int
    #: what the machine has left for a model now
    machine_bytes: int
    #: whether the peak fits into it; modules on the disk are none of the peak, whereas `heft plan` says then that it does not
    fits: bool
    #: what limits the budget of the CPU
    reason: str
    #: those that Accelerate gives for the same map
    warnings: list[str]


_DEVICES: dict[str, int] = {"cpu": -1, "disk": -2, "mps": -3}
_NAMES: dict[int, str] = {number: name for name, number in _DEVICES.items()}


def _device_number(device: Device) -> int:
    text = str(device)
    if text in _DEVICES:
        return _DEVICES[text]
    digits = text.rpartition(":")[2]
    if isinstance(device, bool) or not digits.isdecimal():
        raise ValueError(f"{device!r} is not a device: expected an accelerator's number, 'cpu', 'disk' or 'mps'")
    return int(digits)


def _budgets(max_memory: Mapping[Device, Size] | None) -> list[tuple[int, float]] | None:
    if max_memory is None:
        return None
    if not hasattr(max_memory, "items"):
        raise TypeError(f"max_memory must be a dict of sizes, as {{'cpu': '10GiB'}}, not {max_memory!r}")
    return [
        (_device_number(device), size if isinstance(size, float) else float(_bytes(size)))
        for device, size in max_memory.items()
    ]


def plan(
    path: Path,
    *,
    max_memory: Mapping[Device, Size] | None = None,
    strategy: Literal["auto", "balanced", "balanced_low_0", "sequential", "best"] = "best",
    dtype: Any = None,
    class_name: str | type | None = None,
    no_split_module_classes: Iterable[str] | None = None,
    fallback_allocation: bool = False,
    mode: Literal["map", "copy"] = "map",
    dequantize: bool = False,
    variant: str | None = None,
    subfolder: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Plan where each module of a checkpoint's model lives. Nothing is loaded.

    Args:
        path: a folder, a weight file, an index, a config.json, or the name of a model in the hub's cache.
        max_memory: {device: size}, as for Accelerate: ``{0: "10GiB", "cpu": "30GiB", "disk": "1TB"}``.
            None: the CPU with the memory that is free now, then the disk.
        strategy: Accelerate's ("auto", "balanced", "balanced_low_0", "sequential"), or "best": as many bytes
            as possible on accelerators.
        dtype: the model's dtype; None: the config's.
        class_name: "BertForMaskedLM", "AutoModel", ..., or the class; None: the first of the config's architectures.
        no_split_module_classes: modules that stay on one device; None: as the model says.
        mode: "copy" counts mapped tensors as memory.

    Raises:
        MismatchError, InvalidArgError (also a ValueError): an argument or the checkpoint does not fit the model.
        the exceptions of heft.open().
    """
    if mode not in ("map", "copy"):
        raise ValueError(f"mode {mode!r} is not 'map' or 'copy'")
    if isinstance(class_name, type):
        class_name = class_name.__name__
    names = None if no_split_module_classes is None else list(no_split_module_classes)
    with Reporting(progress) as told:
        facts: dict[str, Any] = _heft.plan(
            path,
            strategy,
            _budgets(max_memory),
            dtype_name(dtype),
            class_name,
            names,
            mode,
            fallback_allocation,
            dequantize,
            variant,
            subfolder,
            told,
        )
    facts["device_map"] = {name: _NAMES.get(device, device) for name, device, _ in facts["entries"]}
    facts["sizes"] = {name: int(size) for name, _, size in facts["entries"]}
    facts["devices"] = {_NAMES.get(device, device): (budget, placed) for device, budget, placed in facts["devices"]}
    facts["fits"] = facts["peak_bytes"] - facts["program_bytes"] <= facts["machine_bytes"]
    return Plan(facts)


def convert(
    source: Path,
    target: Path,
    *,
    format: Literal["auto", "safetensors", "bin", "offload"] = "auto",
    max_shard_size: Size | None = None,
    dtype: Any = None,
    variant: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    resume: bool = False,
    natural_order: bool = False,
    metadata: Mapping[str, str | None] | None = None,
    wait: bool = False,
    keep_side_files: bool = False,
    dequantize: bool = False,
    source_variant: str | None = None,
    subfolder: str | None = None,
    progress: Progress | None = None,
) -> WriteReport:
    """Rewrite a checkpoint: reshard, merge, cast, or change the format, with a fixed amount of memory.

    The target becomes visible complete or not at all. The options are those of ``heft convert``.

    Args:
        source: as for heft.open(), not bytes.
        target: the folder to write.
        format: "safetensors", "bin" (PyTorch), "offload" (Accelerate's folder), "auto": the source's.
        max_shard_size: bytes, or "200MB" (powers of 1000), "200MiB" (of 1024); None: 50 GB.
        dtype: cast floating-point tensors to this dtype.

    Raises:
        ExistsError: the target holds a checkpoint, or side files of another one.
        IoError: writing failed, also because the disk is full; InvalidArgError; the exceptions of heft.open().
    """
    with Reporting(progress) as told:
        report = WriteReport(
            _heft.convert(
                source,
                target,
                format,
                _bytes(max_shard_size),
                dtype_name(dtype),
                variant,
                force,
                dry_run,
                resume,
                natural_order,
                None if metadata is None else dict(metadata),
                wait,
                keep_side_files,
                dequantize,
                source_variant,
                subfolder,
                told,
            )
        )
    warn(report.warnings)
    return report


def verify(
    path: Path,
    *,
    deep: bool = False,
    manifest: Path | None = None,
    write_manifest: Path | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check that a checkpoint is complete and valid. Problems are in the report, not raised.

    Args:
        path: as for heft.open(), not bytes.
        deep: read every byte; find wrong checksums, NaN and infinities.
        manifest: a manifest to compare with: sizes and SHA-256 of the weight files.
        write_manifest: a manifest to write.

    Raises:
        UnsupportedError: a manifest, where OpenSSL's libcrypto is not installed.
        as heft.open() for a path that has no checkpoint.
    """
    options: dict[str, Any] = {"variant": variant, "subfolder": subfolder}
    if manifest is not None:
        options["manifest"] = manifest
    if write_manifest is not None:
        options["write_manifest"] = write_manifest
    if manifest is not None or write_manifest is not None:
        import hashlib  # noqa: F401 - brings Python's own libcrypto into the process, which libheft then finds
    with Reporting(progress) as told:
        return VerifyReport(_heft.verify(path, deep, progress=told, **options))


def diff(
    a: Path,
    b: Path,
    *,
    tolerance: float = 0.0,
    variant: str | None = None,
    subfolder: str | None = None,
    format: Literal["auto", "safetensors", "bin", "offload"] = "auto",
    progress: Progress | None = None,
) -> DiffReport:
    """Compare the tensors of two checkpoints by name. Differences are in the report, not raised.

    Formats and shards may differ. NaN equals NaN, and -0 equals 0. Metadata and config.json are not compared.

    Args:
        a, b: as for heft.open(), not bytes.
        tolerance: values that differ by at most this are equal.
        variant, subfolder, format: of both, as for heft.open().

    Raises:
        InvalidArgError (also a ValueError): a tolerance that is negative or not finite.
        as heft.open() for what cannot be opened or read.
    """
    with Reporting(progress) as told:
        return DiffReport(_heft.diff(a, b, tolerance, variant, subfolder, format, told))


# ---- writing ----------------------------------------------------------------------------------------


def _add_torch(writer: _heft.Writer, name: str, tensor: Any) -> None:
    import torch

    if tensor.layout != torch.strided:
        raise ValueError(f"{name}: heft does not write sparse tensors: use to_dense()")
    tensor = tensor.detach()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    if tensor.device.type != "cpu":
        tensor = tensor.cpu()  # raises for meta tensors
    kind = str(tensor.dtype).rpartition(".")[2]
    if kind not in _heft.DTYPES:
        raise TypeError(f"{name}: weight files cannot hold {tensor.dtype}")
    writer.add(name, tensor.__dlpack__())


def _add_numpy(writer: _heft.Writer, name: str, array: Any) -> None:
    import numpy

    kind = str(array.dtype.name)
    try:
        kind = _heft.dtype_name(kind)
    except ValueError:
        raise TypeError(f"{name}: weight files cannot hold numpy's {kind}") from None
    array = numpy.asarray(array, order="C")
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    writer.add(name, array.reshape(-1).view(numpy.uint8), kind, array.shape)


def add(writer: _heft.Writer, name: str, tensor: Any) -> None:
    """Add a tensor of heft, torch, numpy, or of anything with DLPack."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a tensor must be a str, not {name!r}")
    module = type(tensor).__module__.partition(".")[0]
    if isinstance(tensor, _heft.Tensor):
        writer.add(name, tensor)
    elif module == "numpy" and hasattr(tensor, "dtype"):
        _add_numpy(writer, name, tensor)
    elif hasattr(tensor, "is_conj") and hasattr(tensor, "untyped_storage"):
        _add_torch(writer, name, tensor)
    elif hasattr(tensor, "__dlpack__"):
        writer.add(name, tensor.__dlpack__())
    else:
        raise TypeError(f"{name}: {type(tensor).__name__} is not a tensor")


def save_file(
    tensors: Mapping[str, Any],
    path: Path,
    metadata: Mapping[str, str] | None = None,
    *,
    format: Literal["auto", "safetensors", "bin"] = "auto",
    ties: Literal["refuse", "drop", "copy"] = "refuse",
    progress: Progress | None = None,
) -> WriteReport:
    """Write tensors to one file. At every moment, the old file or the whole new one is there.

    Args:
        tensors: {name: tensor} of heft, torch, numpy, or anything with DLPack; strided ones are written row by
            row.
        path: its extension is the format, unless that is given.
        metadata: for safetensors.
        ties: tensors that share memory: "refuse" them (a `.bin` keeps them tied), "drop" all names but the
            first, or "copy" the bytes for each name.

    Raises:
        InvalidArgError (also a ValueError): a name or dtype that the format cannot hold, shared memory.
        IoError: writing failed, also because the disk is full. The file is as it was.
    """
    if not hasattr(tensors, "items"):
        raise TypeError(f"expected a dict of names and tensors, not {type(tensors).__name__}")
    writer = _heft.Writer(path, format=format, single_file=True, force=True, ties=ties)
    if format == "safetensors" or str(os.fspath(path)).endswith(".safetensors"):
        writer.metadata("format", None)
    return _write(writer, tensors, metadata, progress)


def save_state_dict(
    tensors: Mapping[str, Any],
    folder: Path,
    metadata: Mapping[str, str] | None = None,
    *,
    max_shard_size: Size | None = None,
    format: Literal["safetensors", "bin"] = "safetensors",
    variant: str | None = None,
    force: bool = False,
    ties: Literal["refuse", "drop", "copy"] = "refuse",
    wait: bool = False,
    keep_side_files: bool = False,
    progress: Progress | None = None,
) -> WriteReport:
    """Write tensors to a folder, in shards with an index if they do not fit into one.

    The shards have the names and boundaries of those that Transformers writes. The folder has the old checkpoint or
    the whole new one at every moment.

    Args:
        tensors: as for save_file(); also an open checkpoint, whose tensors are read one after the other.
        folder: the folder to write; it is made if it does not exist.
        metadata: for safetensors, beside ``{"format": "pt"}``, which Transformers asks for.
        max_shard_size: bytes, or "200MB" (powers of 1000), "200MiB" (of 1024); None: 50 GB.
        format: "safetensors", or "bin" for ``pytorch_model.bin``.
        variant: "fp16" writes ``model.fp16.safetensors``.
        force: replace a checkpoint that the folder has.
        ties: as for save_file().
        wait: wait for another process that writes into the folder, instead of failing.
        keep_side_files: allow a config, tokenizer or other side files that another checkpoint left in the folder.
        progress: called with (what, done bytes, total bytes); what it raises cancels, and nothing is written.

    Raises:
        ExistsError: the folder holds a checkpoint, or side files of another one.
        as save_file().
    """
    if format not in ("safetensors", "bin"):
        raise ValueError(f"format {format!r} is not 'safetensors' or 'bin'")
    writer = _heft.Writer(
        folder,
        format=format,
        max_shard_bytes=_bytes(max_shard_size),
        variant=variant,
        force=force,
        ties=ties,
        wait=wait,
        keep_side_files=keep_side_files,
    )
    return _write(writer, tensors, metadata, progress)


def _write(
    writer: _heft.Writer, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None, progress: Progress | None
) -> WriteReport:
    try:
        for key, value in (metadata or {}).items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise TypeError("metadata must map str to str")
            writer.metadata(key, value)
        for name, tensor in tensors.items():
            add(writer, name, tensor)
        with Reporting(progress) as told:
            return WriteReport(writer.commit(told))
    finally:
        writer.close()
