"""Run models: forward passes, generation of text, and embeddings, without torch.

``Session(path)`` loads a checkpoint folder of Hugging Face as it is and runs it, also within a maximum of memory that is
smaller than the model. Inputs are lists, arrays of numpy, tensors of torch on the CPU, or anything else with the buffer
protocol or ``__dlpack__``; results are arrays of numpy, which is imported when the first one is made. ``generate()`` and
``Tokenizer`` do not need numpy.

What is computed, and how exactly: docs/running.md.
"""

from __future__ import annotations

from _thread import allocate_lock
from array import array
from typing import NamedTuple

from . import _heft
from ._batch import NO_INPUT, Batch, array_of, as_rows, unpack
from ._closing import Closing
from ._errors import HeftError, InvalidArgError, MismatchError, UnsupportedError, warn
from ._generation import Piece, Sampling, Text, Texts, number_tokens
from ._heft import TextStream, Tokenizer
from ._model import Model, folder_of, memory_bytes, whole_number
from ._progress import Reporting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from collections.abc import Sequence as SequenceOf
    from typing import Any, Literal

    from ._batch import Array
    from ._model import Path
    from ._progress import Progress


__all__ = [
    "Facts", "Generation", "Model", "Outputs", "Piece", "Sequence", "Session", "TextStream", "Tokenizer",
]  # fmt: skip

_PASS_TOKENS = 512  # of heft_session_options
_EMBED_PASSES = 32  # whose states are in memory at once
_COMPACT_TOKENS, _COMPACT_ROWS = 32, 8  # from so many new tokens on, weights are stored in 12 bits first; as `heft run`
_POOLING = {"mean": 0, "cls": 1, "last": 2}


# ---- results -------------------------------------------------------------------------------------------


class Facts(NamedTuple):
    """What a session has done, and the memory it takes: sizes are in bytes.

    Attributes:
        resident_bytes: weights in memory now, those that the model has itself included.
        read_bytes: weights that were read from files so far.
        peak_bytes: the most of weights that were brought in, caches and intermediate results at once.
        scratch_bytes: of intermediate results.
        passes: passes so far.
        tokens: tokens in them.
        compact_bytes: of the weights in memory, those that were stored in 12 bits instead of 16 for long texts, without
            loss; at their full size.
    """

    resident_bytes: int
    read_bytes: int
    peak_bytes: int
    scratch_bytes: int
    passes: int
    tokens: int
    compact_bytes: int


class Outputs(dict[str, "Any"]):
    """The results of a pass by name; each is an attribute too, as in Transformers' ``ModelOutput``.

    The arrays own their memory: no later pass changes them.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the pass has no output {name!r}: {', '.join(self)}") from None


class Generation:
    """A generated text.

    Attributes:
        ids: the new ids; the one that ended the text is the last of them.
        prompt_ids: the ids that were continued; those of the decoder, in a model with an encoder.
        finish_reason: "stop" if an id ended the text, "length" if max_new_tokens did.
    """

    __slots__ = ("_session", "finish_reason", "ids", "prompt_ids")

    def __init__(self, ids: list[int], prompt_ids: list[int], finish_reason: str, session: Session) -> None:
        self.ids = ids
        self.prompt_ids = prompt_ids
        self.finish_reason = finish_reason
        self._session = session

    @property
    def text(self) -> str:
        """The new text, without special tokens. Raises as :attr:`Session.tokenizer`."""
        return self._session._words().decode(self.ids)

    def __repr__(self) -> str:
        return f"<heft.run.Generation of {len(self.ids)} tokens, {self.finish_reason}>"


# ---- sequences -----------------------------------------------------------------------------------------


class Sequence(Closing):
    """Tokens so far, as keys and values that later passes attend to. ``Session.sequence()`` makes it.

    ``len()`` is the number of tokens so far. A pass that fails, or is cancelled, leaves it unusable.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: _heft.Sequence) -> None:
        self._raw = raw

    def __len__(self) -> int:
        return len(self._raw)

    def __bool__(self) -> bool:
        return True

    def fork(self) -> Sequence:
        """Return a sequence that has the same tokens so far, and goes on by itself. They share the cache of these tokens."""
        return Sequence(self._raw.fork())

    def close(self) -> None:
        """Free its cache."""
        self._raw.close()

    def __repr__(self) -> str:
        return f"<heft.run.Sequence{', closed' if self._raw.closed else f' of {len(self)} tokens'}>"

    def __reduce__(self) -> str:
        raise TypeError("a heft.run.Sequence cannot be pickled")


