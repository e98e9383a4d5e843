"""heft.convert, verify, plan, save_file and the command."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import safetensors_bytes

import heft

CONFIG = {
    "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20, "max_position_embeddings": 16,
}  # fmt: skip


def test_convert(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text("{}")
    target = tmp_path / "out"
    plan = heft.convert(folder, target, format="bin", dtype="bfloat16", dry_run=True)
    assert not target.exists()
    report = heft.convert(folder, target, format="bin", dtype="bfloat16")
    assert report.files == plan.files and report == plan
    assert [file["name"] for file in report.files] == ["pytorch_model.bin"] and report.index is None
    assert sorted(os.listdir(target)) == ["config.json", "pytorch_model.bin"]
    assert heft.open(target)["layer.2.1"].dtype == "bfloat16"
    with pytest.raises(FileExistsError) as caught:
        heft.convert(folder, target)
    assert isinstance(caught.value, heft.ExistsError)
    report = heft.convert(folder, str(target), max_shard_size=40, metadata={"k": "v"}, force=True)
    assert len(report.files) > 1 and report.index == "model.safetensors.index.json" and report.total_size == 96
    assert heft.open(target).metadata == {"format": "pt", "k": "v"}
    assert heft.convert(folder, tmp_path / "b", max_shard_size="1KB").total_size == 96
    for wrong in (
        {"max_shard_size": "many"}, {"max_shard_size": -1}, {"format": "gguf"}, {"dtype": "f99"},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            heft.convert(folder, tmp_path / "c", **wrong)  # type: ignore[arg-type]
    for wrong in ({"max_shard_size": 1.5}, {"metadata": {"a": 3}}, {"metadata": 3}):
        with pytest.raises(TypeError):
            heft.convert(folder, tmp_path / "c", **wrong)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        heft.convert(tmp_path / "nope", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_verify(folder: Path) -> None:
    report = heft.verify(folder)
    assert report and report.ok and report.problems == [] and (report.files, report.tensors) == (2, 6)
    assert heft.verify(str(folder), deep=True).bytes_read == 96
    nan = safetensors_bytes({"layer.2.0": ("F32", [1], struct.pack("<f", float("nan")))})
    (folder / "model-00002-of-00002.safetensors").write_bytes(nan)
    report = heft.verify(folder, deep=True)
    assert not report and any(problem.fatal for problem in report.problems)
    assert {problem.kind for problem in report.problems} >= {"nan"} or report.problems
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"")
    report = heft.verify(folder)
    assert not report and report.problems[0].message
    with pytest.raises(heft.NotFoundError):
        heft.verify(folder / "nope")


def test_diff(folder: Path, simple: Path, tmp_path: Path) -> None:
    heft.convert(folder, tmp_path / "bin", format="bin")
    report = heft.diff(folder, str(tmp_path / "bin"))
    assert report.equal and (report.common, report.bytes_read) == (6, 192)
    assert report.added == report.removed == report.changed == []
    assert report == heft.diff(folder, folder) and "equal=True" in repr(report)
    with pytest.raises(TypeError, match="use its `equal`"):
        bool(report)
    other = tmp_path / "other.safetensors"
    other.write_bytes(
        safetensors_bytes(
            {
                "grid": ("F32", [4, 6], struct.pack("<24f", *range(23), 25)),
                "ids": ("I64", [1, 3], struct.pack("<3q", 7, 8, 9)),
                "one": ("F32", [], struct.pack("<f", 2.5)),
                "new": ("F32", [0, 3], b""),
                "half": ("BF16", [2, 2], struct.pack("<4H", 0x3F80, 0x4000, 0x4040, 0x7FC0)),
            }
        )
    )
    report = heft.diff(simple, other)
    assert not report.equal and report.added == ["new"] and report.removed == ["none"] and report.common == 4
    found = {change.name: change for change in report.changed}
    assert list(found) == ["grid", "half", "ids", "one"]
    grid, half, ids, one = found.values()
    assert (grid.what, grid.max_abs, grid.max_rel) == ("values", 2.0, 0.08) and grid.cosine and 0.99 < grid.cosine < 1
    assert half.what == "values" and str((half.max_abs, half.max_rel, half.cosine)) == "(nan, nan, nan)"
    assert (ids.what, ids.max_abs, ids.max_rel, ids.cosine) == ("shape [3] -> [1, 3]", None, None, None)
    assert (one.what, one.max_abs, one.max_rel, one.cosine) == ("dtype float64 -> float32", 0.0, 0.0, 1.0)
    assert [change.name for change in heft.diff(simple, other, tolerance=2).changed] == ["half", "ids", "one"]
    told: list[tuple[str, int, int]] = []
    heft.diff(simple, other, progress=lambda *facts: told.append(facts))
    assert {what for what, _, _ in told} == {"comparing", "measuring"} and all(done <= total for _, done, total in told)
    with pytest.raises(heft.NotFoundError):
        heft.diff(folder, tmp_path / "nope")
    with pytest.raises(heft.NotFoundError):
        heft.diff(folder, tmp_path / "bin", format="safetensors")


def test_plan(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    plan = heft.plan(path)
    assert plan.device_map == {"": "cpu"} and plan.fits and plan.peak_bytes > plan.resident_bytes >= 0
    plan = heft.plan(path, max_memory={0: "3KB", "cpu": 2000, "disk": float("inf")}, dtype="float32")
    assert set(plan.device_map.values()) == {0, "cpu", "disk"}
    assert sum(plan.sizes.values()) == sum(placed for _, placed in plan.devices.values())
    assert plan.devices[0][0] == 3000
    assert "device_map" in repr(plan)
    for wrong in ({"strategy": "x"}, {"mode": "x"}, {"max_memory": {"gpu": 1}}, {"max_memory": {"cpu": "much"}}):
        with pytest.raises(ValueError):
            heft.plan(path, **wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="max_memory must be a dict"):
        heft.plan(path, max_memory="1GB")  # type: ignore[arg-type]
    named = type("BertModel", (), {})
    assert heft.plan(path, class_name=named).sizes == heft.plan(path, class_name="BertModel").sizes
    with pytest.raises(TypeError):
        heft.plan(path, no_split_module_classes=[3])  # type: ignore[list-item]
    with pytest.raises(heft.HeftError):
        heft.plan(path, class_name="NoSuchClass")
    path.write_text("{")
    with pytest.raises(heft.FormatError):
        heft.plan(path)


def test_plan_is_what_accelerate_takes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    accelerate = pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(transformers.BertConfig(**CONFIG))
    budgets = {0: 6000, "cpu": 4000, "disk": 10**9}
    theirs = accelerate.infer_auto_device_map(
        model, budgets, no_split_module_classes=model._no_split_modules, dtype=torch.float32
    )
    ours = heft.plan(tmp_path, max_memory=budgets, strategy="sequential", dtype=torch.float32)
    assert ours.device_map == dict(theirs)
    accelerate.utils.modeling.check_device_map(model, ours.device_map)


def test_save_file(tmp_path: Path, simple: Path) -> None:
    checkpoint = heft.open(simple)
    for name in ("x.safetensors", "x.bin", "x.pt"):
        seen: list[str] = []
        report = heft.save_file(checkpoint, tmp_path / name, progress=lambda what, done, total: seen.append(what))
        assert report.files[0]["tensors"] == 5
        again = heft.open(tmp_path / name)
        assert set(again) == set(checkpoint)
        assert all(again[key].tobytes() == checkpoint[key].tobytes() for key in checkpoint)
    heft.save_file({"part": checkpoint["grid"][:, 1:3], "row": checkpoint["grid"].map()[2]}, tmp_path / "y.safetensors")
    assert memoryview(heft.open(tmp_path / "y.safetensors")["part"]).tolist()[3] == [19.0, 20.0]
    heft.save_file({"a": checkpoint["ids"]}, tmp_path / "noname", {"k": "v"}, format="safetensors")
    assert heft.open(tmp_path / "noname").metadata == {"k": "v"}
    with pytest.raises(ValueError):
        heft.save_file({"a": checkpoint["ids"]}, tmp_path / "noname2")
    with pytest.raises(TypeError):
        heft.save_file({"a": 3}, tmp_path / "z.safetensors")
    with pytest.raises(TypeError):
        heft.save_file({"a": checkpoint["ids"]}, tmp_path / "z.safetensors", {"a": 3})  # type: ignore[dict-item]
    with pytest.raises(ValueError):
        heft.save_file({"a": checkpoint["ids"]}, tmp_path / "z.safetensors", ties="x")  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["noname", "simple.safetensors", "x.bin", "x.pt", "x.safetensors", "y.safetensors"]

    class Stop(Exception):
        pass

    def stop(*what: object) -> None:
        raise Stop

    before = (tmp_path / "x.pt").read_bytes()
    big = heft.open(safetensors_bytes({"w": ("U8", [50 << 20], bytes(50 << 20))}))
    with pytest.raises(Stop):
        heft.save_file(big, tmp_path / "x.pt", progress=stop)
    assert (tmp_path / "x.pt").read_bytes() == before


def test_save_state_dict(tmp_path: Path, simple: Path, folder: Path) -> None:
    target = tmp_path / "out" / "deep"
    (tmp_path / "out").mkdir()
    report = heft.save_state_dict(heft.open(folder), target, {"k": "v"}, max_shard_size=40)
    assert len(report.files) > 1 and report.index == "model.safetensors.index.json" and report.total_size == 96
    again = heft.open(target)
    assert {name: t.tobytes() for name, t in again.items()} == {n: t.tobytes() for n, t in heft.open(folder).items()}
    assert again.metadata == {"format": "pt", "k": "v"} and heft.verify(target, deep=True)
    again.close()
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def stop(*what: object) -> None:
        raise ArithmeticError

    big = {"w": heft.open(safetensors_bytes({"w": ("U8", [50 << 20], bytes(50 << 20))}))["w"]}
    for kind, options in (
        (heft.ExistsError, {}), (ValueError, {"format": "gguf", "force": True}), (ValueError, {"max_shard_size": "x"}),
        (TypeError, {"metadata": {"a": 3}, "force": True}), (ArithmeticError, {"force": True, "progress": stop}),
    ):  # fmt: skip
        with pytest.raises(kind):
            heft.save_state_dict(big, target, **options)  # type: ignore[arg-type]
        assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    report = heft.save_state_dict(heft.open(simple), target, format="bin", variant="v", force=True)
    assert [file["name"] for file in report.files] == ["pytorch_model.v.bin"] and report.index is None
    assert heft.open(target, variant="v")["grid"].tobytes() == heft.open(simple)["grid"].tobytes()


def test_a_file_may_be_rewritten_from_itself(simple: Path) -> None:
    checkpoint = heft.open(simple)
    kept = checkpoint["grid"].map()
    heft.save_file(checkpoint, simple)
    assert heft.open(simple)["grid"].tobytes() == kept.tobytes() == struct.pack("<24f", *range(24))


def test_manifests(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    assert heft.verify(folder, write_manifest=manifest)
    wanted = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.glob("*.safetensors"))
    }
    assert json.loads(manifest.read_text()) == {"files": wanted, "version": 1}
    assert heft.verify(folder, manifest=manifest)
    path = folder / "model-00001-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    report = heft.verify(folder, manifest=manifest)
    assert not report and [problem.file for problem in report.problems if problem.fatal] == [path.name]
    with pytest.raises(heft.NotFoundError):
        heft.verify(folder, manifest=tmp_path / "none.json")


@pytest.mark.skipif("HEFT_PYTHON_NO_COMMAND" in os.environ, reason="the package was built without the command")
def test_manifests_without_openssl(folder: Path, tmp_path: Path) -> None:
    """The command opens libcrypto at run time; what cannot be opened is an error of one line."""
    for name in ("libcrypto.so", "libcrypto.so.1.1", "libcrypto.so.3", "libcrypto.so.4"):
        (tmp_path / name).write_bytes(b"")
    command = [sys.executable, "-c", "import heft.__main__; print(heft.__main__._command())"]
    heft_command = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    command = [heft_command, "verify", str(folder), f"--write-manifest={tmp_path / 'm.json'}"]
    run = subprocess.run(command, env={"LD_LIBRARY_PATH": str(tmp_path)}, capture_output=True, text=True)
    assert run.returncode == 7 and not (tmp_path / "m.json").exists()
    assert run.stderr.count("\n") == 1 and "manifests require OpenSSL" in run.stderr
    assert subprocess.run([*command, "-q"], capture_output=True).returncode == 0


@pytest.mark.skipif("HEFT_PYTHON_NO_COMMAND" in os.environ, reason="the package was built without the command")
def test_the_command(simple: Path) -> None:
    run = subprocess.run([sys.executable, "-m", "heft", "--version"], capture_output=True, text=True)
    assert run.returncode == 0 and heft.__version__ in run.stdout
    run = subprocess.run([sys.executable, "-m", "heft", "inspect", simple, "--json"], capture_output=True, text=True)
    assert run.returncode == 0 and json.loads(run.stdout)["tensors"]
    run = subprocess.run([sys.executable, "-m", "heft", "inspect", "/nope"], capture_output=True, text=True)
    assert run.returncode == 4 and run.stderr.startswith("heft inspect: ")
