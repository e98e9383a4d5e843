"""Checkpoints: a lazy mapping of names to tensors, and loading all of them."""

from __future__ import annotations

from _collections_abc import Mapping  # collections.abc's, without the time that importing collections takes

from . import _heft
from ._closing import Closing
from ._convert import dtype_name, to_numpy, torch_dict
from ._errors import warn
from ._heft import Tensor
from ._progress import Reporting

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from typing import Any, Literal

    from ._progress import Progress as Progress

    Source = str | os.PathLike[str] | bytes | bytearray | memoryview


class Checkpoint(Closing, Mapping[str, Tensor]):
    """An open checkpoint: a mapping of names to lazy tensors, in the order of the files.

    Opening it reads metadata only. Any number of threads may use it at once. A lazy tensor keeps its checkpoint
    open; what it was turned into (torch, numpy, a buffer, DLPack) keeps only its own bytes. After :meth:`close`,
    lazy tensors raise ValueError.

    A write into a tensor that is not a copy goes to private pages. All tensors of this checkpoint on the same bytes
    see it; the file, other checkpoints and other processes do not.
    """

    __slots__ = ("_facts", "_numbers", "_raw")

    def __init__(self, raw: _heft.Checkpoint) -> None:
        self._raw = raw
        self._numbers: dict[str, int] = raw.names()
        self._facts: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self._raw.tensor(self._numbers[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<heft.Checkpoint of {len(self)} tensors{', closed' if self.closed else ''}>"

    def __reduce__(self) -> str:
        raise TypeError("a heft.Checkpoint cannot be pickled: open it again, or pickle its tensors")

    def _fact(self, name: str) -> Any:
        if self._facts is None:
            self._facts = self._raw.facts()
        return self._facts[name]

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of all safetensors files; if two disagree, the first one's."""
        return dict(self._fact("metadata"))

    @property
    def modules(self) -> dict[str, int]:
        """The versions of modules that a ``.bin`` notes: state dicts of torch have them as ``_metadata``."""
        return dict(self._fact("modules"))

    @property
    def files(self) -> list[dict[str, Any]]:
        """The weight files: name, path, format, size_bytes, tensors."""
        return [dict(file) for file in self._fact("files")]

    @property
    def warnings(self) -> list[str]:
        """What opening it found odd; the logger ``heft`` gets these lines, too."""
        return list(self._fact("warnings"))

    @property
    def skipped(self) -> list[str]:
        """The keys of values in a ``.bin`` that are not tensors."""
        return list(self._fact("skipped"))

    @property
    def folder(self) -> str | None:
        """The folder of the files, None if they are in memory."""
        folder: str | None = self._fact("folder")
        return folder

    @property
    def index(self) -> str | None:
        """The name of the index file, None without one."""
        index: str | None = self._fact("index")
        return index

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; shared storages count once."""
        size: int = self._fact("total_bytes")
        return size

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._raw.closed

    def close(self) -> None:
        """Close the files. What tensors were turned into stays valid."""
        if self._facts is None and not self.closed:
            self._facts = self._raw.facts()
        self._raw.close()


def open(
    source: Source,
    *,
    variant: str | None = None,
    subfolder: str | None = None,
    trust_shards: bool = False,
    progress: Progress | None = None,
) -> Checkpoint:
    """Open a checkpoint; read metadata only.

    Args:
        source: a folder, a weight file, an index file, the name of a model in the hub's cache
            (``org/name`` or ``org/name@revision``; nothing is downloaded), or the bytes of one weight file.
        variant: "fp16" opens ``model.fp16.safetensors``.
        subfolder: relative to the path.
        trust_shards: an index that disagrees with its shards is a warning, not an error.
        progress: called with (what, done bytes, total bytes), and what it raises cancels; None: a bar of tqdm on a
            terminal; True: always; False: none.

    Raises:
        NotFoundError: no such path, no weights in the folder, or a missing shard.
        FormatError: a malformed file; ``offset`` is the byte.
        RefusedError: a pickle that only an attack would contain, an index that leaves its folder.
        UnsupportedError, LimitError, IoError.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        raw = _heft.open_bytes(source)
    else:
        with Reporting(progress) as report:
            raw = _heft.open(source, variant, subfolder, trust_shards, report)
    checkpoint = Checkpoint(raw)
    warn(checkpoint.warnings)
    skipped = checkpoint.skipped
    if skipped:
        some = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        where = "bytes" if isinstance(source, (bytes, bytearray, memoryview)) else source
        warn([f"{where}: {len(skipped)} values are no tensors, and are skipped: {some}"])
    return checkpoint


def state_dict(checkpoint: Checkpoint, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors as a state dict of torch, with the versions of modules if the checkpoint notes them."""
    from collections import OrderedDict

    modules = checkpoint.modules
    if not modules:
        return dict(tensors)
    state: Any = OrderedDict(tensors)
    state._metadata = OrderedDict((path, {"version": version}) for path, version in modules.items())
    result: dict[str, Any] = state
    return result


def load(
    source: Source | Checkpoint,
    *,
    dtype: Any = None,
    mode: Literal["map", "copy", "auto"] = "map",
    share: bool = False,
    to: Literal["torch", "numpy", "heft"] = "torch",
    device: Any = None,
    over_limit: bool = False,
    variant: str | None = None,
    subfolder: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Load all tensors of a checkpoint.

    Args:
        source: as for :func:`open`, or an open checkpoint.
        dtype: cast floating-point tensors to this dtype, once, while they are read; None or "auto": as they are stored.
        mode: "map": what needs no cast is mapped copy-on-write, and costs no memory until it is written;
            "copy": everything gets memory of its own, in huge pages; "auto": "copy" on network file systems.
        share: what has to be cast or copied is in one copy for all processes of this user on this host.
            A write goes to private pages here too.
        to: the kind of the values: "torch", "numpy", or "heft" for :class:`Tensor`.
        device: the device of the tensors, for to="torch".
        over_limit: load even if the machine does not have the memory.
        progress: called with (what, done bytes, total bytes), and what it raises cancels; None: a bar of tqdm on a
            terminal; True: always; False: none.

    Returns:
        A dict in the order of the files. Names that share a tensor in the file share it here. A cast or copied
        tensor is stored row by row; without a cast and with mode "map", views and strides are as in the file.

    Raises:
        as :func:`open`; LimitError: the machine does not have the memory; IoError: a file changed while it was read.
    """
    if to not in ("torch", "numpy", "heft"):
        raise ValueError(f"to {to!r} is not 'torch', 'numpy' or 'heft'")
    if mode not in ("map", "copy", "auto"):
        raise ValueError(f"mode {mode!r} is not 'map', 'copy' or 'auto'")
    if isinstance(dtype, str) and dtype == "auto":
        dtype = None
    if device is not None and to != "torch":
        raise ValueError("device is for to='torch' only")
    if isinstance(source, Checkpoint):
        tensors = _load(source, dtype, mode, share, over_limit, progress)
    else:
        with open(source, variant=variant, subfolder=subfolder, progress=progress) as checkpoint:
            tensors = _load(checkpoint, dtype, mode, share, over_limit, progress)
    if to == "heft":
        return tensors
    if to == "numpy":
        return {name: to_numpy(tensor) for name, tensor in tensors.items()}
    loaded = torch_dict(tensors)
    return loaded if device is None else {name: tensor.to(device) for name, tensor in loaded.items()}


_NO_MODEL = "the config has no model type"  # every load of names alone warns of that


def load_tensors(
    checkpoint: _heft.Checkpoint,
    dtype: str | None,
    mode: str,
    over_limit: bool = False,
    progress: Progress | None = None,
    dtypes: dict[int, str | None] | None = None,
) -> dict[str, _heft.Tensor]:
    """Load all tensors, or those that have a dtype of their own, by number. Warnings go to the logger "heft"."""
    each = {} if dtypes is None else {"dtypes": dtypes}
    with Reporting(progress) as told:
        tensors, report = _heft.load_tensors(checkpoint, dtype, mode, over_limit, told, **each)
    warn([line for line in report["warnings"] if not line.startswith(_NO_MODEL)])
    return tensors


def _load(
    checkpoint: Checkpoint, dtype: Any, mode: str, share: bool, over_limit: bool, progress: Progress | None
) -> dict[str, Tensor]:
    if not len(checkpoint):
        return {}
    if mode == "map" and dtype is None and not share:  # then views keep their strides, too
        raw = checkpoint._raw
        return {name: raw.tensor(number).map() for name, number in checkpoint._numbers.items()}
    return load_tensors(checkpoint._raw, dtype_name(dtype), "shared" if share else mode, over_limit, progress)
