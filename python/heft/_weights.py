"""Weights of modules on disk: a mapping that hooks of Accelerate read from.

A unit (a layer, or a module outside of the layers) is in memory from the first read of one of its tensors until a
tensor of another unit is read; meanwhile libheft reads the next ones. Which unit follows which is learned.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from typing import NamedTuple

import torch

from . import _heft
from ._convert import to_torch
from ._errors import HeftError, warn
from ._patched import here

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from ._checkpoint import Checkpoint

__all__ = ["Stored", "Weights"]

AHEAD_BYTES = 128 << 20  # in memory at once, if two neighbors take less


class Stored(NamedTuple):
    """A tensor that stays in the checkpoint."""

    name: str  # there
    dtype: torch.dtype  # that it is wanted in
    is_buffer: bool


class _Order:
    """Which unit follows which: the order of the modules at first, and then what was seen twice in a row."""

    def __init__(self, units: Iterable[int]) -> None:
        first = list(dict.fromkeys(units))
        self.following = dict(zip(first, first[1:] + first[:1]))
        self._seen: dict[int, int] = {}

    def learn(self, before: int, unit: int) -> bool:
        """Note that a unit followed another. Return whether the order has changed."""
        seen = self._seen.get(before)
        self._seen[before] = unit
        if self.following.get(before) == unit or seen is None:
            return False
        if seen == unit:
            self.following[before] = unit
            return True
        return self.following.pop(before, None) is not None  # it varies, as experts do

    def from_unit(self, unit: int) -> tuple[list[int], int]:
        """Return the units from one on, and the place from which they repeat; -1: they end."""
        places = {unit: 0}
        while (after := self.following.get(unit)) is not None and after not in places:
            places[after] = len(places)
            unit = after
        return list(places), -1 if after is None else places[after]


class _Stream:
    """A residency of one process, and the unit that is in use."""

    def __init__(self, checkpoint: Checkpoint, stored: Iterable[Stored]) -> None:
        wanted: dict[str, torch.dtype] = {}
        for entry in stored:
            if not entry.is_buffer:
                wanted.setdefault(entry.name, entry.dtype)
        self.process = os.getpid()
        self.residency = _heft.Residency(checkpoint._raw, list(wanted), _dtypes(checkpoint, wanted), AHEAD_BYTES)
        self._numbers = self.residency.numbers
        self._order = _Order(self._numbers[name][1] for name in wanted if name in self._numbers)
        self._unit: int | None = None
        self._lease: _heft.Lease | None = None
        self._given: dict[str, tuple[str, torch.Tensor, int]] = {}

    def get(self, name: str, reader: str) -> torch.Tensor | None:
        """Return a tensor in its unit's memory; None if there is none for it, or not for this of its tied readers."""
        if name not in self._numbers:
            return None
        unit = self._numbers[name][1]
        if unit != self._unit or self._lease is None:
            self._move(unit)
        if self._lease is None:  # others hold too much
            return None
        earlier = self._given.get(name)
        if earlier is not None and (earlier[0] != reader or earlier[1]._version != earlier[2]):
            return None  # it was written, or is another's: this reader gets the file's values in other memory
        with torch.inference_mode(False):  # else writes would not be counted
            value = to_torch(self._lease.tensor(name))
            alias = value.detach()
        self._given[name] = reader, alias, alias._version
        return value

    def _move(self, unit: int) -> None:
        before, self._unit = self._unit, None
        self._given.clear()
        if self._lease is not None:
            lease, self._lease = self._lease, None
            lease.release()
        if before is not None and before != unit and self._order.learn(before, unit):
            self.residency.set_schedule(*self._order.from_unit(unit))
        self._lease = self.residency.acquire(unit)
        self._unit = unit


def _dtypes(checkpoint: Checkpoint, wanted: dict[str, torch.dtype]) -> dict[str, str]:
    """Return the casts that heft does while it reads; the others are torch's."""
    casts: dict[str, str] = {}
    for name, dtype in wanted.items():
        stored, target = checkpoint[name].dtype, str(dtype).rpartition(".")[2]
        if stored != target and target in _heft.DTYPES and _heft.can_cast(stored, target):
            casts[name] = target
    return casts


_all: weakref.WeakSet[Weights] = weakref.WeakSet()


def _after_fork() -> None:
    for weights in list(_all):
        weights._lock = threading.Lock()  # a thread that the child does not have may hold it


os.register_at_fork(after_in_child=_after_fork)


class Weights(Mapping[str, torch.Tensor]):
    """Tensors by the model's names: of the checkpoint, read and cast for each use, or in memory.

    A tensor that was read may be written; what is written is gone with it. Any number of threads may read.
    """

    def __init__(
        self, checkpoint: Checkpoint, tensors: Mapping[str, Stored | torch.Tensor], twins: Iterable[str] = ()
    ) -> None:
        """tensors: in the order of their use, as far as it is known. twins: those tied to one that stays in memory,
        which are copied for each use: who saves a model takes shared memory for an error."""
        self._checkpoint = checkpoint
        self._tensors = dict(tensors)
        self._twins = frozenset(twins)
        self._lock = threading.Lock()
        self._stream: _Stream | None = None
        self._streaming = True
        self._open()
        _all.add(self)

    def _open(self) -> _Stream | None:
        """The stream of this process: a fork does not take the reader's thread along."""
        if self._streaming and (self._stream is None or self._stream.process != os.getpid()):
            stored = [entry for entry in self._tensors.values() if isinstance(entry, Stored)]
            try:
                self._stream = _Stream(self._checkpoint, stored)
            except HeftError as error:
                self._streaming, self._stream = False, None
                warn([f"weights on disk are read one by one, not ahead: {error}"])
        return self._stream

    def __getitem__(self, name: str) -> torch.Tensor:
        entry = self._tensors[name]
        if isinstance(entry, torch.Tensor):
            return entry.clone() if name in self._twins else entry
        value = None
        saving = getattr(here, "collected", None) is not None  # what heft saves is only read
        if not saving and not entry.is_buffer and entry.name in self._checkpoint:
            with self._lock:
                stream = self._open()
                value = None if stream is None else stream.get(entry.name, name)
        if value is None:
            with torch.inference_mode(False):
                value = to_torch(self._checkpoint[entry.name], entry.dtype, copy=None if saving else True)
        return value if value.dtype == entry.dtype else value.to(entry.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Weights:
        return self

    def __reduce__(self) -> str:
        raise TypeError("weights on disk cannot be pickled: save the model with heft.save_pretrained()")

    def __repr__(self) -> str:
        return f"<{len(self)} weights, some in {self._checkpoint!r}>"

    @property
    def counts(self) -> dict[str, int]:
        """What was read ahead or waited for, and memory, in bytes; empty if nothing is read ahead."""
        with self._lock:
            stream = self._open()
            return {} if stream is None else stream.residency.counts()
