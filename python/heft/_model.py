"""A loaded model, for the sessions of heft.run, and checks of the arguments of both."""

from __future__ import annotations

from . import _heft
from ._convert import dtype_name
from ._errors import MismatchError, warn
from ._operations import _bytes
from ._progress import Reporting

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from typing import Any, Literal

    from ._progress import Progress

    Path = str | os.PathLike[str]


def memory_bytes(memory: int | str | None) -> int:
    size = _bytes(memory)
    if memory is not None and not 0 < size < 2**63:
        raise ValueError(f"memory must be more than 0 and less than 2**63 bytes, not {memory}")
    return size


def whole_number(value: Any, name: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, not {value!r}")
    number: int = value.__index__()
    if not least <= number <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {number}")
    return number


def thread_count(threads: int | None) -> int:
    return 0 if threads is None else whole_number(threads, "threads", 1, 4096)


def folder_of(path: str) -> str:
    """The folder in which a model is."""
    import os.path

    return path if os.path.isdir(path) else os.path.dirname(path) or "."


class Model:
    """A loaded model, which any number of sessions share, each on a thread of its own.

    Args:
        path: a checkpoint folder, a weight file or an index with a config.json beside it, or the name of a model in the
            hub's cache.
        memory: bytes, or a str such as "4GB": if the weights take more than seven eighths of it, they stay in their
            files, and sessions bring them in as they need them. Each session may take what is left of it. None: the
            same with what the machine has left, less an eighth of it.
        threads: how many threads compute, for all sessions of the model together; None: one for each CPU. Results do
            not depend on it.
        dtype: of the weights: a name, or a dtype of torch or numpy; None or "auto": the config's, otherwise the files'.
        dequantize: dequantize weights that are stored quantized, which cannot be computed with otherwise.
        allow_missing: load although the checkpoint lacks weights, which are random then.
        class_name: "BertForMaskedLM", "AutoModel", ...; None: the first of the config's ``architectures``.
        variant: "fp16" reads ``model.fp16.safetensors``.
        subfolder: relative to the path.
        mode: "copy" the weights into memory, "map" the files, or "auto": copy them if they fit in the memory.
        progress: as in :func:`heft.load`.

    Raises:
        NotFoundError: no such path, no weights or no config.json.
        MismatchError: the checkpoint lacks weights (``item`` is the first one), or has others.
        UnsupportedError: a class that heft does not know, and weights that are stored quantized.
        LimitError, FormatError, RefusedError, IoError.
    """

    __slots__ = ("_facts", "_raw")

    def __init__(
        self,
        path: Path,
        *,
        memory: int | str | None = None,
        threads: int | None = None,
        dtype: Any = None,
        dequantize: bool = False,
        allow_missing: bool = False,
        class_name: str | None = None,
        variant: str | None = None,
        subfolder: str | None = None,
        mode: Literal["auto", "copy", "map"] = "auto",
        progress: Progress | None = None,
    ) -> None:
        with Reporting(progress) as report:
            raw = _heft.Model(
                path,
                class_name,
                None if isinstance(dtype, str) and dtype == "auto" else dtype_name(dtype),
                dequantize,
                variant,
                subfolder,
                mode,
                memory_bytes(memory),
                thread_count(threads),
                report,
                allow_missing,
            )
        self._facts: dict[str, Any] = raw.facts()
        if not allow_missing:
            self._refuse_random()
        self._raw = raw
        warn(self._facts["warnings"])

    def _refuse_random(self) -> None:
        lacking = self._facts["initialized"]
        if self.class_name.endswith("Model"):  # a base model: what follows its pooler is pooler_output alone
            lacking = [name for name in lacking if "pooler." not in name]
        if lacking:
            raise MismatchError(
                f"the checkpoint lacks {len(lacking)} tensor{'s' if len(lacking) > 1 else ''} of {self.class_name}, "
                "which would be random; allow_missing=True runs it nevertheless",
                self._facts["path"],
                lacking[0],
            )

    @property
    def class_name(self) -> str:
        """The class, by Transformers' name."""
        name: str = self._facts["class_name"]
        return name

    @property
    def path(self) -> str:
        """Where it was loaded from."""
        path: str = self._facts["path"]
        return path

    @property
    def dtype(self) -> str:
        """The dtype of its weights, by PyTorch's name."""
        name: str = self._facts["dtype"]
        return name

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        size: int = self._facts["bytes"]
        return size

    @property
    def random_names(self) -> list[str]:
        """The weights that the checkpoint lacks, which are random."""
        return list(self._facts["initialized"])

    def __repr__(self) -> str:
        return f"<heft.run.Model {self.class_name} of {self.path}>"

    def __reduce__(self) -> str:
        raise TypeError("a heft.run.Model cannot be pickled: load it again")
