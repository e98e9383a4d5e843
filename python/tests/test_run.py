"""heft.run without torch, and mostly without numpy: beside the command, which computes the same."""

from __future__ import annotations

import array
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_models import BERT, LLAMA, VIT, VOCABULARY, command, make, pools

import heft
import heft.run

PROMPT = [5, 9, 20, 33, 8]
PROMPTS = [PROMPT, [7, 11], [40, 41, 42, 43, 44, 45, 46]]
TEXT = "the cat sat on a"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("run") / "llama", LLAMA, around=False)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = make(tmp_path_factory.mktemp("run") / "bert", BERT, around=True)
    pools(place, "mean_tokens", normalize=True, most=8)
    return place


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose passes take long enough to be seen and stopped."""
    size = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12, "num_key_value_heads": 12}
    return make(
        tmp_path_factory.mktemp("run") / "slow", {**LLAMA, **size, "max_position_embeddings": 4096, "dtype": "bfloat16", "initializer_range": 0.02}
    )  # fmt: skip


def by_command(path: Path, *arguments: object) -> list[list[int]]:
    ids: list[list[int]] = json.loads(command("run", path, "--json", *arguments))["ids"]
    return ids


def commas(ids: list[int]) -> str:
    return ",".join(map(str, ids))


# ---- generation ----------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"ignore_eos": True},
    {"temperature": 0.9, "seed": 7},
    {"temperature": 1.5, "top_k": 5, "seed": 2**64 - 1},
    {"temperature": 1.1, "top_p": 0.7, "min_p": 0.01, "seed": 3},
    {"repetition_penalty": 1.7},
    {"temperature": 2.0, "repetition_penalty": 3.0, "seed": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ids_are_those_of_the_command(options: dict[str, Any], llama: Path) -> None:
    arguments: list[object] = ["--new-tokens", 12]
    for name, value in options.items():
        arguments += ["--" + name.replace("_", "-")] + ([] if value is True else [value])
    with heft.run.Session(llama) as session:
        expected = by_command(llama, "--ids", commas(PROMPT), *arguments)
        found = session.generate(PROMPT, max_new_tokens=12, **options)
        assert [found.ids] == expected and found.prompt_ids == PROMPT
        assert found.finish_reason == ("stop" if len(found.ids) < 12 or found.ids[-1] == 2 and "ignore_eos" not in options else "length")
        (llama.parent / "ids").write_text("\n".join(map(commas, PROMPTS)))
        with (llama.parent / "ids").open() as lines:
            done = subprocess.run(
                [sys.executable, "-m", "heft", "run", str(llama), "--json", "--ids", "-", *map(str, arguments)],
                stdin=lines, capture_output=True, text=True, check=True,
            )  # fmt: skip
        batch = session.generate_batch(PROMPTS, max_new_tokens=12, **options)
        assert [one.ids for one in batch] == json.loads(done.stdout)["ids"]


def test_text_is_that_of_the_command(llama: Path) -> None:
    session = heft.run.Session(llama)
    found = session.generate(TEXT, max_new_tokens=10, ignore_eos=True)
    assert found.text + "\n" == command("run", llama, "--prompt", TEXT, "--new-tokens", 10, "--ignore-eos")
    assert found.prompt_ids == session.tokenizer.encode(TEXT)
    pieces = list(session.stream(TEXT, max_new_tokens=10, ignore_eos=True))
    assert [piece.id for piece in pieces] == found.ids and "".join(str(piece.text) for piece in pieces) == found.text
    heard: list[heft.run.Piece] = []
    assert session.generate(TEXT, max_new_tokens=10, ignore_eos=True, stream=heard.append).ids == found.ids
    assert heard == pieces
    several = session.generate_batch([TEXT, "two dogs"], max_new_tokens=10, ignore_eos=True)
    (llama.parent / "prompts").write_text(f"{TEXT}\ntwo dogs\n")
    lines = command("run", llama, "--batch", llama.parent / "prompts", "--new-tokens", 10, "--ignore-eos").splitlines()
    assert [one.text for one in several] == lines
    rows = [piece for piece in session.stream([TEXT, "two dogs"], max_new_tokens=10, ignore_eos=True) if piece.row == 1]
    assert [piece.id for piece in rows] == several[1].ids


def test_what_a_stream_function_raises_ends_the_generation(llama: Path) -> None:
    session = heft.run.Session(llama)
    count = 0

    def listen(piece: heft.run.Piece) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        session.generate(PROMPT, max_new_tokens=20, ignore_eos=True, stream=listen)
    assert count == 3
    iterator = session.stream(PROMPT, max_new_tokens=20, ignore_eos=True)
    first = next(iterator)
    between = session.generate(PROMPT, max_new_tokens=1, ignore_eos=True)  # the session is free between two tokens
    assert first.id == between.ids[0] and first.text is None
    del iterator
    session.close()


def test_positions_of_padding_in_front(llama: Path) -> None:
    session = heft.run.Session(llama)
    padded = session.generate_batch([[0, 0, *PROMPT], [7, *PROMPT, 9]], attention_mask=[[0, 0, 1, 1, 1, 1, 1], [1] * 7], max_new_tokens=8, ignore_eos=True)
    assert padded[0].ids == session.generate(PROMPT, max_new_tokens=8, ignore_eos=True).ids


def test_kinds_of_ids(llama: Path) -> None:
    session = heft.run.Session(llama)
    expected = session.generate(PROMPT, max_new_tokens=4).ids
    kinds: list[Any] = [
        tuple(PROMPT), [PROMPT], range(5), array.array("q", PROMPT), memoryview(array.array("H", PROMPT)), [array.array("i", PROMPT)],
    ]  # fmt: skip
    for kind in kinds:
        found = session.generate(kind, max_new_tokens=4).ids
        assert found == (session.generate([0, 1, 2, 3, 4], max_new_tokens=4).ids if isinstance(kind, range) else expected)
    unpacked = {"input_ids": [PROMPT], "attention_mask": [[1] * len(PROMPT)]}  # what a tokenizer of Transformers returns
    assert session.generate(**unpacked, max_new_tokens=4).ids == expected


def test_options_that_change_nothing(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "heft"):
        heft.run.Session(llama).generate(PROMPT, max_new_tokens=2, top_k=5)
    assert [record.getMessage() for record in caplog.records] == ["top_k, top_p and min_p change nothing with temperature 0"]


# ---- memory, threads, sessions of one model ------------------------------------------------------------


def test_memory_does_not_change_the_ids(slow: Path) -> None:
    model = heft.run.Model(slow)
    expected = heft.run.Session(model).generate(PROMPT, max_new_tokens=4, ignore_eos=True).ids
    with heft.run.Session(slow, memory=f"{2 * model.nbytes // 1000}KB") as all_of_it:
        assert all_of_it.generate(PROMPT, max_new_tokens=4, ignore_eos=True).ids == expected
        assert all_of_it.facts.read_bytes == 0
    small = model.nbytes // 2
    with heft.run.Session(slow, memory=small, pass_tokens=2) as session:
        assert session.generate(PROMPT, max_new_tokens=4, ignore_eos=True).ids == expected
        facts = session.facts
        assert facts.read_bytes > small and 0 < facts.peak_bytes <= small and facts.resident_bytes <= small
        assert facts.passes == 3 + 3 and facts.tokens == len(PROMPT) + 3
    with pytest.raises(heft.LimitError):
        heft.run.Session(slow, memory=1000)
    on_disk = heft.run.Model(slow, memory=small)
    assert heft.run.Session(on_disk).generate(PROMPT, max_new_tokens=4, ignore_eos=True).ids == expected


def test_compact_weights_do_not_change_the_ids(slow: Path) -> None:
    model = heft.run.Model(slow)
    shared = heft.run.Session(model)
    expected = shared.generate(PROMPT, max_new_tokens=40, ignore_eos=True).ids
    assert shared.facts.compact_bytes == 0  # another session might have the model
    with heft.run.Session(slow) as session:
        assert session.generate(PROMPT, max_new_tokens=31, ignore_eos=True).ids == expected[:31]
        assert session.facts.compact_bytes == 0
        assert session.generate(PROMPT, max_new_tokens=40, ignore_eos=True).ids == expected
        can = session.isa != "plain"
        assert (session.facts.compact_bytes > model.nbytes // 2) == can
        assert [piece.id for piece in session.stream(PROMPT, max_new_tokens=40, ignore_eos=True)] == expected
        later = heft.run.Session(session.model)  # of compact weights
        assert later.generate(PROMPT, max_new_tokens=40, ignore_eos=True).ids == expected
        assert session.generate_batch([PROMPT] * 9, max_new_tokens=33, ignore_eos=True)[8].ids == expected[:33]
    with heft.run.Session(slow) as session:
        assert session.model is not None  # somebody may use it
        session.generate(PROMPT, max_new_tokens=40, ignore_eos=True)
        assert session.facts.compact_bytes == 0
    with heft.run.Session(slow, mode="map") as session:
        assert session.generate(PROMPT, max_new_tokens=40, ignore_eos=True).ids == expected
        assert session.facts.compact_bytes == 0


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 3}, {"mode": "map"}, {"mode": "copy"}, {"exact": True}], ids=str)
def test_options_that_do_not_change_the_ids(options: dict[str, Any], llama: Path) -> None:
    expected = heft.run.Session(llama).generate(PROMPT, max_new_tokens=8).ids
    assert heft.run.Session(llama, **options).generate(PROMPT, max_new_tokens=8).ids == expected


def test_sessions_of_one_model_in_threads(llama: Path) -> None:
    model = heft.run.Model(llama)
    expected = [heft.run.Session(model).generate(prompt, max_new_tokens=20, ignore_eos=True).ids for prompt in PROMPTS]
    wrong: list[Any] = []

    def work(seed: int) -> None:
        try:
            with heft.run.Session(model) as session:
                for n in range(20):
                    i = (seed + n) % len(PROMPTS)
                    if session.generate(PROMPTS[i], max_new_tokens=20, ignore_eos=True).ids != expected[i]:
                        wrong.append((seed, n))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert wrong == [] and not any(thread.is_alive() for thread in threads)


def test_a_session_in_use_is_refused(slow: Path) -> None:
    session = heft.run.Session(slow)
    refused: list[str] = []

    def attempt() -> None:
        calls: list[Callable[[], object]] = [
            lambda: session.generate(PROMPT, max_new_tokens=1), lambda: session.facts, session.close, lambda: session.sequence(5),
            lambda: session._raw.run([(None, array.array("i", PROMPT), *[None] * 6, 0)], ["logits"]),
            lambda: session._raw.output("logits"),
        ]  # fmt: skip
        for call in calls:
            try:
                call()
            except RuntimeError as error:
                refused.append(str(error))
            else:
                refused.append("not refused")

    def progress(what: str, done: int, total: int) -> None:
        if not refused:
            thread = threading.Thread(target=attempt)  # the GIL is free for it
            thread.start()
            thread.join(60)

    with session._lock:
        session._raw.run([(None, array.array("i", [5] * 512), *[None] * 6, 0)], ["logits"], progress)
    assert len(refused) == 6 and all("the session is in use" in line for line in refused), refused
    assert session.generate(PROMPT, max_new_tokens=1).ids


def test_an_exception_of_progress_cancels_a_pass(slow: Path) -> None:
    pytest.importorskip("numpy")
    session = heft.run.Session(slow)

    def stop(what: str, done: int, total: int) -> None:
        raise KeyError("enough")

    sequence = session.sequence(600)
    with pytest.raises(KeyError, match="enough"):
        session.forward([5] * 512, logits="last", progress=stop, sequence=sequence)
    with pytest.raises(heft.InvalidArgError, match="a pass with this sequence has failed"):
        session.forward([5], sequence=sequence)
    assert session.generate(PROMPT, max_new_tokens=1).ids


def test_sigint_cancels_a_generation(slow: Path) -> None:
    code = f"""
