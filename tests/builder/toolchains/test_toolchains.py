"""Environments of converters: made by the real venv and pip from a package made here, run under limits, removed.

What is wrong with a converter is caught by parity: field notes of onnx2tf's transposes (onnx2tf#790).
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from salver.builder import toolchains
from salver.builder.exporters import export_model, find_exporter
from salver.builder.importers import load_model
from salver.builder.toolchains import TOOLCHAINS, Toolchain, convert, find, install, list_installed, remove
from salver.cli import run as salver
from salver.core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    NotFound,
    ParityFailed,
    Unimplemented,
    UnknownName,
)

SCRIPT = """
import time
from pathlib import Path
import tinytool

def convert(source, output):
    text = Path(source).read_text()
    if text == "slow":
        time.sleep(60)
    if text == "greedy":
        return {"tinytool": str(len(bytearray(1 << 31)))}
    if text == "crash":
        import os
        os.abort()
    if text == "nothing":
        return {}
    Path(output).write_text(tinytool.shout(text))
    return {"tinytool": tinytool.__version__}
"""


MODULE = """
__version__ = "0.1"

def shout(text):
    if not text:
        raise ValueError("no text in it")
    return text.upper()
"""


def wheel(folder: Path) -> Path:
    """A package of one module, as pip takes it."""
    path = folder / "tinytool-0.1-py3-none-any.whl"
    facts = "tinytool-0.1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tinytool.py", MODULE)
        archive.writestr(f"{facts}/METADATA", "Metadata-Version: 2.1\nName: tinytool\nVersion: 0.1\n")
        archive.writestr(
            f"{facts}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{facts}/RECORD", f"tinytool.py,,\n{facts}/METADATA,,\n{facts}/WHEEL,,\n{facts}/RECORD,,\n")
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def tiny(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Toolchain:
    """A toolchain of one package; all toolchains stand in a cache of the tests' own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    script = cache / "run_tiny.py"
    script.write_text(SCRIPT)
    made = Toolchain(
        name="tiny", summary="text -> louder text", requirements=("--no-index", str(wheel(cache))), script=script
    )
    monkeypatch.setitem(TOOLCHAINS, "tiny", made)
    return made


@pytest.fixture
def installed(tiny: Toolchain) -> Any:
    return install("tiny")


def source(folder: Path, text: str) -> Path:
    path = folder / "source.txt"
    path.write_text(text)
    return path


def test_it_is_installed_run_listed_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FailedPrecondition, match="salver toolchain install tiny"):
        convert("tiny", source(tmp_path, "hello"), tmp_path / "out.txt")
    assert salver(["toolchain", "install", "tiny"]) == 0
    made = find("tiny")
    assert made is not None
    assert made.versions["tinytool"] == "0.1"
    assert [t.name for t in list_installed()] == ["tiny"]
    assert install("tiny") == made
    assert convert("tiny", source(tmp_path, "hello"), tmp_path / "out.txt") == {"tinytool": "0.1"}
    assert (tmp_path / "out.txt").read_text() == "HELLO"
    capsys.readouterr()
    assert salver(["toolchain"]) == 0
    told = capsys.readouterr().out
    assert "tiny: text -> louder text (installed)" in told
    assert "salver toolchain install onnx2tf" in told
    assert salver(["toolchain", "remove", "tiny"]) == 0
    assert find("tiny") is None
    with pytest.raises(NotFound, match="not installed"):
        remove("tiny")


