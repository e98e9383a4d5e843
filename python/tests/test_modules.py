"""load_sharded_checkpoint() and load_into(), beside Transformers and torch themselves."""

from __future__ import annotations

import copy
import json
import os
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
st = pytest.importorskip("safetensors.torch")
from torch import nn  # noqa: E402
from transformers.trainer_utils import load_sharded_checkpoint as theirs  # noqa: E402

import heft  # noqa: E402


def llama(tie: bool = False, **kw: object) -> transformers.PreTrainedModel:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, tie_word_embeddings=tie, **kw,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def shard(state: dict[str, torch.Tensor], folder: Path, kind: str = "safetensors", count: int = 3) -> Path:
    """Write shards and index, as old versions of Transformers did for .bin."""
    folder.mkdir(exist_ok=True)
    names = list(state)
    weight_map = {}
    base, ext = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    for i in range(count):
        file = f"{base}-{i + 1:05}-of-{count:05}.{ext}"
        part = {name: state[name].detach().clone() for name in names[i::count]}
        if kind == "bin":
            torch.save(part, folder / file)
        else:
            st.save_file(part, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = "model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json"
    size = sum(t.nbytes for t in state.values())
    (folder / index).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}))
    return folder


def as_dtype(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {k: v.detach().to(dtype) if v.is_floating_point() else v for k, v in state.items()}


def scrambled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    return model


def same_state(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(
        x[k].dtype == y[k].dtype and x[k].device == y[k].device and torch.equal(x[k], y[k]) for k in x
    )


def outcome(call, *args: object, **kw: object) -> object:
    try:
        return call(*args, **kw)
    except Exception as error:
        return type(error), str(error)


# ---- load_sharded_checkpoint ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("model_dtype", ["float32", "bfloat16"])
def test_sharded_equals_transformers(tmp_path: Path, kind: str, stored: str, model_dtype: str) -> None:
    source = llama()
    folder = shard(as_dtype(source.state_dict(), getattr(torch, stored)), tmp_path / "m", kind)
    a, b = (scrambled(llama().to(getattr(torch, model_dtype))) for _ in range(2))
    before = {name: p.data_ptr() for name, p in a.named_parameters()}
    assert heft.load_sharded_checkpoint(a, folder) == theirs(b, folder)
    assert same_state(a, b)
    assert before == {name: p.data_ptr() for name, p in a.named_parameters()}  # in place
    assert not same_state(a, scrambled(llama().to(getattr(torch, model_dtype))))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("change", ["missing", "unexpected", "both", "shape", "shape and names", "none"])
def test_sharded_reports_and_errors(tmp_path: Path, strict: bool, change: str) -> None:
    state = as_dtype(llama().state_dict(), torch.bfloat16)
    if change in ("missing", "both", "shape and names"):
        del state["lm_head.weight"], state["model.layers.1.mlp.up_proj.weight"]
    if change in ("unexpected", "both", "shape and names"):
        state["more.weight"] = torch.ones(3)
    if change.startswith("shape"):
        state["model.norm.weight"] = torch.ones(31)
    folder = shard(state, tmp_path / "m")
    a, b = scrambled(llama()), scrambled(llama())
    ours = outcome(heft.load_sharded_checkpoint, a, str(folder), strict)
    assert ours == outcome(theirs, b, str(folder), strict)
    if isinstance(ours, tuple) and isinstance(ours[0], type):
        assert same_state(a, scrambled(llama()))  # nothing was written
    else:
        assert same_state(a, b)


def test_sharded_names_all_wrong_shapes_before_it_writes(tmp_path: Path) -> None:
    state = llama().state_dict()
    for name in list(state):
        if name.endswith("norm.weight"):
            state[name] = torch.ones(5)
    folder = shard(state, tmp_path / "m")
    model = scrambled(llama())
    with pytest.raises(RuntimeError) as error:
        heft.load_sharded_checkpoint(model, folder)
    assert str(error.value).count("size mismatch") == 3 * 2 + 1 and "torch.Size([5])" in str(error.value)
    assert same_state(model, scrambled(llama()))


def test_sharded_without_index(tmp_path: Path) -> None:
    assert outcome(heft.load_sharded_checkpoint, llama(), str(tmp_path)) == outcome(theirs, llama(), str(tmp_path))
    st.save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    ours = outcome(heft.load_sharded_checkpoint, llama(), str(tmp_path))
    assert ours == outcome(theirs, llama(), str(tmp_path)) and ours[0] is ValueError


@pytest.mark.parametrize("prefer_safe", [True, False])
def test_sharded_prefers(tmp_path: Path, prefer_safe: bool) -> None:
    shard({k: torch.zeros_like(v) for k, v in llama().state_dict().items()}, tmp_path / "m", "bin")
    folder = shard({k: torch.ones_like(v) for k, v in llama().state_dict().items()}, tmp_path / "m")
    a, b = llama(), llama()
    assert heft.load_sharded_checkpoint(a, folder, prefer_safe=prefer_safe) == theirs(b, folder, True, prefer_safe)
    assert same_state(a, b) and float(a.lm_head.weight.detach().max()) == prefer_safe


@pytest.mark.parametrize("kept", ["lm_head.weight", "model.embed_tokens.weight"])
def test_sharded_counts_a_tie_under_either_name(tmp_path: Path, kept: str) -> None:
    source = llama(tie=True)
    state = dict(source.state_dict())
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        if name != kept:
            del state[name]
    folder = shard(state, tmp_path / "m")
    model = scrambled(llama(tie=True))
    assert heft.load_sharded_checkpoint(model, folder) == ([], [])
    assert same_state(model, source) and model.lm_head.weight is model.model.embed_tokens.weight


def test_sharded_marks_the_write_for_autograd(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    folder = shard(model.state_dict(), tmp_path / "m", count=2)
    loss = model(torch.ones(1, 2)).sum()
    heft.load_sharded_checkpoint(model, folder)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Renamed(nn.Module):
    """Loads what an older version of it saved."""

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.Linear(2, 3)
        self.register_load_state_dict_pre_hook(self.rename)

    def rename(self, _module, state, prefix, *_rest) -> None:
        for key in list(state):
            if key.startswith(prefix + "old."):
                state[key.replace("old.", "new.")] = state.pop(key)


ZOO = {
    "linear": lambda: nn.Linear(4, 3),
    "no bias": lambda: nn.Linear(4, 3, bias=False),
    "norms": lambda: nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4)),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "attention, other dims": lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True),
    "transformer": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False),
    "convolutions": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose1d(2, 2, 2), nn.PReLU()),
    "lstm": lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True),
    "embedding": lambda: nn.Sequential(nn.Embedding(7, 4, padding_idx=1), nn.EmbeddingBag(3, 2), nn.Bilinear(2, 2, 2)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
    "hooks": Renamed,
    "shared module": lambda: (lambda x: nn.Sequential(x, nn.ReLU(), x))(nn.Linear(3, 3)),
}


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_sharded_into_modules_of_torch(tmp_path: Path, name: str, stored: str) -> None:
    torch.manual_seed(0)
    a = ZOO[name]()
    b, source = copy.deepcopy(a), scrambled(ZOO[name]())
    folder = shard(as_dtype(source.state_dict(), getattr(torch, stored)), tmp_path / "m", count=1)
    assert heft.load_sharded_checkpoint(a, folder) == theirs(b, folder)
    assert same_state(a, b)
    if stored == "float32":
        assert same_state(a, source)


