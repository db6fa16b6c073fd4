"""The python step: the user's own code, and who may have it run."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path

import msgspec
import numpy as np
import pytest

from salver.backends import find_backend
from salver.bundle import Bundle, Contents, generate_keys, make_golden, seal
from salver.bundle._signing import keyid_of
from salver.core.arrays import Array
from salver.core.errors import FailedPrecondition, Internal, InvalidArgument, PermissionDenied
from salver.core.model import Blob, Model
from salver.core.tensors import TensorSpec
from salver.processing.declared import attach, read_steps
from salver.server import Server, ServeSettings
from salver.testing.processing import ProcessingConformance
from tests.processing.conftest import linear, texts

CODE = b"""
import numpy as np

def transform(arrays):
    rows = [[float(part) for part in text.split()] for text in arrays["text"]]
    return {"x": np.array(rows, np.float32)}
"""
STEPS = """
[[before]]
step = "python"
file = "mine.py"
inputs = [{ name = "text", datatype = "BYTES", shape = ["batch"] }]
outputs = [{ name = "x", datatype = "FP32", shape = ["batch", 2] }]
"""


class TestPython(ProcessingConformance):
    step = {
        "step": "python",
        "file": "mine.py",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": ["batch"]}],
        "outputs": [{"name": "x", "datatype": "FP32", "shape": ["batch", 2]}],
    }
    files = {"mine.py": CODE}
    wanted = (TensorSpec(name="x", datatype="FP32", shape=("batch", 2)),)

    @pytest.fixture
    def rows(self) -> dict[str, Array]:
        return {"text": texts("1 2", "3 4.5", "-1 0")}

    def test_a_value_error_refuses_the_request_with_its_message(self) -> None:
        step = self.make()
        self.bind(step)
        with pytest.raises(InvalidArgument, match="could not convert string to float: 'x'"):
            step.run({"text": texts("1 x")})

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            (b"def transform(a): return 1 / 0", "'mine.py': transform failed: ZeroDivisionError"),
            (b"def transform(a): return {}", "failed: KeyError"),
            (
                b"import numpy as np\ndef transform(a): return {'x': np.zeros((9, 2), np.float32)}",
                r"\[9, 2\] for 1 rows",
            ),
            (b"import numpy as np\ndef transform(a): return {'x': np.zeros((1, 2))}", r"gave 'x' FP64 \[1, 2\]"),
        ],
    )
    def test_code_that_fails_or_gives_another_thing_than_declared_is_named(self, code: bytes, message: str) -> None:
        self.files = {"mine.py": code}
        step = self.make()
        self.bind(step)
        with pytest.raises(Internal, match=message):
            step.run({"text": texts("1 2")})

    def test_code_that_cannot_be_loaded_is_refused(self) -> None:
        for code, message in (
            (b"def (", "SyntaxError"),
            (b"import nothing_here", "nothing_here"),
            (b"", "no function"),
        ):
            self.files = {"mine.py": code}
            with pytest.raises(InvalidArgument, match=message):
                self.make()


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A signed bundle whose step writes a file when it is loaded; that file, and the folder of the keys."""
    folder = tmp_path_factory.mktemp("python")
    ran = folder / "ran.txt"
    (folder / "mine.py").write_bytes(CODE + f"\nopen({str(ran)!r}, 'a').close()\n".encode())
    (folder / "steps.toml").write_text(STEPS)
    blob = Blob.of(linear(folder / "sum.onnx", np.ones((2, 1)), np.zeros(1), ["batch", 2]))
    plain = Model(format="onnx", signature=find_backend("onnx").describe(blob), blobs=(blob,))
    with pytest.raises(PermissionDenied, match="runs code that came with the model"):
        attach(plain, read_steps(folder / "steps.toml"))
    model = attach(msgspec.structs.replace(plain, trusted=True), read_steps(folder / "steps.toml"))
    golden = make_golden(model, {"text": texts("1 2", "3 4")})
    private, _ = generate_keys(folder / "keys")
    seal(folder / "sum.salver", Contents(name="sum", model=model, golden=golden)).sign(private)
    ran.unlink()
    return folder / "sum.salver", ran, folder / "keys"


def test_code_runs_only_where_its_signer_is_trusted(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path, ran, keys = signed
    generate_keys(tmp_path / "other")
    with pytest.raises(PermissionDenied, match="no key is trusted"):
        Bundle.open(path).predict({"text": np.array(["1 2"])})
    with pytest.raises(PermissionDenied, match="no key is trusted"):
        Bundle.open(path).verify()
    with pytest.raises(PermissionDenied, match="is not signed by key"):
        Bundle.open(path).trust(tmp_path / "other" / "public.pem")
    assert not ran.exists()
    bundle = Bundle.open(path).trust(keys / "public.pem")
    assert bundle.predict({"text": np.array(["1 2", "3 4"])})["logits"].tolist() == [[3], [7]]
    assert ran.exists()
    assert Bundle.open(path).verify(keys / "public.pem").ok


def test_a_server_refuses_code_unless_its_signer_is_trusted(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path, ran, keys = signed
    ran.unlink(missing_ok=True)
    data = {"http": "127.0.0.1:0", "sources": [str(path)]}
    with pytest.raises((PermissionDenied, FailedPrecondition), match="no key is trusted"):
        Server(ServeSettings.from_data(data)).start()
    generate_keys(tmp_path / "other")
    other, signer = (keyid_of(folder / "public.pem") for folder in (tmp_path / "other", keys))
    with pytest.raises((PermissionDenied, FailedPrecondition), match=f"not signed by key {other}; .* by {signer}"):
        Server(ServeSettings.from_data({**data, "trusted_key": str(tmp_path / "other" / "public.pem")})).start()
    assert not ran.exists()
    with Server(ServeSettings.from_data({**data, "trusted_key": str(keys / "public.pem")})) as server:
        connection = HTTPConnection(server.url.removeprefix("http://"), timeout=30)
        try:
            for text, expected in (("1 2", 200), ("one two", 400)):
                body = json.dumps({"instances": [text]})
                connection.request("POST", "/predict", body, {"content-type": "application/json"})
                answer = connection.getresponse()
                said = answer.read()
                assert answer.status == expected, said
            assert b"could not convert string to float" in said
        finally:
            connection.close()
