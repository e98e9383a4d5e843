"""Write casts.txt: what Tensor.copy_() of PyTorch makes of numbers at the edges, for every pair of dtypes.

    python generate.py > casts.txt

A line "from DTYPE BITS..." has the numbers; each line "to DTYPE BITS..." below it the results. BITS are those of a number, or of each
part of a complex number, in hexadecimal; "nan" is a NaN of any kind; "?" stands where PyTorch's own loops disagree with each other.
Complex numbers to real ones are left out: heft refuses them.
"""

import warnings

import torch

warnings.simplefilter("ignore")
INTEGERS = "int64 int32 int16 int8 uint8 uint16 uint32 uint64".split()
BYTE_FLOATS = "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu".split()
FLOATS = "float64 float32 float16 bfloat16".split() + BYTE_FLOATS
COMPLEX = "complex32 complex64 complex128".split()
PARTS = {"complex32": torch.float16, "complex64": torch.float32, "complex128": torch.float64}
VIEWS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
NAMES = INTEGERS + ["bool"] + FLOATS + COMPLEX

WHOLE = [0, 1, -1, 127, 128, -129, 255, 300, 2049, 65519, 65520, 16777217, 16842753, 2**31 - 1, -(2**31) - 1, 2**32 + 5, 2**53 + 1, 2**63 - 1, -(2**63)]
REAL = [0.0, -0.0, 0.75, -1.5, 2.5, 129.5, -300.7, 464.0, 480.0, 61440.0, 65519.99, 70000.0, -3e9, 5e9 + 1, 1e19, 1e20, -1e30, 3.4e38, 1e300, 1e-40, 3e-6]
REAL += [float("inf"), float("-inf"), float("nan")]


def numbers(name):
    dtype = getattr(torch, name)
    if name == "bool":
        return torch.tensor([False, True])
    if name in INTEGERS:
        return torch.tensor(WHOLE).to(dtype)
    reals = torch.tensor(REAL, dtype=torch.float64)
    if name in COMPLEX:
        return torch.stack([reals.to(PARTS[name]), reals.flip(0).to(PARTS[name])], 1).reshape(-1).view(dtype)
    return reals.to(dtype)


def parts(tensor, name):
    return tensor.view(PARTS[name]) if name in COMPLEX else tensor


def words(tensor, name):
    tensor = parts(tensor, name)
    width = tensor.element_size()
    nans = torch.isnan(tensor.to(torch.float64)) if name in FLOATS + COMPLEX else torch.zeros(tensor.numel(), dtype=torch.bool)
    bits = [b % (1 << (8 * width)) for b in tensor.view(VIEWS[width]).tolist()]
    return ["nan" if n else f"{b:0{2 * width}x}" for b, n in zip(bits, nans.tolist())]


def result(source, to, name):
    """By the loop for many elements and by that for one."""
    count = source.numel()
    many = torch.empty(count * 64, dtype=getattr(torch, to)).copy_(source.repeat_interleave(64))[::64].contiguous()
    ones = torch.cat([torch.empty(1, dtype=getattr(torch, to)).copy_(source[i : i + 1]) for i in range(count)])
    found = [m if m == o else "?" for m, o in zip(words(many, to), words(ones, to))]
    if to in INTEGERS and name in BYTE_FLOATS:  # a constant of the compiler, here and there
        found = ["?" if torch.isnan(s) else f for s, f in zip(source.to(torch.float32), found)]
    return found


print(f"# torch {torch.__version__}, tests/data/casts/generate.py")
for name in NAMES:
    source = numbers(name)
    print("from", name, *[f"{b:x}" for b in (x % (1 << (8 * parts(source, name).element_size())) for x in parts(source, name).view(VIEWS[parts(source, name).element_size()]).tolist())])
    for to in NAMES:
        if to != name and (name not in COMPLEX or to in COMPLEX):
            print("to", to, *result(source, to, name))
