"""Progress of long work: the caller's function, or a bar of tqdm where a terminal is."""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    Function = Callable[[str, int, int], object]
    Progress = Function | bool

DELAY = 0.5  # seconds that work takes before it gets a bar


class _Bar:
    """A bar of tqdm for each kind of work, one after the other. Without tqdm there is none."""

    def __init__(self, delay: float) -> None:
        self._starts = time.monotonic() + delay
        self._bar: Any = None
        self._what = ""
        self._off = False

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._off or time.monotonic() < self._starts:
            return
        if self._bar is None or what != self._what or total != self._bar.total:
            self.close()
            try:
                from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]
            except ImportError:
                self._off = True
                return
            self._what = what
            self._bar = tqdm(total=total, desc=what, unit="B", unit_scale=True, leave=False, file=sys.stderr)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Reporting:
    """In a ``with`` block: the function that a call of the extension module gets.

    Args:
        progress: a function called with (what, done bytes, total bytes); None: a bar if stderr is a terminal and the
            work takes long; True: a bar; False: nothing.
    """

    def __init__(self, progress: Progress | None) -> None:
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise TypeError(f"progress is a function, True, False or None, not {progress!r}")
        self._bar: _Bar | None = None
        self._function: Function | None = None
        if progress is True:
            self._bar = _Bar(0)
        elif progress is None:
            is_terminal = getattr(sys.stderr, "isatty", None)
            self._bar = _Bar(DELAY) if is_terminal is not None and is_terminal() else None
        elif progress is not False:
            self._function = progress

    def __enter__(self) -> Function | None:
        return self._function or self._bar

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