import heft.run
session = heft.run.Session({str(slow)!r})
print("go", flush=True)
try:
    for n in range(1000):
        session.generate([5] * 2000, max_new_tokens=100, ignore_eos=True)
    print("finished")
except KeyboardInterrupt:
    print("interrupted", len(session.generate([5, 6], max_new_tokens=3, ignore_eos=True).ids))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "go\n", process.communicate()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=200)
    assert out == "interrupted 3\n", (out, errors)


def test_a_child_process_makes_its_own(llama: Path) -> None:
    code = f"""
import os, sys, heft.run
session = heft.run.Session({str(llama)!r})
expected = session.generate([5, 6], max_new_tokens=3).ids
sequence = session.sequence(5)
child = os.fork()
if child == 0:
    try:
        session.generate([5, 6], max_new_tokens=3)
        os._exit(1)
    except RuntimeError as error:
        assert "parent" in str(error), error
    same = heft.run.Session(session.model).generate([5, 6], max_new_tokens=3).ids == expected
    del sequence, session
    os._exit(0 if same else 2)
assert os.waitpid(child, 0)[1] == 0
assert session.generate([5, 6], max_new_tokens=3).ids == expected
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


# ---- errors --------------------------------------------------------------------------------------------

WRONG: list[tuple[str, type[Exception], Callable[[heft.run.Session], object]]] = [
    ("not in the vocabulary", ValueError, lambda s: s.generate([VOCABULARY])),
    ("negative", ValueError, lambda s: s.generate([-1])),
    ("int32", ValueError, lambda s: s.generate([2**31])),
    ("no ids", ValueError, lambda s: s.generate([])),
    ("an empty row", ValueError, lambda s: s.generate_batch([[1], []])),
    ("no rows", ValueError, lambda s: s.generate_batch([])),
    ("nothing", ValueError, lambda s: s.generate()),
    ("fractions", TypeError, lambda s: s.generate([1.5])),
    ("text and ids", TypeError, lambda s: s.generate_batch(["the", [1]])),
    ("bytes", TypeError, lambda s: s.generate(b"the")),
    ("a number", TypeError, lambda s: s.generate(3)),
    ("one text for many", TypeError, lambda s: s.generate_batch("the")),
    ("many for one", ValueError, lambda s: s.generate([[1], [2]])),
    ("beyond the positions", ValueError, lambda s: s.generate([5] * 60, max_new_tokens=5)),
    ("no new tokens", ValueError, lambda s: s.generate([5], max_new_tokens=0)),
    ("a fraction of a token", TypeError, lambda s: s.generate([5], max_new_tokens=1.5)),  # type: ignore[arg-type]
    ("negative temperature", ValueError, lambda s: s.generate([5], temperature=-1)),
    ("no number", ValueError, lambda s: s.generate([5], temperature=float("nan"))),
    ("top_p", ValueError, lambda s: s.generate([5], top_p=1.5)),
    ("top_k", ValueError, lambda s: s.generate([5], top_k=-1)),
    ("seed", ValueError, lambda s: s.generate([5], seed=2**64)),
    ("temperature as text", TypeError, lambda s: s.generate([5], temperature="1")),  # type: ignore[arg-type]
    ("an unknown input", TypeError, lambda s: s.generate([5], images=[1])),
    ("a stream that is no function", TypeError, lambda s: s.generate([5], stream=3)),  # type: ignore[arg-type]
    ("another mask", ValueError, lambda s: s.generate([5, 6], attention_mask=[1])),
    ("a mask of twos", ValueError, lambda s: s.generate([5, 6], attention_mask=[1, 2])),
    ("all masked", ValueError, lambda s: s.generate([5, 6], attention_mask=[0, 0])),
    ("decoder ids", ValueError, lambda s: s.generate([5, 6], decoder_input_ids=[1])),
    ("lone surrogate", ValueError, lambda s: s.generate("\ud800")),
    ("capacity", ValueError, lambda s: s.sequence(0)),
    ("too much capacity", ValueError, lambda s: s.sequence(65)),
    ("capacity as text", TypeError, lambda s: s.sequence("5")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("what", "kind", "call"), WRONG, ids=[what for what, _, _ in WRONG])
def test_wrong_arguments(what: str, kind: type[Exception], call: Callable[[heft.run.Session], object], llama: Path) -> None:
    with heft.run.Session(llama) as session:
        with pytest.raises(kind):
            call(session)
        assert session.generate(PROMPT, max_new_tokens=2).ids  # it goes on


MAKING: list[tuple[type[Exception], dict[str, Any]]] = [
    (ValueError, {"memory": 0}), (ValueError, {"memory": -5}), (TypeError, {"memory": 1.5}), (ValueError, {"memory": "lots"}),
    (ValueError, {"memory": 2**63}), (ValueError, {"threads": 0}), (TypeError, {"threads": "2"}), (ValueError, {"mode": "some"}),
    (ValueError, {"pass_tokens": 0}), (TypeError, {"tokenizer": 3}), (ValueError, {"dtype": "nope"}), (TypeError, {"nope": 1}),
    (heft.UnsupportedError, {"class_name": "NopeModel"}), (TypeError, {"class_name": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), MAKING, ids=str)
def test_wrong_options(kind: type[Exception], options: dict[str, Any], llama: Path) -> None:
    with pytest.raises(kind):
        heft.run.Session(llama, **options)


def test_what_cannot_be_run(llama: Path, bert: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as nothing:
        heft.run.Session(tmp_path / "nothing")
    assert isinstance(nothing.value, heft.NotFoundError) and nothing.value.path == str(tmp_path / "nothing")
    with pytest.raises(heft.InvalidArgError, match="BertModel is not a language model"):
        heft.run.Session(bert).generate([5, 6])
    with pytest.raises(heft.MismatchError, match="allow_missing") as lacking:
        heft.run.Session(bert, class_name="BertForMaskedLM")
    assert lacking.value.item.startswith("cls.")
    session = heft.run.Session(bert, class_name="BertForMaskedLM", allow_missing=True)
    assert session.class_name == "BertForMaskedLM" and lacking.value.item in session.model.random_names
    model = heft.run.Model(llama)
    for options in ({"dtype": "float32"}, {"threads": 2}, {"allow_missing": True}, {"mode": "map"}):
        with pytest.raises(ValueError, match="heft.run.Model"):
            heft.run.Session(model, **options)  # type: ignore[arg-type]
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        (other / name).write_bytes((llama / name).read_bytes())
    with pytest.raises(heft.NotFoundError):
        heft.run.Session(other).generate("the cat")
    assert heft.run.Session(other, tokenizer=heft.run.Tokenizer(llama)).generate(TEXT, max_new_tokens=1).text
    (other / "tokenizer.json").write_text('{"model": {"type": "Nope"}}')
    with pytest.raises(heft.HeftError) as bad:
        heft.run.Session(other).generate("the cat")
    assert bad.value.status in ("UNSUPPORTED", "FORMAT") and bad.value.path == str(other / "tokenizer.json")


def test_quantized_weights() -> None:
    place = Path(__file__).parents[2] / "tests" / "data" / "quant" / "ct_int8"
    if not place.is_dir():
        pytest.skip("the data are not beside the tests")
    with pytest.raises(heft.UnsupportedError, match="dequantize=True"):
        heft.run.Session(place)


def test_closed(llama: Path) -> None:
    session = heft.run.Session(llama)
    sequence = session.sequence(8)
    assert len(sequence) == 0 and sequence and not session.closed
    session.close()
    session.close()
    assert session.closed and "closed" in repr(session) and "closed" in repr(sequence)
    for call in (lambda: session.generate([5]), lambda: session.facts, lambda: session.sequence(3), lambda: len(sequence), sequence.fork):
        with pytest.raises(ValueError, match="closed"):
            call()
    sequence.close()
    with heft.run.Session(session.model) as again, again.sequence(4) as short:
        assert again.generate([5], max_new_tokens=1).ids
        assert not short._raw.closed
    assert short._raw.closed
    for thing in (session, session.model, sequence):
        with pytest.raises(TypeError, match="pickled"):
            thing.__reduce__()


# ---- tokenizers ----------------------------------------------------------------------------------------


def test_libraries_of_tokenizers(tmp_path: Path) -> None:
    """The portable wheel has them, for which the runner sets HEFT_TEST_TEXT; others may."""
    known = {"a": 0, "b": 1, "1": 2, "\u0120b": 3, "\u0120": 4}
    model = {"type": "BPE", "vocab": known, "merges": [["\u0120", "b"]]}
    split = {"type": "Split", "pattern": {"Regex": "\\p{L}+| ?\\p{N}+| "}, "behavior": "Isolated", "invert": False}
    before = {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "normalizer": {"type": "NFKC"}, "pre_tokenizer": before, "model": model}))
    if os.environ.get("HEFT_TEST_TEXT") != "yes":
        try:
            heft.run.Tokenizer(path)
        except heft.UnsupportedError as error:
            assert "libonig" in str(error) or "utf8proc" in str(error)  # noqa: PT017
            return
    assert heft.run.Tokenizer(path).encode("\uff41b 1") == [0, 1, 4, 2]  # fullwidth a; the space is apart from b and 1


def test_tokenizer(llama: Path, bert: Path) -> None:
    tokenizer = heft.run.Tokenizer(bert)
    assert tokenizer.encode("the cat nope") == [4, 6, 7, 3, 5] and tokenizer.encode("the", add_special_tokens=False) == [6]
    assert tokenizer.encode("the <sep> cat", add_special_tokens=False) == [6, 5, 7]
    assert tokenizer.decode([4, 6, 7, 5]) == "the cat" and tokenizer.decode([4, 6], skip_special_tokens=False) == "<cls> the"
    assert tokenizer.decode([]) == "" and heft.run.Tokenizer(llama / "tokenizer.json").encode("") == []
    assert len(tokenizer) == VOCABULARY and tokenizer.special_ids == [0, 1, 2, 3, 4, 5] and tokenizer.truncation == 0
    assert tokenizer.token(6) == "the" and tokenizer.id("the") == 6
    assert tokenizer.token(VOCABULARY) is None and tokenizer.id("nope") is None
    stream = tokenizer.stream()
    assert "".join([stream.add(6), stream.add(5), stream.add(7), stream.finish()]) == "the cat"
    for kind, call in (
        (TypeError, lambda: tokenizer.encode(b"the")), (TypeError, lambda: tokenizer.decode(6)), (TypeError, lambda: tokenizer.decode([1.5])),
        (ValueError, lambda: tokenizer.decode([-1])), (ValueError, lambda: tokenizer.decode([2**32])), (ValueError, lambda: stream.add(2**32)),
        (ValueError, lambda: tokenizer.encode("\udc80")), (FileNotFoundError, lambda: heft.run.Tokenizer(llama / "nope")),
        (TypeError, lambda: heft.run.Tokenizer(3)), (TypeError, heft.run.TextStream), (TypeError, lambda: tokenizer.id(6)),
    ):  # fmt: skip
        with pytest.raises(kind):  # type: ignore[arg-type]
            call()  # type: ignore[operator]


# ---- passes, in numpy ----------------------------------------------------------------------------------


def test_shapes(llama: Path, bert: Path) -> None:
    np = pytest.importorskip("numpy")
    session = heft.run.Session(llama)
    assert set(session.output_names) == {"logits", "last_hidden_state"}
    result = session.forward([PROMPT, PROMPT])
    assert list(result) == list(session.output_names) and result.logits is result["logits"]
    assert result.logits.shape == (2, 5, VOCABULARY) and result.last_hidden_state.shape == (2, 5, 32)
    assert result.logits.dtype == np.float32 and result.logits.flags.writeable
    with pytest.raises(AttributeError, match="pooler_output"):
        result.pooler_output  # noqa: B018
    kept = result.logits.copy()
    session.forward([[1, 2, 3]])
    assert (result.logits == kept).all()  # it owns its memory
    last = session(PROMPT, outputs=["logits"], logits="last")
    assert last.logits.shape == (1, 1, VOCABULARY) and np.abs(last.logits[:, -1] - kept[:1, -1]).max() < 1e-4
    assert list(last) == ["logits"]
    states = session.forward(PROMPT, outputs=["hidden_states.0", "hidden_states.3"])
    assert states["hidden_states.3"].shape == (1, 5, 32)
    ragged = session.forward(PROMPTS)
    assert [part.shape for part in ragged.logits] == [(5, VOCABULARY), (2, VOCABULARY), (7, VOCABULARY)]
    for part, prompt in zip(ragged.logits, PROMPTS, strict=True):
        assert np.abs(part - session.forward(prompt).logits[0]).max() < 1e-3
    assert session.forward(PROMPTS, logits="last").logits.shape == (3, 1, VOCABULARY)
    encoder = heft.run.Session(bert).forward([PROMPT, PROMPT], token_type_ids=[0, 0, 0, 1, 1])
    assert encoder.last_hidden_state.shape == (2, 5, 32) and encoder.pooler_output.shape == (2, 32)


def test_padding(llama: Path, bert: Path) -> None:
    np = pytest.importorskip("numpy")
    mask = np.array([[1, 1, 1, 0, 0], [1] * 5])
    ids = np.array([[7, 11, 12, 0, 0], PROMPT])
    session = heft.run.Session(llama)
    result = session.forward(ids, attention_mask=mask)
    assert result.logits.shape == (2, 5, VOCABULARY) and not result.logits[0, 3:].any()
    assert np.abs(result.logits[0, :3] - session.forward([7, 11, 12]).logits[0]).max() < 1e-3
    encoder = heft.run.Session(bert)
    found = encoder.forward(ids, attention_mask=mask).last_hidden_state
    assert found.shape == (2, 5, 32) and np.abs(found[0, :3] - encoder.forward([7, 11, 12]).last_hidden_state[0]).max() < 1e-4


def test_kinds_of_arrays(llama: Path) -> None:
    np = pytest.importorskip("numpy")
    session = heft.run.Session(llama)
    expected = session.forward(PROMPT).logits

    class Exchanged:
        """A tensor of a library that is known by DLPack alone."""

        def __init__(self, array: Any) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    for dtype in ("int64", "int32", "uint8", ">i4", "uint64"):
        assert (session.forward(np.array(PROMPT, dtype=dtype)).logits == expected).all()
    strided = np.array([PROMPT, PROMPT]).T.copy().T
    for kind in (strided[:1], np.array([PROMPT, PROMPT])[:1, ::1], Exchanged(np.array(PROMPT)), [np.array(PROMPT)], list(np.array(PROMPT))):
        assert (session.forward(kind).logits == expected).all()
    assert (session.forward(np.array(PROMPT), attention_mask=np.ones(5, dtype=bool)).logits == expected).all()
    for wrong, kind in ((np.array([1.5]), TypeError), (np.array(3), ValueError), (np.zeros((2, 0), int), ValueError), (np.zeros((1, 2, 2), int), TypeError)):
        with pytest.raises(kind):
            session.forward(wrong)


def test_sequences(llama: Path) -> None:
    np = pytest.importorskip("numpy")
    session = heft.run.Session(llama)
    whole = session.forward([*PROMPT, 3, 4]).logits
    with session.sequence(7) as sequence:
        session.forward(PROMPT, sequence=sequence)
        assert len(sequence) == 5 and repr(sequence) == "<heft.run.Sequence of 5 tokens>"
        other = sequence.fork()
        rest = session.forward([3, 4], sequence=sequence).logits
        assert len(sequence) == 7 and len(other) == 5 and np.abs(rest - whole[:, 5:]).max() < 1e-3
        forked = session.forward([[3], [9]], sequence=[other, session.sequence(3)], logits="last")
        assert forked.logits.shape == (2, 1, VOCABULARY) and np.abs(forked.logits[0, 0] - whole[0, 5]).max() < 1e-3
        with pytest.raises(heft.InvalidArgError, match="room for"):
            session.forward([5], sequence=sequence)
        for kind, match, given in (
            (ValueError, "1 sequences", other), (ValueError, "two rows", [other, other]), (TypeError, "Sequence", [3, 4]),
            (ValueError, "another session", [heft.run.Session(session.model).sequence(3), other]),
        ):  # fmt: skip
            with pytest.raises(kind, match=match):
                session.forward([[3], [9]], sequence=given)  # type: ignore[arg-type]


def test_masked_words_at_the_end_of_a_call(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    decoder = {**BERT, "architectures": ["RobertaForCausalLM"], "model_type": "roberta", "is_decoder": True, "type_vocab_size": 1}
    session = heft.run.Session(make(tmp_path / "roberta", decoder))
    ids, mask = [5, 6, 7, 8, 9, 10], [1, 1, 0, 0, 1, 1]
    whole = session.forward(ids, attention_mask=mask).logits
    with session.sequence(6) as sequence:
        session.forward(ids[:4], attention_mask=mask[:4], sequence=sequence)
        rest = session.forward(ids[4:], sequence=sequence).logits
    assert np.abs(rest[0] - whole[0, 4:]).max() < 1e-3


def test_images(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    session = heft.run.Session(make(tmp_path / "vit", VIT))
    image = np.arange(3 * 8 * 8, dtype=np.float32).reshape(3, 8, 8) / 100
    result = session.forward(pixel_values=np.stack([image, image + 1]))
    assert result.last_hidden_state.shape == (2, 5, 32) and result.pooler_output.shape == (2, 32)
    assert np.array_equal(session.forward(pixel_values=image.tolist()).last_hidden_state[0], session.forward(pixel_values=image).last_hidden_state[0])
    for kind, match, inputs in (
        (heft.InvalidArgError, r"\[3, 8, 9\].*\[3, 8, 8\]", {"pixel_values": np.zeros((1, 3, 8, 9))}),
        (ValueError, "dimensions", {"pixel_values": np.zeros((8, 8))}),
        (ValueError, "empty", {"pixel_values": np.zeros((0, 3, 8, 8))}),
        (heft.InvalidArgError, "pixel_values", {"input_ids": [1]}),
        (TypeError, "numbers", {"pixel_values": "image"}),
        (ValueError, "either", {"pixel_values": image, "input_features": image}),
    ):
        with pytest.raises(kind, match=match):
            session.forward(**inputs)


def test_wrong_passes(llama: Path) -> None:
    pytest.importorskip("numpy")
    session = heft.run.Session(llama)
    cases: list[tuple[type[Exception], dict[str, Any]]] = [
        (heft.NotFoundError, {"outputs": ["nope"]}), (heft.NotFoundError, {"outputs": ["hidden_states.9"]}), (TypeError, {"outputs": "logits"}),
        (TypeError, {"outputs": [3]}), (ValueError, {"outputs": []}), (ValueError, {"logits": "some"}), (ValueError, {"pixel_values": [[[1.0]]]}),
        (ValueError, {"position_ids": [[0, 1]]}), (ValueError, {"position_ids": [-1, 0, 1, 2, 3]}), (ValueError, {"decoder_input_ids": [1]}),
    ]  # fmt: skip
    for kind, options in cases:
        with pytest.raises(kind):
            session.forward(PROMPT, **options)
    with pytest.raises(heft.InvalidArgError, match=str(VOCABULARY)) as outside:
        session.forward([VOCABULARY])
    assert outside.value.status == "INVALID_ARG"
    assert session.forward(PROMPT)


def test_settings_of_generation(llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those that are followed, and one line for those that are not."""
    place = tmp_path / "settings"
    shutil.copytree(llama, place)
    free = heft.run.Session(llama).generate(PROMPT, max_new_tokens=4, ignore_eos=True).ids
    settings = {"eos_token_id": 2, "suppress_tokens": free[:1], "forced_eos_token_id": 9, "repetition_penalty": 1.3, "num_beams": 4, "min_length": 3}
    (place / "generation_config.json").write_text(json.dumps(settings))
    session = heft.run.Session(place)
    with caplog.at_level("WARNING", "heft"):
        found = session.generate(PROMPT, max_new_tokens=4, ignore_eos=True).ids
        pieces = [piece.id for piece in session.stream(PROMPT, max_new_tokens=4, ignore_eos=True)]
    assert free[0] not in found and found[-1] == 9 and pieces == found
    assert [record.getMessage() for record in caplog.records] == ["generation_config.json: not followed: num_beams, min_length"]
    ids = ",".join(map(str, PROMPT))
    done = json.loads(command("run", place, "--ids", ids, "--new-tokens", 4, "--ignore-eos", "--json"))
    assert done["ids"] == [found]
    plain = session.generate(PROMPT, max_new_tokens=4, repetition_penalty=1, ignore_eos=True).ids
    assert plain == session.generate(PROMPT, max_new_tokens=4, repetition_penalty=0, ignore_eos=True).ids


