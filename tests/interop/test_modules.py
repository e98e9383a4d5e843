"""The tree of modules: paths, classes and no-split marks of every golden skeleton, and of every class that heft knows,
against the modules that Transformers makes on the meta device.

Compared are the modules that hold parameters or buffers, and their ancestors, in order. heft's paths are those of files.
Where Transformers has other paths in memory, heft's are translated first; what exists on one side only is left out:
an expert and its matrices (one tensor for all experts in memory), and the wrappers that ViT's layers have lost or gained.
"""

import json
import re
import subprocess

import pytest
import torch
import transformers
from helpers import HEFT, ROOT, heft

SKELETONS = sorted((ROOT / "tests" / "data" / "skeletons").glob("*.json"))
# (pattern in heft's path, the path in memory), in this order
IN_MEMORY = {
    "gpt_neox": [(r"^embed_out$", "lm_head")],
    "mixtral": [(r"\bblock_sparse_moe\b", "mlp")],
    "vit": [
        (r"\bencoder\.layer\b", "layers"),
        (r"\battention\.attention\.query$", "attention.q_proj"),
        (r"\battention\.attention\.key$", "attention.k_proj"),
        (r"\battention\.attention\.value$", "attention.v_proj"),
        (r"\battention\.output\.dense$", "attention.o_proj"),
        (r"\bintermediate\.dense$", "mlp.fc1"),
        (r"\boutput\.dense$", "mlp.fc2"),
    ],
}
ONLY_IN_MEMORY = {"vit": r"\.mlp$"}


def read(path):
    return json.loads(path.read_text())


def cases():
    """(file, class, config) of all golden skeletons."""
    for path in SKELETONS:
        golden = read(path)
        for name, facts in golden["classes"].items():
            yield pytest.param(facts.get("config", golden["config"]), name, id=f"{path.stem}-{name}")


def known_classes(config, scratch):
    """The classes of a model type that heft knows: those that it offers instead of one that there is not."""
    path = scratch / "config.json"
    path.write_text(json.dumps(config))
    command = [HEFT, "inspect", path, "--class", "NoSuchModel", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = re.search(r"for model type '\w+', expected one of ([\w, ]+)", done.stdout + done.stderr)
    assert found, done.stdout + done.stderr
    return found.group(1).split(", ")


def make(config, name):
    cls = getattr(transformers, name)
    config = transformers.AutoConfig.for_model(**config)
    for part in ("text_config", "vision_config"):
        if not isinstance(config, cls.config_class):
            config = getattr(config, part) if isinstance(getattr(config, part), cls.config_class) else config
    with torch.device("meta"):
        return cls(config)


def in_memory(model):
    """[(path, class)] of the modules that hold something, and their ancestors."""
    kept = set()
    for path, module in model.named_modules():
        if list(module.parameters(recurse=False)) or list(module.buffers(recurse=False)):
            while path not in kept:
                kept.add(path)
                path = path.rpartition(".")[0]
    return [(path, type(module).__name__) for path, module in model.named_modules() if path in kept]


def outermost(paths):
    """Without those that lie below another of them."""
    return [p for p in paths if not any(p.startswith(q + ".") for q in paths if q != p)]


def compare(config, name, scratch):
    model_type = config["model_type"]
    path = scratch / "config.json"
    path.write_text(json.dumps(config))
    found = [(m["path"], m["class"], m["no_split"]) for m in heft("inspect", path, "--class", name)["modules"]]
    for pattern, other in IN_MEMORY.get(model_type, []):
        found = [(re.sub(pattern, other, path), cls, whole) for path, cls, whole in found]
    found = [row for row in found if row[1]]  # without a class: not in memory
    model = make(config, name)
    expected = in_memory(model)
    if model_type in ONLY_IN_MEMORY:
        expected = [row for row in expected if not re.search(ONLY_IN_MEMORY[model_type], row[0])]
        expected, found = sorted(expected), sorted(found)
    assert [(path, cls) for path, cls, _ in found] == expected
    whole = set(model._no_split_modules or ())
    assert [path for path, _, marked in found if marked] == outermost([p for p, cls in expected if cls in whole])


@pytest.mark.parametrize(("config", "name"), list(cases()))
def test_golden_skeleton(config, name, tmp_path):
    compare(config, name, tmp_path)


def smallest():
    """One config of each model type."""
    found = {}
    for path in sorted(SKELETONS, key=lambda path: path.stat().st_size, reverse=True):
        config = read(path)["config"]
        found[config["model_type"]] = {key: value for key, value in config.items() if key != "architectures"}
    return [pytest.param(config, id=name) for name, config in sorted(found.items())]


@pytest.mark.parametrize("config", smallest())
def test_every_class(config, tmp_path):
    names = known_classes(config, tmp_path)
    assert len(names) > 1
    for name in names:
        compare(config, name, tmp_path)
