"""from_pretrained() and save_pretrained(), beside Transformers' own."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
st = pytest.importorskip("safetensors.torch")
import safetensors  # noqa: E402

import heft  # noqa: E402

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
}  # fmt: skip


def make(kind: str) -> transformers.PreTrainedModel:
    torch.manual_seed(3)
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=2))
    if kind == "llama, tied":
        config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True)
        return transformers.LlamaForCausalLM(config)
    if kind == "mixtral":
        config = transformers.MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4)
        return transformers.MixtralForCausalLM(config)
    if kind == "qwen moe":
        config = transformers.Qwen3MoeConfig(
            **SMALL, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
        )
        return transformers.Qwen3MoeForCausalLM(config)
    if kind == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64))
    if kind == "t5":
        config = transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=64)
        return transformers.T5ForConditionalGeneration(config)
    if kind == "vit":
        config = transformers.ViTConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8,
        )  # fmt: skip
        return transformers.ViTForImageClassification(config)
    raise AssertionError(kind)


KINDS = ["llama", "llama, tied", "mixtral", "qwen moe", "bert", "gpt2", "t5", "vit"]
AUTO = {
    "bert": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM", "vit": "AutoModelForImageClassification",
}  # fmt: skip


def saved(tmp_path: Path, kind: str, stored: str = "bfloat16", format: str = "safetensors", shards: bool = True) -> Path:
    folder = tmp_path / "model"
    model = make(kind).to(getattr(torch, stored))
    model.save_pretrained(folder, max_shard_size="20KB" if shards else "1GB")
    if format == "bin":
        state = {}
        for file in sorted(folder.glob("*.safetensors")):
            state |= st.load_file(file)
            file.unlink()
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        torch.save(state, folder / "pytorch_model.bin")
    return folder


def same_model(a: torch.nn.Module, b: torch.nn.Module) -> None:
    assert type(a) is type(b) and a.training == b.training
    x, y = (dict(m.named_parameters(remove_duplicate=False)) | dict(m.named_buffers()) for m in (a, b))
    assert list(x) == list(y)
    for name in x:
        assert type(x[name]) is type(y[name]) and x[name].requires_grad == y[name].requires_grad, name
        assert x[name].dtype == y[name].dtype and x[name].device == y[name].device, name
        assert x[name].device.type == "meta" or torch.equal(x[name], y[name]), name
    groups = [{k: [o for o in p if p[o] is p[k]] for k in p} for p in (x, y)]
    assert groups[0] == groups[1]  # ties
    assert a.config.to_dict() == b.config.to_dict()
    assert getattr(a, "generation_config", None) == getattr(b, "generation_config", None)
    assert getattr(a, "hf_device_map", None) == getattr(b, "hf_device_map", None)


def outcome(call, *args: object, **kw: object) -> object:
    try:
        return call(*args, **kw)
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["auto", "float32", torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_equals_transformers(tmp_path: Path, kind: str, dtype: object, format: str) -> None:
    folder = saved(tmp_path, kind, format=format)
    cls = type(make(kind))
    wanted, info = cls.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    got, ours = heft.from_pretrained(cls, folder, dtype=dtype, output_loading_info=True)
    same_model(got, wanted)
    assert ours == info
    assert not any(isinstance(p, heft._pretrained._Whole) for p in got.parameters())


@pytest.mark.parametrize("options", [{}, {"dtype": None}, {"torch_dtype": torch.float16}, {"torch_dtype": "float32"}])
def test_dtype_by_either_name_or_by_default(tmp_path: Path, options: dict[str, object]) -> None:
    folder = saved(tmp_path, "llama")
    for cls in (transformers.LlamaForCausalLM, transformers.AutoModelForCausalLM):
        same_model(heft.from_pretrained(cls, folder, **options), cls.from_pretrained(folder, **options))
    wanted = transformers.AutoConfig.from_pretrained(folder).to_dict()
    assert heft.from_pretrained(transformers.AutoConfig, folder).to_dict() == wanted  # anything that is made so


@pytest.mark.parametrize("kind", KINDS)
def test_auto_classes(tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path, kind, shards=False)
    auto = getattr(transformers, AUTO.get(kind, "AutoModelForCausalLM"))
    got = heft.from_pretrained(auto, str(folder))
    same_model(got, auto.from_pretrained(folder))
    assert got.name_or_path == str(folder)
    torch.manual_seed(7)  # some lack a pooler
    wanted = transformers.AutoModel.from_pretrained(folder)
    torch.manual_seed(7)
    same_model(heft.from_pretrained(transformers.AutoModel, folder), wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_share(tmp_path: Path, kind: str, format: str, caplog: pytest.LogCaptureFixture) -> None:
    """The shared copy gives the same model; who writes into it changes nobody else's."""
    folder = saved(tmp_path, kind, format=format)
    auto = getattr(transformers, AUTO.get(kind, "AutoModelForCausalLM"))
    wanted = auto.from_pretrained(folder, dtype=torch.float32)
    with caplog.at_level("WARNING", "heft"):
        got = heft.from_pretrained(auto, folder, dtype=torch.float32, share=True)
    same_model(got, wanted)
    told = [record.getMessage() for record in caplog.records if "private, not shared" in record.getMessage()]
    assert len(told) == (kind in ("mixtral", "qwen moe")), told
    with torch.no_grad():
        for parameter in got.parameters():
            parameter.add_(1)
    same_model(heft.from_pretrained(auto, folder, dtype=torch.float32, share=True), wanted)
    same_model(heft.from_pretrained(auto, folder, share=True), auto.from_pretrained(folder))


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_logits(tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path, kind)
    ids = torch.arange(8)[None]
    for options in ({}, {"dtype": torch.float32}, {"mode": "copy"}):
        got = heft.from_pretrained(transformers.AutoModelForCausalLM, folder, **options)
        options.pop("mode", None)
        wanted = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
        assert torch.equal(got(ids).logits, wanted(ids).logits)


