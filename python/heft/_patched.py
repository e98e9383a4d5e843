"""``patched()``: other libraries read safetensors through heft."""

from __future__ import annotations

import contextlib
import sys
import threading

from .safetensors import _FRAMEWORKS
from .safetensors import safe_open as _safe_open

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any

__all__ = ["Patch", "here", "patched"]

here = threading.local()  # what a call of heft's sets for its own thread: `slices`


def _replace(old: Any, new: Any, modules: list[ModuleType | None]) -> None:
    """Replace an object in all modules that have it under some name."""
    for module in modules:
        names = getattr(module, "__dict__", None)
        if isinstance(names, dict) and not str(names.get("__name__")).startswith("heft."):
            for name, value in list(names.items()):
                if value is old:
                    names[name] = new


class Patch:
    """An object of other libraries, and what is in its place while a block is open, nested or in any thread."""

    def __init__(self, new: Any) -> None:
        self.new = new
        self.original: Any = None
        self.depth = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def on(self, find: Callable[[], Any], modules: tuple[str, ...], everywhere: bool) -> Iterator[None]:
        """Replace the object in modules, and if everywhere then in all the others. The last to leave puts it back."""

        def among() -> list[ModuleType | None]:
            return [sys.modules.get(name) for name in modules] + (list(sys.modules.values()) if everywhere else [])

        with self._lock:
            if not self.depth:
                self.original = find()  # with the lock: not while another thread puts it back
            self.depth += 1
            if self.depth == 1:
                _replace(self.original, self.new, among())
        try:
            yield
        finally:
            with self._lock:
                if self.depth == 1:
                    _replace(self.new, self.original, among())
                self.depth -= 1


class safe_open(_safe_open):
    """heft.safetensors.safe_open, in the place of safetensors' own.

    What heft has no framework for, and what was kept from a block that has ended, gets safetensors' own.
    """

    __slots__ = ("_slices",)

    def __new__(cls, filename: str | os.PathLike[str], framework: str, *args: Any, **kwargs: Any) -> Any:
        if _patch.original is not None and (not _patch.depth or framework not in _FRAMEWORKS):
            return _patch.original(filename, framework, *args, **kwargs)
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._slices: Any = getattr(here, "slices", None)

    def get_slice(self, name: str) -> Any:
        """Return an object that gives a part of the tensor when it is indexed."""
        return super().get_slice(name) if self._slices is None else self._slices(self, self._lazy(name))


_patch = Patch(safe_open)


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Make the libraries of this process read safetensors files through heft, in a ``with`` block.

    Until the block ends, heft's ``safe_open`` takes the place of that of safetensors in every module that has imported
    it or imports it meanwhile: Transformers, Accelerate, diffusers, sentence-transformers, PEFT. Functions that call
    it, such as ``safetensors.torch.load_file``, then read through heft. When the block ends, also by an exception,
    all modules are as they were. A file that was opened in the block stays usable.

    The block acts on all threads. Blocks may be nested, and open in several threads at once; the last one to end
    puts everything back. ``patched()`` is also a decorator.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
    """
    import safetensors

    first = ("safetensors._safetensors_rust", "safetensors", "safetensors.torch")  # what others import it from
    with _patch.on(lambda: safetensors.safe_open, first, everywhere=True):
        yield
