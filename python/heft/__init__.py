"""heft: big pretrained models with little memory.

``heft.open(path)`` is a lazy mapping of names to tensors; ``heft.load(path)`` loads all of them, cast once;
``heft.safetensors``, ``heft.torch`` have the interfaces of the libraries of these names; ``heft.run`` runs models.
Nothing but this
package is needed to import it: torch and numpy are imported when a tensor of theirs is asked for.
"""

from __future__ import annotations

from ._checkpoint import Checkpoint, load, open
from ._errors import (
    CancelledError,
    ExistsError,
    FormatError,
    HeftError,
    InvalidArgError,
    IoError,
    LimitError,
    MismatchError,
    NoMemoryError,
    NotFoundError,
    RefusedError,
    UnsupportedError,
)
from ._heft import VERSION as __version__
from ._heft import Tensor
from ._operations import (
    Change,
    DiffReport,
    Plan,
    Problem,
    VerifyReport,
    WriteReport,
    convert,
    diff,
    plan,
    save_file,
    save_state_dict,
    verify,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from . import run as run
    from . import safetensors as safetensors
    from . import torch as torch
    from ._dispatch import dispatch as dispatch
    from ._dispatch import load_checkpoint_and_dispatch as load_checkpoint_and_dispatch
    from ._modules import load_into as load_into
    from ._modules import load_sharded_checkpoint as load_sharded_checkpoint
    from ._patched import patched as patched
    from ._pretrained import from_pretrained as from_pretrained
    from ._pretrained import save_pretrained as save_pretrained

__all__ = [
    "CancelledError",
    "Change",
    "Checkpoint",
    "DiffReport",
    "ExistsError",
    "FormatError",
    "HeftError",
    "InvalidArgError",
    "IoError",
    "LimitError",
    "MismatchError",
    "NoMemoryError",
    "NotFoundError",
    "Plan",
    "Problem",
    "RefusedError",
    "Tensor",
    "UnsupportedError",
    "VerifyReport",
    "WriteReport",
    "__version__",
    "convert",
    "diff",
    "load",
    "open",
    "plan",
    "save_file",
    "save_state_dict",
    "verify",
]


# name: the module it is imported from at first use, because that needs torch
_LAZY = {
    "dispatch": "_dispatch",
    "load_checkpoint_and_dispatch": "_dispatch",
    "from_pretrained": "_pretrained",
    "save_pretrained": "_pretrained",
    "load_into": "_modules",
    "load_sharded_checkpoint": "_modules",
    "patched": "_patched",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module("." + _LAZY[name], __name__), name)
    if name in ("run", "safetensors", "torch"):
        import importlib

        return importlib.import_module("." + name, __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LAZY, "run", "safetensors", "torch"])
