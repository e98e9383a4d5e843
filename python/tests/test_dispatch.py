"""load_checkpoint_and_dispatch() and dispatch(), beside Accelerate's own on the same files."""

from __future__ import annotations

import copy
import gc
import json
import logging
import os
import pickle
import random
import re
import signal
import threading
import warnings
from pathlib import Path
from types import FrameType

import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")
st = pytest.importorskip("safetensors.torch")
from torch import nn  # noqa: E402

import heft  # noqa: E402
from heft._weights import Weights, _Order  # noqa: E402


def theirs(model: nn.Module, path: object, **options: object) -> nn.Module:
    return accelerate.load_checkpoint_and_dispatch(model, str(path), **options)  # it takes no Path of a file


ours = heft.load_checkpoint_and_dispatch
WIDTH = 24


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Net(nn.Module):
    """An embedding, blocks, a head that may be tied, buffers of all kinds."""

    def __init__(self, blocks: int = 12, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(blocks))
        self.batch = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, 40, bias=False)
        self.register_buffer("ids", torch.arange(6))
        self.tie = tied
        self.tie_weights()

    def tie_weights(self) -> None:
        if self.tie:
            self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.batch(x.transpose(1, 2)).transpose(1, 2))


def filled(tied: bool = False, blocks: int = 12) -> Net:
    torch.manual_seed(1)
    net = Net(blocks, tied).eval()
    with torch.no_grad():
        for name, value in net.named_buffers():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5)
    return net


def empty(tied: bool = False, blocks: int = 12) -> Net:
    with accelerate.init_empty_weights():
        net = Net(blocks, tied).eval()
    net.tie_weights()
    return net


X = torch.arange(12).reshape(2, 6)
FORMATS = ["file.safetensors", "file.bin", "shards", "bin shards"]


