"""From the caller's inputs of a pass to rows for the extension module, and from its results to arrays of numpy."""

from __future__ import annotations

from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    import numpy as np

    from . import _heft

    Array = np.ndarray[Any, np.dtype[np.float32]]

NO_INPUT = "input_ids, pixel_values or input_features must be given"
LOGITS = {"last": 0, "all": 1, "none": 2}


# ---- integers ------------------------------------------------------------------------------------------


def _items(value: Any, name: str) -> list[Any]:
    """The items of a list, an array, a tensor or a buffer, as Python's own numbers or lists of them."""
    if isinstance(value, (list, tuple, range)):
        return list(value)
    if isinstance(value, (str, bytes, bytearray)):
        raise TypeError(f"{name} must hold integers, not {type(value).__name__}")
    found: Any
    if hasattr(value, "tolist"):  # array.array, memoryview, and the arrays of all libraries, wherever they are
        found = value.tolist()
    elif hasattr(value, "__dlpack__") or hasattr(value, "__array__"):
        import numpy as np

        found = (np.from_dlpack if hasattr(value, "__dlpack__") else np.asarray)(value).tolist()
    else:
        try:
            found = memoryview(value).tolist()
        except TypeError:
            raise TypeError(f"{name} must be a list, an array or a tensor of integers, not {value!r}") from None
    if not isinstance(found, list):
        raise ValueError(f"{name} has no dimension: expected [tokens] or [rows, tokens]")
    return found


def _is_number(item: Any) -> bool:
    return isinstance(item, (int, float)) or getattr(item, "ndim", None) == 0


def _integers(items: list[Any], name: str) -> array[int]:
    try:
        return array("i", items)
    except OverflowError:
        raise ValueError(f"{name} holds a number that is not in the range of int32") from None
    except TypeError as error:
        raise TypeError(f"{name} must hold integers: {error}") from None


def as_rows(value: Any, name: str, grouped: bool = False) -> tuple[list[array[int]], int, bool]:
    """Rows of int32; how many of them belong together (1, or the second dimension of three); whether it was one row."""
    items = _items(value, name)
    if not items:
        raise ValueError(f"{name} is empty")
    if _is_number(items[0]):
        return [_integers(items, name)], 1, True
    rows = [_items(row, name) for row in items]
    group = 1
    if rows[0] and not _is_number(rows[0][0]) and grouped:
        group = len(rows[0])
        if any(len(row) != group for row in rows):
            raise ValueError(f"{name}: not all groups have {group} rows")
        rows = [_items(row, name) for some in rows for row in some]
    if not all(rows):
        raise ValueError(f"{name}: row {[bool(row) for row in rows].index(False)} is empty")
    return [_integers(row, name) for row in rows], group, False


def _mask(row: array[int]) -> bytes:
    if any(value not in (0, 1) for value in row):
        raise ValueError("attention_mask holds a number that is not 0 or 1")
    return bytes(row.tolist())


# ---- images and sound ----------------------------------------------------------------------------------


def _features(value: Any, name: str, dims: int) -> list[Array]:
    """An array of float32 for each row; `dims` of one row."""
    import numpy as np

    try:
        exchanged = hasattr(value, "__dlpack__") and not hasattr(value, "__array__")
        found = np.from_dlpack(value) if exchanged else np.asarray(value)
    except (TypeError, BufferError, RuntimeError) as error:
        raise TypeError(f"{name} must be an array of floating-point numbers: {error}") from None
    if found.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be an array of floating-point numbers, not of {found.dtype}")
    found = np.ascontiguousarray(found, dtype=np.float32)
    if found.ndim not in (dims, dims + 1):
        raise ValueError(f"{name} has {found.ndim} dimensions: expected {dims + 1}, or {dims} of a single row")
    if found.size == 0:
        raise ValueError(f"{name} is empty")
    return list(found[None] if found.ndim == dims else found)


# ---- a batch -------------------------------------------------------------------------------------------

Row = tuple["_heft.Sequence | None", "array[int] | None", "bytes | None", "array[int] | None", "array[int] | None", "Any", "tuple[int, ...] | None", "array[int] | None", int]  # fmt: skip


