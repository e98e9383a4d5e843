"""One copy of the weights for all processes of a host: started by torchrun, by multiprocessing, by fork. Real processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import safetensors_bytes

torch = pytest.importorskip("torch")

import heft  # noqa: E402

ROWS, COLUMNS, COUNT = 1024, 1024, 8  # 16 MiB of bfloat16, 32 MiB of float32
MODEL_BYTES = COUNT * ROWS * COLUMNS * 4


def row_major(number: int) -> torch.Tensor:
    return (torch.arange(ROWS * COLUMNS) % 251 + number).to(torch.bfloat16).reshape(ROWS, COLUMNS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two shards, as load() and load_into() take it."""
    place = tmp_path_factory.mktemp("model")
    weights = {}
    for shard in (1, 2):
        name = f"model-{shard:05}-of-00002.safetensors"
        tensors = {}
        for i in range((shard - 1) * COUNT // 2, shard * COUNT // 2):
            content = row_major(i).view(torch.uint8).numpy().tobytes()
            tensors[f"{i}.weight"] = ("BF16", [ROWS, COLUMNS], content)
        (place / name).write_bytes(safetensors_bytes(tensors))
        weights.update(dict.fromkeys(tensors, name))
    index = {"metadata": {"total_size": MODEL_BYTES // 2}, "weight_map": weights}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return place


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of Transformers in two shards and bfloat16: 9 MB."""
    transformers = pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4, vocab_size=1024
    )
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(place, max_shard_size="6MB")
    assert len(list(place.glob("*.safetensors"))) > 1
    return place


def meta_module() -> Any:
    with torch.device("meta"):
        return torch.nn.Sequential(*(torch.nn.Linear(COLUMNS, ROWS, bias=False) for _ in range(COUNT)))


def bring(what: str, path: str) -> dict[str, torch.Tensor]:
    """Load in float32, shared."""
    if what == "load":
        return heft.load(path, dtype=torch.float32, share=True)
    if what == "load_into":
        module = meta_module()
        heft.load_into(module, path, share=True)
        return dict(module.named_parameters())
    from transformers import AutoModelForCausalLM

    return dict(heft.from_pretrained(AutoModelForCausalLM, path, dtype=torch.float32, share=True).named_parameters())


def sums(tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: tensor.detach().double().sum().item() for name, tensor in tensors.items()}


def pss(tensors: dict[str, torch.Tensor]) -> int:
    """The proportional set size of the mappings that the tensors are in."""
    addresses = [tensor.data_ptr() for tensor in tensors.values()]
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key = line.split()[0]
        if "-" in key:
            start, stop = (int(x, 16) for x in key.split("-"))
            inside = any(start <= address < stop for address in addresses)
        elif inside and key == "Pss:":
            total += int(line.split()[1]) * 1024
    return total


def held_together(place: Path, rank: int, what: str, barrier: Any, answer: Path) -> None:
    """What each process does: load, look at memory while all others have it, write into one tensor, load again."""
    tensors = bring(what, os.fspath(place))
    before = sums(tensors)
    barrier()
    shared = pss(tensors)
    barrier()
    first = next(iter(tensors.values()))
    with torch.no_grad():
        first[0, :] = rank + 1000.0  # its own page
    barrier()
    wrote = first[0, 0].item()
    rest = {name: tensor for name, tensor in tensors.items() if tensor is not first}
    after = sums(rest)
    again = sums({name: tensor for name, tensor in bring(what, os.fspath(place)).items() if name in rest})
    result = {
        "rank": rank, "pss": shared, "bytes": sum(t.nbytes for t in tensors.values()), "wrote": wrote,
        "same": after == again == {name: before[name] for name in rest}, "sums": before,
    }  # fmt: skip
    answer.write_text(json.dumps(result))
    barrier()


def run_under_torchrun() -> None:
    """The main program of the processes that torchrun starts."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    held_together(Path(sys.argv[1]), rank, sys.argv[2], dist.barrier, Path(sys.argv[3]) / f"{rank}.json")
    dist.destroy_process_group()


def judge(place: Path, count: int, expected: dict[str, float]) -> None:
    answers: list[dict[str, Any]] = [json.loads(file.read_text()) for file in place.glob("*.json")]
    assert sorted(answer["rank"] for answer in answers) == list(range(count))
    for answer in answers:
        assert answer["sums"] == expected  # what a load alone gives
        assert answer["wrote"] == answer["rank"] + 1000.0
        assert answer["same"]  # nobody saw another's write
    total = sum(answer["pss"] for answer in answers)
    assert total <= 1.05 * answers[0]["bytes"], (total, answers[0]["bytes"])


@pytest.mark.parametrize("what", ["load", "load_into", "from_pretrained"])
def test_torchrun(what: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("torch.distributed.run")
    place = request.getfixturevalue("llama") if what == "from_pretrained" else folder
    script, answers = tmp_path / "program.py", tmp_path / "answers"
    answers.mkdir()
    script.write_text(f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_distributed as t; t.run_under_torchrun()")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", str(script)]
    done = subprocess.run(
        [*command, str(place), what, str(answers)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    judge(answers, 4, sums(bring(what, os.fspath(place))))


def child(place: str, rank: int, barrier: Any, answers: str) -> None:
    torch.set_num_threads(1)
    held_together(Path(place), rank, "load", lambda: barrier.wait(120), Path(answers) / f"{rank}.json")


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_multiprocessing(method: str, folder: Path, tmp_path: Path) -> None:
    context: Any = multiprocessing.get_context(method)
    barrier = context.Barrier(3)
    processes = [
        context.Process(target=child, args=(os.fspath(folder), rank, barrier, os.fspath(tmp_path))) for rank in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    judge(tmp_path, 3, sums(heft.load(folder, dtype="float32")))


def test_fork_after_the_load(folder: Path) -> None:
    """Children have their parent's copy; their writes are their own, and its end does not take it from the parent."""
    tensors = heft.load(folder, dtype="float32", share=True)
    expected, one = sums(tensors), row_major(1)[7, 8].item()
    child_pid = os.fork()
    if child_pid == 0:
        status = 1
        try:
            tensors["0.weight"][0, 0] = -5.0  # nothing that torch would do on threads: those are the parent's
            first = tensors["1.weight"][7, 8].item()
            del tensors
            status = 0 if first == one else 2
        finally:
            os._exit(status)
    assert os.waitpid(child_pid, 0)[1] == 0
    assert sums(tensors) == expected
    assert heft.load(folder, dtype="float32", share=True)["0.weight"].sum() == tensors["0.weight"].sum()


def test_a_killed_process_takes_nothing_with_it(folder: Path) -> None:
    program = (
        "import heft, os, sys, time; t = heft.load(sys.argv[1], dtype='float32', share=True, to='heft');"
        "print('ready', flush=True); time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    tensors = heft.load(folder, dtype="float32", share=True)
    process.kill()
    process.wait()
    process.stdout.close()
    assert sums(tensors) == sums(heft.load(folder, dtype="float32"))


# ---- ranks ---------------------------------------------------------------------------------------------


def bytes_read() -> int:
    """What read(2) and pread(2) gave this process."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise AssertionError


def own_reading() -> int:
    before = bytes_read()
    return bytes_read() - before  # of /proc/self/io


@pytest.mark.parametrize(
    ("shape", "dim", "size", "most"),
    [
        # rows lie in one run: just these bytes
        ((256, 512), 0, 4, 64 * 512),
        ((256, 512), -2, 3, 86 * 512),
        ((5, 7), 0, 2, 3 * 7),
        ((3, 4), 0, 8, 4),
        # columns: runs with gaps; gaps of up to 4 KiB are read, too
        ((256, 8192), 1, 2, 256 * 4096),
        ((256, 512), 1, 4, 256 * 512),
        ((8, 64, 64), 2, 2, 8 * 64 * 64),
        ((8, 64, 4096), 1, 4, 8 * 16 * 4096),
    ],
)
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_a_rank_reads_its_part(
    shape: tuple[int, ...], dim: int, size: int, most: int, dtype: str | None, tmp_path: Path
) -> None:
    whole = torch.arange(torch.tensor(shape).prod().item()).remainder(977).to(torch.bfloat16).reshape(shape)
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes({"a": ("BF16", list(shape), whole.view(torch.uint8).numpy().tobytes())}))
    parts = []
    with heft.open(path) as checkpoint:
        for rank in range(size):
            part = checkpoint["a"].slice(dim, rank, size)
            before = bytes_read()
            parts.append(part.read(dtype))
            used = bytes_read() - before - own_reading()
            assert used <= most * 2 + 4096 or not parts[-1].nbytes, (rank, used, most * 2)
    expected = torch.chunk(whole.to(torch.float32) if dtype else whole, size, dim)
    for rank, part in enumerate(parts):
        if rank < len(expected):
            assert torch.equal(torch.from_dlpack(part), expected[rank])
        else:
            assert part.nbytes == 0 and part.shape[dim] == 0
    assert torch.equal(torch.cat([torch.from_dlpack(part) for part in parts if part.nbytes], dim), whole.to(expected[0].dtype))


def test_rows_of_a_rank_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes({"a": ("F32", [6, 2], struct.pack("<12f", *range(12)))}))
    with heft.open(path) as checkpoint:
        before = bytes_read()
        rows = checkpoint["a"].slice(0, 1, 3).torch()
        assert bytes_read() - before - own_reading() <= 0
    assert rows.tolist() == [[4, 5], [6, 7]]
