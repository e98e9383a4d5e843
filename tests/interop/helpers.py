"""What the interoperability tests share: running the command, comparing bits, reading safetensors without the library."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import torch

HEFT = os.environ.get("HEFT", "heft")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
GUIDE = ROOT / "tests" / "data" / "guide"
BERT_CONFIG = ROOT / "examples" / "bert-base-cased" / "config.json"


def heft(*arguments, expect=0):
    """Run the command with --json; return the document. `expect` is the exit code."""
    command = [HEFT, *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == expect, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return json.loads(done.stdout)


def raw(tensor):
    """The bytes of a tensor laid out row by row, whatever its dtype; NaN payloads and negative zeros count."""
    tensor = tensor.detach().resolve_neg()
    if tensor.is_complex():
        tensor = tensor.resolve_conj()
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def digest(tensor):
    return hashlib.sha256(raw(tensor)).hexdigest()


def assert_same(expected, found):
    """Two dicts of tensors: the same names, dtypes, shapes and bits."""
    assert sorted(expected) == sorted(found)
    for name, tensor in expected.items():
        other = found[name]
        assert other.dtype == tensor.dtype, name
        assert tuple(other.shape) == tuple(tensor.shape), name
        assert raw(other) == raw(tensor), f"{name}: bits differ"


def read_safetensors(path):
    """name -> (dtype name, shape, bytes), and the metadata: the plain layout, without the library."""
    data = Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    body = data[8 + length :]
    return {n: (e["dtype"], e["shape"], body[e["data_offsets"][0] : e["data_offsets"][1]]) for n, e in header.items()}, metadata


def load_bins(folder):
    """All tensors of a folder's .bin files, each file read in both ways, which must agree."""
    tensors = {}
    files = sorted(Path(folder).glob("pytorch_model*.bin"))
    assert files, f"no .bin in {folder}"
    for file in files:
        eager = torch.load(file, weights_only=True)
        mapped = torch.load(file, weights_only=True, mmap=True)
        assert_same(eager, mapped)
        assert not set(eager) & set(tensors)
        tensors.update(eager)
    return tensors


def load_safetensors(folder):
    """All tensors of a folder's .safetensors files, by the library."""
    from safetensors.torch import load_file

    tensors = {}
    files = sorted(Path(folder).glob("model*.safetensors"))
    assert files, f"no .safetensors in {folder}"
    for file in files:
        tensors.update(load_file(file))
    return tensors


def load_pretrained(cls, folder):
    """from_pretrained, with nothing missing, unexpected or mismatched."""
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert not info.get("error_msgs"), info
    return model


def weight_map(folder):
    """The parsed index of a folder and its text."""
    index = next(Path(folder).glob("*.index.json"))
    text = index.read_text()
    return json.loads(text), text