class Batch:
    """The inputs of one call, row by row.

    With images (or sound) and texts in one call, those of a model that has two encoders, rows of texts come first, and
    then those of images.
    """

    def __init__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        decoder_input_ids: Any = None,
        pixel_values: Any = None,
        input_features: Any = None,
        grouped: bool = False,
    ) -> None:
        if pixel_values is not None and input_features is not None:
            raise ValueError("either pixel_values or input_features can be given")
        self.group, self.single = 1, False
        self.ids: list[array[int]] = []
        others = (input_ids, pixel_values, input_features, attention_mask, token_type_ids, position_ids)
        self.continues = decoder_input_ids is not None and all(one is None for one in others)  # behind the encoder's input
        if self.continues:
            input_ids, decoder_input_ids = decoder_input_ids, None
        if input_ids is not None:
            self.ids, self.group, self.single = as_rows(input_ids, "input_ids", grouped)
        self.features: list[Array] = []
        if pixel_values is not None:
            self.features = _features(pixel_values, "pixel_values", 3)
        elif input_features is not None:
            self.features = _features(input_features, "input_features", 2)
        if not self.ids and not self.features:
            raise ValueError(NO_INPUT)
        masks = self._beside(attention_mask, "attention_mask", grouped)
        self.masks = [None if mask is None else _mask(mask) for mask in masks]
        self.types = self._beside(token_type_ids, "token_type_ids", grouped)
        self.positions = self._beside(position_ids, "position_ids", grouped)
        self.decoder_ids: list[array[int]] | None = None
        if decoder_input_ids is not None:
            self.decoder_ids = as_rows(decoder_input_ids, "decoder_input_ids")[0]
            if len(self.decoder_ids) != len(self):
                raise ValueError(f"decoder_input_ids has {len(self.decoder_ids)} rows, the inputs have {len(self)}")

    def __len__(self) -> int:
        return len(self.ids) + len(self.features)

    def _beside(self, value: Any, name: str, grouped: bool) -> list[Any]:
        """Rows beside input_ids, of the same lengths; one row is for all, as numpy broadcasts."""
        if value is None:
            return [None] * len(self.ids)
        rows, _, _ = as_rows(value, name, grouped)
        if len(rows) == 1:
            rows = rows * len(self.ids)
        lengths = [len(row) for row in rows], [len(row) for row in self.ids]
        if lengths[0] != lengths[1]:
            raise ValueError(f"{name} has {_shape(lengths[0])}, input_ids has {_shape(lengths[1])}")
        return rows

    def rows(self, logits: str, sequences: Sequence[_heft.Sequence | None]) -> list[Row]:
        """What the extension module takes."""
        if logits not in LOGITS:
            raise ValueError(f"logits {logits!r} is not 'last', 'all' or 'none'")
        kind = LOGITS[logits]
        rows: list[Row] = []
        for i, ids in enumerate(self.ids):
            rows.append(
                (sequences[i], ids, self.masks[i], self.positions[i], self.types[i], None, None, self._decoder(i), kind)
            )
        for i, one in enumerate(self.features, len(self.ids)):
            shape = (*one.shape, 1)[:3]
            rows.append((sequences[i], None, None, None, None, one, shape, self._decoder(i), kind))
        return rows

    def _decoder(self, i: int) -> array[int] | None:
        return None if self.decoder_ids is None else self.decoder_ids[i]


def _shape(lengths: list[int]) -> str:
    if len(set(lengths)) == 1:
        return f"shape [{len(lengths)}, {lengths[0]}]"
    return f"{len(lengths)} rows of {', '.join(map(str, lengths[:8]))}{', ...' if len(lengths) > 8 else ''}"


# ---- results -------------------------------------------------------------------------------------------


def array_of(data: bytearray, *shape: int) -> Array:
    """A writable array on memory that nothing else has."""
    import numpy as np

    return np.frombuffer(data, dtype=np.float32).reshape(shape)


def unpack(batch: Batch, kind: str, rows: int, width: int, data: bytearray, last: bool) -> Any:
    """A result in the shape that Transformers gives it; a list of arrays if the rows have different lengths.

    last: logits of the last token only.
    """
    flat = array_of(data, rows, width)
    if kind == "whole":
        return flat
    if kind == "sequences":
        return flat.reshape(-1, batch.group) if batch.group > 1 and width == 1 else flat
    if kind == "logits" and last:
        return flat.reshape(rows, 1, width)
    source = batch.ids if kind == "encoded" or batch.decoder_ids is None else batch.decoder_ids
    counts = [len(row) for row in source]
    if sum(counts) == rows:
        parts = _split(flat, counts)
    elif batch.decoder_ids is None and sum(sum(m or b"\1" * n) for m, n in zip(batch.masks, counts, strict=True)) == rows:
        parts = _spread(flat, batch.masks, counts)
    else:  # tokens of images or sound: as many in each row
        of = len(batch.features) or len(batch)
        return flat.reshape(of, rows // of, width)
    if len(set(counts)) > 1:
        return parts
    import numpy as np

    return flat.reshape(len(counts), counts[0], width) if sum(counts) == rows else np.stack(parts)


def _split(flat: Array, counts: list[int]) -> list[Array]:
    parts, at = [], 0
    for count in counts:
        parts.append(flat[at : at + count].copy())
        at += count
    return parts


def _spread(flat: Array, masks: list[bytes | None], counts: list[int]) -> list[Array]:
    """Zeros where there is padding, of which a decoder computes nothing."""
    import numpy as np

    parts, at = [], 0
    for mask, count in zip(masks, counts, strict=True):
        part = np.zeros((count, flat.shape[1]), dtype=np.float32)
        seen = np.ones(count, dtype=bool) if mask is None else np.frombuffer(mask, dtype=bool)
        part[seen] = flat[at : at + int(seen.sum())]
        at += int(seen.sum())
        parts.append(part)
    return parts
