"""patched(): safetensors, Transformers, Accelerate, sentence-transformers through heft."""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import pickle
import shutil
import sys
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
st = pytest.importorskip("safetensors.torch")
import safetensors  # noqa: E402
import safetensors.numpy  # noqa: E402

import heft  # noqa: E402
from heft import _patched  # noqa: E402

ORIGINAL = safetensors.safe_open


def holders(value: object) -> set[tuple[str, str]]:
    return {
        (name, key)
        for name, module in list(sys.modules.items())
        for key, other in list(getattr(module, "__dict__", {}).items())
        if other is value and name not in ("heft._patched", __name__)
    }


@pytest.fixture(autouse=True)
def put_back():
    before = holders(ORIGINAL)
    yield
    assert holders(ORIGINAL) >= before and not holders(_patched.safe_open)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tensors = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}
    st.save_file(tensors, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def test_readers_of_safetensors(file: Path) -> None:
    wanted = st.load_file(file)
    with heft.patched():
        got = st.load_file(file)
        with safetensors.safe_open(file, "pt") as f:
            assert isinstance(f, heft.safetensors.safe_open)
            assert f.get_slice("a")[1].tolist() == [4, 5, 6, 7]
        opened = safetensors.safe_open(file, framework="pt", device="cpu")
        module = torch.nn.Linear(4, 3, bias=False)
        st.save_file({"weight": torch.ones(3, 4)}, file.parent / "m.safetensors")
        assert st.load_model(module, file.parent / "m.safetensors") == (set(), [])
        assert module.weight.tolist() == [[1.0] * 4] * 3
    assert list(got) == list(wanted) and all(torch.equal(got[k], wanted[k]) for k in got)
    assert opened.get_tensor("a").shape == (3, 4)  # usable after the block
    assert type(safetensors.safe_open(file, "pt")) is ORIGINAL


def test_six_names() -> None:
    names = ["safetensors", "safetensors.torch"]
    for library, more in {
        "transformers": ["transformers.modeling_utils", "transformers.integrations.accelerate"],
        "accelerate": ["accelerate.utils.modeling", "accelerate.utils.offload"],
    }.items():
        if importlib.util.find_spec(library):
            names += more
    modules = [importlib.import_module(name) for name in names]
    with heft.patched():
        assert all(module.safe_open is _patched.safe_open for module in modules)
    assert all(module.safe_open is ORIGINAL for module in modules)


def test_put_back_after_an_exception(file: Path) -> None:
    for error in (ValueError, KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(error), heft.patched():
            assert safetensors.safe_open is _patched.safe_open
            raise error
        assert safetensors.safe_open is ORIGINAL and st.safe_open is ORIGINAL


def test_a_module_imported_meanwhile(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_one.py").write_text(
        "from safetensors import safe_open as opener\nfrom safetensors.torch import load_file\nkept = [opener]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with heft.patched():
        late = importlib.import_module("late_one")
        assert late.opener is _patched.safe_open and len(late.load_file(file)) == 2
    assert late.opener is ORIGINAL
    assert type(late.kept[0](file, framework="pt")) is ORIGINAL  # what cannot be found acts as the original
    del sys.modules["late_one"]


def test_other_frameworks_are_safetensors_own(file: Path) -> None:
    with heft.patched():
        assert type(safetensors.safe_open(file, "np")) is _patched.safe_open
        with pytest.raises(safetensors.SafetensorError, match="framework"):
            safetensors.safe_open(file, "none such")
        with pytest.raises(TypeError):
            safetensors.safe_open(file)
        with pytest.raises(FileNotFoundError):
            safetensors.safe_open(file.parent / "none", "pt")
        with pytest.raises(safetensors.SafetensorError):
            (file.parent / "bad.safetensors").write_bytes(b"\xff" * 30)
            st.load_file(file.parent / "bad.safetensors")


def test_nested_and_as_decorator(file: Path) -> None:
    @heft.patched()
    def inner() -> object:
        with heft.patched():
            pass
        return safetensors.safe_open

    for _ in range(2):
        assert inner() is _patched.safe_open
        assert safetensors.safe_open is ORIGINAL
    with heft.patched():
        assert inner() is _patched.safe_open
        with pytest.raises(ValueError), heft.patched():
            raise ValueError
        assert safetensors.safe_open is _patched.safe_open


def test_threads(file: Path) -> None:
    entered, leave, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        with heft.patched():
            entered.set()
            leave.wait(10)
            seen.append(safetensors.safe_open is _patched.safe_open)

    thread = threading.Thread(target=other)
    with heft.patched():
        thread.start()
        assert entered.wait(10)
    assert safetensors.safe_open is _patched.safe_open  # the other thread's block is open
    leave.set()
    thread.join()
    assert seen == [True] and safetensors.safe_open is ORIGINAL

    errors = []

    def many() -> None:
        try:
            for _ in range(10):
                with heft.patched():
                    assert safetensors.safe_open is _patched.safe_open
                    assert float(st.load_file(file)["a"].sum()) == 66
                assert float(st.load_file(file)["a"].sum()) == 66  # whoever reads
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


# ---- the libraries ------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that heft opens."""
    from heft import safetensors as package

    paths: list[str] = []
    real = package._open_file
    monkeypatch.setattr(package, "_open_file", lambda path: paths.append(Path(path).name) or real(path))
    return paths


def same_model(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(x[k].dtype == y[k].dtype and torch.equal(x[k], y[k]) for k in x)


def small_bert(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=40
    )
    transformers.BertModel(config).save_pretrained(folder, max_shard_size="20KB")
    return folder


def test_transformers(tmp_path: Path, opened: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    folder = small_bert(tmp_path / "bert")
    files = {path.name for path in folder.glob("*.safetensors")}
    wanted, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not opened
    with heft.patched():
        got, ours = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert set(opened) == files and len(files) > 2
    assert same_model(got, wanted) and ours == info


def test_accelerate(tmp_path: Path, opened: list[str]) -> None:
    accelerate = pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    folder = small_bert(tmp_path / "bert")
    config = transformers.BertConfig.from_pretrained(folder)
    wanted = transformers.BertModel.from_pretrained(folder)
    device_map = {"embeddings": "cpu", "encoder": "disk", "pooler": "cpu"}
    with heft.patched():
        with accelerate.init_empty_weights():
            model = transformers.BertModel(config)
        model = accelerate.load_checkpoint_and_dispatch(model, folder, device_map, offload_folder=str(tmp_path / "o"))
        ids = torch.arange(6)[None]
        got = model.eval()(ids).last_hidden_state
    assert set(opened) == {path.name for path in folder.glob("*.safetensors")}
    assert torch.equal(got, wanted.eval()(ids).last_hidden_state)


def test_sentence_transformers(tmp_path: Path, opened: list[str]) -> None:
    library = pytest.importorskip("sentence_transformers")
    transformers = pytest.importorskip("transformers")
    folder = small_bert(tmp_path / "bert")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    wanted = library.SentenceTransformer(str(folder), device="cpu").encode(["a b", "c"])
    assert not opened
    with heft.patched():
        got = library.SentenceTransformer(str(folder), device="cpu").encode(["a b", "c"])
    assert opened and (got == wanted).all()


def test_diffusers(models: Path, opened: list[str]) -> None:
    library = pytest.importorskip("diffusers")
    wanted = library.UNet2DModel.from_pretrained(models / "unet")
    assert not opened
    with heft.patched():
        got = library.UNet2DModel.from_pretrained(models / "unet")
        half = library.UNet2DModel.from_pretrained(models / "unet", torch_dtype=torch.float16)
    assert set(opened) == {"diffusion_pytorch_model.safetensors"} and same_model(got, wanted)
    assert same_model(half, wanted.to(torch.float16))


def test_diffusers_shards_and_pipeline(models: Path, tmp_path: Path, opened: list[str]) -> None:
    library = pytest.importorskip("diffusers")
    unet = library.UNet2DModel.from_pretrained(models / "unet")
    unet.save_pretrained(tmp_path / "sharded", max_shard_size="20KB", variant="fp16")
    library.DDPMPipeline(unet, library.DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    with heft.patched():
        sharded = library.UNet2DModel.from_pretrained(tmp_path / "sharded", variant="fp16")
        files = set(opened)
        pipeline = library.DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    assert len(files) > 1 and files <= {path.name for path in (tmp_path / "sharded").iterdir()}
    assert same_model(sharded, unet) and same_model(pipeline.unet, unet)


def test_peft(models: Path, opened: list[str]) -> None:
    library = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")

    def load() -> torch.nn.Module:
        base = transformers.AutoModelForCausalLM.from_pretrained(models / "llama")
        return library.PeftModel.from_pretrained(base, models / "adapter")

    wanted = load()
    assert not opened
    with heft.patched():
        got = load()
    assert "adapter_model.safetensors" in opened and len(opened) > 2 and same_model(got, wanted)
    ids = torch.arange(6)[None]
    assert torch.equal(got(ids).logits, wanted(ids).logits)
    merged = got.merge_and_unload()  # writes into mapped tensors: private pages
    assert not torch.equal(merged(ids).logits, transformers.AutoModelForCausalLM.from_pretrained(models / "llama")(ids).logits)
    assert same_model(load(), wanted)


LOADERS = {
    "transformers": lambda folder: importlib.import_module("transformers").BertModel.from_pretrained(folder),
    "diffusers": lambda folder: importlib.import_module("diffusers").UNet2DModel.from_pretrained(folder),
    "sentence_transformers": lambda folder: importlib.import_module("sentence_transformers").SentenceTransformer(
        str(folder), device="cpu"
    ),
}
FOLDERS = {"transformers": "bert", "diffusers": "unet", "sentence_transformers": "sentences"}


@pytest.mark.parametrize("library", LOADERS)
def test_a_broken_file_is_their_error_and_all_is_put_back(models: Path, tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    folder = tmp_path / "broken"
    shutil.copytree(models / FOLDERS[library], folder)
    for path in folder.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(Exception) as theirs:
        LOADERS[library](folder)
    with pytest.raises(type(theirs.value)), heft.patched():
        LOADERS[library](folder)
    assert safetensors.safe_open is ORIGINAL
    LOADERS[library](models / FOLDERS[library])


@pytest.mark.parametrize("library", LOADERS)
def test_models_can_be_pickled_copied_and_saved(models: Path, tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    wanted = LOADERS[library](models / FOLDERS[library])
    with heft.patched():
        got = LOADERS[library](models / FOLDERS[library])
        inside = pickle.dumps(got)
    outside = pickle.dumps(got)
    size = sum(tensor.nbytes for tensor in got.state_dict().values())
    assert len(inside) < 2 * size + 200_000 and len(outside) < 2 * size + 200_000  # the tensors, not their files
    for copied in (pickle.loads(inside), pickle.loads(outside), copy.deepcopy(got)):
        assert same_model(copied, wanted)
    torch.save(got.state_dict(), tmp_path / "x.pt")
    state = torch.load(tmp_path / "x.pt", weights_only=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.state_dict().items())


def test_children_of_the_process(file: Path) -> None:
    """A spawned child knows of no block, and gets the tensors that it is given."""
    theirs = ORIGINAL.__module__  # before the block, which replaces it in this module, too
    with heft.patched():
        tensors = st.load_file(file)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(child, (tensors["a"], str(file))) == (66.0, theirs)
    assert float(tensors["a"].sum()) == 66


def child(tensor: torch.Tensor, file: str) -> tuple[float, str]:
    """Run in another process."""
    assert torch.equal(st.load_file(file)["a"], tensor)
    return float(tensor.sum()), safetensors.safe_open.__module__