def saved(folder: Path, net: nn.Module, format: str = "file.safetensors", dtype: torch.dtype = torch.float32) -> Path:
    """Save a model in a format; return what is to be opened."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in net.state_dict().items()}
    kind = "bin" if "bin" in format else "safetensors"
    if kind == "safetensors" and getattr(net, "tie", False):
        del state["head.weight"]
    write = torch.save if kind == "bin" else lambda s, path: st.save_file(s, path, {"format": "pt"})
    if "shards" not in format:
        path = folder / ("pytorch_model.bin" if kind == "bin" else "model.safetensors")
        write(state, path)
        return path
    stem = "pytorch_model" if kind == "bin" else "model"
    weight_map = {}
    names = list(state)
    for i, part in enumerate((names[:20], names[20:50], names[50:])):
        shard = f"{stem}-{i + 1:05}-of-00003.{kind}"
        write({k: state[k].clone() for k in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = folder / f"{stem}.{kind}.index.json"
    total = sum(v.nbytes for v in state.values())
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    return index


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def weights_of(model: nn.Module) -> Weights:
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            if getattr(one, "weights_map", None) is not None:
                return one.weights_map.dataset.state_dict
    raise AssertionError("no hook with weights")


def outcome(call, *args: object, **kw: object) -> object:
    try:
        return call(*args, **kw)
    except Exception as error:
        return type(error), str(error)


def run(model: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    with torch.no_grad():
        result = model(x)
    return result if isinstance(result, torch.Tensor) else result.logits


def same(a: nn.Module, b: nn.Module) -> None:
    """Equal in everything that can be seen without running."""
    for get in (lambda m: dict(m.named_parameters(remove_duplicate=False)), lambda m: dict(m.named_buffers())):
        x, y = get(a), get(b)
        assert list(x) == list(y)
        for name in x:
            if name.startswith("batch.running_"):
                continue  # Accelerate does not load these if they are on disk
            for what in ("device", "dtype", "shape", "requires_grad", "__class__"):
                assert getattr(x[name], what) == getattr(y[name], what), (name, what)
            if x[name].device.type != "meta" and name != "batch.num_batches_tracked":
                assert torch.equal(x[name], y[name]), name
    assert getattr(a, "hf_device_map", None) == getattr(b, "hf_device_map", None)
    hooks = [[repr(getattr(m, "_hf_hook", None)) for m in model.modules()] for model in (a, b)]
    assert hooks[0] == hooks[1]


MAPS: dict[str, object] = {
    "cpu": {"": "cpu"},
    "mixed": {"embed": "cpu", **{f"layers.{i}": "disk" for i in range(11)}, "layers.11": "cpu", "batch": "cpu",
              "head": "disk", "ids": "cpu"},
    "a part": {"embed": "disk", **{f"layers.{i}": "cpu" for i in range(11)}, "layers.11.norm": "cpu",
               "layers.11.up": "disk", "layers.11.down": "cpu", "batch": "disk", "head": "cpu", "ids": "cpu"},
    "auto": "auto",
    "sequential": "sequential",
}  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("where", MAPS)
def test_equals_accelerate(tmp_path: Path, format: str, where: str) -> None:
    f32, bf16 = torch.float32, torch.bfloat16
    for i, (stored, dtype) in enumerate([(f32, None), (bf16, None), (bf16, "torch.float32"), (f32, torch.float16)]):
        folder = tmp_path / str(i)
        path = saved(folder, filled(), format, stored)
        before = files(folder)
        options = {"device_map": MAPS[where], "dtype": dtype, "offload_folder": str(tmp_path / f"offload{i}")}
        if isinstance(MAPS[where], str):
            options |= {"max_memory": {"cpu": 100000}, "no_split_module_classes": ["Block"]}
        wanted = theirs(empty(), path, **options)
        got = ours(empty(), path, **options | {"offload_folder": str(tmp_path / "never")})
        same(got, wanted)
        for name, value in got.batch.named_buffers():  # Accelerate does not load these if on disk
            wanted.batch._buffers[name] = value.clone()
        first = outcome(run, wanted)
        assert isinstance(first, torch.Tensor), first
        for _ in range(2):
            assert torch.equal(run(got), first), (stored, dtype)
        same(got, wanted)
        assert files(folder) == before and not (tmp_path / "never").exists()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tied", [False, True])
def test_all_on_disk(tmp_path: Path, format: str, tied: bool) -> None:
    """Accelerate cannot: safetensors has no device "disk", and the second name of a tie is not in its index."""
    net = filled(tied)
    path = saved(tmp_path, net, format)
    for buffers in (False, True):
        got = ours(empty(tied), path, device_map={"": "disk"}, offload_buffers=buffers)
        assert all(p.device.type == "meta" for p in got.parameters())
        assert {b.device.type for b in got.buffers()} == ({"meta"} if buffers else {"cpu"})
        for _ in range(3):
            assert torch.equal(run(got), run(net))
        counts = weights_of(got).counts
        assert 0 < counts["peak_bytes"] <= counts["budget_bytes"] and counts["read_bytes"] > 0


def test_not_on_meta(tmp_path: Path) -> None:
    net = filled()
    path = saved(tmp_path, net)
    for where in MAPS.values():
        options = {"max_memory": {"cpu": 40000}} if isinstance(where, str) else {}
        got = ours(Net().eval(), path, device_map=where, **options)
        assert torch.equal(run(got), run(net))
    for dtype in (None, torch.float16):
        got, wanted = (call(Net().eval(), path, dtype=dtype) for call in (ours, theirs))  # no map: no hooks
        same(got, wanted)
        assert not hasattr(got, "hf_device_map") and torch.equal(run(got), run(net))
    got, wanted = (call(empty(), saved(tmp_path / "b", net, "file.bin")) for call in (ours, theirs))
    same(got, wanted)


TIES = [
    {"embed": "disk", "head": "cpu"},
    {"embed": "cpu", "head": "disk"},
    {"embed": "disk", "head": "disk"},
    {"embed": "cpu", "head": "cpu"},
]


@pytest.mark.parametrize("format", ["file.safetensors", "file.bin"])
@pytest.mark.parametrize("where", TIES)
def test_ties(tmp_path: Path, format: str, where: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    net = filled(tied=True)
    path = saved(tmp_path, net, format)
    rest = {"layers": "disk", "batch": "cpu", "ids": "cpu"}
    for dtype in (None, torch.bfloat16):
        with caplog.at_level(logging.WARNING):
            got = ours(empty(tied=True), path, device_map=where | rest, dtype=dtype)
        assert ("Tied parameters are on different devices" in caplog.text) == (len(set(where.values())) == 2)
        caplog.clear()
        reference = copy.deepcopy(net) if dtype is None else copy.deepcopy(net).to(dtype)
        for _ in range(2):
            assert torch.equal(run(got), run(reference))
        if set(where.values()) == {"cpu"}:
            assert got.head.weight is got.embed.weight
        elif "cpu" in where.values():
            name = next(k for k, v in where.items() if v == "disk") + ".weight"
            kept = got.embed.weight if where["embed"] == "cpu" else got.head.weight
            with torch.no_grad():
                kept.mul_(2)
            assert torch.equal(weights_of(got)[name], kept)  # still tied


def test_ties_that_init_empty_weights_broke(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    net = transformers.LlamaForCausalLM(config).eval()
    net.save_pretrained(tmp_path)
    ids = torch.arange(8)[None]
    for context in (accelerate.init_empty_weights, lambda: torch.device("meta")):
        split = {"model": "disk", "lm_head": "cpu"}, {"model": "cpu", "lm_head": "disk"}
        for where in ({"": "cpu"}, {"": "disk"}, *split):
            with context():
                model = transformers.LlamaForCausalLM(config).eval()
            got = ours(model, tmp_path, device_map=where)
            for _ in range(2):
                assert torch.equal(run(got, ids), run(net, ids)), where
            assert not any(b.device.type == "meta" for b in got.buffers())


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("table", torch.zeros(WIDTH), persistent=False)
        self.register_buffer("scale", torch.ones(WIDTH))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.table.copy_(torch.arange(WIDTH).sin())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight + self.table * self.scale


@pytest.mark.parametrize("device", ["cpu", "disk"])
@pytest.mark.parametrize("buffers", [False, True])
def test_buffers(tmp_path: Path, device: str, buffers: bool) -> None:
    net = nn.Sequential(Rotary(), nn.BatchNorm1d(WIDTH), Rotary()).eval()
    with torch.no_grad():
        for p in (*net.parameters(), net[0].scale, net[2].scale, net[1].running_mean):
            p.copy_(torch.rand_like(p))
    path = saved(tmp_path, net)
    x = torch.rand(4, WIDTH)
    with torch.device("meta"):
        model = nn.Sequential(Rotary(), nn.BatchNorm1d(WIDTH), Rotary()).eval()
    got = ours(model, path, device_map={"": device}, offload_buffers=buffers)
    for _ in range(2):
        assert torch.equal(run(got, x), run(net, x))
    if device == "disk":  # statistics of a pass in training mode are lost, as for Accelerate with buffers on disk
        got.train()
        run(got, x)
        got.eval()
        assert torch.equal(run(got, x), run(net, x)) == buffers
    with torch.device("meta"):
        lost = nn.Module()
        lost.register_buffer("table", torch.zeros(3), persistent=False)
        model = nn.Sequential(Rotary(), nn.BatchNorm1d(WIDTH), Rotary(), lost)
    with pytest.raises(heft.MismatchError, match="3.table"):
        ours(model, path, device_map={"": device})


# ---- reports and errors ------------------------------------------------------------------------------


def broken(folder: Path, how: str) -> object:
    net = filled()
    path = saved(folder, net)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    metadata: dict[str, str] | None = {"format": "pt"}
    if how == "unexpected":
        state |= {"more.weight": torch.ones(2), "layers.1.more": torch.ones(2)}
    elif how == "missing":
        del state["layers.1.up.weight"]
    elif how == "shape":
        state["layers.0.down.weight"] = torch.ones(3, 2)
    elif how == "no metadata":
        metadata = None
    elif how in ("tf", "np", "none"):
        metadata = {"format": how} if how != "none" else {"a": "b"}
    st.save_file(state, path, metadata)
    if how == "empty folder":
        path.unlink()
    elif how == "two indexes":
        path.unlink()
        for name in ("a", "b"):
            (folder / f"{name}.index.json").write_text("{}")
    elif how == "not there":
        return folder / "nothing"
    return folder if how != "as a str" else str(path)


ERRORS = ["unexpected", "missing", "shape", "no metadata", "tf", "np", "none", "empty folder", "two indexes",
          "not there", "as a str"]  # fmt: skip


@pytest.mark.parametrize("how", ERRORS)
@pytest.mark.parametrize("where", ["cpu", "mixed", None])
@pytest.mark.parametrize("strict", [False, True])
def test_reports(tmp_path: Path, how: str, where: str | None, strict: bool, caplog: pytest.LogCaptureFixture) -> None:
    path = broken(tmp_path / "m", how)
    results, texts = [], []
    for call in (theirs, ours):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "accelerate"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(
                outcome(call, filled(), path, device_map=MAPS[where] if where else None, strict=strict,
                        offload_folder=str(tmp_path / "offload"))
            )  # fmt: skip
        lines = sorted(r.getMessage() for r in caplog.records if r.name.startswith("accelerate"))
        of_sets = r"\{.*\}|the (disk and cpu|cpu and disk)"  # in no order
        texts.append([re.sub(of_sets, lambda m: "".join(sorted(m[0])), line) for line in lines])
    wanted, got = results
    if how == "shape" and where == "mixed" and isinstance(wanted, nn.Module):
        assert got[0] is ValueError and "Trying to set a tensor of shape" in got[1]  # Accelerate: only when it runs
    elif isinstance(wanted, nn.Module):
        same(got, wanted)
        assert texts[0] == texts[1]
    else:
        assert got == wanted
    if how == "missing" and where is not None:
        assert isinstance(got, nn.Module)  # also if strict


def test_errors(tmp_path: Path) -> None:
    path = saved(tmp_path, filled())
    tables = [
        ({"device_map": "disk"}, ValueError, "choose 'auto'"),
        ({"device_map": {"embed": "cpu"}}, ValueError, "doesn't have any device set"),
        ({"device_map": {"": "cpu"}, "dtype": "float33"}, AttributeError, "float33"),
        ({"device_map": "auto", "max_memory": {"cuda:0": 5}}, ValueError, "not recognized"),
        ({"device_map": "auto", "max_memory": {"cpu": "many"}}, ValueError, "not in a valid format"),
    ]
    for options, kind, text in tables:
        with pytest.raises(kind, match=re.escape(text)):
            ours(empty(), path, **options)
        assert outcome(ours, empty(), path, **options) == outcome(theirs, empty(), path, **options)
    if not torch.cuda.is_available():
        got, wanted = (outcome(call, empty(), path, device_map={"": 0}) for call in (ours, theirs))
        assert got == wanted and isinstance(got, tuple)
    net = empty()
    st.save_file({"layers.1.up.weight": torch.ones(2)}, tmp_path / "wrong.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="Trying to set a tensor of shape"):  # Accelerate: only when it runs
        ours(net, tmp_path / "wrong.safetensors", device_map={"": "disk"})
    os.truncate(path, 5000)
    for options in ({"device_map": {"": "disk"}}, {"device_map": {"": "cpu"}}, {}):
        with pytest.raises(heft.HeftError) as error:
            ours(net, path, **options)
        assert "model.safetensors" in str(error.value)
    assert all(p.device.type == "meta" for p in net.parameters()) and not hasattr(net, "_hf_hook")


def test_code_in_bin(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"embed.weight": torch.ones(40, WIDTH), "b": Attack()}, tmp_path / "a.bin")
    for options in ({"device_map": {"": "disk"}}, {"device_map": {"": "cpu"}}, {}):
        with pytest.raises(heft.HeftError):
            ours(empty(), tmp_path / "a.bin", **options)
    assert not (tmp_path / "ran").exists()


# ---- passes --------------------------------------------------------------------------------------------


class Scribbler(nn.Linear):
    """Writes into its weight, which ends with the pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight.data.mul_(3)
            self.bias.add_(1)
        return super().forward(x)


