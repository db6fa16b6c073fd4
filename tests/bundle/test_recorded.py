"""Recorded runs of the original, replayed by `verify`."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from salver.bundle import Bundle, Contents, seal
from salver.bundle.recorded import decode_parity, describe_parity, encode_parity
from salver.core.errors import CorruptArtifact
from salver.evaluation.parity import ParityCertificate, Recording
from salver.testing.bundles import tiny_contents


@pytest.fixture
def contents(tmp_path: Path) -> Contents:
    return tiny_contents(tmp_path)


def parity_of(contents: Contents) -> ParityCertificate:
    assert contents.parity is not None
    return contents.parity


def moved(contents: Contents, by: float, **changes: object) -> Contents:
    """As if the original's answers had been others."""
    parity = parity_of(contents)
    recorded = tuple(
        Recording(inputs=r.inputs, outputs={n: a + np.float32(by) for n, a in r.outputs.items()})
        for r in parity.recorded
    )
    return msgspec.structs.replace(contents, parity=msgspec.structs.replace(parity, recorded=recorded, **changes))


def test_the_recorded_inputs_give_the_recorded_answers(contents: Contents, tmp_path: Path) -> None:
    report = seal(tmp_path / "a.salver", contents).verify()
    assert report.ok
    assert report.parity is not None
    assert (report.parity.runs, report.parity.judged_by, report.parity.limit) == (4, "tolerance", 2e-4)
    assert report.parity.outputs[0].elements == 12
    assert "4 recorded runs" in str(report.parity)


def test_answers_that_are_not_the_originals_fail_and_are_named(contents: Contents, tmp_path: Path) -> None:
    report = seal(tmp_path / "a.salver", moved(contents, 0.01)).verify()
    assert not report.ok
    assert "output 'scores', input row" in report.wrong


def test_a_tolerance_can_be_asked_for(contents: Contents, tmp_path: Path) -> None:
    bundle = seal(tmp_path / "a.salver", moved(contents, 1e-4))
    assert bundle.verify().ok
    assert not bundle.verify(tolerance=1e-6).ok
    assert bundle.verify(tolerance=0.1).ok


def test_what_a_pass_changed_on_purpose_is_told_and_not_judged(contents: Contents, tmp_path: Path) -> None:
    report = seal(tmp_path / "a.salver", moved(contents, 0.01, changed_by=("int8-static",))).verify()
    assert report.ok
    assert report.parity is not None
    assert report.parity.judged_by == "quality"
    assert report.parity.outputs[0].max_abs == pytest.approx(0.01, rel=1e-3)
    assert "int8-static" in str(report.parity)


def test_inputs_that_the_model_refuses_are_a_failure_also_for_a_changed_model(
    contents: Contents, tmp_path: Path
) -> None:
    parity = parity_of(contents)
    odd = Recording(inputs={"x": np.zeros((1, 5), np.float32)}, outputs=parity.recorded[0].outputs)
    for changed_by in ((), ("fp16",)):
        certificate = msgspec.structs.replace(parity, recorded=(odd,), changed_by=changed_by)
        report = seal(tmp_path / "a.salver", msgspec.structs.replace(contents, parity=certificate)).verify()
        assert not report.ok
        assert "recorded run 1 of the original cannot be repeated" in report.wrong


def test_without_recordings_there_is_nothing_to_replay(contents: Contents, tmp_path: Path) -> None:
    bare = msgspec.structs.replace(parity_of(contents), recorded=())
    bundle = seal(tmp_path / "a.salver", msgspec.structs.replace(contents, parity=bare))
    assert (bundle.verify().parity, bundle.verify().ok) == (None, True)
    assert "salver/parity.tensors" not in bundle.sizes()


def test_a_tampered_list_of_tensors_is_corrupt(contents: Contents) -> None:
    plain, tensors = encode_parity(parity_of(contents))
    data = msgspec.json.encode(plain)
    assert decode_parity(data, tensors).examples == 4
    for bad in ((data, tensors[:-4]), (data, tensors + b"\0"), (b"[]", b""), (b"{}", b""), (b"\xff", b"")):
        with pytest.raises(CorruptArtifact):
            decode_parity(*bad)


def test_plain_data_says_how_much_was_recorded(contents: Contents) -> None:
    plain = describe_parity(parity_of(contents))
    assert plain is not None
    assert plain["recorded"] == {"runs": 4, "bytes": 4 * (16 + 12)}
    assert describe_parity(None) is None


def test_a_bundle_opens_the_tensors_only_with_the_certificate(contents: Contents, tmp_path: Path) -> None:
    opened = Bundle.open(seal(tmp_path / "a.salver", contents).path)
    assert opened.parity is not None
    np.testing.assert_array_equal(opened.parity.recorded[1].inputs["x"], parity_of(contents).recorded[1].inputs["x"])
