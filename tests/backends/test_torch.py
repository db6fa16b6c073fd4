"""PyTorch programs of both kinds pass the suite, and what they must not hold is refused before it is loaded."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.backends import Session, SessionOptions, find_backend
from salver.backends.torch_files import is_arithmetic
from salver.core.errors import CorruptArtifact, FailedPrecondition, InvalidArgument, PermissionDenied, Unimplemented
from salver.core.model import Blob, Model
from salver.core.tensors import Signature, TensorSpec
from salver.testing.backends import BackendConformance, Case

# TorchScript is deprecated and says so; it is tested as long as it is there.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'salver[torch]'")

from salver.backends._torch import TorchBackend  # noqa: E402  # after the check that it is installed
from salver.backends.torch_programs import quiet, save_pt2, save_torchscript  # noqa: E402


class Scores(torch.nn.Module):
    """Two outputs, of two types."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.layer(x)
        return scores, scores.argmax(1)


class Echo(torch.nn.Module):
    """Gives its input back, the very same tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


BATCH = {0: torch.export.Dim("batch")}
ROWS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=("batch", 3)),),
    outputs=(
        TensorSpec(name="scores", datatype="FP32", shape=("batch", 5)),
        TensorSpec(name="best", datatype="INT64", shape=("batch",)),
    ),
)


def write(folder: Path, kind: str, module: Any, signature: Signature, example: Any) -> Model:
    if kind == "pt2":
        program = torch.export.export(module, (example,), dynamic_shapes=(BATCH,))
        path = folder / f"{len(list(folder.iterdir()))}.pt2"
        save_pt2(program, signature, path)
    else:
        path = folder / f"{len(list(folder.iterdir()))}.pt"
        save_torchscript(torch.jit.trace(module, example), signature, path)
    return Model(format=kind, signature=signature, blobs=(Blob.of(path),))


def echo(folder: Path, kind: str, datatype: str) -> Case:
    specs = [TensorSpec(name=n, datatype=datatype, shape=("batch", 3)) for n in ("x", "y")]
    values = np.array([[0, 1, 2], [3, 4, 5], [1, 0, 1], [7, 7, 7]]).astype(specs[0].dtype)
    example = torch.from_numpy(values).view(torch.bfloat16) if datatype == "BF16" else torch.from_numpy(values)
    model = write(folder, kind, Echo(), Signature(inputs=(specs[0],), outputs=(specs[1],)), example)
    return Case(model=model, inputs={"x": values}, expected={"y": values})


DATATYPES = ("BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64", "UINT16", "UINT64")


@pytest.fixture(params=["pt2", "torchscript"])
def made(request: pytest.FixtureRequest, written: dict[str, list[Case]]) -> list[Case]:
    return written[request.param]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Case]]:
    with quiet():
        return {kind: write_cases(tmp_path_factory.mktemp(kind), kind) for kind in ("pt2", "torchscript")}


def write_cases(folder: Path, kind: str) -> list[Case]:
    torch.manual_seed(0)
    module = Scores().eval()
    with torch.no_grad():
        scores, best = module(torch.from_numpy(ROWS))
    case = Case(
        model=write(folder, kind, module, SIGNATURE, torch.from_numpy(ROWS)),
        inputs={"x": ROWS},
        expected={"scores": scores.numpy(), "best": best.numpy()},
        atol=1e-6,
    )
    return [case, *(echo(folder, kind, datatype) for datatype in DATATYPES)]


class TestTorch(BackendConformance):
    backend = TorchBackend

    @pytest.fixture
    def cases(self, made: list[Case]) -> list[Case]:
        return made


@pytest.fixture
def scores(made: list[Case]) -> Model:
    return made[0].model


def test_an_input_that_may_not_be_written_is_read(made: list[Case]) -> None:
    inputs = {"x": ROWS.copy()}
    inputs["x"].flags.writeable = False
    with find_backend("pt2").load(made[0].model, SessionOptions(threads=2)) as session:
        np.testing.assert_allclose(session.run(inputs)["scores"], made[0].expected["scores"], atol=1e-6)


def test_a_size_the_program_was_not_made_for_is_the_callers_mistake(tmp_path: Path) -> None:
    program = torch.export.export(Scores().eval(), (torch.from_numpy(ROWS),))
    path = tmp_path / "fixed.pt2"
    torch.export.save(program, path)
    blob = Blob.of(path)
    assert find_backend("pt2").describe(blob).inputs[0].shape == (4, 3)
    with (
        find_backend("pt2").load(Model(format="pt2", signature=SIGNATURE, blobs=(blob,)), SessionOptions()) as session,
        pytest.raises(InvalidArgument, match="refused its inputs"),
    ):
        session.run({"x": ROWS[:2]})


def test_a_program_that_others_saved_tells_its_signature(tmp_path: Path) -> None:
    class Named(torch.nn.Module):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
            return {"pooled": (ids * mask).sum(1), "nothing": None, "all": (ids.float(), ids.shape[1])}

    dims = {0: torch.export.Dim("b"), 1: torch.export.Dim("s")}
    example = torch.ones(2, 5, dtype=torch.int64)
    program = torch.export.export(Named(), (), {"ids": example, "mask": example}, dynamic_shapes=(dims, dims))
    path = tmp_path / "named.pt2"
    torch.export.save(program, path)
    found = find_backend("pt2").describe(Blob.of(path))
    assert [(s.name, s.datatype, s.shape) for s in (*found.inputs, *found.outputs)] == [
        ("ids", "INT64", ("batch", "ids_1")),
        ("mask", "INT64", ("batch", "ids_1")),
        ("pooled", "INT64", ("batch",)),
        ("all_0", "FP32", ("batch", "ids_1")),
        ("all_1", "INT64", ()),
    ]


def test_torchscript_without_a_signature_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.jit.save(torch.jit.trace(Echo(), torch.ones(1)), str(path))
    with pytest.raises(Unimplemented, match="--input"):
        find_backend("torchscript").describe(Blob.of(path))


# --- compiled

COMPILED = SessionOptions(provider="inductor")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler: apt-get install g++")


class CompilingBackend(TorchBackend):
    """Compiles whatever it is not told how to run."""

    def load(self, model: Model, options: SessionOptions) -> Session:
        return super().load(model, COMPILED if options.provider == "auto" else options)


@needs_compiler
class TestCompiled(BackendConformance):
    backend = CompilingBackend

    @pytest.fixture
    def cases(self, written: dict[str, list[Case]]) -> list[Case]:
        scores, *echoes = written["pt2"]
        return [scores, *(case for case in echoes if case.model.signature.inputs[0].datatype == "BF16")]


def files_that_run(run: Callable[[], Any]) -> set[str]:
    """Python's files in which a function is called meanwhile, in this thread."""
    seen = set()
    sys.setprofile(lambda frame, _event, _argument: seen.add(Path(frame.f_code.co_filename).name))
    try:
        run()
    finally:
        sys.setprofile(None)
    return seen