def test_writes_end_with_the_pass(tmp_path: Path) -> None:
    net = nn.Sequential(*(Scribbler(WIDTH, WIDTH) for _ in range(6)))
    path = saved(tmp_path, net)
    before = files(tmp_path)
    x = torch.rand(3, WIDTH)
    wanted = run(copy.deepcopy(net), x)
    with accelerate.init_empty_weights():
        model = nn.Sequential(*(Scribbler(WIDTH, WIDTH) for _ in range(6)))
    got = ours(model, path, device_map={"": "disk"})
    for _ in range(3):
        assert torch.equal(run(got, x), wanted)
    with torch.inference_mode():
        assert torch.equal(got(x), wanted)
    assert files(tmp_path) == before
    weights = weights_of(got)
    first = weights["0.bias"]
    first.zero_()
    assert torch.equal(weights["0.bias"], net[0].bias) and not first.any()  # a write that torch counts


def test_exception_in_a_pass(tmp_path: Path) -> None:
    net = filled()
    got = ours(empty(), saved(tmp_path, net), device_map={"": "disk"})
    forward = got.layers[5].down.forward

    def fail(*_args: object) -> None:
        raise RuntimeError("in the middle")

    for kind in (nn.ReLU, None):
        if kind is None:
            got.layers[7].up.register_forward_pre_hook(fail)
        else:
            got.layers[5].down._old_forward = fail
        with pytest.raises(RuntimeError, match="in the middle"):
            run(got)
        got.layers[7].up._forward_pre_hooks.clear()
        got.layers[5].down._old_forward = nn.Linear.forward.__get__(got.layers[5].down)
        assert got.layers[5].down.forward is forward
        for _ in range(2):
            assert torch.equal(run(got), run(net))
        assert all(p.device.type == "meta" for p in got.parameters())
        assert weights_of(got).counts["held_bytes"] <= weights_of(got).counts["budget_bytes"]


