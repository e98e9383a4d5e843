"""heft diff against PyTorch: which tensors of two checkpoints differ, and the numbers of those that do."""

import math

import pytest
import torch
from helpers import heft
from safetensors.torch import save_file

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def draw(dtype, shape, generator):
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).to(dtype)
    if dtype in INTEGERS:
        width = min(torch.iinfo(dtype).bits - 1, 50)
        return torch.randint(0, 2**width, shape, generator=generator).to(dtype)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def change(tensor, generator):
    """A copy with some other elements: one, or about a tenth, or all."""
    share = [1e-9, 0.1, 1.0][int(torch.randint(0, 3, (), generator=generator))]
    flat = tensor.flatten().clone()
    where = torch.rand(flat.shape, generator=generator) < share
    where[int(torch.randint(0, len(flat), (), generator=generator))] = True
    if tensor.dtype == torch.bool:
        return (flat ^ where).reshape(tensor.shape)
    if tensor.dtype in INTEGERS:
        noise = torch.randint(-3, 4, flat.shape, generator=generator)
        return torch.where(where, (flat.to(torch.int64) + noise).to(tensor.dtype), flat).reshape(tensor.shape)
    noise = torch.randn(flat.shape, generator=generator, dtype=torch.float64) / 8
    wide = flat.to(torch.float64)
    return torch.where(where, wide + noise, wide).to(tensor.dtype).reshape(tensor.shape)


def numbers(a, b):
    """max_abs, max_rel and cosine by PyTorch, in float64."""
    a, b = a.to(torch.float64).flatten(), b.to(torch.float64).flatten()
    apart, most = (a - b).abs(), torch.maximum(a.abs(), b.abs())
    rel = torch.where(most > 0, apart / most, torch.zeros_like(most))
    return apart.max().item(), rel.max().item(), (torch.dot(a, b) / (a.norm() * b.norm())).item()


def near(found, expected):
    return found is None if math.isnan(expected) else found is not None and math.isclose(found, expected, rel_tol=1e-12, abs_tol=1e-13)


@pytest.mark.parametrize("seed", range(4))
def test_random_changes(seed, tmp_path):
    generator = torch.Generator().manual_seed(seed)
    a, b, expected = {}, {}, {}
    for dtype in FLOATS + INTEGERS:
        for i, shape in enumerate([(), (7,), (33, 65), (2, 3, 4), (1000, 1500)]):
            name = f"{str(dtype).rpartition('.')[2]}.{i}"
            a[name] = draw(dtype, shape, generator)
            b[name] = change(a[name], generator) if torch.rand((), generator=generator) < 0.7 else a[name].clone()
            if dtype in FLOATS and torch.rand((), generator=generator) < 0.3:
                b[name] = b[name].to(FLOATS[int(torch.randint(0, len(FLOATS), (), generator=generator))])
            values = not torch.equal(a[name].to(torch.float64), b[name].to(torch.float64))
            what = [f"dtype {name.split('.')[0]} -> {str(b[name].dtype).rpartition('.')[2]}"] if b[name].dtype != dtype else []
            what += ["values"] if values else []
            if what:
                expected[name] = "; ".join(what), numbers(a[name], b[name])
    torch.save(a, tmp_path / "a.bin")
    save_file(b, tmp_path / "b.safetensors")
    told = heft("diff", tmp_path / "a.bin", tmp_path / "b.safetensors", expect=1)
    assert told["equal"] is False and told["added"] == [] and told["removed"] == []
    assert {c["name"] for c in told["changed"]} == set(expected) and len(expected) > 20
    for c in told["changed"]:
        what, (max_abs, max_rel, cosine) = expected[c["name"]]
        assert c["what"] == what, c
        assert c["max_abs"] == max_abs and c["max_rel"] == max_rel, (c, max_abs, max_rel)
        assert near(c["cosine"], cosine), (c, cosine)
    most = max(c["max_abs"] for c in told["changed"])
    left = heft("diff", tmp_path / "a.bin", tmp_path / "b.safetensors", "--tolerance", repr(most), expect=int(any("dtype" in e[0] for e in expected.values())))
    assert {c["name"] for c in left["changed"]} == {n for n, e in expected.items() if "dtype" in e[0]}
    assert all("values" not in c["what"] for c in left["changed"])


def test_views_and_ties(tmp_path):
    """Strided views of a .bin, and names that share a storage, against their copies in safetensors."""
    base = torch.arange(4000 * 300, dtype=torch.float32).reshape(4000, 300)
    views = {"t": base.t(), "part": base[10:20, 5:7], "steps": base[::3, ::2], "row": base[5], "tied": base, "again": base, "wide": base[:1].expand(50, 300)}
    torch.save(views, tmp_path / "views.bin")
    copies = {name: tensor.contiguous().clone() for name, tensor in views.items()}
    save_file(copies, tmp_path / "copies.safetensors")
    told = heft("diff", tmp_path / "views.bin", tmp_path / "copies.safetensors")
    assert told["equal"] is True and told["common"] == len(views)
    copies["t"][17, 3001] += 1
    copies["again"][3999, 299] = 0
    save_file(copies, tmp_path / "copies.safetensors")
    told = heft("diff", tmp_path / "copies.safetensors", tmp_path / "views.bin", expect=1)
    assert [(c["name"], c["max_abs"]) for c in told["changed"]] == [("again", 1199999.0), ("t", 1.0)]


def test_complex(tmp_path):
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(1000, dtype=torch.complex64, generator=generator)
    b = a + torch.randn(1000, dtype=torch.complex64, generator=generator) / 100
    torch.save({"z": a}, tmp_path / "a.bin")
    torch.save({"z": b.conj().resolve_conj().conj()}, tmp_path / "b.bin")  # a lazily conjugated view
    (found,) = heft("diff", tmp_path / "a.bin", tmp_path / "b.bin", expect=1)["changed"]
    x, y = a.to(torch.complex128), b.to(torch.complex128)
    assert near(found["max_abs"], (x - y).abs().max().item())
    assert near(found["max_rel"], ((x - y).abs() / torch.maximum(x.abs(), y.abs())).max().item())
    assert near(found["cosine"], (torch.vdot(x, y).real / (x.norm() * y.norm())).item())