class Pooled(torch.nn.Module):
    """Rows of a table, some of them left out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(10, 8)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (self.table(ids) * mask[..., None]).sum(1).tanh()


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("pooled") / "pooled.pt2"
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2, max=512)}
    example = (torch.ones(4, 4, dtype=torch.int64), torch.ones(4, 4))
    torch.export.save(torch.export.export(Pooled().eval(), example, dynamic_shapes=(dims, dims)), path)
    blob = Blob.of(path)
    return Model(format="pt2", signature=find_backend("pt2").describe(blob), blobs=(blob,))


def ids(*shape: int) -> dict[str, Any]:
    given = np.random.default_rng(1)
    return {"ids": given.integers(0, 10, shape), "mask": given.integers(0, 2, shape).astype(np.float32)}


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
def test_native_code_runs_at_every_size_and_in_every_thread(pooled: Model, threads: int) -> None:
    options = SessionOptions(provider="inductor", threads=threads)
    before = torch.get_num_threads()
    backend = find_backend("pt2")
    with backend.load(pooled, options) as session, backend.load(pooled, SessionOptions()) as own:
        assert torch.get_num_threads() == before
        seen: list[set[str]] = []
        for shape in ((4, 4), (1, 9), (2, 3), (700, 32)):
            given = ids(*shape)
            np.testing.assert_allclose(session.run(given)["output"], own.run(given)["output"], atol=1e-5)
            thread = threading.Thread(target=lambda g=given: seen.append(files_that_run(lambda: session.run(g))))
            thread.start()
            thread.join()
        assert all("output_code.py" in files for files in seen), "compiled code is called from there"
        assert "output_code.py" not in files_that_run(lambda: own.run(given))


@needs_compiler
def test_native_code_refuses_as_the_program_does(pooled: Model) -> None:
    outside = ids(700, 32)
    outside["ids"][-1, -1] = 10
    with find_backend("pt2").load(pooled, SessionOptions(provider="inductor", threads=2)) as session:
        with pytest.raises(InvalidArgument, match="index out of range"):
            session.run(outside)
        with pytest.raises(InvalidArgument, match="Guard failed"):
            session.run(ids(2, 600))
        assert session.run(ids(3, 5))["output"].shape == (3, 8)


def test_without_a_compiler_the_error_says_what_is_missing(pooled: Model) -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(FailedPrecondition, match=r"install g\+\+"),
    ):
        find_backend("pt2").load(pooled, COMPILED)


def test_torchscript_is_not_compiled_and_the_route_is_named(written: dict[str, list[Case]]) -> None:
    with pytest.raises(Unimplemented, match="--to pt2"):
        find_backend("torchscript").load(written["torchscript"][0].model, COMPILED)


# --- what a file may not hold


def rewrite(source: Path, target: Path, change: dict[str, Any]) -> Path:
    """Copy an archive with some members changed (by their ending) or added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            how = next((how for end, how in change.items() if name.endswith(end)), None)
            new.writestr(name, how(old.read(name)) if how else old.read(name))
        for end, how in change.items():
            if not any(name.endswith(end) for name in old.namelist()):
                new.writestr(f"{root}/{end}", how(b""))
    return target