def test_keyboard_interrupt(tmp_path: Path) -> None:
    net = filled()
    got = ours(empty(), saved(tmp_path, net), device_map={"": "disk"})
    stopped = 0

    def stop(_number: int, frame: FrameType | None) -> None:
        if frame is not None and "weakref" in frame.f_code.co_filename:  # Python drops what a callback raises
            signal.setitimer(signal.ITIMER_REAL, 0.0005)
            return
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for i in range(20):
            signal.setitimer(signal.ITIMER_REAL, 0.0005 * (i + 1))
            try:
                for _ in range(1000):
                    run(got)
            except KeyboardInterrupt:
                stopped += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert torch.equal(run(got), run(net))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert stopped == 20


def test_file_cut_while_running(tmp_path: Path) -> None:
    path = saved(tmp_path, filled(blocks=2))
    got = ours(empty(blocks=2), path, device_map={"": "disk"})
    run(got)
    os.truncate(path, 3000)
    with pytest.raises(heft.HeftError) as error:
        for _ in range(3):
            run(got)
    assert "model.safetensors" in str(error.value)


def test_threads(tmp_path: Path) -> None:
    net = filled()
    state = net.state_dict()
    weights = weights_of(ours(empty(), saved(tmp_path, net), device_map={"": "disk"}))
    errors: list[object] = []

    def read(seed: int) -> None:
        chance = random.Random(seed)
        held = []
        try:
            for _ in range(200):
                name = chance.choice(list(weights))
                value = weights[name]
                held.append((name, value))
                if len(held) > 20:
                    held = held[chance.randrange(20) :]
                assert all(torch.equal(v, state[k]) for k, v in held)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and not any(thread.is_alive() for thread in threads)


