from __future__ import annotations

import resource
import subprocess
import sys
import tarfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from salver.bundle import Bundle, Contents, seal
from salver.core.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from salver.core.model import Blob
from salver.evaluation.parity import ParityCertificate
from salver.testing.bundles import contents as any_contents
from salver.testing.bundles import tiny_contents, tiny_record


def same_contents(bundle: Bundle, given: Contents) -> None:
    model = given.model
    assert (bundle.name, bundle.card, bundle.licence) == (given.name, given.card, given.licence)
    assert (bundle.parity is None) == (given.parity is None)
    if bundle.parity and given.parity:
        same_parity(bundle.parity, given.parity)
    assert bundle.record == given.record
    assert bundle.tested == (given.record is not None)
    assert bundle.signature == model.signature
    assert (bundle.model.format, bundle.lineage, bundle.model.notes) == (model.format, model.lineage, model.notes)
    assert [b.name for b in bundle.model.blobs] == [b.name for b in model.blobs]
    assert [b.read() for b in bundle.model.blobs] == [b.read() for b in model.blobs]
    assert [bytes(b.map()) for b in bundle.model.blobs] == [b.read() for b in model.blobs]
    assert bundle.model.digest == model.digest
    assert len(bundle.golden) == len(given.golden)
    for read, wrote in zip(bundle.golden, given.golden, strict=True):
        assert (read.kind, read.tolerances) == (wrote.kind, wrote.tolerances)
        same_arrays(read.inputs, wrote.inputs)
        same_arrays(read.expected, wrote.expected)


def same_parity(got: ParityCertificate, want: ParityCertificate) -> None:
    assert msgspec.structs.replace(got, recorded=()) == msgspec.structs.replace(want, recorded=())
    for read, wrote in zip(got.recorded, want.recorded, strict=True):
        same_arrays(read.inputs, wrote.inputs)
        same_arrays(read.outputs, wrote.outputs)