def test_it_is_an_environment_of_its_own(installed: Any, tmp_path: Path) -> None:
    assert "salver" not in installed.versions
    assert set(installed.versions) <= {"tinytool", "pip", "setuptools"}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", Unimplemented, r"cannot convert 'source\.txt': ValueError: no text in it"),
        ("greedy", Unimplemented, "needs more than the 512 MiB"),
        ("crash", FailedPrecondition, "killed by signal 6 and gave no answer"),
        ("nothing", Internal, "wrote nothing"),
    ],
)
def test_what_goes_wrong_is_a_typed_error(
    installed: Any, tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        convert("tiny", source(tmp_path, text), tmp_path / "out.txt", memory_bytes=512 << 20)


def test_one_that_takes_too_long_is_stopped(installed: Any, tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded, match=r"longer than 0\.5 s"):
        convert("tiny", source(tmp_path, "slow"), tmp_path / "out.txt", timeout_s=0.5)


def test_what_cannot_be_installed_leaves_nothing(cache: Path, tiny: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Toolchain(name="broken", summary="", requirements=("--no-index", "tinytool==9"), script=tiny.script)
    monkeypatch.setitem(TOOLCHAINS, "broken", broken)
    with pytest.raises(FailedPrecondition, match=r"'broken' cannot be installed.*ERROR"):
        install("broken")
    assert find("broken") is None
    assert [p.name for p in (cache / "salver" / "toolchains").iterdir() if "broken" in p.name] == []


def test_unknown_names_are_answered_with_the_known() -> None:
    with pytest.raises(UnknownName, match="onnx2tf"):
        install("onnx2tff")
    assert salver(["toolchain", "instal", "onnx2tf"]) != 0


# --- the converters that parity has to watch


def net(folder: Path) -> Path:
    """A convolution over pictures that are no squares, channels first."""
    random = np.random.default_rng(0)
    weights = numpy_helper.from_array(random.normal(size=(4, 3, 3, 3)).astype(np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6]),
    ]
    graph = helper.make_graph([node], "net", values[:1], values[1:], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "net.onnx")
    return folder / "net.onnx"


def test_a_transpose_that_a_converter_gets_wrong_is_caught(
    tiny: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.tensorflow_nets import tf

    imported = load_model(net(tmp_path), workdir=tmp_path / "import")
    exporter = find_exporter("tflite")
    with pytest.raises(Unimplemented, match="salver toolchain install onnx2tf"):
        exporter.route(imported)
    weights = numpy_helper.to_array(onnx.load(net(tmp_path)).graph.initializer[0])

    def write(path: Path, *, swapped: bool) -> None:
        order = (0, 3, 2, 1) if swapped else (0, 2, 3, 1)

        @tf.function(input_signature=[tf.TensorSpec((1, 3, 8, 8), tf.float32, name="x")])
        def call(x: Any) -> Any:
            y = tf.nn.conv2d(tf.transpose(x, order), weights.transpose(2, 3, 1, 0), 1, "VALID")
            return {"y": tf.transpose(y, (0, 3, 1, 2))}

        module = tf.Module()
        module.call = call
        path.write_bytes(
            tf.lite.TFLiteConverter.from_concrete_functions([call.get_concrete_function()], module).convert()
        )

    for swapped in (False, True):
        prepared = tmp_path / f"{swapped}.tflite"
        write(prepared, swapped=swapped)
        script = tmp_path / f"{swapped}.py"
        script.write_text(
            f"import shutil\ndef convert(s, o):\n    shutil.copy({str(prepared)!r}, o)\n    return {{'onnx2tf': '0'}}\n"
        )
        stand_in = Toolchain(name="onnx2tf", summary="", requirements=tiny.requirements, script=script)
        monkeypatch.setitem(TOOLCHAINS, "onnx2tf", stand_in)
        toolchains.install("onnx2tf")
        if swapped:
            with pytest.raises(ParityFailed, match="output 'y', input row"):
                export_model(imported, exporter, tmp_path / "net.tflite")
        else:
            made = export_model(imported, exporter, tmp_path / "right.tflite")
            assert made.route == "the ONNX graph, converted by the toolchain onnx2tf"
    assert not (tmp_path / "net.tflite").exists()


@pytest.mark.skipif("TEST_TOOLCHAINS" not in os.environ, reason="installs from PyPI: make toolchains")
def test_the_real_onnx2tf_converts_and_its_answers_hold(tmp_path: Path) -> None:
    install("onnx2tf")
    made = export_model(
        load_model(net(tmp_path), workdir=tmp_path / "import"), find_exporter("tflite"), tmp_path / "a.tflite"
    )
    assert made.parity is not None
    assert made.parity.outputs[0].max_rel <= 1e-4


@pytest.mark.skipif("TEST_TOOLCHAINS" not in os.environ, reason="installs from PyPI: make toolchains")
def test_the_real_litert_torch_converts_and_its_answers_hold(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="pip install 'salver[torch]'")
    install("litert-torch")
    layers = (torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5))
    program = torch.export.export(torch.nn.Sequential(*layers).eval(), (torch.ones(1, 3, 8, 8),))
    torch.export.save(program, tmp_path / "net.pt2")
    imported = load_model(tmp_path / "net.pt2", workdir=tmp_path / "import")
    made = export_model(imported, find_exporter("tflite"), tmp_path / "net.tflite")
    assert made.route == "the exported program, converted by the toolchain litert-torch"
    assert made.parity is not None
    assert made.parity.outputs[0].max_rel <= 1e-4
