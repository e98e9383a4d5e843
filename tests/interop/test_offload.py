"""Accelerate's offload folders: theirs in heft, heft's in theirs, and models that run from what heft left on the disk."""

import copy
import filecmp
import json

import pytest
import torch
from accelerate import dispatch_model, init_empty_weights, load_checkpoint_and_dispatch
from accelerate.utils import OffloadedWeightsLoader, offload_state_dict, set_module_tensor_to_device
from helpers import assert_same, heft, load_bins, load_safetensors
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

HELD = """float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool complex64
    float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu""".split()
# what the safetensors library can read back
BOTH = [name for name in HELD if name != "float8_e8m0fnu"]


def noise(name, *shape, seed):
    dtype = getattr(torch, name)
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).to(torch.bool)
    width = torch.empty(0, dtype=dtype).element_size()
    count = 1
    for size in shape:
        count *= size
    return torch.randint(0, 256, (count * width,), dtype=torch.uint8, generator=generator).view(dtype).reshape(shape)


def sample(names):
    """Matrices, scalars and empty tensors of random bits: NaNs of all kinds, infinities, denormals."""
    tensors = {}
    for i, name in enumerate(names):
        tensors[f"{name}.weight"] = noise(name, 5, 7, seed=i)
        tensors[f"{name}.scalar"] = noise(name, 1, seed=100 + i).reshape(())
        tensors[f"{name}.empty"] = noise(name, 0, 3, seed=200 + i)
    return tensors


def same_folders(ours, theirs):
    assert sorted(p.name for p in ours.iterdir()) == sorted(p.name for p in theirs.iterdir())
    for file in ours.iterdir():
        assert filecmp.cmp(file, theirs / file.name, shallow=False), file.name


def by_loader(folder, but=()):
    loader = OffloadedWeightsLoader(save_folder=folder)
    return {name: loader[name] for name in loader if name not in but}


# ---- folders -----------------------------------------------------------------------------------------------------
def test_their_folder_becomes_a_checkpoint(tmp_path):
    tensors = sample(BOTH)
    offload_state_dict(tmp_path / "theirs", tensors)
    seen = heft("inspect", tmp_path / "theirs")
    assert seen["format"] == "offload"
    assert [t["name"] for t in seen["tensors"]] == list(tensors)  # the state dict's order
    assert heft("verify", tmp_path / "theirs")["ok"] is True
    heft("convert", tmp_path / "theirs", tmp_path / "st")
    assert_same(tensors, load_safetensors(tmp_path / "st"))
    heft("convert", tmp_path / "theirs", tmp_path / "bin", "--format", "bin")
    assert_same(tensors, load_bins(tmp_path / "bin"))


def test_our_folder_is_their_folder(tmp_path):
    tensors = sample(HELD)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    heft("convert", tmp_path / "pytorch_model.bin", tmp_path / "ours", "--format", "offload")
    offload_state_dict(tmp_path / "theirs", tensors)
    same_folders(tmp_path / "ours", tmp_path / "theirs")
    but = ["uint64.scalar"]  # which Accelerate writes and cannot read
    assert_same({n: t for n, t in tensors.items() if n not in but}, by_loader(tmp_path / "ours", but))
    heft("convert", tmp_path / "theirs", tmp_path / "again", "--format", "offload")
    same_folders(tmp_path / "again", tmp_path / "theirs")


def test_views_and_ties_are_written_as_theirs(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {"w": base, "tied": base, "turned": base.t(), "part": base[1:3, ::2], "n\u00e4me": base[0]}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    heft("convert", tmp_path / "pytorch_model.bin", tmp_path / "ours", "--format", "offload")
    offload_state_dict(tmp_path / "theirs", tensors)
    same_folders(tmp_path / "ours", tmp_path / "theirs")
    assert_same(tensors, by_loader(tmp_path / "ours"))


def test_entries_in_safetensors_files(tmp_path):
    """What Transformers' loader hands over: entries that point into a file, under another name."""
    tensors = {"a": noise("float32", 3, 4, seed=1), "b": noise("bfloat16", 5, seed=2)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    index = {f"model.{n}": {"safetensors_file": str(tmp_path / "model.safetensors"), "weight_name": n,
                            "dtype": str(t.dtype).removeprefix("torch.")} for n, t in tensors.items()}
    (tmp_path / "off").mkdir()
    (tmp_path / "off" / "index.json").write_text(json.dumps(index, indent=2))
    heft("convert", tmp_path / "off", tmp_path / "out")
    assert_same(by_loader(tmp_path / "off"), load_safetensors(tmp_path / "out"))


# ---- models ------------------------------------------------------------------------------------------------------
def llama(tied):
    return LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                       intermediate_size=48, max_position_embeddings=32, tie_word_embeddings=tied, pad_token_id=None)


def gpt2():
    return GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=32)


CONFIGS = {"llama": lambda: llama(False), "llama-tied": lambda: llama(True), "gpt2": gpt2}
IDS = torch.tensor([[1, 5, 9, 2, 33, 60]])


@pytest.fixture(scope="module", params=CONFIGS)
def saved(request, scratch):
    """A model as Transformers saves it, as .bin too, and what it says."""
    torch.manual_seed(0)
    config = CONFIGS[request.param]()
    model = AutoModelForCausalLM.from_config(config).eval()
    folder = scratch / f"offload-{request.param}"
    model.save_pretrained(folder)
    heft("convert", folder, f"{folder}-bin", "--format", "bin")
    with torch.no_grad():
        return config, folder, scratch / f"offload-{request.param}-bin", model(IDS).logits