# ---- embeddings ----------------------------------------------------------------------------------------


def test_embeddings_are_those_of_the_command(bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np = pytest.importorskip("numpy")
    texts = [" ".join(["the cat sat on a mat and saw two dogs".split()[i] for i in range(1 + n % 10)]) for n in range(40)]
    (tmp_path / "texts").write_text("\n".join(texts))
    session = heft.run.Session(bert)
    for pooling in (None, "cls", "last"):
        command("embed", bert, "--batch", tmp_path / "texts", "--save", tmp_path / "e.safetensors", "--pooling", pooling or "auto")
        caplog.clear()
        with caplog.at_level("WARNING", "heft"):
            found = session.embed(texts, pooling=pooling)  # type: ignore[arg-type]
        assert found.shape == (40, 32) and np.array_equal(found, heft.load(tmp_path / "e.safetensors", to="numpy")["embeddings"])
        assert [record.getMessage() for record in caplog.records] == ["16 texts were cut to 8 tokens (max_seq_length)"]
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert session.embed("the cat").shape == (32,)
    assert np.array_equal(session.embed(np.array(texts)), session.embed(texts))
    assert np.array_equal(session.embed(np.array(texts, dtype=object)), session.embed(texts))
    ids = session.tokenizer.encode("the cat")
    assert np.array_equal(session.embed([ids]), session.embed(["the cat"]))
    assert not np.allclose(np.linalg.norm(session.embed([ids], normalize=False)), 1)
    many = session.embed(texts * 50)  # in several calls
    assert many.shape == (2000, 32) and np.abs(many[:40] - session.embed(texts)).max() < 1e-5
    wrong: list[tuple[type[Exception], Any]] = [(ValueError, []), (ValueError, [[]]), (TypeError, [3.5]), (TypeError, ["the", 3]), (TypeError, None)]
    for kind, value in wrong:
        with pytest.raises(kind):
            session.embed(value)
    with pytest.raises(ValueError, match="pooling"):
        session.embed(["the"], pooling="max")  # type: ignore[arg-type]


def test_what_sentence_transformers_says_of_texts(tmp_path: Path) -> None:
    """A default prompt, a width, the length of texts: as the command."""
    np = pytest.importorskip("numpy")
    place = make(tmp_path / "said", BERT, around=True)
    pools(place, "mean_tokens", normalize=True, most=8)
    (place / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": None}))
    (place / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 9}))
    said = {"prompts": {"a": "the dogs "}, "default_prompt_name": "a", "truncate_dim": 12}
    (place / "config_sentence_transformers.json").write_text(json.dumps(said))
    texts = ["the cat sat", "a mat", "on a mat and saw two dogs and a cat"]
    (tmp_path / "texts").write_text("\n".join(texts))
    command("embed", place, "--batch", tmp_path / "texts", "--save", tmp_path / "e.safetensors")
    found = heft.run.Session(place).embed(texts)
    assert found.shape == (3, 12) and np.array_equal(found, heft.load(tmp_path / "e.safetensors", to="numpy")["embeddings"])
    (place / "config_sentence_transformers.json").unlink()
    plain = heft.run.Session(place).embed(["the dogs " + text for text in texts])
    assert plain.shape == (3, 32) and np.array_equal(plain[:, :12], found)