def same_arrays(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert list(got) == list(want)
    for name, array in want.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        assert got[name].tolist() == array.tolist() if array.dtype == object else bits(got[name]) == bits(array)


def bits(array: np.ndarray) -> bytes:
    return array.tobytes()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_what_is_read_is_what_was_written(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    wanted = data.draw(any_contents(folder))
    sealed = seal(folder / "any.salver", wanted)
    same_contents(sealed, wanted)
    opened = Bundle.open(folder / "any.salver")
    same_contents(opened, wanted)
    assert opened.digest == sealed.digest


def test_the_same_contents_give_the_same_bytes(contents: Contents, tmp_path: Path) -> None:
    first = seal(tmp_path / "a.salver", contents)
    (tmp_path / "again").mkdir()
    second = seal(tmp_path / "b.salver", tiny_contents(tmp_path / "again"))
    assert first.digest == second.digest
    assert first.path.read_bytes() == second.path.read_bytes()


def test_other_contents_give_another_digest(contents: Contents, tmp_path: Path) -> None:
    first = seal(tmp_path / "a.salver", contents)
    second = seal(tmp_path / "b.salver", msgspec.structs.replace(contents, card="another"))
    assert first.digest != second.digest


def test_numbers_that_are_not_finite_survive_in_the_record(bundle: Bundle) -> None:
    record = bundle.record
    assert record == tiny_record()
    assert record.candidates[0].evaluation.latency[0].speedup_ci.high == float("inf")


def test_it_is_a_tar_with_an_oci_layout(bundle: Bundle) -> None:
    with tarfile.open(bundle.path, "r:") as tar:
        names = tar.getnames()
        index = msgspec.json.decode(tar.extractfile("index.json").read())
        manifest_name = "blobs/sha256/" + index["manifests"][0]["digest"].removeprefix("sha256:")
        manifest = msgspec.json.decode(tar.extractfile(manifest_name).read())
        weights = manifest["layers"][0]
        model = tar.extractfile("blobs/sha256/" + weights["digest"].removeprefix("sha256:")).read()
    assert names[:2] == ["oci-layout", "index.json"]
    assert names[2:] == sorted(names[2:])
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert weights["mediaType"] == "application/vnd.cncf.model.weight.v1.raw"
    assert weights["annotations"] == {"org.cncf.model.filepath": "tiny.onnx"}
    assert model == bundle.model.blobs[0].read()


def test_external_data_runs_from_the_bundle(tmp_path: Path) -> None:
    wanted = tiny_contents(tmp_path, external=True)
    bundle = seal(tmp_path / "external.salver", wanted)
    for blob in wanted.model.blobs:
        blob.path.unlink()
    assert [b.name for b in bundle.model.blobs] == ["tiny.onnx", "weights.bin"]
    assert bundle.verify().replay.ok
    assert list(bundle.sizes())[:2] == ["tiny.onnx", "weights.bin"]


def test_blobs_of_equal_content_are_stored_once(tmp_path: Path) -> None:
    wanted = tiny_contents(tmp_path)
    twin = tmp_path / "twin.bin"
    twin.write_bytes(wanted.model.blobs[0].read())
    model = msgspec.structs.replace(wanted.model, blobs=(wanted.model.blobs[0], Blob.of(twin)))
    bundle = seal(tmp_path / "twins.salver", msgspec.structs.replace(wanted, model=model, golden=()))
    first, second = bundle.model.blobs
    assert (first.name, second.name) == ("tiny.onnx", "twin.bin")
    assert first.offset == second.offset


@pytest.mark.parametrize("name", ["/etc/passwd", "../w.bin", "a/../../w", "", "a\\b", "salver/x", "README.md", "a//b"])
def test_a_model_file_that_leaves_its_folder_is_not_sealed(name: str, tmp_path: Path) -> None:
    wanted = tiny_contents(tmp_path)
    blob = msgspec.structs.replace(wanted.model.blobs[0], name=name)
    model = msgspec.structs.replace(wanted.model, blobs=(wanted.model.blobs[0], blob))
    with pytest.raises(InvalidArgument, match="cannot be sealed"):
        seal(tmp_path / "x.salver", msgspec.structs.replace(wanted, model=model))


def test_a_model_that_changed_since_it_was_read_is_not_sealed(tmp_path: Path) -> None:
    wanted = tiny_contents(tmp_path)
    file = wanted.model.path
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(FailedPrecondition, match="not what it was"):
        seal(tmp_path / "x.salver", wanted)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.onnx"]


def test_contents_that_cannot_be_said_in_json_are_refused(contents: Contents, tmp_path: Path) -> None:
    assert contents.parity is not None
    worst = msgspec.structs.replace(contents.parity, tolerance=float("nan"))
    with pytest.raises(InvalidArgument, match="NaN"):
        seal(tmp_path / "x.salver", msgspec.structs.replace(contents, parity=worst))
    with pytest.raises(InvalidArgument, match="name"):
        seal(tmp_path / "x.salver", msgspec.structs.replace(contents, name=""))


def test_golden_requests_must_fit_the_signature(contents: Contents, tmp_path: Path) -> None:
    wrong = msgspec.structs.replace(contents.golden[0], inputs={"y": contents.golden[0].inputs["x"]})
    with pytest.raises(InvalidArgument, match="unknown input 'y'"):
        seal(tmp_path / "x.salver", msgspec.structs.replace(contents, golden=(wrong,)))


def test_a_folder_that_is_not_there(contents: Contents, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file or folder"):
        seal(tmp_path / "missing" / "x.salver", contents)


def test_a_full_disk_leaves_no_file(contents: Contents, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (8192, hard)
    )  # write() past it fails as on a full disk: Python ignores SIGXFSZ
    try:
        with pytest.raises(ResourceExhausted, match="disk is full"):
            seal(tmp_path / "x.salver", contents)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_signing_leaves_the_bundle_as_it_was(bundle: Bundle, keys: tuple[Path, Path]) -> None:
    before = bundle.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(ResourceExhausted):
            bundle.sign(keys[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert bundle.path.read_bytes() == before
    assert [p.name for p in bundle.path.parent.iterdir()] == [bundle.path.name]


def test_opening_imports_neither_onnx_nor_cryptography(bundle: Bundle) -> None:
    code = (
        "import sys; from salver.bundle import Bundle; from pathlib import Path; b = Bundle.open(sys.argv[1]); "
        "b.golden; b.record; heavy = 'onnx', 'cryptography', 'onnxruntime', 'hypothesis'; "
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle.path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