def test_what_is_held_does_not_block(tmp_path: Path) -> None:
    """All of the tensors at once, in one thread and by one that has ended: more than the budget."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(12)))  # 16 MB each, 128 MB in all at once
    weights = weights_of(ours(copy.deepcopy(net), saved(tmp_path, net), device_map={"": "disk"}))
    held: list[torch.Tensor] = []

    def read() -> None:
        held.extend(weights[f"{i}.weight"] for i in range(10))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(60)
    held += [weights[f"{i}.weight"] for i in range(12)]
    assert len(held) == 22
    for i, value in enumerate(held):
        assert torch.equal(value, net[i if i < 10 else i - 10].weight)
    assert weights.counts["peak_bytes"] <= weights.counts["budget_bytes"]


def test_fork(tmp_path: Path) -> None:
    net = filled()
    got = ours(empty(), saved(tmp_path, net), device_map={"": "disk"})
    wanted = run(net)
    run(got)
    child = os.fork()
    if child == 0:
        good = False
        try:
            torch.set_num_threads(1)
            weights = weights_of(got)
            good = all(torch.equal(weights[k], v) for k, v in net.state_dict().items() if k in weights)
            del weights
            got = None
            gc.collect()
        finally:
            os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(run(got), wanted)


def test_nothing_is_left(tmp_path: Path) -> None:
    path = saved(tmp_path, filled())

    def once() -> None:
        got = ours(empty(), path, device_map=MAPS["mixed"])
        run(got)
        accelerate.hooks.remove_hook_from_module(got, recurse=True)

    once()
    gc.collect()
    tasks, live = len(os.listdir("/proc/self/task")), heft._heft.memory()[0]
    for _ in range(5):
        once()
    gc.collect()
    assert len(os.listdir("/proc/self/task")) <= tasks and heft._heft.memory()[0] <= live
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_reads_ahead(tmp_path: Path) -> None:
    """From the second pass on, units are on their way when they are needed."""
    net = filled(blocks=20)
    got = ours(empty(blocks=20), saved(tmp_path, net), device_map={"": "disk"})
    for _ in range(3):
        run(got)
    before = weights_of(got).counts
    for _ in range(5):
        assert torch.equal(run(got), run(net))
    after = weights_of(got).counts
    units = after["ahead"] + after["waited"] - before["ahead"] - before["waited"]
    assert units == 5 * 23  # embed, blocks, batch, head: read anew for each pass
    assert after["ahead"] - before["ahead"] >= units / 2


def test_order() -> None:
    order = _Order([0, 1, 2, 3])
    assert order.from_unit(2) == ([2, 3, 0, 1], 0)
    assert not order.learn(3, 1)  # once is chance
    assert order.learn(3, 1) and order.from_unit(0) == ([0, 1, 2, 3], 1)  # as a decoder that generates
    assert not order.learn(3, 1) and not order.learn(0, 1)
    assert order.learn(3, 2) and order.from_unit(1) == ([1, 2, 3], -1)  # it varies
    assert not order.learn(3, 0) and order.learn(3, 0) and order.from_unit(1) == ([1, 2, 3, 0], 0)


# ---- options -------------------------------------------------------------------------------------------


class Direct(nn.Module):
    """Uses the weight of a module that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, extra: dict[str, object] | None = None) -> torch.Tensor:
        return nn.functional.linear(x, self.inner.weight, self.inner.bias)


def test_options(tmp_path: Path) -> None:
    net = nn.Sequential(Direct(), Direct(), nn.Linear(WIDTH, 2))
    path = saved(tmp_path, net)
    x = torch.rand(2, WIDTH)
    where = {"0": "disk", "1": "disk", "2": "cpu"}
    options = {"skip_keys": ["extra"], "preload_module_classes": ["Direct"], "force_hooks": True}
    results = []
    for call in (ours, theirs):
        with accelerate.init_empty_weights():
            model = nn.Sequential(Direct(), Direct(), nn.Linear(WIDTH, 2))
        results.append(call(model, path, device_map=where, offload_folder=str(tmp_path / "o"), **options))
    same(*results)
    assert torch.equal(run(results[0], x), run(net, x)) and torch.equal(run(results[1], x), run(net, x))
    got = ours(copy.deepcopy(net), path, device_map={"": "cpu"}, force_hooks=True)
    same(got, theirs(copy.deepcopy(net), path, device_map={"": "cpu"}, force_hooks=True))


class Beside(nn.Module):
    """Has a weight of its own beside a module."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((WIDTH,), 3.0))
        self.register_buffer("offset", torch.ones(WIDTH))
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.scale + self.offset


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("call", ["load", "dispatch", "dispatch loaded"])
@pytest.mark.parametrize("first", ["disk", "cpu"])
def test_tensors_that_a_map_names(
    tmp_path: Path, first: str, call: str, buffers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Accelerate makes such maps ("auto"), but its hooks are on modules: it leaves these tensors on meta."""
    torch.manual_seed(4)
    net = nn.Sequential(Beside(), Beside())
    nn.init.normal_(net[0].scale)
    path = saved(tmp_path, net)
    where = {"0.scale": first, "0.offset": "disk", "0.inner": "disk", "1": "disk", "1.scale": "disk"}
    with accelerate.init_empty_weights():
        model = nn.Sequential(Beside(), Beside())
    if call == "dispatch loaded":
        model = copy.deepcopy(net)
    if call == "load":
        got = ours(model, path, device_map=where, offload_buffers=buffers)
    else:
        got = heft.dispatch(model, where, path, offload_buffers=buffers)
    assert got[0].scale.device.type == "cpu" and got[1].scale.device.type == "meta"
    moved = {"0.scale": "cpu"} | ({"0.offset": "cpu"} if buffers else {})
    assert got.hf_device_map == where | moved and where["0.offset"] == "disk"
    x = torch.rand(2, WIDTH)
    for _ in range(2):
        assert torch.equal(run(got, x), run(net, x))
    told = any("only modules can be on disk" in record.getMessage() for record in caplog.records)
    assert told == (first == "disk" or buffers)