# ---- sessions ------------------------------------------------------------------------------------------


class _Lock:
    """One thread at a time: another one is refused, not kept waiting."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = allocate_lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(False):
            raise RuntimeError("the session is in use: each thread needs a session of its own, of the same model")

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


class Session(Closing):
    """Runs one model. The GIL is released during every pass.

    One thread at a time uses a session; a call while another one runs is a RuntimeError. Threads that run at the same
    time have a session each, of one :class:`Model`. Control-C cancels a pass, as does an exception of ``progress``. A
    child process after ``fork()`` cannot use its parent's sessions (RuntimeError), but can make its own.

    Args:
        source: a path, as for :class:`Model`, or a :class:`Model`, whose weights the session shares; with it, options
            of loading are a ValueError.
        memory: bytes, or a str such as "4GB": the most that weights, caches of sequences and intermediate results may
            take; results are the same. Weights that a given model has in memory do not count. None: no maximum, if the
            model fits in the memory that the machine has left.
        threads: as for :class:`Model`.
        exact: activations are not rounded to bfloat16 where they are multiplied with weights of bfloat16, and caches
            are float32.
        dtype, dequantize, allow_missing, class_name, variant, subfolder, mode, progress: as for :class:`Model`.
        tokenizer: for texts: a :class:`Tokenizer`, or one of Transformers or ``tokenizers``, where heft does not read the
            file; None: the ``tokenizer.json`` in the folder, when it is needed.
        pass_tokens: the most tokens in one pass; longer texts of a decoder are computed in several; None: 512.
        over_limit: go on although the weights need more memory than the machine has.

    Raises:
        as :class:`Model`; UnsupportedError: a class without a forward pass;
        LimitError: a maximum in which one block with its results does not fit, with both sizes.
    """

    __slots__ = ("__weakref__", "_about", "_guard", "_has_warned", "_is_alone", "_lock", "_model", "_pass_tokens", "_raw", "_texts")

    def __init__(
        self,
        source: Path | Model,
        *,
        memory: int | str | None = None,
        threads: int | None = None,
        exact: bool = False,
        dtype: Any = None,
        dequantize: bool = False,
        allow_missing: bool = False,
        class_name: str | None = None,
        variant: str | None = None,
        subfolder: str | None = None,
        mode: Literal["auto", "copy", "map"] = "auto",
        tokenizer: Any = None,
        pass_tokens: int | None = None,
        over_limit: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._lock = _Lock()
        self._pass_tokens = 0 if pass_tokens is None else whole_number(pass_tokens, "pass_tokens", 1, 2**31 - 1)
        self._texts = None if tokenizer is None else Texts(tokenizer)
        budget = memory_bytes(memory)
        if isinstance(source, Model):
            given = (threads, dtype, class_name, variant, subfolder) != (None,) * 5
            if given or dequantize or allow_missing or mode != "auto":
                raise ValueError("the model is loaded: give options of loading to heft.run.Model()")
            self._model = source
            budget = budget or source._facts["room_bytes"]
        else:
            self._model = Model(
                source, memory=memory, threads=threads, dtype=dtype, dequantize=dequantize, allow_missing=allow_missing,
                class_name=class_name, variant=variant, subfolder=subfolder, mode=mode, progress=progress,
            )  # fmt: skip
            budget = self._model._facts["room_bytes"]
        self._is_alone = not isinstance(source, Model)  # nobody else has the model, and its weights are as they were
        self._guard = allocate_lock()
        self._raw = _heft.Session(self._model._raw, budget, self._pass_tokens, exact, over_limit)
        self._about: dict[str, Any] = self._raw.describe()
        self._has_warned = False

    # ---- what it is ----

    @property
    def model(self) -> Model:
        """The model, for more sessions."""
        with self._guard:  # not while weights are being rewritten
            self._is_alone = False
        return self._model

    @property
    def class_name(self) -> str:
        """The class, by Transformers' name."""
        return self._model.class_name

    @property
    def output_names(self) -> tuple[str, ...]:
        """The outputs of the class. ``hidden_states.N`` can be asked for as well: 0 is the embedding. With an encoder and a
        decoder they are ``encoder_hidden_states.N`` and ``decoder_hidden_states.N``."""
        return tuple(self._about["outputs"])

    @property
    def has_encoder(self) -> bool:
        """Whether an encoder stands in front of the decoder: ``input_ids`` are the encoder's then."""
        found: bool = self._about["has_encoder"]
        return found

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a text: ``eos_token_id`` of generation_config.json, otherwise of config.json."""
        return tuple(self._about["ids"][0])

    @property
    def isa(self) -> str:
        """The instruction set that it computes with, such as "avx2"."""
        name: str = self._about["isa"]
        return name

    @property
    def facts(self) -> Facts:
        """What the session has done so far, and the memory it takes."""
        return Facts(*self._raw.counts())

    @property
    def tokenizer(self) -> Any:
        """The tokenizer: a :class:`Tokenizer` of the folder, or the one that was given. Raises as :class:`Tokenizer`."""
        return self._words().tokenizer

    def _words(self) -> Texts:
        if self._texts is None:
            folder = folder_of(self._model.path)
            tokenizer = Tokenizer(folder)
            try:
                names = tokenizer._check_config(folder)
            except HeftError:  # a config that cannot be read concerns nobody here
                names = ""
            if names:
                warn([f"tokenizer_config.json: not followed: {names}"])
            self._texts = Texts(tokenizer)
        return self._texts

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._raw.closed

    def close(self) -> None:
        """Free what the session brought in, and its sequences. The model stays for its other sessions."""
        with self._lock:
            self._raw.close()

    def __repr__(self) -> str:
        return f"<heft.run.Session of {self.class_name}{', closed' if self.closed else ''}>"

    def __reduce__(self) -> str:
        raise TypeError("a heft.run.Session cannot be pickled: make one in each process")

    # ---- passes ----

    def sequence(self, capacity: int, *, encoded: int = 0) -> Sequence:
        """Create an empty sequence, for several calls of :meth:`forward` that continue each other.

        Args:
            capacity: the most tokens, of all calls together.
            encoded: the most tokens of the encoder's input; 0 without an encoder, and for images and sound.

        Raises:
            InvalidArgError: more than the model's positions. LimitError: its cache does not fit in the memory.
        """
        tokens = whole_number(capacity, "capacity", 1, 2**63 - 1)
        return Sequence(self._raw.sequence(tokens, whole_number(encoded, "encoded", 0, 2**63 - 1)))

    def forward(
        self,
        input_ids: Any = None,
        *,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        decoder_input_ids: Any = None,
        pixel_values: Any = None,
        input_features: Any = None,
        outputs: Iterable[str] | None = None,
        logits: Literal["last", "all"] = "all",
        sequence: Sequence | SequenceOf[Sequence] | None = None,
        progress: Progress | None = False,
    ) -> Outputs:
        """Run one forward pass.

        Args:
            input_ids: [rows, tokens] or [tokens] integers, as an array or as lists. Lists of different lengths are a
                ragged batch: nothing is padded. [rows, choices, tokens] for multiple choice.
            attention_mask: 1, or 0 for padding, of the same shape. Other tokens do not see padding.
            token_type_ids, position_ids: of the same shape; one row is for all.
            decoder_input_ids: [rows, tokens], for a model with an encoder; None: input_ids, one place later. Given alone,
                with ``sequence``, they go on where the decoder was: the encoder's output is in the sequence.
            pixel_values: [rows, channels, height, width] numbers.
            input_features: [rows, mels, frames] numbers.
            outputs: names of :attr:`output_names`, or hidden states, as there; None: all of output_names that the pass has.
                What is not asked for is not computed where that can be avoided.
            logits: of "all" tokens, or of the "last" one of each row.
            sequence: what the tokens continue, and are added to; for several rows, a list of as many.
            progress: called with (what, done, total) for each block, and what it raises cancels the pass.

        Returns:
            Arrays of float32 by name, in Transformers' shapes: ``logits`` and ``last_hidden_state`` [rows, tokens,
            width], [rows, 1, width] with logits="last"; ``pooler_output`` and logits of classes [rows, width]. Where
            the rows of a batch have different lengths, outputs of tokens are a list with an array [tokens, width] for
            each row. A decoder does not compute padding: its rows are zero.

        Raises:
            InvalidArgError: ids that are not in the vocabulary, more tokens than the model has positions or the
                sequence has room for, features of another shape, inputs that the class does not take.
            NotFoundError: an output that the class does not have. FormatError: results that are not finite.
            LimitError: the memory is too small. ValueError: inputs whose shapes do not go together; a closed session.
            RuntimeError: another thread uses the session.
        """
        batch = Batch(
            input_ids, attention_mask, token_type_ids, position_ids, decoder_input_ids, pixel_values, input_features,
            self.class_name.endswith("ForMultipleChoice"),
        )  # fmt: skip
        sequences = self._sequences(sequence, len(batch))
        if batch.continues and not (self.has_encoder and all(one is not None and len(one) > 0 for one in sequences)):
            raise ValueError(NO_INPUT)
        names = self._names(outputs, batch, any(one is not None and len(one) > 0 for one in sequences))
        rows = batch.rows(logits, sequences)
        if self.has_encoder and batch.decoder_ids is None and batch.ids and sequence is None:
            batch.decoder_ids = batch.ids  # as many tokens: they are shifted
        with self._lock, Reporting(progress) as report:
            self._raw.run(rows, names, report)
            found = {name: self._raw.output(name) for name in names}
        result = Outputs()
        for name, (kind, count, width, data) in found.items():
            value = unpack(batch, kind, count, width, data, logits == "last")
            result[name] = _squeeze(value) if width == 1 and self._is_flat(name) else value
        return result

    __call__ = forward

    def _names(self, outputs: Iterable[str] | None, batch: Batch, continues: bool) -> tuple[str, ...]:
        """The outputs that are asked for, or all that this pass has."""
        lacks_pooler = any("pooler." in name for name in self._model._facts["initialized"]) and self.class_name.endswith("Model")
        both = bool(batch.ids and batch.features)  # whose states would be one after the other

        def is_left_out(name: str) -> bool:
            if both and name in ("last_hidden_state", "pooler_output"):
                return True
            if not both and "logits_per_image" in self.output_names:  # texts or images alone
                return name.startswith(("logits_per", "image" if batch.ids else "text"))
            if continues and name.startswith("encoder_"):  # in the first pass of a sequence only
                return True
            return lacks_pooler and name == "pooler_output"

        if outputs is None:
            return tuple(name for name in self.output_names if not is_left_out(name))
        if isinstance(outputs, str):
            raise TypeError("outputs must be a sequence of names, not one str")
        names = tuple(dict.fromkeys(outputs))
        if not names:
            raise ValueError("no outputs are asked for")
        if lacks_pooler and "pooler_output" in names:
            raise MismatchError("the checkpoint lacks the pooler, which would be random", self._model.path, "pooler_output")
        for name in names:
            if both and isinstance(name, str) and (is_left_out(name) or name.startswith("hidden_states")):
                raise ValueError(f"{name} of texts and of images are results of two calls")
        return names

    def _is_flat(self, name: str) -> bool:
        """Whether Transformers drops the last dimension, which is 1."""
        return name in ("start_logits", "end_logits") or (name == "logits" and self.class_name == "ElectraForPreTraining")

    def _sequences(self, sequence: Sequence | SequenceOf[Sequence] | None, count: int) -> list[_heft.Sequence | None]:
        if sequence is None:
            return [None] * count
        given = [sequence] if isinstance(sequence, Sequence) else list(sequence)
        if not all(isinstance(one, Sequence) for one in given):
            raise TypeError("sequence must be a heft.run.Sequence, or a list of them")
        if len(given) != count:
            raise ValueError(f"{len(given)} sequences are given, the inputs have {count} rows")
        return [one._raw for one in given]

    # ---- generation ----

    def generate(
        self,
        prompt: Any = None,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 0.0,
        min_p: float = 0.0,
        repetition_penalty: float | None = None,
        seed: int = 0,
        ignore_eos: bool = False,
        stream: Callable[[Piece], object] | None = None,
        **inputs: Any,
    ) -> Generation:
        """Continue one prompt.

        Args:
            prompt: a text, for the folder's tokenizer, or ids: [tokens] or [1, tokens].
            max_new_tokens: the most new tokens.
            temperature: 0: the most likely token, as ``do_sample=False`` in Transformers; otherwise tokens are drawn
                from the distribution of logits / temperature.
            top_k: draw among so many of the most likely tokens; 0: all.
            top_p: draw among the most likely tokens whose probabilities sum to it; 0: all.
            min_p: draw among tokens with at least so many times the largest probability; 0: all.
            repetition_penalty: divides positive logits of earlier tokens, and multiplies negative ones; 1: none. None: as
                generation_config.json says, of which suppressed and forced ids are followed, too; a warning of the
                logger ``heft`` names what else of it would change greedy results.
            seed: of the random numbers. Equal arguments give equal ids.
            ignore_eos: go on after an id that ends a text.
            stream: called with a :class:`Piece` for each token as soon as it is chosen; what it raises ends the
                generation.
            inputs: ``attention_mask``, ``position_ids``, ``token_type_ids``, ``decoder_input_ids``, ``pixel_values``,
                ``input_features``, as in :meth:`forward`; ``input_ids`` instead of a prompt.

        Returns:
            The new ids, and on request their text: those of ``heft run`` with the same options.

        Raises:
            as :meth:`forward` and, for texts, :class:`Tokenizer`; InvalidArgError: the model is not a language model,
            or the prompt and the new tokens are more than the model has positions.
        """
        single = prompt if prompt is None or not isinstance(prompt, str) else [prompt]
        found = self.generate_batch(
            single, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, seed=seed, ignore_eos=ignore_eos, stream=stream, _single=True, **inputs,
        )  # fmt: skip
        return found[0]

    def generate_batch(
        self,
        prompts: Any = None,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 0.0,
        min_p: float = 0.0,
        repetition_penalty: float | None = None,
        seed: int = 0,
        ignore_eos: bool = False,
        stream: Callable[[Piece], object] | None = None,
        _single: bool = False,
        **inputs: Any,
    ) -> list[Generation]:
        """Continue several prompts, all of them in each pass.

        Args:
            prompts: a list of texts, a list of lists of ids, or ids [rows, tokens], with ``attention_mask`` where rows
                are padded (in front, as Transformers' ``generate()`` takes them).
            max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, ignore_eos, stream, inputs: as in
                :meth:`generate`.
            seed: of the first row; row i has seed + i.

        Returns:
            A result for each prompt, of different lengths where an id ended a text.

        Raises:
            as :meth:`generate`.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        if stream is not None and not callable(stream):
            raise TypeError(f"stream must be a function, not {stream!r}")
        if prompts is None and "input_ids" in inputs:
            prompts = inputs.pop("input_ids")  # what a tokenizer returned, unpacked
        batch, is_text = self._prompts(prompts, inputs)
        if _single and len(batch) != 1:
            raise ValueError(f"generate() takes one prompt, not {len(batch)}: generate_batch() takes several")
        texts: list[Text] = []
        count = whole_number(max_new_tokens, "max_new_tokens", 1, 2**31 - 1)
        for piece in self._pieces(batch, texts, sampling, count, ignore_eos, is_text and stream is not None):
            if stream is not None:
                stream(piece)
        return [
            Generation(
                text.ids[text.first :].tolist(), text.ids[: text.first].tolist(),
                "stop" if text.stopped else "length", self,
            ) for text in texts
        ]  # fmt: skip

    def stream(
        self,
        prompts: Any = None,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 0.0,
        min_p: float = 0.0,
        repetition_penalty: float | None = None,
        seed: int = 0,
        ignore_eos: bool = False,
        **inputs: Any,
    ) -> Iterator[Piece]:
        """Iterate over tokens as they are generated: ``for piece in session.stream("Once"): print(piece.text, end="")``.

        Args:
            prompts: one prompt, or several: as in :meth:`generate` or :meth:`generate_batch`.
            max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, ignore_eos, inputs: the same.

        Returns:
            An iterator over :class:`Piece`. Between two of them, the session can be used for something else; when the
            iterator goes, the generation ends.

        Raises:
            as :meth:`generate`, wrong arguments in the call, and what a pass raises while it is iterated over.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        count = whole_number(max_new_tokens, "max_new_tokens", 1, 2**31 - 1)
        batch, is_text = self._prompts([prompts] if isinstance(prompts, str) else prompts, inputs)
        return self._pieces(batch, [], sampling, count, ignore_eos, is_text)

    def _prompts(self, prompts: Any, inputs: dict[str, Any]) -> tuple[Batch, bool]:
        """A batch of texts or ids, and whether they are texts."""
        known = ("attention_mask", "position_ids", "token_type_ids", "decoder_input_ids", "pixel_values", "input_features")
        for name in inputs:
            if name not in known:
                raise TypeError(f"{name!r} is not an argument of generation; inputs are {', '.join(known)}")
        if isinstance(prompts, str):
            raise TypeError("prompts must be a list of texts: generate() takes one")
        is_text = isinstance(prompts, (list, tuple)) and bool(prompts) and isinstance(prompts[0], str)
        if is_text:
            prompts = self._encode(prompts, 0)
        batch = Batch(prompts, **inputs)
        if batch.continues:
            raise ValueError(NO_INPUT)
        return batch, is_text

    def _encode(self, texts: Any, most: int, before: str = "") -> list[list[int]]:
        """Ids of texts behind `before`, cut to `most`, where the last special one is kept; 0: never."""
        rows, cut, words = [], 0, self._words()
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {i} must be a str, not {text!r}")
            ids = words.encode(before + text)
            if not ids:
                raise ValueError(f"text {i} has no tokens")
            if most and len(ids) > most:
                last = ids[-1:] if words.is_special(ids[-1]) else ids[most - 1 : most]
                ids = ids[: most - 1] + last
                cut += 1
            rows.append(ids)
        if cut:
            warn([f"{cut} text{' was' if cut == 1 else 's were'} cut to {most} tokens (max_seq_length)"])
        return rows

    def _begin(self, batch: Batch, texts: list[Text], count: int) -> None:
        """Sequences with room for the texts."""
        start = self._about["ids"][1]
        if self.has_encoder and batch.decoder_ids is None:
            if start < 0:
                raise InvalidArgError(
                    "is in neither config: give decoder_input_ids", self._model.path, "decoder_start_token_id"
                )
            batch.decoder_ids = [array("i", [start])] * len(batch)
        elif not self.has_encoder and not self._about["numbers_tokens"] and not any(batch.positions):
            number_tokens(batch)
        for i in range(len(batch)):
            encoder = len(batch.ids[i]) if i < len(batch.ids) else 0
            ids = batch.decoder_ids[i] if batch.decoder_ids is not None else batch.ids[i] if encoder else array("i")
            room = max(len(ids) + count, 1)
            sequence = self._raw.sequence(room, encoder if self.has_encoder else 0)
            texts.append(Text(ids, sequence, batch, i) if encoder and not self.has_encoder else Text(ids, sequence))

    def _choose(self, texts: list[Text], going: list[int], sampling: Sampling, count: int, ignore_eos: bool) -> None:
        """One token for each text that goes on, by the last pass."""
        for row, i in enumerate(going):
            text = texts[i]
            try:
                words = text.words()
                first = text.first - (len(text.ids) - len(words))
                token = self._raw.sample(row, words, (len(text.ids), first, first + count), sampling.of(i))
            except IndexError:
                raise InvalidArgError(f"{self.class_name} is not a language model", self._model.path) from None
            text.ids.append(token)
            text.stopped = not ignore_eos and token in self._about["ids"][0]
            text.ended = text.stopped or len(text.ids) - text.first == count

    def _make_compact(self) -> None:
        """Store weights in 12 bits, once, if nobody else has the model."""
        with self._guard:
            if self._is_alone:
                self._raw.compact()
                self._is_alone = False

    def _pieces(
        self, batch: Batch, texts: list[Text], sampling: Sampling, count: int, ignore_eos: bool, is_text: bool
    ) -> Iterator[Piece]:
        if "logits" not in self.output_names:
            raise InvalidArgError(f"{self.class_name} is not a language model", self._model.path)
        if self._about["ids"][4] and not self._has_warned:
            self._has_warned = True
            warn([f"generation_config.json: not followed: {self._about['ids'][4]}"])
        streams = [self._words().stream() if is_text else None for _ in range(len(batch))]
        try:
            with self._lock:
                self._begin(batch, texts, count)
                going = list(range(len(texts)))
                self._raw.run(batch.rows("last", [text.sequence for text in texts]), ("logits",))
                self._choose(texts, going, sampling, count, ignore_eos)
            is_long = count >= _COMPACT_TOKENS and len(batch) <= _COMPACT_ROWS
            while going:
                for i in going:
                    token, stream = texts[i].ids[-1], streams[i]
                    part = None if stream is None else stream.add(token)
                    if stream is not None and part is not None and texts[i].ended:
                        part += stream.finish()
                    yield Piece(i, token, part)
                going = [i for i in going if not texts[i].ended]
                if going:
                    with self._lock:
                        if is_long:  # the first token need not wait for it
                            self._make_compact()
                        self._raw.run([texts[i].next_row() for i in going], ("logits",))
                        self._choose(texts, going, sampling, count, ignore_eos)
        finally:
            for text in texts:
                del text.sequence  # which frees it

    # ---- embeddings ----

    def embed(
        self,
        texts: Any,
        *,
        pooling: Literal["mean", "cls", "last"] | None = None,
        normalize: bool | None = None,
        progress: Progress | None = False,
    ) -> Array:
        """Make an embedding of each text, as ``SentenceTransformer.encode()`` and ``heft embed`` do.

        Use ``class_name="AutoModel"`` for a checkpoint with a head.

        Args:
            texts: a list of texts, or one; or lists of ids. Before texts goes the default prompt of
                config_sentence_transformers.json; they are cut to ``max_seq_length`` of sentence_bert_config.json,
                otherwise to ``model_max_length`` and ``max_position_embeddings``, with a warning of the logger ``heft``.
                Ids are taken as they are.
            pooling: how an embedding is made of the last hidden states: their "mean", that of the first token ("cls"),
                or of the "last" one; None: as modules.json says, otherwise the last of a ...ForCausalLM, else the mean.
            normalize: to length 1; None: as modules.json says.
            progress: as in :meth:`forward`.

        Returns:
            [texts, width] float32; [width] for one text. The width is at most ``truncate_dim`` of the folder.

        Raises:
            as :meth:`forward` and :class:`Tokenizer`; UnsupportedError: modules.json has a module that heft does not
            compute; NotFoundError: the class has no output ``last_hidden_state``.
        """
        if pooling is not None and pooling not in _POOLING:
            raise ValueError(f"pooling {pooling!r} is not 'mean', 'cls' or 'last'")
        if self.class_name == "T5Model":
            raise UnsupportedError("its last hidden states are the decoder's: use class_name='T5EncoderModel'", self._model.path, self.class_name)
        mode, unit, most, most_width, before = self._read_pooling(pooling)
        unit = unit if normalize is None else bool(normalize)
        if getattr(getattr(texts, "dtype", None), "kind", "") in ("U", "T", "O"):
            texts = texts.tolist()  # a column of texts
        single = isinstance(texts, str)
        if single or (isinstance(texts, (list, tuple)) and texts and isinstance(texts[0], str)):
            rows = [array("i", ids) for ids in self._encode([texts] if single else texts, most, before)]
        else:
            rows, _, single = as_rows(texts, "texts")
        data, width, done = bytearray(), 0, 0
        for part in self._parts(rows):
            inputs = [(None, ids, None, None, None, None, None, None, 2) for ids in part]
            with self._lock, Reporting(progress) as report:
                self._raw.run(inputs, ("last_hidden_state",), report)
                width, some = self._raw.pool(mode, unit, most_width, [len(ids) for ids in part])
            data += some
            done += len(part)
        found = array_of(data, done, width)
        return found[0] if single else found

    def _read_pooling(self, pooling: str | None) -> tuple[int, bool, int, int, str]:
        try:
            mode, unit, _, most, most_width, before = _heft.pooling(folder_of(self._model.path))
        except UnsupportedError:
            if pooling is None:
                raise
            mode, unit, most, most_width, before = 0, False, 0, 0, ""
        return mode if pooling is None else _POOLING[pooling], unit, most, most_width, before

    def _parts(self, rows: list[array[int]]) -> Iterator[list[array[int]]]:
        """Rows whose states are in memory at once: what an encoder computes in some passes, as it packs them."""
        room = most = self._pass_tokens or _PASS_TOKENS
        part: list[array[int]] = []
        passes = 1
        for ids in rows:
            if part and len(ids) > room:
                passes, room = passes + 1, most
                if passes > _EMBED_PASSES:
                    yield part
                    part, passes = [], 1
            room -= min(len(ids), room)
            part.append(ids)
        yield part


def _squeeze(value: Any) -> Any:
    return [part[..., 0] for part in value] if isinstance(value, list) else value[..., 0]