def device_of(device_map, name):
    key = max((k for k in device_map if k == "" or name == k or name.startswith(k + ".")), key=len)
    return device_map[key]


def half_empty(config, device_map, weights):
    """The model with what the map has on the processor; the rest is on the meta device."""
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    for name, tensor in weights.items():
        if device_of(device_map, name) == "cpu":
            set_module_tensor_to_device(model, name, "cpu", value=tensor)
    model.tie_weights()
    return model.eval()


@pytest.mark.parametrize("memory", ["cpu=1KB,disk", "cpu=30KB,disk"])
@pytest.mark.parametrize("source", ["safetensors", "bin"])
@pytest.mark.parametrize("by", ["offload_dir", "offload_index"])
def test_a_model_runs_from_what_load_left_on_the_disk(saved, source, memory, by, tmp_path):
    config, safetensors, bins, expected = saved
    report = heft("load", safetensors if source == "safetensors" else bins, "--class", config.architectures[0],
                  "--device-map", "best", "--max-memory", memory, "--offload-folder", tmp_path / "off")
    device_map = report["device_map"]
    assert report["offload"]["files"] == (0 if source == "safetensors" else report["offload"]["entries"])
    weights = load_safetensors(safetensors)
    found = by_loader(tmp_path / "off")
    assert found and all(device_of(device_map, name) == "disk" for name in found)
    assert_same({n: t for n, t in weights.items() if device_of(device_map, n) == "disk"},
                {n: t for n, t in found.items() if n in weights})
    model = half_empty(config, device_map, weights)
    index = json.loads((tmp_path / "off" / "index.json").read_text())
    where = {"offload_dir": tmp_path / "off"}
    if by == "offload_index":
        where["offload_index"] = index
    model = dispatch_model(model, device_map, main_device="cpu", force_hooks=True, **where)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, expected)


def test_a_model_runs_from_weights_that_were_cast(saved, tmp_path):
    config, safetensors, _, _ = saved
    report = heft("load", safetensors, "--class", config.architectures[0], "--dtype", "bfloat16", "--device-map", "best",
                  "--max-memory", "cpu=1KB,disk", "--offload-folder", tmp_path / "off")
    assert report["offload"]["files"] == report["offload"]["entries"] > 0
    weights = {n: t.to(torch.bfloat16) for n, t in load_safetensors(safetensors).items()}
    found = by_loader(tmp_path / "off")
    assert_same({n: t for n, t in weights.items() if n in found}, {n: t for n, t in found.items() if n in weights})
    reference = AutoModelForCausalLM.from_pretrained(safetensors, dtype=torch.bfloat16).eval()
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.bfloat16)
    model.tie_weights()
    for name, tensor in weights.items():
        if name not in found:
            set_module_tensor_to_device(model, name, "cpu", value=tensor, dtype=torch.bfloat16)
    model.tie_weights()
    model = dispatch_model(model.eval(), report["device_map"], main_device="cpu", force_hooks=True, offload_dir=tmp_path / "off")
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, reference(IDS).logits)


def test_their_disk_offload_takes_our_folder_and_ours_theirs(saved, tmp_path):
    config, safetensors, _, expected = saved
    # theirs: load_checkpoint_and_dispatch writes the folder; heft reads it, and finds what it would write the same
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    device_map = heft("load", safetensors, "--class", config.architectures[0], "--device-map", "best", "--max-memory",
                      "cpu=30KB,disk")["device_map"]
    bins = f"{safetensors}-bin"
    model = load_checkpoint_and_dispatch(model, bins, device_map=device_map, offload_folder=str(tmp_path / "theirs"),
                                         force_hooks=True).eval()
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, expected)
    heft("convert", tmp_path / "theirs", tmp_path / "out")
    written = by_loader(tmp_path / "theirs")
    assert_same(written, load_safetensors(tmp_path / "out"))
    map_file = tmp_path / "map.json"
    map_file.write_text(json.dumps(device_map))
    kept = heft("load", bins, "--class", config.architectures[0], "--device-map", map_file, "--offload-folder", tmp_path / "theirs")
    assert kept["offload"]["kept"] is True
    # ours, whole: accelerate finds an index and uses it
    from accelerate import disk_offload

    heft("convert", safetensors, tmp_path / "ours", "--format", "offload")
    if not config.tie_word_embeddings:
        model = AutoModelForCausalLM.from_config(config).eval()  # other random values: those of the folder must win
        disk_offload(model, tmp_path / "ours", execution_device=torch.device("cpu"))
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, expected)


def test_parts_of_stacked_experts_have_files_of_their_own(tmp_path):
    """A checkpoint with Transformers' stacked experts: each expert is part of a tensor, which no entry can name."""
    from transformers import MixtralConfig

    config = MixtralConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                           intermediate_size=24, num_local_experts=3, max_position_embeddings=16)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "each")  # expert by expert
    (tmp_path / "stacked").mkdir()
    save_file({n: t.clone() for n, t in model.state_dict().items()}, tmp_path / "stacked" / "model.safetensors")
    (tmp_path / "stacked" / "config.json").write_text((tmp_path / "each" / "config.json").read_text())
    found = {}
    for name in ("each", "stacked"):
        report = heft("load", tmp_path / name, "--device-map", "best", "--max-memory", "cpu=0,disk", "--offload-folder", tmp_path / f"off-{name}")
        assert report["missing"] == report["unexpected"] == []
        found[name] = by_loader(tmp_path / f"off-{name}")
        assert (report["offload"]["files"] > 0) == (name == "stacked")
    assert_same(found["each"], found["stacked"])
    assert_same(load_safetensors(tmp_path / "each"), found["each"])
