"""The examples of examples/python, run as programs on small checkpoints."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not beside the tests")


def run(name: str, *args: object, status: int = 0, module: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *module, str(EXAMPLES / name), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_load_cast(models: Path) -> None:
    state = safetensors.load_file(models / "net.safetensors")
    size = sum(2 * tensor.numel() for tensor in state.values()) / 2**20
    out = run("load_cast.py", models / "net.safetensors", "float16").stdout
    assert f"4 tensors, {size:.2f} MiB as float16" in out
    grown = re.search(r"grew by ([\d.]+) MiB", out)
    assert grown and float(grown[1]) < 64


def test_into_module(models: Path, tmp_path: Path) -> None:
    state = safetensors.load_file(models / "net.safetensors")
    path = tmp_path / "body.safetensors"
    safetensors.save_file({f"body.{name}": t.to(torch.bfloat16) for name, t in state.items()} | {"x": torch.ones(1)}, path)
    before = path.read_bytes()
    lines = run("into_module.py", path).stdout.splitlines()
    assert lines == [
        "missing: head.weight head.bias", "unexpected: x", "initialized: head.weight head.bias", "trained on cpu",
    ]  # fmt: skip
    assert path.read_bytes() == before


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")
def test_shared_ranks(models: Path) -> None:
    out = run(
        "shared_ranks.py", models / "net.safetensors", "bfloat16",
        module=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    ).stdout  # fmt: skip
    assert sorted(out.splitlines()) == ["rank 0: equal True, changed", "rank 1: equal True, unchanged"]


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("rank", [0, 2])
def test_rank_slice(models: Path, dim: int, rank: int) -> None:
    whole = safetensors.load_file(models / "net.safetensors")["0.weight"]
    part = whole.chunk(4, dim)[rank]
    lines = run("rank_slice.py", models / "net.safetensors", "0.weight", dim, rank, 4).stdout.splitlines()
    assert lines[0] == (
        f"0.weight [32, 16]: rank {rank} of 4 has {list(part.shape)}, {part.nbytes} of {whole.nbytes} bytes"
    )
    assert float(lines[1].split()[1]) == pytest.approx(part.double().sum().item())


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="Transformers is not installed")
def test_patched(models: Path) -> None:
    state: dict[str, torch.Tensor] = {}
    for file in (models / "bert").glob("*.safetensors"):
        state |= safetensors.load_file(file)
    count = sum(tensor.numel() for tensor in state.values())
    assert run("patched.py", models / "bert").stdout == f"BertModel with {count} parameters\n"


@pytest.mark.skipif(not importlib.util.find_spec("accelerate"), reason="Accelerate is not installed")
def test_dispatch(models: Path) -> None:
    transformers = pytest.importorskip("transformers")
    before = {path: path.stat().st_mtime_ns for path in models.rglob("*")}
    lines = run("dispatch.py", models / "llama", "30KB").stdout.splitlines()
    assert lines[0].startswith("on disk: ") and "model.layers" in lines[0]
    whole = transformers.AutoModelForCausalLM.from_pretrained(models / "llama")
    assert lines[1] == f"next token: {whole(torch.arange(8)[None]).logits[0, -1].argmax().item()}"
    assert {path: path.stat().st_mtime_ns for path in models.rglob("*")} == before  # nothing is written


def test_convert_verify(models: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    out = run("convert_verify.py", models / "net", target, "bfloat16").stdout
    state = safetensors.load_file(models / "net.safetensors")
    got = safetensors.load_file(target / "model.safetensors")
    assert all(torch.equal(got[name], state[name].to(torch.bfloat16)) for name in state)
    size = sum(tensor.nbytes for tensor in got.values())
    assert "model.safetensors: 4 tensors" in out and out.endswith(f"valid 4 tensors, {size} bytes read\n")
    assert "already contains" in run("convert_verify.py", models / "net", target, status=1).stderr
    nan = {"a": torch.tensor([float("nan")])}
    safetensors.save_file(nan, tmp_path / "nan.safetensors")
    out = run("convert_verify.py", tmp_path / "nan.safetensors", tmp_path / "nan", status=1).stdout
    assert "nan model.safetensors a" in out and "not valid" in out


def test_progress_cancel(models: Path, tmp_path: Path) -> None:
    size = sum(2 * t.nbytes for t in safetensors.load_file(models / "net.safetensors").values())
    done = run("progress_cancel.py", models / "net", tmp_path / "a", 100)
    assert f"wrote {size} bytes" in done.stdout and f"{size} of {size} bytes" in done.stderr
    done = run("progress_cancel.py", models / "net", tmp_path / "b", -1, status=1)
    assert "cancelled" in done.stderr and not (tmp_path / "b").exists()


def test_one_tensor(models: Path) -> None:
    state = safetensors.load_file(models / "net.safetensors")
    path = models / "net.safetensors"
    lines = run("one_tensor.py", path).stdout.splitlines()
    assert {line.split()[0] for line in lines[:-1]} == set(state)
    assert lines[-1] == f"4 tensors, {sum(t.nbytes for t in state.values())} bytes in 1 files"
    first, values = run("one_tensor.py", path, "0.weight").stdout.splitlines()
    assert first == "float32 [32, 16]" and values == str(state["0.weight"][:2].tolist())


def test_run(models: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(models / "llama", dtype=torch.float32)
    exact = model.generate(
        torch.tensor([[5, 9, 20]]), max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, 3:].tolist()  # fmt: skip
    place = models.parent / "llama-float32"
    model.save_pretrained(place)
    done = run("run.py", place, "5,9,20")
    assert [int(part) for part in done.stdout.split()] == exact
    assert "16 passes, 0 bytes read" in done.stderr
    assert "LIMIT" in run("run.py", place, "5,9,20", "10KB", status=1).stderr
    assert "NOT_FOUND" in run("run.py", place, "the cat", status=1).stderr  # no tokenizer.json


def test_each_example_is_listed_and_run() -> None:
    files = {path.name for path in EXAMPLES.glob("*.py")}
    assert set(re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text())) == files
    assert set(re.findall(r'run\(\s*"(\w+\.py)"', Path(__file__).read_text())) == files