@pytest.mark.parametrize("format", ["safetensors", "bin"])
@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "head"])
@pytest.mark.parametrize("ignore", [False, True])
def test_reports(tmp_path: Path, format: str, change: str, ignore: bool) -> None:
    folder = saved(tmp_path, "llama", format=format, shards=False)
    name = folder / ("model.safetensors" if format == "safetensors" else "pytorch_model.bin")
    state = st.load_file(name) if format == "safetensors" else torch.load(name)
    if change == "missing":
        del state["model.layers.1.mlp.up_proj.weight"]
    elif change == "unexpected":
        state["more.weight"] = torch.ones(3)
    elif change == "shape":
        state["model.norm.weight"] = torch.ones(31)
    else:
        del state["lm_head.weight"]
    st.save_file(state, name, {"format": "pt"}) if format == "safetensors" else torch.save(state, name)
    results = []
    for call in (transformers.AutoModelForCausalLM.from_pretrained, None):
        torch.manual_seed(5)
        options = {"output_loading_info": True, "ignore_mismatched_sizes": ignore, "dtype": torch.float32}
        if call is None:
            results.append(outcome(heft.from_pretrained, transformers.AutoModelForCausalLM, folder, **options))
        else:
            results.append(outcome(call, folder, **options))
    (a, info), (b, ours) = results
    assert ours == info
    if isinstance(a, torch.nn.Module):
        same_model(b, a)  # also what was initialized, from the same seed
    else:
        assert a is b is RuntimeError


