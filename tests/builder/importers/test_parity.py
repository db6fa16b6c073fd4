"""The comparison behind the certificate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from salver.builder.importers.parity import certify
from salver.builder.importers.probes import Probe
from salver.builder.importers.recordings import MAX_BYTES
from salver.core.errors import InvalidArgument, ParityFailed
from salver.core.tensors import TensorSpec
from salver.evaluation.parity import DimSizes, ParityCertificate

X = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)


def compared(change: Callable[[dict[str, Any]], dict[str, Any]], *, sizes: tuple[int, ...] = (1, 7, 20)) -> Any:
    def original(inputs: Mapping[str, Any]) -> dict[str, Any]:
        p = inputs["x"]
        return {"p": p, "label": p.argmax(axis=1), "name": np.array([f"c{i}" for i in p.argmax(axis=1)], dtype=object)}

    specs = [
        TensorSpec(name="p", datatype="FP32", shape=("batch", 3)),
        TensorSpec(name="label", datatype="INT64", shape=("batch",)),
        TensorSpec(name="name", datatype="BYTES", shape=("batch",)),
    ]
    probe = Probe({"x": X}, len(X), "data")
    return certify(
        original,
        lambda inputs: change(dict(original(inputs))),
        probe,
        sizes,
        described="test",
        specs=specs,
        tolerance=1e-4,
    )


def test_equal_outputs_agree_in_everything() -> None:
    outputs = compared(lambda o: o).outputs
    assert [(o.max_abs, o.label_agreement) for o in outputs] == [(0.0, 1.0)] * 3


def test_the_worst_row_is_named_with_both_values() -> None:
    def change(outputs: dict[str, Any]) -> dict[str, Any]:
        p = outputs["p"].copy()
        p[len(p) - 1, 2] += 0.5
        return {**outputs, "p": p}

    with pytest.raises(ParityFailed, match=r"output 'p', input row 20, element 2: the original gives .*, the import"):
        compared(change, sizes=(20,))


def test_a_label_that_flips_is_refused_unless_the_scores_are_tied() -> None:
    def change(outputs: dict[str, Any]) -> dict[str, Any]:
        return {**outputs, "label": (outputs["label"] + 1) % 3}

    with pytest.raises(ParityFailed, match=r"output 'label', input row 1.*they must be equal"):
        compared(change)
    X[:, 1:] = X[:, :1]
    assert compared(change).outputs[1].label_agreement == 0.0


def test_another_shape_and_nan_are_differences() -> None:
    with pytest.raises(ParityFailed, match=r"gives shape \[20, 3\], the import \[20, 2\]"):
        compared(lambda o: {**o, "p": o["p"][:, :2]}, sizes=(20,))
    with pytest.raises(ParityFailed, match="the import nan"):
        compared(lambda o: {**o, "p": np.full_like(o["p"], np.nan)})


def _beside(large: float, difference: float) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda inputs: {"p": np.stack([inputs["x"][:, 0] * 0 + large, inputs["x"][:, 0] + difference], axis=1)}


@pytest.mark.parametrize(
    ("large", "difference", "fails"), [(500.0, 3e-4, False), (500.0, 3e-2, True), (1e6, 3e-4, False), (1e6, 0.5, True)]
)
def test_a_small_value_beside_a_large_one_carries_its_rounding_and_no_more(
    large: float, difference: float, fails: bool
) -> None:
    specs = [TensorSpec(name="p", datatype="FP32", shape=("batch", 2))]

    def run() -> Any:
        probe = Probe({"x": X}, len(X), "data")
        return certify(
            _beside(large, 0.0),
            _beside(large, difference),
            probe,
            (20,),
            described="test",
            specs=specs,
            tolerance=1e-4,
        )

    if fails:
        with pytest.raises(ParityFailed):
            run()
    else:
        assert run().outputs[0].max_rel > 1e-4


def _sequences(limit: int = 1000, refused: int = 1000) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Sums over time; wrong beyond ``limit`` steps, refused beyond ``refused``."""

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        if inputs["ids"].shape[1] > refused:
            raise RuntimeError("too long")
        return {"p": inputs["ids"][:, :limit].sum(axis=1, keepdims=True).astype(np.float32)}

    return run


def _over_time(original: Any, imported: Any, **more: Any) -> ParityCertificate:
    spec = TensorSpec(name="ids", datatype="INT64", shape=("batch", "time"))
    probe = Probe({"ids": np.random.default_rng(0).integers(1, 9, (20, 8))}, 20, "data")
    specs = [TensorSpec(name="p", datatype="FP32", shape=("batch", 1))]
    return certify(
        original, imported, probe, (1, 7, 20), described="test", specs=specs, tolerance=None, inputs=[spec], **more
    )


def test_other_dynamic_dimensions_are_tried_at_other_sizes() -> None:
    made = _over_time(_sequences(), _sequences())
    assert made.dims == (DimSizes(name="time", sizes=(1, 4, 8, 12)),)
    with pytest.raises(ParityFailed, match="'p', input row 1"):
        _over_time(_sequences(), _sequences(limit=8))


def test_a_size_that_only_the_original_refuses_is_left_out() -> None:
    assert _over_time(_sequences(refused=8), _sequences(limit=8)).dims == (DimSizes(name="time", sizes=(1, 4, 8)),)


def test_the_import_may_not_refuse_what_the_original_takes() -> None:
    def short(inputs: Mapping[str, Any]) -> dict[str, Any]:
        if inputs["ids"].shape[1] != 8:
            raise InvalidArgument("expected 8")
        return _sequences()(inputs)

    with pytest.raises(ParityFailed, match="fails at 'time' = 1 where the original runs: expected 8"):
        _over_time(_sequences(), short)


def test_the_certificate_says_what_it_rests_on() -> None:
    made = _over_time(_sequences(), _sequences(), depth=400, versions={"numpy": np.__version__})
    assert made.tolerance == 3.1e-4
    assert made.rule == "rounding of FP32 over 400 operators"
    assert made.host is not None
    assert made.host.cores >= 1
    assert made.versions == {"numpy": np.__version__}


def test_runs_of_the_original_are_recorded_at_every_size_within_bounds() -> None:
    made = _over_time(_sequences(), _sequences())
    assert [r.inputs["ids"].shape for r in made.recorded] == [(1, 8), (7, 8), (20, 8), (2, 1), (2, 4), (2, 8), (2, 12)]
    for run in made.recorded:
        np.testing.assert_array_equal(run.outputs["p"], _sequences()(run.inputs)["p"])


def test_recordings_stay_small() -> None:
    wide = Probe({"x": np.zeros((20, 100_000), np.float32)}, 20, "data")
    specs = [TensorSpec(name="p", datatype="FP32", shape=("batch", 100_000))]
    made = certify(
        lambda i: {"p": i["x"]}, lambda i: {"p": i["x"]}, wide, (1, 7, 20), described="t", specs=specs, tolerance=1e-4
    )
    sizes = [sum(a.nbytes for a in (*r.inputs.values(), *r.outputs.values())) for r in made.recorded]
    assert sum(sizes) <= MAX_BYTES
    assert len(sizes) == 1