def test_state_and_copies(tmp_path: Path) -> None:
    net = filled()
    got = ours(empty(), saved(tmp_path, net), device_map=MAPS["mixed"])
    weights = weights_of(got)
    assert set(weights) == {k for k, p in got.named_parameters() if p.device.type == "meta"}
    assert len(weights) == len(list(weights)) and "nothing" not in weights and "disk" not in weights
    with pytest.raises(KeyError, match="nothing"):
        weights["nothing"]
    assert copy.deepcopy(weights) is weights
    with pytest.raises(TypeError, match="save_pretrained"):
        pickle.dumps(weights)
    state = accelerate.utils.modeling.get_state_dict_offloaded_model(got)
    assert set(state) >= dict(net.named_parameters()).keys()
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())
    accelerate.Accelerator().save_model(got, tmp_path / "saved")
    loaded = st.load_file(tmp_path / "saved/model.safetensors")
    assert set(loaded) == set(state) and all(torch.equal(loaded[k], v) for k, v in state.items())
    accelerate.hooks.remove_hook_from_module(got, recurse=True)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        run(got)


def test_stored_dtypes(tmp_path: Path) -> None:
    """What heft does not cast, torch does; what is never cast stays."""
    state = {
        "a": torch.arange(40).reshape(8, 5), "b": torch.rand(8, 5).to(torch.float8_e4m3fn), "c": torch.rand(5).double(),
        "d": torch.ones(3, dtype=torch.bool), "e": torch.rand(0, 4), "f": torch.tensor(2.5), "g": torch.rand(6).half(),
    }  # fmt: skip

    class Leaf(nn.Module):
        def __init__(self, value: torch.Tensor) -> None:
            super().__init__()
            self.w = nn.Parameter(value, False)

        def forward(self) -> torch.Tensor:
            return self.w.detach().clone()

    class Odd(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            for name, value in state.items():
                kept = value.dtype if not value.is_floating_point() else dtype
                self.add_module(name, Leaf(torch.empty(value.shape, dtype=kept)))

        def forward(self) -> list[torch.Tensor]:
            return [leaf() for leaf in self.children()]

    st.save_file({f"{k}.w": v for k, v in state.items()}, tmp_path / "a.safetensors", {"format": "pt"})
    for own in (torch.float32, torch.bfloat16):
        for dtype in (None, torch.float32, torch.float16):
            got = ours(Odd(own), tmp_path / "a.safetensors", device_map={"": "disk"}, dtype=dtype)
            where = dict.fromkeys(state, "disk") | {"a": "cpu"}
            wanted = theirs(Odd(own), tmp_path / "a.safetensors", device_map=where, dtype=dtype,
                            offload_folder=str(tmp_path / "o"))  # fmt: skip
            for a, b in zip(got(), wanted(), strict=True):
                assert a.dtype == b.dtype and torch.equal(a.float(), b.float())


# ---- dispatch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_dispatch(tmp_path: Path, format: str) -> None:
    net = filled()
    path = saved(tmp_path / "m", net, format)
    before = files(tmp_path)
    for model in (empty(), copy.deepcopy(net)):
        for where in ({"": "disk"}, MAPS["mixed"], {"": "cpu"}):
            got = heft.dispatch(copy.deepcopy(model), where, path)
            for _ in range(2):
                assert torch.equal(run(got), run(net))
    with heft.open(path) as checkpoint:
        got = heft.dispatch(empty(), {"": "disk"}, checkpoint, offload_buffers=True)
        assert torch.equal(run(got), run(net))
    assert files(tmp_path) == before


def test_dispatch_errors(tmp_path: Path) -> None:
    net = filled()
    path = saved(tmp_path, net)
    changed = copy.deepcopy(net)
    with torch.no_grad():
        changed.layers[2].up.bias[3] += 1
    with pytest.raises(heft.MismatchError, match="layers.2.up.bias"):
        heft.dispatch(changed, {"": "disk"}, path)
    assert not hasattr(changed, "_hf_hook") and not any(p.device.type == "meta" for p in changed.parameters())
    st.save_file({"embed.weight": torch.ones(40, WIDTH)}, tmp_path / "part.safetensors")
    with pytest.raises(heft.MismatchError, match="layers.0.norm.weight"):
        heft.dispatch(empty(), {"": "disk"}, tmp_path / "part.safetensors")
    with pytest.raises(TypeError, match="checkpoint"):
        heft.dispatch(empty(), {"": "disk"})
    with pytest.raises(ValueError, match="doesn't have any device"):
        heft.dispatch(empty(), {"embed": "disk"}, path)
    with pytest.raises(heft.NotFoundError):
        heft.dispatch(empty(), {"": "disk"}, tmp_path / "none")
    plain = heft.dispatch(copy.deepcopy(net), {"": "cpu"})  # needs no checkpoint
    same(plain, accelerate.dispatch_model(copy.deepcopy(net), {"": "cpu"}))


def test_dispatch_by_a_plan(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, vocab_size=64
    )
    torch.manual_seed(0)
    transformers.BertForMaskedLM(config).eval().save_pretrained(tmp_path / "m")
    plan = heft.plan(tmp_path / "m", max_memory={"cpu": 60000}, strategy="auto")
    assert plan.fits and "disk" in plan.device_map.values()
    ids = torch.arange(8)[None]
    net = transformers.BertForMaskedLM.from_pretrained(tmp_path / "m")
    got = heft.dispatch(transformers.BertForMaskedLM.from_pretrained(tmp_path / "m"), plan)
    assert got.hf_device_map == plan.device_map
    assert torch.equal(got(ids).logits, net(ids).logits)
    with torch.device("meta"):
        bare = transformers.BertForMaskedLM(config)
    loads = [
        lambda: heft.load_checkpoint_and_dispatch(bare, tmp_path / "m", plan),
        lambda: heft.from_pretrained(transformers.BertForMaskedLM, tmp_path / "m", device_map=plan),
    ]
    for load in loads:
        other = load()
        assert other.hf_device_map == plan.device_map
        assert torch.equal(other.eval()(ids).logits, net(ids).logits)
    heft.save_pretrained(got, tmp_path / "saved", max_shard_size="50KB")
    got.save_pretrained(tmp_path / "theirs")
    for folder in ("saved", "theirs"):
        again = transformers.BertForMaskedLM.from_pretrained(tmp_path / folder).state_dict()
        assert all(torch.equal(v, again[k]) for k, v in net.state_dict().items())


# ---- from_pretrained() with modules on disk ----------------------------------------------------------------


def make_llama(folder: Path, tied: bool = False, **kw: object) -> object:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, vocab_size=64,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    net = transformers.LlamaForCausalLM(config).eval()
    net.save_pretrained(folder, **kw)
    return net


LLAMA = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "disk", "lm_head": "disk",
         **{f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(4)}}  # fmt: skip


