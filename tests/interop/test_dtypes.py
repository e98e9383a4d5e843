"""Every dtype and every odd tensor that PyTorch can make: through heft, into the other format, and back, bit by bit."""

import json
import subprocess
from collections import OrderedDict

import pytest
import torch
from helpers import HERE, assert_same, digest, heft, load_bins, load_safetensors, raw, read_safetensors
from safetensors.torch import save_file

# those that the safetensors library can write, and those that only a .bin can hold
BOTH = """float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool complex64
    float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz""".split()
# written by the library, but not read back by it: compared by their bytes
WRITTEN_ONLY = ["float8_e8m0fnu", "float4_e2m1fn_x2"]
BIN_ONLY = ["complex32", "complex128", "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"]


def noise(dtype, *shape, seed=0):
    """A tensor of random bits: NaNs of all kinds, infinities, denormals."""
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).to(torch.bool)
    width = torch.empty(0, dtype=dtype).element_size()
    count = 1
    for size in shape:
        count *= size
    bytes_ = torch.randint(0, 256, (count * width,), dtype=torch.uint8, generator=generator)
    return bytes_.view(dtype).reshape(shape)


def sample(name):
    if name == "float4_e2m1fn_x2":  # two values a byte: safetensors counts values and wants whole bytes
        return {"w": noise(name, 4, 8)}
    return {"w": noise(name, 5, 7), "scalar": noise(name, 1).reshape(()), "empty": noise(name, 0, 3)}


def one_of_each(names):
    return {f"{name}.weight": noise(name, 5, 7, seed=i) for i, name in enumerate(names)}


