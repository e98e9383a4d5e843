"""The blocks of Python in the documentation are run, and those of a pair have the same results."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
NEEDED = ("accelerate", "diffusers", "huggingface_hub", "peft", "safetensors", "sentence_transformers", "transformers")


class Snippet(NamedTuple):
    """Blocks that belong together: one, or what is used today and what to write."""

    line: int
    title: str
    blocks: list[str]


def snippets(path: Path) -> list[Snippet]:
    """Return the blocks of a page; one that starts with "# you use" goes with the next one."""
    found: list[Snippet] = []
    title, text = "", path.read_text()
    for match in re.finditer(r"^#+ (?P<title>[^\n]+)$|^```python\n(?P<code>.*?)^```$", text, re.M | re.S):
        if match["title"]:
            title = match["title"]
            continue
        code: str = match["code"]
        if code.startswith("# write"):
            assert found and found[-1].blocks[-1].startswith("# you use"), f"{path}: {title}: nothing before '# write'"
            found[-1].blocks.append(code)
        else:
            found.append(Snippet(text.count("\n", 0, match.start()) + 2, title, [code]))
    return found


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal, element by element."""
    if isinstance(a, torch.nn.Module):
        return isinstance(b, torch.nn.Module) and same(dict(a.state_dict()), dict(b.state_dict()))
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and (
            a.device == b.device and (a.device.type == "meta" or torch.equal(a, b))
        )  # fmt: skip
    if type(a).__module__ == "numpy":
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if hasattr(a, "items") and hasattr(b, "items"):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


def compared(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The names of results that both blocks have."""
    plain = (torch.nn.Module, torch.Tensor, dict, list, tuple, set, bytes, str, int)
    names = [name for name in a if name in b and not name.startswith("_")]
    return [name for name in names if isinstance(a[name], plain) or type(a[name]).__module__ == "numpy"]


def written(place: Path, models: Path) -> dict[str, Any]:
    """The bytes of the weight files, and the content of the indexes, that a block made."""
    files = [path for path in place.rglob("*") if path.name.endswith((".safetensors", ".index.json"))]
    new = [path for path in files if not (models / path.relative_to(place)).exists()]
    return {
        str(path.relative_to(place)): json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()
        for path in new
    }


def run(code: str, title: str, place: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    shutil.copytree(models, place)
    monkeypatch.chdir(place)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, title, "exec"), names)  # noqa: S102
    return names


PAGES = {name: snippets(ROOT / name) for name in ("docs/python.md", "README.md", "python/README.md") if (ROOT / name).exists()}
ALL = [(name, snippet) for name, page in PAGES.items() for snippet in page]


@pytest.mark.parametrize(("page", "snippet"), ALL, ids=[f"{name}:{snippet.line}: {snippet.title}" for name, snippet in ALL])
def test_snippets(
    page: str,
    snippet: Snippet,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    used = set(re.findall(r"^(?:from|import) (\w+)", "\n".join(snippet.blocks), re.M))
    lacking = sorted(name for name in used if name in NEEDED and not importlib.util.find_spec(name))
    if lacking:
        pytest.skip(f"{', '.join(lacking)}: not installed")
    results = [
        run(code, f"{page}:{snippet.line}", tmp_path / str(i), models, monkeypatch)
        for i, code in enumerate(snippet.blocks)
    ]
    if len(results) == 2:
        names = compared(*results)
        assert names, "the blocks have no result in common"
        assert [name for name in names if not same(results[0][name], results[1][name])] == []
        files = [written(tmp_path / str(i), models) for i in range(2)]
        assert files[0].keys() == files[1].keys()
        assert [name for name in files[0] if files[0][name] != files[1][name]] == []


def test_pairs_are_complete() -> None:
    """Each "you use" has its "write", and each library that the page is about has a pair."""
    pairs = [snippet for snippet in PAGES["docs/python.md"] if snippet.blocks[0].startswith("# you use")]
    assert [s.title for s in pairs if len(s.blocks) != 2] == []
    text = "".join(s.blocks[0] for s in pairs)
    assert [name for name in NEEDED if f"{name}" not in text] == []


def test_table_links_to_sections() -> None:
    text = (ROOT / "docs/python.md").read_text()
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    links = re.findall(r"\]\(#([^)]+)\)", text)
    assert links and [link for link in links if link not in anchors] == []