@pytest.mark.parametrize("format", ["file", "shards", "bin"])
@pytest.mark.parametrize("tied", [False, True])
def test_from_pretrained_on_disk(tmp_path: Path, format: str, tied: bool) -> None:
    transformers = pytest.importorskip("transformers")
    net = make_llama(tmp_path / "m", tied, max_shard_size="20KB" if format == "shards" else "1GB")
    if format == "bin":
        torch.save(net.state_dict(), tmp_path / "m/pytorch_model.bin")
        (tmp_path / "m/model.safetensors").unlink()
    ids = torch.arange(8)[None]
    before = files(tmp_path)
    auto = transformers.AutoModelForCausalLM
    halved = auto.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
    other_way = LLAMA | {"lm_head": "cpu", "model.embed_tokens": "disk"}
    for where, dtype in ((LLAMA, "auto"), ({"": "disk"}, torch.bfloat16), (other_way, "auto"), ("auto", torch.bfloat16)):
        options = {"device_map": where, "dtype": dtype} | ({"max_memory": {"cpu": 60000}} if where == "auto" else {})
        got, info = heft.from_pretrained(auto, tmp_path / "m", output_loading_info=True, **options)
        assert not any(info.values())
        assert weights_of(got).counts["read_bytes"] == 0  # not read while it was loaded
        for _ in range(2):
            assert torch.equal(run(got, ids), run(net if dtype == "auto" else halved, ids))
        if format != "bin" and where == LLAMA and not tied:
            same(got, auto.from_pretrained(tmp_path / "m", **options))
    assert files(tmp_path) == before
    got = heft.from_pretrained(auto, tmp_path / "m", device_map={"": "disk"}, offload_folder=tmp_path / "never",
                               offload_buffers=True)  # fmt: skip
    assert torch.equal(run(got, ids), run(net, ids)) and not (tmp_path / "never").exists()
    heft.save_pretrained(got, tmp_path / "saved")
    again = auto.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(v, again[k]) for k, v in net.state_dict().items())
    plain = transformers.integrations.accelerate.dispatch_model
    assert plain is accelerate.dispatch_model  # put back


def test_from_pretrained_what_the_checkpoint_lacks(tmp_path: Path) -> None:
    """Weights that Transformers initializes or converts."""
    transformers = pytest.importorskip("transformers")
    make_llama(tmp_path / "m")
    auto = transformers.AutoModelForCausalLM
    state = st.load_file(tmp_path / "m/model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    st.save_file(state, tmp_path / "m/model.safetensors", {"format": "pt"})
    got, info = heft.from_pretrained(auto, tmp_path / "m", device_map=LLAMA, output_loading_info=True)
    assert info["missing_keys"] == {"model.layers.1.mlp.up_proj.weight"}
    ids = torch.arange(8)[None]
    assert torch.equal(run(got, ids), run(got, ids)) and run(got, ids).isfinite().all()
    config = transformers.MixtralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    net = transformers.MixtralForCausalLM(config).eval()
    net.save_pretrained(tmp_path / "moe")
    where = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "disk",
             "model.layers.0": "cpu", "model.layers.1": "disk"}  # fmt: skip
    with pytest.raises(ValueError, match="offload_folder"):
        heft.from_pretrained(auto, tmp_path / "moe", device_map=where)
    got = heft.from_pretrained(auto, tmp_path / "moe", device_map=where, offload_folder=tmp_path / "o")
    assert torch.equal(run(got, ids), run(net, ids))
    assert {f.name for f in (tmp_path / "o").iterdir()} == {
        f"model.layers.1.mlp.experts.{name}.safetensors" for name in ("gate_up_proj", "down_proj")
    }