def untied(tensors):
    """Copies on storages of their own, as the safetensors library wants them."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", BOTH + WRITTEN_ONLY)
def test_bin_to_safetensors(name, tmp_path):
    tensors = sample(name)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    heft("convert", tmp_path / "pytorch_model.bin", tmp_path / "out", "--format", "safetensors")
    save_file(untied(tensors), tmp_path / "reference.safetensors", metadata={"format": "pt"})
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert written == (tmp_path / "reference.safetensors").read_bytes()
    if name in BOTH:
        assert_same(tensors, load_safetensors(tmp_path / "out"))


@pytest.mark.parametrize("name", BOTH + WRITTEN_ONLY)
def test_safetensors_to_bin(name, tmp_path):
    tensors = sample(name)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    heft("convert", tmp_path / "model.safetensors", tmp_path / "out", "--format", "bin")
    assert_same(tensors, load_bins(tmp_path / "out"))


@pytest.mark.parametrize("name", BIN_ONLY)
def test_bin_only_dtype(name, tmp_path):
    """Kept in a .bin, refused for a safetensors file, which has no name for it."""
    tensors = {"w": noise(name, 5, 7)}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    heft("convert", tmp_path / "pytorch_model.bin", tmp_path / "out", "--format", "bin")
    found = load_bins(tmp_path / "out")["w"]
    assert (found.dtype, found.shape) == (tensors["w"].dtype, tensors["w"].shape)
    assert raw_storage(found) == raw_storage(tensors["w"])
    command_fails(tmp_path, "--format", "safetensors")
    assert not (tmp_path / "no").exists() or not list((tmp_path / "no").iterdir())


def raw_storage(tensor):
    return bytes(tensor.untyped_storage())


def command_fails(tmp_path, *options):
    from helpers import HEFT

    done = subprocess.run(
        [HEFT, "convert", tmp_path / "pytorch_model.bin", tmp_path / "no", *options], capture_output=True, text=True
    )
    assert done.returncode in (2, 7), done
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_all_dtypes_in_one_file(tmp_path):
    """The order in the file is by dtype, then by name, as the safetensors library writes it."""
    tensors = one_of_each(BOTH)
    shuffled = dict(sorted(tensors.items(), key=lambda item: item[0][::-1]))
    torch.save(shuffled, tmp_path / "pytorch_model.bin")
    heft("convert", tmp_path / "pytorch_model.bin", tmp_path / "out", "--format", "safetensors")
    save_file(tensors, tmp_path / "reference.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "reference.safetensors").read_bytes()
    heft("convert", tmp_path / "out", tmp_path / "back", "--format", "bin")
    assert_same(tensors, load_bins(tmp_path / "back"))


def test_names_that_need_escapes(tmp_path):
    tensors = {n: noise("float32", 3, seed=i) for i, n in enumerate(["a", "ä.weight", "名前", 'quo"te', "back\\slash", "tab\t", "🙂"])}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    heft("convert", tmp_path / "model.safetensors", tmp_path / "bin", "--format", "bin")
    assert_same(tensors, load_bins(tmp_path / "bin"))
    heft("convert", tmp_path / "bin", tmp_path / "back", "--format", "safetensors")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_views(tmp_path):
    """Tensors that are not laid out row by row come out row by row in safetensors, with the same values."""
    base = noise("float32", 6, 8)
    tensors = {
        "transposed": base.clone().t(),
        "every_other": base.clone()[:, ::2],
        "inner": base.clone()[2:4, 3:5],
        "expanded": noise("int64", 1, 4).expand(3, 4),
        "permuted": noise("float16", 2, 3, 4).permute(2, 0, 1),
        "scalar_view": base.clone()[5, 7],
        "empty": torch.empty(0, dtype=torch.float32),
        "empty_2d": torch.empty(2, 0, 3, dtype=torch.bfloat16),
    }
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    heft("convert", tmp_path / "pytorch_model.bin", tmp_path / "out", "--format", "safetensors")
    assert_same(tensors, load_safetensors(tmp_path / "out"))
    save_file(untied(tensors), tmp_path / "reference.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "reference.safetensors").read_bytes()
    heft("convert", tmp_path / "pytorch_model.bin", tmp_path / "bin", "--format", "bin")
    assert_same(tensors, load_bins(tmp_path / "bin"))


def test_conjugated_and_negated_views(tmp_path):
    tensors = {"conj": noise("float32", 2, 6).view(torch.complex64).conj(), "plain": noise("float32", 2)}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    heft("convert", tmp_path / "pytorch_model.bin", tmp_path / "out", "--format", "safetensors")
    found = load_safetensors(tmp_path / "out")
    assert raw(found["conj"]) == raw(tensors["conj"].resolve_conj())


def test_tied_tensors(tmp_path):
    """Two names on one storage stay so in a .bin; in safetensors no value is lost."""
    shared = noise("float32", 10, 4)
    whole = noise("float32", 8, 4)
    tensors = {"a": shared, "b": shared, "c": shared.view(4, 10), "first": whole[:4], "last": whole[4:], "alone": noise("int8", 3)}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    heft("convert", tmp_path / "pytorch_model.bin", tmp_path / "bin", "--format", "bin")
    found = torch.load(tmp_path / "bin" / "pytorch_model.bin", weights_only=True)
    assert_same(tensors, found)
    assert len({found[n].untyped_storage().data_ptr() for n in "abc"}) == 1, "the tie is lost"
    seen = heft("inspect", tmp_path / "pytorch_model.bin")
    assert any({"a", "b"} <= set(group) for group in seen["tied"])
    heft("convert", tmp_path / "pytorch_model.bin", tmp_path / "out", "--format", "safetensors")
    found = load_safetensors(tmp_path / "out")
    assert {"first", "last", "alone"} <= set(found) and set("abc") & set(found)
    assert_same({n: tensors[n] for n in found}, found)


def test_parameters_and_metadata(tmp_path):
    """An nn.Module's state dict is an OrderedDict with a _metadata attribute that is no tensor."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    state = module.state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    parameters = OrderedDict(module.named_parameters())
    torch.save(parameters, tmp_path / "parameters.bin")
    heft("convert", tmp_path / "pytorch_model.bin", tmp_path / "out", "--format", "safetensors")
    assert_same(dict(state), load_safetensors(tmp_path / "out"))
    heft("convert", tmp_path / "parameters.bin", tmp_path / "parameters", "--format", "safetensors")
    assert_same({n: p.detach() for n, p in parameters.items()}, load_safetensors(tmp_path / "parameters"))
    heft("convert", tmp_path / "pytorch_model.bin", tmp_path / "bin", "--format", "bin")
    module.load_state_dict(torch.load(tmp_path / "bin" / "pytorch_model.bin", weights_only=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_casts_round_as_torch_does(dtype, tmp_path):
    source = {
        "f32": torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, 65504.0, 65519.9, 65520.0, 1e-8, 6e-8, 3e38, float("inf"), -float("inf")])]),
        "f16": noise("int16", 4096).view(torch.float16).nan_to_num(),
        "bf16": noise("int16", 4096, seed=3).view(torch.bfloat16).nan_to_num(),
        "ids": torch.arange(5),
    }
    save_file(source, tmp_path / "model.safetensors", metadata={"format": "pt"})
    heft("convert", tmp_path / "model.safetensors", tmp_path / "out", "--dtype", dtype)
    target = getattr(torch, dtype)
    expected = {n: t.to(target) if t.is_floating_point() else t for n, t in source.items()}
    assert_same(expected, load_safetensors(tmp_path / "out"))


def test_old_torch_reads_every_old_dtype(old_torch, tmp_path):
    """What PyTorch 1.13 knew, written by heft, opened there with weights_only=True."""
    names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64".split()
    tensors = one_of_each(names) | {"scalar": torch.tensor(3.0), "empty": torch.empty(0, 2)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    heft("convert", tmp_path / "model.safetensors", tmp_path / "out", "--format", "bin")
    done = subprocess.run(
        [old_torch, HERE / "old_torch.py", tmp_path / "out" / "pytorch_model.bin"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["torch"].startswith("1.13")
    assert found["tensors"] == {n: [str(t.dtype), list(t.shape), digest(t)] for n, t in tensors.items()}


def test_metadata_is_kept(tmp_path):
    save_file({"w": noise("float32", 3)}, tmp_path / "model.safetensors", metadata={"format": "pt", "note": "a \"b\"\n"})
    heft("convert", tmp_path / "model.safetensors", tmp_path / "out")
    tensors, metadata = read_safetensors(tmp_path / "out" / "model.safetensors")
    assert metadata["format"] == "pt" and list(tensors) == ["w"]