def in_json(old: str, new: str) -> Any:
    return lambda data: data.decode().replace(old, new).encode()


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "m.pt2"
    torch.export.save(torch.export.export(Scores().eval(), (torch.from_numpy(ROWS),), dynamic_shapes=(BATCH,)), path)
    return path


def refuse(path: Path, match: str) -> None:
    with pytest.raises(PermissionDenied, match=match):
        find_backend("pt2").describe(Blob.of(path))


@pytest.mark.parametrize(
    "target",
    ["torch.serialization.os.system", "torch.hub.load", "torch.ops.load_library.__call__", "_operator.attrgetter"],
)
def test_a_graph_that_names_a_function_of_python_is_refused(program: Path, tmp_path: Path, target: str) -> None:
    changed = {"models/model.json": in_json("torch.ops.aten.linear.default", target)}
    refuse(rewrite(program, tmp_path / "m.pt2", changed), "no operator and no arithmetic")


def test_an_expression_that_is_code_is_refused(program: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f"__import__('pathlib').Path('{marker}').touch()"

    def poison(data: bytes) -> bytes:
        graph = json.loads(data)
        graph["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = code
        return json.dumps(graph).encode()

    refuse(rewrite(program, tmp_path / "m.pt2", {"models/model.json": poison}), "__import__")
    assert not marker.exists()


def test_a_guard_that_is_code_is_refused(program: Path, tmp_path: Path) -> None:
    def poison(data: bytes) -> bytes:
        return json.dumps({**json.loads(data), "guards_code": ["open('x', 'w')"]}).encode()

    refuse(rewrite(program, tmp_path / "m.pt2", {"models/model.json": poison}), "open")


def test_pickles_in_a_program_are_never_run(program: Path, tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    buffer = io.BytesIO()
    torch.save({"a": Bomb(tmp_path / "ran")}, buffer)
    for content in (bomb, buffer.getvalue()):
        refuse(
            rewrite(program, tmp_path / "m.pt2", {"sample_inputs/model.pt": lambda _, c=content: c}),
            "pickle of more than tensors",
        )
    constants = {"config": {"obj": {"path_name": "opaque_obj_0", "use_pickle": True}}}
    changed = {
        "constants/model_constants_config.json": lambda _: json.dumps(constants).encode(),
        "data/constants/opaque_obj_0": lambda _: bomb,
    }
    refuse(rewrite(program, tmp_path / "m.pt2", changed), "an object, not a tensor")
    assert not (tmp_path / "ran").exists()


def test_native_code_in_a_program_is_refused(program: Path, tmp_path: Path) -> None:
    refuse(rewrite(program, tmp_path / "m.pt2", {"data/aotinductor/model/m.so": lambda _: b"ELF"}), "AOTInductor")


def test_torchscript_that_writes_files_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    class Writer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.save(x, "stolen.pt")
            return x

    class Reader(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.from_file("secret", size=3)

    for module in (Writer(), Reader()):
        path = tmp_path / "m.pt"
        try:
            save_torchscript(torch.jit.script(module), SIGNATURE, path)
        except RuntimeError:
            continue  # this TorchScript has no such operator
        refuse(path, "reads or writes files")


def test_arithmetic_is_told_from_code() -> None:
    for text in (
        "Symbol('s31', positive=True, integer=True)",
        "Mul(Integer(8), Symbol('s27'))",
        "L['x'].size()[1] == L['mask'].size()[1]",
        "Mod(L['x'].size()[0], 8) == 0",
        "Max(1, s3) + 2*s27",
    ):
        assert is_arithmetic(text), text
    for text in (
        "().__class__.__bases__",
        "eval('1')",
        "[x for x in y]",
        "x.size.__globals__",
        "lambda: 0",
        "exec",
        "",
    ):
        assert is_arithmetic(text) is (text == "exec"), text


def test_other_archives_are_told_apart(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "weights.pt")
    with pytest.raises(CorruptArtifact, match="weights, not a program"):
        find_backend("pt2").describe(Blob.of(tmp_path / "weights.pt"))
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(CorruptArtifact, match="none of PyTorch"):
        find_backend("pt2").describe(Blob.of(tmp_path / "other.pt"))
    with zipfile.ZipFile(tmp_path / "bomb.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/models/model.json", b"0" * (100 << 20))
    with pytest.raises(CorruptArtifact, match="unpacks to"):
        find_backend("pt2").describe(Blob.of(tmp_path / "bomb.pt2"))
