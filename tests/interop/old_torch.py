"""Run by the Python of an old PyTorch: print name, dtype, shape and SHA-256 of each tensor of .bin files as JSON."""

import hashlib
import json
import sys

import torch


def describe(tensor):
    tensor = tensor.detach().reshape(-1)
    shape = tensor.contiguous()
    if shape.dtype == torch.bool:
        shape = shape.to(torch.uint8)
    storage = shape.view(torch.uint8) if shape.numel() else torch.empty(0, dtype=torch.uint8)
    return hashlib.sha256(storage.numpy().tobytes()).hexdigest()


found = {}
for path in sys.argv[1:]:
    for name, tensor in torch.load(path, weights_only=True).items():
        found[name] = [str(tensor.dtype), list(tensor.shape), describe(tensor)]
print(json.dumps({"torch": torch.__version__, "tensors": found}))