# ---- load_into -----------------------------------------------------------------------------------------


def on_meta(make) -> nn.Module:
    with torch.device("meta"):
        return make()


def no_meta(module: nn.Module) -> bool:
    return not any(t.device.type == "meta" for t in [*module.parameters(), *module.buffers()])


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("meta", [False, True])
def test_into_equals_load_state_dict(tmp_path: Path, name: str, stored: str, assign: bool, meta: bool) -> None:
    torch.manual_seed(0)
    a = on_meta(ZOO[name]) if meta else ZOO[name]()
    b, source = ZOO[name](), scrambled(ZOO[name]())
    grads = {k: p.requires_grad for k, p in a.named_parameters()}
    state = as_dtype(source.state_dict(), getattr(torch, stored))
    st.save_file({k: v.clone() for k, v in state.items()}, tmp_path / "x.safetensors")
    state = st.load_file(tmp_path / "x.safetensors")
    assert heft.load_into(a, tmp_path / "x.safetensors", assign=assign) == b.load_state_dict(state, assign=assign)
    assert same_state(a, b) and no_meta(a)
    assert grads == {k: p.requires_grad for k, p in a.named_parameters()}
    a.train()
    for p in a.parameters():  # writable, and the file does not change
        with torch.no_grad():
            p.mul_(0)
    assert all(torch.equal(v, state[k]) for k, v in st.load_file(tmp_path / "x.safetensors").items())


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "all"])
def test_into_reports_and_errors(tmp_path: Path, meta: bool, strict: bool, change: str) -> None:
    make = lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))  # noqa: E731
    torch.manual_seed(0)
    state = scrambled(make()).state_dict()
    if change in ("missing", "all"):
        del state["0.bias"], state["1.running_var"]
    if change in ("unexpected", "all"):
        state["x"] = torch.ones(1)
    if change in ("shape", "all"):
        state["2.weight"], state["2.bias"] = torch.ones(3, 3), torch.ones(3)
    st.save_file(dict(state), tmp_path / "x.safetensors")
    b = make()
    a = on_meta(make) if meta else copy.deepcopy(b)
    before = dict(a.state_dict(keep_vars=True))
    copies = {k: v.clone() for k, v in before.items()}
    ours = outcome(heft.load_into, a, tmp_path / "x.safetensors", strict)
    assert ours == outcome(b.load_state_dict, st.load_file(tmp_path / "x.safetensors"), strict)
    if isinstance(ours, heft._modules.LoadReport):
        assert no_meta(a)
        for name, value in a.state_dict().items():
            if name not in ours.missing_keys:
                assert torch.equal(value, b.state_dict()[name])
        assert ours.initialized == (["0.bias", "1.running_var"] if meta and change == "missing" else [])
        if meta and change == "missing":
            assert torch.equal(a[1].running_var, torch.ones(3)) and float(a[0].bias.detach().abs().max()) < 0.6
    else:
        assert all(v is before[k] for k, v in a.state_dict(keep_vars=True).items())
        assert meta or all(torch.equal(v, copies[k]) for k, v in a.state_dict().items())