def test_a_config_of_the_tokenizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = make(tmp_path / "other", BERT, around=True)
    (place / "tokenizer_config.json").write_text("{")  # is nobody's concern
    with caplog.at_level("WARNING", "heft"):
        heft.run.Session(place).tokenizer.encode("the cat")
        assert caplog.records == []
        (place / "tokenizer_config.json").write_text(json.dumps({"additional_special_tokens": ["<|a|>"]}))
        session = heft.run.Session(place)
        assert session.tokenizer.encode("the cat") == session.tokenizer.encode("the cat")
    assert [record.getMessage() for record in caplog.records] == ["tokenizer_config.json: not followed: token <|a|>"]


def test_t5_embeds_with_its_encoder(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    sizes = {"d_model": 32, "d_ff": 32, "d_kv": 8, "num_heads": 4, "num_layers": 1, "vocab_size": VOCABULARY}
    place = make(tmp_path / "t5", {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], **sizes})
    assert heft.run.Session(place, class_name="T5EncoderModel").embed([PROMPT]).shape == (1, 32)
    with pytest.raises(heft.UnsupportedError, match="T5EncoderModel"):
        heft.run.Session(place, class_name="AutoModel").embed([PROMPT])


def test_a_checkpoint_without_a_pooler(bert: Path, tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    place = tmp_path / "bare"
    place.mkdir()
    tensors = {name: tensor for name, tensor in heft.open(bert / "model.safetensors").items() if "pooler." not in name}
    heft.save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    (place / "config.json").write_text((bert / "config.json").read_text())
    session = heft.run.Session(place)
    assert "pooler_output" not in session.forward(PROMPT)
    assert np.array_equal(session.embed([PROMPT], pooling="mean", normalize=True), heft.run.Session(bert).embed([PROMPT]))
    with pytest.raises(heft.MismatchError, match="pooler"):
        session.forward(PROMPT, outputs=["pooler_output"])


def test_modules_that_are_not_computed(bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    place = make(tmp_path / "dense", BERT, around=True)
    pools(place, "mean_tokens", normalize=True, most=8)
    modules = (place / "modules.json").read_text().replace("models.Normalize", "models.Dense")
    (place / "modules.json").write_text(modules)
    with pytest.raises(heft.UnsupportedError, match="Dense"):
        heft.run.Session(place).embed(["the cat"])
    assert heft.run.Session(place).embed(["the cat"], pooling="mean").shape == (1, 32)


def test_importing_it_imports_no_library() -> None:
    code = "import sys, heft.run; print([n for n in ('torch', 'numpy', 'transformers') if n in sys.modules])"
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True).stdout == "[]\n"
    assert "run" in dir(heft)