def test_device_map_with_disk(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    ids = torch.arange(8)[None]
    for kind, format in (("llama", "safetensors"), ("llama", "bin"), ("llama, tied", "safetensors"),
                         ("mixtral", "safetensors"), ("mixtral", "bin")):  # fmt: skip
        folder = saved(tmp_path / f"{kind} {format}", kind, format=format)
        device_map = {"model.embed_tokens": "cpu", "lm_head": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu",
                      "model.layers.0": "cpu", "model.layers.1": "disk"}  # fmt: skip
        options = {"device_map": device_map, "dtype": torch.float32}
        got = heft.from_pretrained(
            transformers.AutoModelForCausalLM, folder, offload_folder=str(tmp_path / "a"), **options
        )
        wanted = transformers.AutoModelForCausalLM.from_pretrained(
            folder, offload_folder=str(tmp_path / "b"), **options
        )
        same_model(got, wanted)
        assert torch.equal(got(ids).logits, wanted(ids).logits)
        same_model(
            heft.from_pretrained(transformers.AutoModelForCausalLM, folder, device_map="cpu"),
            transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu"),
        )


@pytest.mark.parametrize("dtype", [torch.float32, "auto"])
def test_a_model_after_one_on_disk(tmp_path: Path, dtype: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that loads two models in one call: what the first leaves on disk is not the second's."""
    pytest.importorskip("accelerate")
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    auto = transformers.AutoModelForCausalLM

    class Pair:
        @classmethod
        def from_pretrained(cls, path: str, **options: object) -> tuple[object, object]:
            return auto.from_pretrained(path, dtype=dtype, **options), auto.from_pretrained(path, dtype=dtype)

    folder = saved(tmp_path, "llama")
    first, second = heft.from_pretrained(Pair, folder, device_map={"model": "disk", "lm_head": "cpu"})
    assert {value.device.type for value in first.model.parameters()} == {"meta"}
    same_model(second, auto.from_pretrained(folder, dtype=dtype))


def test_errors(tmp_path: Path) -> None:
    auto = transformers.AutoModelForCausalLM
    for path in (str(tmp_path), str(tmp_path / "none"), "nobody/nothing"):
        assert outcome(heft.from_pretrained, auto, path) == outcome(auto.from_pretrained, path)
    folder = saved(tmp_path, "llama", shards=False)
    for dtype in ("float33", 5):
        assert outcome(heft.from_pretrained, auto, folder, dtype=dtype) == outcome(
            auto.from_pretrained, folder, dtype=dtype
        )
    with pytest.raises(ValueError, match="mode"):
        heft.from_pretrained(auto, folder, mode="x")
    with pytest.raises(TypeError, match="from_pretrained"):
        heft.from_pretrained(int, folder)
    with pytest.raises(heft.RefusedError):
        heft.from_pretrained(auto, folder, weights_only=False)
    os.truncate(folder / "model.safetensors", 20000)
    with pytest.raises(heft.HeftError) as error:
        heft.from_pretrained(auto, folder)
    assert isinstance(error.value, safetensors.SafetensorError) and "model.safetensors" in str(error.value)
    assert outcome(auto.from_pretrained, folder)[0] is safetensors.SafetensorError
    assert safetensors.safe_open is not heft._patched.safe_open  # put back
    assert transformers.modeling_utils.load_state_dict is not heft._pretrained._load_state_dict


def test_refuses_code_in_bin(tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama", format="bin")

    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"a": torch.ones(1), "b": Attack()}, folder / "pytorch_model.bin")
    with pytest.raises(heft.HeftError):
        heft.from_pretrained(transformers.AutoModelForCausalLM, folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("mode", ["map", "copy"])
def test_memory(tmp_path: Path, mode: str) -> None:
    folder = saved(tmp_path, "llama", shards=False)
    maps = Path("/proc/self/maps").read_text
    model = heft.from_pretrained(transformers.AutoModelForCausalLM, folder, mode=mode)
    assert (str(folder) in maps()) == (mode == "map")
    content = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    assert (folder / "model.safetensors").read_bytes() == content
    del model, p
    assert str(folder) not in maps()
    model = heft.from_pretrained(transformers.AutoModelForCausalLM, folder, dtype=torch.float32)
    assert str(folder) not in maps()  # cast: nothing is left of the file


def test_subfolder_variant_and_keys(tmp_path: Path) -> None:
    model = make("llama")
    model.save_pretrained(tmp_path / "m/sub", variant="x")
    cls = transformers.LlamaForCausalLM
    options = {"subfolder": "sub", "variant": "x"}
    same_model(heft.from_pretrained(cls, tmp_path / "m", **options), cls.from_pretrained(tmp_path / "m", **options))
    got = heft.from_pretrained(cls, None, config=model.config, state_dict=model.state_dict())
    same_model(got, cls.from_pretrained(None, config=model.config, state_dict=model.state_dict()))


ODD = {
    "no metadata": lambda state, path: st.save_file(state, path),
    "other format": lambda state, path: st.save_file(state, path, {"format": "np"}),
    "float64": lambda state, path: st.save_file({k: v.double() for k, v in state.items()}, path, {"format": "pt"}),
    "mixed": lambda state, path: st.save_file(
        {k: v.half() if i % 2 else v.float() for i, (k, v) in enumerate(state.items())}, path, {"format": "pt"}
    ),
    "of a wrapper": lambda state, path: st.save_file(
        {"module." + k: v for k, v in state.items()}, path, {"format": "pt"}
    ),
    "position ids": lambda state, path: st.save_file(
        state | {"bert.embeddings.position_ids": torch.arange(512)[None]}, path, {"format": "pt"}
    ),
    "names of 2018": lambda state, path: torch.save(
        {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
         for k, v in state.items()}, path,
    ),
    "old pickle": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "parameters": lambda state, path: torch.save({k: torch.nn.Parameter(v) for k, v in state.items()}, path),
    "transposed": lambda state, path: torch.save({k: v.t().contiguous().t() if v.dim() == 2 else v
                                                  for k, v in state.items()}, path),
    "empty": lambda state, path: st.save_file({}, path, {"format": "pt"}),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_odd_files(tmp_path: Path, odd: str, dtype: str) -> None:
    folder = saved(tmp_path, "bert", shards=False)
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype")  # so that the dtype is looked for in the weights
    (folder / "config.json").write_text(json.dumps(config))
    state = st.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    pickle = odd in ("names of 2018", "old pickle", "parameters", "transposed")
    ODD[odd](state, folder / ("pytorch_model.bin" if pickle else "model.safetensors"))
    results = []
    for call in (transformers.AutoModelForMaskedLM.from_pretrained, heft.from_pretrained):
        torch.manual_seed(2)
        first = () if call is not heft.from_pretrained else (transformers.AutoModelForMaskedLM,)
        results.append(outcome(call, *first, folder, dtype=dtype, output_loading_info=True))
    (a, info), (b, ours) = results
    assert ours == info
    if isinstance(a, torch.nn.Module):
        same_model(b, a)
    else:
        assert a is b


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_sharded_bin(tmp_path: Path, dtype: str) -> None:
    folder = saved(tmp_path, "mixtral")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in folder.glob("*.safetensors"):
        torch.save(st.load_file(file), folder / file.name.replace("model", "pytorch_model").replace("safetensors", "bin"))
        file.unlink()
    index["weight_map"] = {
        k: v.replace("model", "pytorch_model").replace("safetensors", "bin") for k, v in index["weight_map"].items()
    }
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    cls = transformers.MixtralForCausalLM
    same_model(heft.from_pretrained(cls, folder, dtype=dtype), cls.from_pretrained(folder, dtype=dtype))


def test_other_threads_are_as_before(tmp_path: Path) -> None:
    """A block of heft's in one thread gives another thread's reader no tensors that are not plain."""
    folder = saved(tmp_path, "llama", shards=False)
    results, errors = [], []

    def read() -> None:
        try:
            for _ in range(20):
                with safetensors.safe_open(folder / "model.safetensors", "pt") as f:
                    assert type(f.get_slice("model.norm.weight")[...]) is torch.Tensor
        except BaseException as error:
            errors.append(error)

    def load() -> None:
        try:
            results.append(heft.from_pretrained(transformers.AutoModelForCausalLM, folder, dtype=torch.float32))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=target) for target in (read, load, load, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    same_model(*results)
    tied = make("llama, tied")  # Transformers is as before
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


class Turned(transformers.BertModel):
    """A class of PyTorch's ways: its buffer is made by the constructor alone, which Transformers 5 runs on meta."""

    def __init__(self, config: transformers.BertConfig) -> None:
        super().__init__(config)
        self.register_buffer("angles", torch.arange(4.0), persistent=False)
        self.extra = torch.nn.Parameter(torch.ones(3))


@pytest.mark.parametrize("mode", [{}, {"mode": "copy"}, {"share": True}])
def test_what_nothing_gives_a_value_is_named(
    tmp_path: Path, mode: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    """Transformers leaves it as its memory was, random, and says nothing of buffers. heft says which it is."""
    make("bert").bert.save_pretrained(tmp_path / "m")
    before = transformers.PreTrainedModel._move_missing_keys_from_meta_to_device
    got, info = heft.from_pretrained(Turned, tmp_path / "m", output_loading_info=True, dtype=torch.float16, **mode)
    assert info["missing_keys"] == {"extra"} | {k for k in got.state_dict() if k.startswith("pooler.")}
    told = [record.getMessage() for record in caplog.records if "random" in record.getMessage()]
    assert len(told) == 1 and sorted(told[0].rpartition(": ")[2].split(", ")) == ["angles", "extra"]
    caplog.clear()
    heft.from_pretrained(transformers.BertModel, tmp_path / "m")  # its pooler and its buffers are initialized
    Turned.from_pretrained(tmp_path / "m")
    assert not [record for record in caplog.records if "random" in record.getMessage()]
    assert transformers.PreTrainedModel._move_missing_keys_from_meta_to_device is before  # put back


# ---- save_pretrained -----------------------------------------------------------------------------------


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            state |= st.load_file(file)
        elif file.suffix == ".bin":
            state |= torch.load(file, weights_only=True)
    return state


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def others(folder: Path) -> dict[str, bytes]:
    return {
        f.name: f.read_bytes() for f in folder.iterdir() if f.suffix != ".safetensors" and "index" not in f.name
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [None, "20KB", 30000])
def test_save_equals_transformers(tmp_path: Path, kind: str, size: object) -> None:
    model = make(kind).to(torch.bfloat16)
    before = {k: v.data_ptr() for k, v in model.state_dict().items()}
    report = heft.save_pretrained(model, tmp_path / "ours", max_shard_size=size)
    model.save_pretrained(tmp_path / "theirs", **({} if size is None else {"max_shard_size": size}))
    assert before == {k: v.data_ptr() for k, v in model.state_dict().items()}
    assert equal(weights(tmp_path / "ours"), weights(tmp_path / "theirs"))
    assert others(tmp_path / "ours") == others(tmp_path / "theirs")
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) == len(report.files)
    for file in (tmp_path / "ours").glob("*.safetensors"):
        with safetensors.safe_open(file, "pt") as f:
            assert f.metadata() == {"format": "pt"}
            if isinstance(size, int):
                sizes = [f.get_tensor(k).nbytes for k in f.keys()]
                assert sum(sizes) <= size or len(sizes) == 1
    index, wanted = (tmp_path / w / "model.safetensors.index.json" for w in ("ours", "theirs"))
    assert index.exists() == wanted.exists() == (size is not None)
    if size is not None:
        a, b = json.loads(index.read_text()), json.loads(wanted.read_text())
        assert a["metadata"] == b["metadata"] and a["weight_map"].keys() == b["weight_map"].keys()
    got, wanted = (type(model).from_pretrained(tmp_path / which) for which in ("ours", "theirs"))
    got.config._name_or_path = wanted.config._name_or_path
    same_model(got, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [None, "20KB"])
def test_save_bin(tmp_path: Path, kind: str, size: object) -> None:
    model = make(kind)
    heft.save_pretrained(model, tmp_path / "bin", max_shard_size=size, format="bin")
    model.save_pretrained(tmp_path / "safe")
    assert not list((tmp_path / "bin").glob("*.safetensors"))
    assert (tmp_path / "bin/pytorch_model.bin.index.json").exists() == (size is not None)
    state, wanted = weights(tmp_path / "bin"), weights(tmp_path / "safe")
    assert equal({k: state[k] for k in wanted}, wanted)
    if kind not in ("mixtral", "qwen moe"):  # in the files' names, these are not the model's
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items() if k in state)
    if kind == "llama, tied" and size is None:
        assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
        assert make(kind).load_state_dict(state) is not None  # complete
    again = type(model).from_pretrained(tmp_path / "bin")
    same_model(again, heft.from_pretrained(type(model), tmp_path / "bin", dtype="auto"))
    assert equal(again.state_dict(), model.state_dict())


def test_save_over_another(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    make("llama").save_pretrained(folder, max_shard_size="20KB")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "mine").mkdir()
    model = make("llama, tied").to(torch.float16)
    heft.save_pretrained(model, str(folder), max_shard_size="30KB")
    assert (folder / "tokenizer.json").read_text() == "{}" and (folder / "mine").is_dir()
    got = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert equal(got.state_dict(), model.state_dict())
    named = set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values())
    assert {f.name for f in folder.glob("*.safetensors")} == named  # nothing of the old one is left
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"


def test_save_where_it_was_loaded_from(tmp_path: Path) -> None:
    """The tensors are mapped from the files that are replaced."""
    folder = saved(tmp_path, "llama")
    model = heft.from_pretrained(transformers.AutoModelForCausalLM, folder)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    wanted = {k: v.clone() for k, v in model.state_dict().items()}
    heft.save_pretrained(model, folder, max_shard_size="20KB")
    assert equal(model.state_dict(), wanted) and equal(weights(folder), wanted)


def test_save_is_whole_or_not(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    make("llama").save_pretrained(folder, max_shard_size="20KB")
    before = {f.name: f.read_bytes() for f in folder.iterdir()}

    def stop(*_args: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heft.save_pretrained(make("bert"), folder, progress=stop)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    assert transformers.modeling_utils.safe_save_file is st.save_file


def test_save_variant_and_state_dict(tmp_path: Path) -> None:
    model = make("llama")
    for what in (heft.save_pretrained, transformers.PreTrainedModel.save_pretrained):
        what(model, tmp_path / what.__module__, variant="fp16", state_dict=make("llama").half().state_dict())
    ours, theirs = (tmp_path / f.__module__ for f in (heft.save_pretrained, transformers.PreTrainedModel.save_pretrained))
    assert {f.name for f in ours.iterdir()} == {f.name for f in theirs.iterdir()}
    assert equal(weights(ours), weights(theirs))


def test_save_errors(tmp_path: Path) -> None:
    model = make("llama")
    with pytest.raises(ValueError, match="format"):
        heft.save_pretrained(model, tmp_path / "m", format="gguf")
    with pytest.raises(TypeError, match="save_file"):
        heft.save_pretrained(torch.nn.Linear(2, 2), tmp_path / "m")
    with pytest.raises(NotImplementedError, match="push_to_hub"):
        heft.save_pretrained(model, tmp_path / "m", push_to_hub=True)
    with pytest.raises(ValueError):
        heft.save_pretrained(model, tmp_path / "m", max_shard_size="many")
    assert not (tmp_path / "m").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError):
        heft.save_pretrained(model, tmp_path / "file")
    with torch.device("meta"):
        empty = make("llama")
    with pytest.raises(Exception, match="meta"):
        heft.save_pretrained(empty, tmp_path / "m")
    assert not (tmp_path / "m").exists() or not list((tmp_path / "m").iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("how", ["sparse", "quantized"])
def test_a_parameter_that_is_not_read_is_not_random(tmp_path: Path, how: str) -> None:
    folder, model = saved(tmp_path, "llama", "float32", "bin"), make("llama")
    if how == "quantized":
        state = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8).state_dict()
    else:
        state = {name: t.to_sparse() if "up_proj" in name else t for name, t in model.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(heft.UnsupportedError, match="of a kind that heft does not read") as caught:
        heft.from_pretrained(transformers.LlamaForCausalLM, folder)
    assert caught.value.item.startswith("model.layers.0.")
    # what is no parameter is left out as before
    torch.save({**make("llama").state_dict(), "table": torch.eye(3).to_sparse()}, folder / "pytorch_model.bin")
    heft.from_pretrained(transformers.LlamaForCausalLM, folder)