class Scaled(nn.Module):
    """What only its constructor knows."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.full((2,), 0.5))


class Outer(nn.Module):
    """Initializes its modules itself, through ``.data``, and has a buffer that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.empty(2))
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.data.fill_(7)
            module.bias.data.zero_()
        if isinstance(module, Outer):
            module.scale.data.fill_(0.25)
            module.table = torch.arange(4.0)


def test_into_initializes_only_what_is_missing(tmp_path: Path) -> None:
    st.save_file({"proj.weight": torch.full((2, 2), 3.0)}, tmp_path / "x.safetensors")
    module = on_meta(Outer)
    report = heft.load_into(module, tmp_path / "x.safetensors", strict=False)
    assert report == (["scale", "proj.bias"], []) and sorted(report.initialized) == ["proj.bias", "scale", "table"]
    assert module.scale.tolist() == [0.25] * 2 and module.table.tolist() == [0, 1, 2, 3]
    assert module.proj.weight.tolist() == [[3.0] * 2] * 2 and module.proj.bias.tolist() == [0, 0]
    assert isinstance(module.scale, nn.Parameter) and "table" not in module.state_dict()


def test_into_fails_where_nothing_initializes(tmp_path: Path) -> None:
    st.save_file({"proj.weight": torch.ones(2, 2), "proj.bias": torch.ones(2)}, tmp_path / "x.safetensors")
    module = on_meta(Scaled)
    before = dict(module.named_parameters())
    with pytest.raises(heft.MismatchError, match="scale") as error:
        heft.load_into(module, tmp_path / "x.safetensors", strict=False)
    assert error.value.item == "scale"
    assert all(p is before[k] for k, p in module.named_parameters())  # as it was
    module = Scaled()
    assert heft.load_into(module, tmp_path / "x.safetensors", strict=False) == (["scale"], [])
    assert module.scale.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_into_a_model_of_transformers_on_meta(tmp_path: Path, tie: bool, stored: str) -> None:
    source = llama(tie).to(getattr(torch, stored))
    source.save_pretrained(tmp_path)
    model = on_meta(lambda: llama(tie))
    report = heft.load_into(model, tmp_path)
    assert report == ([], []) and no_meta(model)
    wanted = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert same_state(model, wanted)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tie
    for (name, a), (_, b) in zip(model.named_buffers(), wanted.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    ids = torch.arange(6)[None]
    assert torch.equal(model.eval()(ids).logits, wanted.eval()(ids).logits)


def test_into_a_model_of_transformers_that_lacks_a_head(tmp_path: Path) -> None:
    source = llama()
    source.model.save_pretrained(tmp_path / "base")
    state = {"model." + k: v for k, v in st.load_file(tmp_path / "base/model.safetensors").items()}
    st.save_file(state, tmp_path / "x.safetensors")
    model = on_meta(llama)
    report = heft.load_into(model, tmp_path / "x.safetensors", strict=False)
    assert report.missing_keys == ["lm_head.weight"] and "lm_head.weight" in report.initialized
    assert no_meta(model) and 0.01 < float(model.lm_head.weight.detach().std()) < 0.03  # initializer_range
    assert torch.equal(model.model.norm.weight, source.model.norm.weight)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("second", [1.0, 2.0])
def test_two_values_for_one_tensor_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sharded: bool, second: float
) -> None:
    model = llama(tie=True)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["lm_head.weight"] = torch.full_like(state["lm_head.weight"], second)
    state["model.embed_tokens.weight"] = torch.ones_like(state["lm_head.weight"])
    folder = shard(state, tmp_path / "m")
    caplog.set_level("WARNING", "heft")
    if sharded:
        heft.load_sharded_checkpoint(model, folder)
    else:
        heft.load_into(model, folder)
    assert float(model.lm_head.weight.detach().max()) == second
    expected = "'model.embed_tokens.weight' and 'lm_head.weight' have different values"
    assert [expected in record.message for record in caplog.records] == [True] * (second != 1.0)
    caplog.clear()
    if not sharded:
        heft.load_into(model, folder, assign=True)
        assert not caplog.records


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_into_keeps_ties_if_the_checkpoint_has_both_names(tmp_path: Path, meta: bool, stored: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
            self.b.weight = self.a.weight

    kind = getattr(torch, stored)
    state = {"a.weight": torch.ones(4, 3, dtype=kind), "b.weight": torch.full((4, 3), 2, dtype=kind)}
    st.save_file(state, tmp_path / "x.safetensors")
    module, wanted = on_meta(Tied) if meta else Tied(), Tied()
    assert heft.load_into(module, tmp_path / "x.safetensors") == wanted.load_state_dict(state)
    assert same_state(module, wanted) and module.a.weight is module.b.weight


def test_into_is_mapped_where_nothing_is_cast(tmp_path: Path) -> None:
    st.save_file({"weight": torch.ones(512, 512), "bias": torch.ones(512)}, tmp_path / "x.safetensors")
    module = on_meta(lambda: nn.Linear(512, 512))
    heft.load_into(module, tmp_path / "x.safetensors")
    maps = Path("/proc/self/maps").read_text
    assert str(tmp_path) in maps()
    del module
    assert str(tmp_path) not in maps()


def test_into_takes_bin_and_bytes_and_checkpoints(tmp_path: Path) -> None:
    source = nn.Linear(2, 2)
    torch.save(source.state_dict(), tmp_path / "x.bin")
    for what in (tmp_path / "x.bin", (tmp_path / "x.bin").read_bytes(), heft.open(tmp_path / "x.bin")):
        module = on_meta(lambda: nn.Linear(2, 2))
        assert heft.load_into(module, what) == ([], [])
        assert same_state(module, source)


def test_into_a_frozen_expanded_and_lazy_parameter(tmp_path: Path) -> None:
    st.save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "x.safetensors")
    module = nn.Linear(2, 2)
    module.weight = nn.Parameter(torch.zeros(2, 2).t(), requires_grad=False)  # not contiguous
    heft.load_into(module, tmp_path / "x.safetensors")
    assert module.weight.tolist() == [[1, 1], [1, 1]] and not module.weight.requires_grad
    lazy = nn.LazyLinear(2)  # gets its shape from the file, as in torch
    assert heft.load_into(lazy, tmp_path / "x.safetensors") == ([], [])
    assert lazy(torch.ones(1, 2)).tolist() == [[3, 3]]


