"""What heft plan says that loading takes, held against the kernel's counts on models of 0.2 to 3 GB; with that as a limit.

The limit is a memory cgroup where one can be made (v1 or v2, as root), and address space (ulimit -v) everywhere.
"""

import contextlib
import json
import os
import resource
import subprocess
import uuid
from pathlib import Path

import pytest
from helpers import HEFT, heft

NEAR = 16_000_000  # bytes, or 5 %


def config_of(layers, hidden, inner, vocabulary, tied=False):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 128,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }


EXPERTS = {  # 18,000 tensors of 16 KB
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
MODELS = {  # name: config, shards, budgets of the CPU
    "0.2GB": (config_of(8, 768, 2048, 32000), "90MB", ("60MB", "160MB")),
    "1GB": (config_of(20, 1536, 4096, 32000, tied=True), "300MB", ("300MB", "700MB")),
    "0.3GB-experts": (EXPERTS, "5GB", ("100MB", "200MB")),
    "3GB": (config_of(24, 2560, 6912, 32000), "5GB", ("600MB", "2GB")),
}


@pytest.fixture(scope="module", params=sorted(MODELS))
def model(request, scratch):
    config, shard, budgets = MODELS[request.param]
    folder = scratch / f"needs-{request.param}"
    (scratch / "needs.json").write_text(json.dumps(config))
    made = heft("init", scratch / "needs.json", folder, "--max-shard-size", shard)
    yield folder, made["total_size"], budgets
    for file in folder.iterdir():
        file.unlink()


@contextlib.contextmanager
def memory_group(limit):
    """A cgroup with this limit, as the file that a process writes itself into; None where none can be made."""
    for root, knob, swap in (("memory", "memory.limit_in_bytes", "memory.swappiness"), ("", "memory.max", "memory.swap.max")):
        group = Path("/sys/fs/cgroup") / root / f"heft-{uuid.uuid4().hex}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / knob).write_text(str(limit))
            with contextlib.suppress(OSError):
                (group / swap).write_text("0")
        except OSError:
            group.rmdir()
            continue
        yield group / "cgroup.procs"
        group.rmdir()
        return
    yield None


def load_in(limit, kind, arguments):
    """heft load under a limit; its document, or None where there can be no such limit here."""
    command = [HEFT, "load", *map(str, arguments), "--json"]
    with memory_group(limit) if kind == "cgroup" else contextlib.nullcontext() as procs:
        if kind == "cgroup" and procs is None:
            return None

        def enter():
            if procs:
                procs.write_text(str(os.getpid()))
            else:
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        done = subprocess.run(command, capture_output=True, text=True, timeout=600, preexec_fn=enter)
        assert done.returncode == 0, f"{' '.join(command)} in {limit} bytes ({kind}): exit {done.returncode}\n{done.stdout}{done.stderr}"
        return json.loads(done.stdout)


def evict(folder):
    for file in folder.glob("*.safetensors"):
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def near(predicted, found, what):
    assert found <= predicted, f"{what}: {found} bytes, {predicted} were predicted"
    assert predicted - found <= max(NEAR, predicted // 20), f"{what}: {found} bytes, {predicted} were predicted"


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
@pytest.mark.parametrize("strategy", ["best", "sequential", "auto"])
def test_loading_takes_what_was_said(model, strategy, cold):
    folder, size, (small, large) = model
    for budget in {"best": [small, large], "sequential": [small], "auto": [large, "20GB"]}[strategy]:
        options = ["--max-memory", f"cpu={budget},disk"]
        if cold:
            evict(folder)
        plan = heft("plan", folder, "--strategy", strategy, *options)
        assert sum(plan["placed_bytes"].values()) >= size
        arguments = [folder, "--device-map", strategy, *options]
        for what, predicted, more in (
            ("loading", plan["peak_bytes"], []),
            ("a pass", plan["stream"]["peak_bytes"], ["--touch"]),
        ):
            where = f"{what} of {folder.name}, {strategy}, {budget}, {'cold' if cold else 'warm'}"
            if cold:
                evict(folder)
            near(predicted, heft("load", *arguments, *more)["memory"]["peak_rss_bytes"], where)
            for kind in ("cgroup", "ulimit"):
                found = load_in(predicted, kind, arguments + more)
                assert found is None or found["copied_bytes"] + found["mapped_bytes"] + found["disk_bytes"] == size, where


def test_the_standard_budget_is_inside_of_the_limit(model):
    """Whatever the container's limit is, a load by a map without budgets is not killed, and says what it goes by."""
    folder, size, _ = model
    for more in (-size // 2, -20_000_000, 0, 4_000_000, 8_000_000, 16_000_000, 40_000_000):
        for kind in ("cgroup", "ulimit"):
            with memory_group(size + more) if kind == "cgroup" else contextlib.nullcontext() as procs:
                if kind == "cgroup" and procs is None:
                    continue

                def enter():
                    if procs:
                        procs.write_text(str(os.getpid()))
                    else:
                        resource.setrlimit(resource.RLIMIT_AS, (size + more, size + more))

                for what in (["plan", "--strategy"], ["load", "--touch", "--device-map"]):
                    command = [HEFT, what[0], str(folder), *what[1:], "best", "--json"]
                    done = subprocess.run(command, capture_output=True, text=True, timeout=600, preexec_fn=enter)
                    assert done.returncode == 0, f"{' '.join(command)} in {size + more} bytes ({kind}): exit {done.returncode}\n{done.stdout}{done.stderr}"
                    told = json.loads(done.stdout)
                    if what[0] == "plan":
                        assert ("container" if kind == "cgroup" else "ulimit") in told["budget"], told["budget"]
                        assert told["max_memory"]["cpu"] < size + more


def test_a_limit_below_it_is_too_little(model):
    """The prediction is not merely large: with a little less than the model's own memory nothing goes."""
    folder, _, budgets = model
    plan = heft("plan", folder, "--strategy", "best", "--max-memory", f"cpu={budgets[1]},disk")
    limit = plan["peak"]["resident_bytes"]
    command = [HEFT, "load", str(folder), "--device-map", "best", "--max-memory", f"cpu={budgets[1]},disk", "--json"]
    for more, code, status in (([], 9, "LIMIT"), (["--over-limit"], 10, "NOMEM")):  # refused before; tried all the same
        done = subprocess.run(
            [*command, *more], capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
        assert done.returncode == code, done.stdout
        assert json.loads(done.stdout)["error"]["status"] == status
