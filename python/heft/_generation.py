"""Generation, token by token: how tokens are chosen, the texts that grow, and what turns them into words."""

from __future__ import annotations

from array import array
from typing import NamedTuple

from ._errors import warn
from ._heft import Tokenizer
from ._model import whole_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from . import _heft
    from ._batch import Batch
    from ._heft import TextStream


class Piece(NamedTuple):
    """One generated token.

    Attributes:
        row: of the batch; 0 for a single prompt.
        id: the token.
        text: what is complete with it, without special tokens, possibly ""; None if the prompt was ids.
    """

    row: int
    id: int
    text: str | None


class Sampling:
    """How tokens are chosen, checked."""

    def __init__(
        self, temperature: float, top_k: int, top_p: float, min_p: float, repetition_penalty: float | None, seed: int
    ) -> None:
        if repetition_penalty is None:
            repetition_penalty = 0.0  # as the files say
        elif repetition_penalty == 0:
            repetition_penalty = 1.0
        reals = (("temperature", temperature, 1000), ("top_p", top_p, 1), ("min_p", min_p, 1), ("repetition_penalty", repetition_penalty, 1000))  # fmt: skip
        for name, value, most in reals:
            if isinstance(value, bool) or not hasattr(value, "__float__"):
                raise TypeError(f"{name} must be a float, not {value!r}")
            if not 0 <= value <= most:
                raise ValueError(f"{name} must be from 0 to {most}, not {value}")
        if temperature == 0 and (top_k or top_p or min_p):
            warn(["top_k, top_p and min_p change nothing with temperature 0"])
        self._first = (float(temperature), whole_number(top_k, "top_k", 0, 2**32 - 1), float(top_p), float(min_p), float(repetition_penalty))  # fmt: skip
        self._seed = whole_number(seed, "seed", 0, 2**64 - 1)

    def of(self, row: int) -> tuple[float, int, float, float, float, int]:
        return (*self._first, (self._seed + row) % 2**64)


class Text:
    """One row of a generation: all ids so far, and where the new ones begin."""

    __slots__ = ("_mask", "_position", "_type", "ended", "first", "ids", "sequence", "stopped")

    def __init__(self, ids: array[int], sequence: _heft.Sequence, batch: Batch | None = None, row: int = 0) -> None:
        """batch: where the ids are a row of it, with its positions, types and mask."""
        self.ids = array("i", ids)
        self.first = len(ids)
        self.sequence = sequence
        positions: array[int] | None = None if batch is None else batch.positions[row]
        types: array[int] | None = None if batch is None else batch.types[row]
        self._mask: bytes | None = None if batch is None else batch.masks[row]
        self._position = positions[-1] if positions else None  # of the last token of the input; None: they are counted
        self._type = types[-1:] if types else None  # that of the last token holds for all that follow
        self.ended = self.stopped = False

    def next_row(self) -> tuple[Any, ...]:
        at = None if self._position is None else array("i", [self._position + len(self.ids) - self.first])
        return (self.sequence, self.ids[-1:], None, at, self._type, None, None, None, 0)

    def words(self) -> array[int]:
        """The ids from the first one on that is no padding."""
        padding = 0 if self._mask is None else max(self._mask.find(1), 0)
        return self.ids[padding:] if padding else self.ids


def number_tokens(batch: Batch) -> None:
    """Positions without padding, for texts that are continued: 0 at the first token of a text."""
    for i, mask in enumerate(batch.masks):
        if mask is not None:
            seen, positions = 0, array("i")
            for value in mask:
                seen += value
                positions.append(max(seen - 1, 0))
            batch.positions[i] = positions


# ---- words ---------------------------------------------------------------------------------------------


class Texts:
    """What generation asks of a tokenizer: heft's, or one of Transformers or `tokenizers`."""

    def __init__(self, tokenizer: Any) -> None:
        for name in ("encode", "decode"):
            if not callable(getattr(tokenizer, name, None)):
                raise TypeError(f"tokenizer must have encode() and decode(), as heft.run.Tokenizer, not {tokenizer!r}")
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        found = self.tokenizer.encode(text)
        return list(getattr(found, "ids", found))

    def decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def is_special(self, token: int) -> bool:
        for name in ("special_ids", "all_special_ids"):
            if hasattr(self.tokenizer, name):
                return token in getattr(self.tokenizer, name)
        added: dict[int, Any] = getattr(self.tokenizer, "get_added_tokens_decoder", dict)()
        return token in added and bool(added[token].special)

    def stream(self) -> TextStream | Pieces:
        return self.tokenizer.stream() if isinstance(self.tokenizer, Tokenizer) else Pieces(self)


class Pieces:
    """As TextStream, of any tokenizer: what the last ids add to the text of those before them."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._ids: list[int] = []
        self._given = 0  # ids whose text was given

    def add(self, token: int) -> str:
        """Return the text that is complete with this id; a part of a character waits for the rest."""
        self._ids.append(token)
        text = self._rest()
        if text.endswith("\ufffd"):
            return ""
        self._ids = self._ids[self._given :]
        self._given = len(self._ids)
        return text

    def finish(self) -> str:
        """Return the text that is left."""
        text = self._rest() if self._given < len(self._ids) else ""
        self._ids, self._given = [], 0
        return text

    def _rest(self) -> str:
        return self._texts.decode(self._ids)[len(self._texts.decode(self._ids[: self._given])) :]