@pytest.mark.parametrize("place", ["memory", "meta", "assign", "sharded"])
def test_one_number_in_a_list_is_a_scalar(place: str, tmp_path: Path) -> None:
    """As PyTorch 0.3 saved scalars: torch takes them still."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.zeros(2))
            self.scale = nn.Parameter(torch.tensor(0.0))
            self.register_buffer("count", torch.tensor(0))

    state = {"a": torch.ones(2), "scale": torch.tensor([2.5]), "count": torch.tensor([7])}
    folder = shard(state, tmp_path / "m", count=1)
    module, expected = on_meta(Scaled) if place == "meta" else Scaled(), Scaled()
    expected.load_state_dict(state)
    if place == "sharded":
        heft.load_sharded_checkpoint(module, folder)
    else:
        heft.load_into(module, folder, assign=place == "assign")
    assert same_state(module, expected)
    assert [value.shape for value in module.state_dict().values()] == [(2,), (), ()]


class _Versioned(nn.Module):
    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def _load_from_state_dict(self, state: dict[str, torch.Tensor], prefix: str, facts: dict[str, int], *args: object) -> None:
        if facts.get("version") is None or facts["version"] < 2:
            state[prefix + "weight"] = state[prefix + "weight"] * 10
        super()._load_from_state_dict(state, prefix, facts, *args)


@pytest.mark.parametrize("version", [None, 1, 2, 3])
@pytest.mark.parametrize("form", ["zip", "legacy", "inside", "converted"])
def test_versions_of_modules(form: str, version: int | None, tmp_path: Path) -> None:
    """A state dict says which version of a class saved it, and a module goes by that."""
    path, made = tmp_path / "x.bin", nn.Sequential(_Versioned())
    nn.init.ones_(made[0].weight)
    state = made.state_dict()
    if version is None:
        state = dict(state)
    else:
        state._metadata["0"]["version"] = version
    torch.save({"epoch": 3, "state_dict": state} if form == "inside" else state, path, _use_new_zipfile_serialization=form != "legacy")
    if form == "converted":
        heft.convert(path, tmp_path / "again", format="bin")
        path = tmp_path / "again" / "pytorch_model.bin"
    expected, module, again = (nn.Sequential(_Versioned()) for _ in range(3))
    expected.load_state_dict(state)
    heft.load_into(module, path)
    loaded = heft.torch.load(path)
    again.load_state_dict(loaded["state_dict"] if form == "inside" else loaded)
    assert same_state(module, expected) and same_state(again, expected)
    assert heft.open(path).modules == ({} if version is None else {"": 1, "0": version})


class _Growing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()

    def _load_from_state_dict(self, state: dict[str, torch.Tensor], prefix: str, *args: object) -> None:
        while len(self.layers) < len({key.split(".")[1] for key in state}):
            self.layers.append(nn.Linear(1, 1))
        super()._load_from_state_dict(state, prefix, *args)


class _Looking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("version", torch.tensor(0))

    def _load_from_state_dict(self, state: dict[str, torch.Tensor], prefix: str, *args: object) -> None:
        if int(state[prefix + "version"]) < 2:
            state[prefix + "weight"] = state[prefix + "weight"] * 10
        super()._load_from_state_dict(state, prefix, *args)


class _Replacing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def _load_from_state_dict(self, state: dict[str, torch.Tensor], prefix: str, *args: object) -> None:
        self.weight = nn.Parameter(torch.zeros(state[prefix + "weight"].shape))
        super()._load_from_state_dict(state, prefix, *args)


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (_Growing, {"layers.0.weight": torch.ones(1, 1), "layers.0.bias": torch.ones(1)}),
        (_Looking, {"weight": torch.ones(1), "version": torch.tensor(1)}),
        (_Replacing, {"weight": torch.arange(3.0)}),
    ],
)
def test_code_of_a_module_that_needs_values(make: type[nn.Module], state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    st.save_file(state, tmp_path / "x.safetensors")
    module, expected = make(), make()
    expected.load_state_dict(dict(state))
    assert heft.load_into(module, tmp_path / "x.safetensors") == ([], [])
    assert same_state(module, expected)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*x\.more"):
        st.save_file({**state, "x.more": torch.ones(1)}, tmp_path / "y.safetensors")
        heft.load_into(make(), tmp_path / "y.safetensors")


def test_errors_of_files(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0{}   ")
    (tmp_path / "y.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(heft.HeftError):
        heft.load_into(nn.Linear(2, 2), tmp_path / "y.safetensors")
    with pytest.raises(FileNotFoundError):
        heft.load_into(nn.Linear(2, 2), tmp_path / "none.safetensors")
    folder = shard(llama().state_dict(), tmp_path / "m")
    os.truncate(folder / "model-00002-of-00003.safetensors", 5000)
    model = scrambled(llama())
    with pytest.raises(heft.HeftError) as error:
        heft.load_sharded_checkpoint(model, folder)
    assert "model-00002" in error.value.path and same_state(model, scrambled(llama()))


def test_meta_is_warned_of_as_by_torch(tmp_path: Path) -> None:
    folder = shard(nn.Linear(2, 2).state_dict(), tmp_path / "m", count=1)
    with warnings.catch_warnings(record=True) as ours:
        warnings.simplefilter("always")
        heft.load_sharded_checkpoint(on_meta(lambda: nn.Linear(2, 2)), folder)
    with warnings.catch_warnings(record=True) as wanted:
        warnings.simplefilter("always")
        theirs(on_meta(lambda: nn.Linear(2, 2)), folder)
    assert [str(w.message) for w in ours] == [str(w.message) for w in wanted] and len(ours) == 2
