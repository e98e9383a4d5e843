#!/usr/bin/env python3
"""A state dict in which some weights are tensors of a class that heft does not know, as torch.save writes it; without torch.

    objects.py SAFETENSORS BIN NAME...     float32 tensors; those that are named become such objects
"""
import collections
import io
import json
import pickle
import struct
import sys
import types
import zipfile


def stub(path, name):
    """A class of that name, for pickle to find."""
    for end in (k for k, c in enumerate(path + ".") if c == "."):  # those above it, too
        module = sys.modules.setdefault(path[:end], types.ModuleType(path[:end]))
    made = type(name, (), {"__module__": path})
    setattr(module, name, made)
    return made


REBUILD, STORAGE = stub("torch._utils", "_rebuild_tensor_v2"), stub("torch", "FloatStorage")
FROM_TYPE, WRAPPER = stub("torch._tensor", "_rebuild_from_type_v2"), stub("torch._utils", "_rebuild_wrapper_subclass")
PACKED = stub("library.tensors", "PackedTensor")
Key = collections.namedtuple("Key", "number count")


class Call:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return ("storage", STORAGE, str(obj.number), "cpu", obj.count) if isinstance(obj, Key) else None


def tensor(number, shape):
    strides, count = [], 1
    for side in reversed(shape):
        strides.insert(0, count)
        count *= side
    return Call(REBUILD, Key(number, count), 0, tuple(shape), tuple(strides), False, collections.OrderedDict())


def main():
    source, target, *names = sys.argv[1:]
    with open(source, "rb") as file:
        blob = file.read()
    length = struct.unpack("<Q", blob[:8])[0]
    header = json.loads(blob[8:8 + length])
    header.pop("__metadata__", None)
    state, parts = {}, []
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        one = tensor(len(parts), entry["shape"])
        parts.append(blob[8 + length + begin:8 + length + end])
        state[name] = Call(FROM_TYPE, WRAPPER, PACKED, (PACKED, one), {"inner": one}) if name in names else one
    out = io.BytesIO()
    Pickler(out, 2).dump(state)
    with zipfile.ZipFile(target, "w") as file:
        file.writestr("archive/data.pkl", out.getvalue())
        file.writestr("archive/version", "3\n")
        for number, part in enumerate(parts):
            file.writestr(f"archive/data/{number}", part)


if __name__ == "__main__":
    main()
