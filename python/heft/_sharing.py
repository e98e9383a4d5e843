"""Casts of open checkpoints that are announced first, and made together when the first of them is needed: in memory of
this process, or in the one copy that all processes of this user on this host share."""

from __future__ import annotations

import threading

from . import _heft
from ._checkpoint import load_tensors
from ._convert import torch_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    import torch

    from ._checkpoint import Progress


class _Group:
    """What is wanted of one checkpoint."""

    def __init__(self, owner: _heft.Checkpoint) -> None:
        self.owner = owner  # also keeps its id() from being used again
        self.wanted: dict[int, str | None] = {}
        self.lock = threading.Lock()
        self.tensors: dict[str, torch.Tensor] | None = None


class Together:
    """Casts that are announced first, and then made at once for each checkpoint. Threads may use it at once."""

    def __init__(self, share: bool, progress: Progress | None = None) -> None:
        self._mode = "shared" if share else "map"
        self._progress = progress
        self._groups: dict[int, _Group] = {}
        self._lock = threading.Lock()

    def want(self, lazy: _heft.Tensor, dtype: str) -> None:
        """Announce that a whole tensor will be needed in a dtype, another one than its own."""
        owner, number = lazy._owner, lazy._number
        if owner is not None and number is not None:
            with self._lock:
                group = self._groups.setdefault(id(owner), _Group(owner))
                if group.tensors is None:
                    group.wanted.setdefault(number, dtype)

    def take(self, lazy: _heft.Tensor, dtype: str) -> torch.Tensor | None:
        """Return what was announced, and forget it; None for what was not, or not in this dtype."""
        owner, number = lazy._owner, lazy._number
        with self._lock:
            group = self._groups.get(id(owner))
        if group is None or number is None or group.wanted.get(number) != dtype:
            return None
        with group.lock:
            if group.tensors is None:
                group.tensors = torch_dict(
                    load_tensors(group.owner, None, self._mode, progress=self._progress, dtypes=group.wanted)
                )
            return group.tensors.pop(lazy.name, None)