@pytest.mark.parametrize("format", ["file", "bin"])
@pytest.mark.parametrize("tied", [False, True])
def test_from_pretrained_wrong_shapes_on_disk(tmp_path: Path, format: str, tied: bool) -> None:
    """As where nothing is on disk. Transformers itself loads what does not fit, and the first pass fails."""
    transformers = pytest.importorskip("transformers")
    make_llama(tmp_path / "m", tied)
    state = st.load_file(tmp_path / "m/model.safetensors")
    state["model.embed_tokens.weight"] = torch.ones(65, 32)
    state["model.layers.1.mlp.up_proj.weight"] = torch.ones(48, 31)
    st.save_file(state, tmp_path / "m/model.safetensors", {"format": "pt"})
    if format == "bin":
        torch.save(state, tmp_path / "m/pytorch_model.bin")
        (tmp_path / "m/model.safetensors").unlink()
    auto = transformers.AutoModelForCausalLM
    for where in ({"": "disk"}, LLAMA):
        results = [outcome(auto.from_pretrained, tmp_path / "m")]
        results.append(outcome(heft.from_pretrained, auto, tmp_path / "m", device_map=where))
        assert results[0] == results[1] and results[0][0] is RuntimeError
        options = {"ignore_mismatched_sizes": True, "output_loading_info": True}
        torch.manual_seed(7)
        wanted, info = auto.from_pretrained(tmp_path / "m", **options)
        torch.manual_seed(7)
        got, ours_info = heft.from_pretrained(auto, tmp_path / "m", device_map=where, **options)
        assert ours_info == info and len(info["mismatched_keys"]) == 2
        fresh = got.model.layers[1].mlp.up_proj._hf_hook.weights_map["weight"]
        assert torch.equal(fresh, wanted.model.layers[1].mlp.up_proj.weight) and weights_of(got).counts["read_bytes"] == 0
        ids = torch.arange(8)[None]
        for _ in range(2):
            assert torch.equal(run(got, ids), run(wanted, ids))
    assert sorted(files(tmp_path)) == sorted(f"m/{name}" for name in os.listdir(tmp_path / "m"))  # nothing was written


def test_from_pretrained_wrong_shapes_that_are_converted(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "m")
    state = st.load_file(tmp_path / "m/model.safetensors")
    state.update({name: torch.ones(40, 32) for name in state if ".w1." in name or ".w3." in name})
    st.save_file(state, tmp_path / "m/model.safetensors", {"format": "pt"})
    cls, options = transformers.MixtralForCausalLM, {"device_map": {"": "disk"}, "offload_folder": tmp_path / "o"}
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        heft.from_pretrained(cls, tmp_path / "m", **options)
    torch.manual_seed(7)
    wanted = cls.from_pretrained(tmp_path / "m", ignore_mismatched_sizes=True)
    torch.manual_seed(7)
    got = heft.from_pretrained(cls, tmp_path / "m", ignore_mismatched_sizes=True, **options)
    ids = torch.arange(8)[None]
    assert torch.equal(run(got, ids), run(wanted, ids))


def test_from_pretrained_tensors_that_a_map_names(tmp_path: Path) -> None:
    """XLNet's layers have weights of their own. Transformers leaves those on disk as they were made: random."""
    transformers = pytest.importorskip("transformers")
    config = transformers.XLNetConfig(d_model=32, n_layer=2, n_head=4, d_inner=48, vocab_size=64)
    torch.manual_seed(5)
    net = transformers.XLNetLMHeadModel(config).eval()
    net.save_pretrained(tmp_path / "m")
    options = {"device_map": "auto", "max_memory": {"cpu": 30000}, "offload_folder": tmp_path / "o"}
    got = heft.from_pretrained(type(net), tmp_path / "m", **options)
    inferred = type(net).from_pretrained(tmp_path / "m", **options).hf_device_map
    moved = [name for name, device in inferred.items() if device != got.hf_device_map[name]]
    assert moved and all(isinstance(net.get_parameter(name), nn.Parameter) for name in moved)
    assert "disk" in got.hf_device_map.values()
    ids = torch.arange(8)[None]
    assert torch.allclose(run(got, ids), run(net, ids), rtol=1e-5, atol=1e-6)
    own = net.state_dict()
    for name, value in got.named_parameters():
        assert value.device.type == "meta" or torch.equal(value, own[name]), name
