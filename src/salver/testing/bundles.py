"""Small real bundles, and Hypothesis strategies for what goes into one.

Needs the extra `testing`, and `onnx` for the model that `tiny_model` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from hypothesis import strategies as st
from onnx import TensorProto, external_data_helper, helper, numpy_helper, save_model

from salver.bundle import Contents, GoldenRequest, Tolerance, make_golden
from salver.core.arrays import Array
from salver.core.model import Blob, Model, Step
from salver.core.tensors import NUMPY_DTYPES, Signature, TensorSpec
from salver.evaluation.parity import OutputParity, ParityCertificate, Recording
from salver.evaluation.types import (
    BuildRecord,
    CandidateRecord,
    Evaluation,
    Host,
    Interval,
    Latency,
    Verdict,
)

TINY_FEATURES: Final = 4
TINY_LABELS: Final = ("cat", "dog", "fox")


def tiny_model(folder: Path, *, seed: int = 0, external: bool = False) -> Model:
    """A real ONNX classifier, ``x`` FP32 [batch, 4] -> ``scores`` FP32 [batch, 3], of a few hundred bytes.

    Args:
        external: whether its weights are files of their own beside it (``weights.bin``).
    """
    rng = np.random.default_rng(seed)
    weights = numpy_helper.from_array(rng.standard_normal((TINY_FEATURES, 3)).astype(np.float32), "weights")
    bias = numpy_helper.from_array(rng.standard_normal(3).astype(np.float32), "bias")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weights", "bias"], ["scores"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", TINY_FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [weights, bias],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / "tiny.onnx"
    names = ["tiny.onnx"]
    if external:
        external_data_helper.convert_model_to_external_data(proto, location="weights.bin", size_threshold=0)
        names.append("weights.bin")
        (folder / "weights.bin").unlink(missing_ok=True)
    save_model(proto, path)
    blobs = tuple(Blob.of(folder / name) for name in names)
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=("batch", TINY_FEATURES)),),
        outputs=(TensorSpec(name="scores", datatype="FP32", shape=("batch", 3), labels=TINY_LABELS),),
    )
    step = Step(action="source", name=path.name, output_digest=blobs[0].digest, tools={"onnx": "1"})
    return Model(format="onnx", signature=signature, blobs=blobs, lineage=(step,), notes=("made for a test",))


def tiny_record() -> BuildRecord:
    """A build record with one candidate, the original; its latency has an interval without an upper bound."""
    latency = Latency(
        threads=1,
        batch=1,
        runs=100,
        p50_ms=1.0,
        p95_ms=1.5,
        p99_ms=2.0,
        cpu_ms=1.0,
        baseline_p50_ms=1.0,
        baseline_cpu_ms=1.0,
        speedup=1.0,
        speedup_ci=Interval(low=0.9, high=float("inf")),
    )
    original = CandidateRecord(
        name="original",
        recipe=(),
        origin="baseline",
        verdict=Verdict(outcome="accepted", reason="it is the original"),
        evaluation=Evaluation(latency=(latency,), size_bytes=10, baseline_size_bytes=10),
        on_front=True,
    )
    host = Host(cpu="test", features=("avx2",), cores=2, memory_bytes=1, os="Linux", python="3.11", fingerprint="0")
    return BuildRecord(
        settings={"metric": "accuracy", "max_drop": "0.5pp"},
        splits={"certify": 10},
        candidates=(original,),
        chosen="original",
        why=("nothing beats the original",),
        hints={"threads": 1, "merge": True},
        host=host,
        tools={"onnxruntime": "1"},
        seconds=1.0,
    )


def tiny_contents(folder: Path, *, seed: int = 0, external: bool = False, tested: bool = True) -> Contents:
    """Contents of a small real bundle (about 15 KB), with golden requests that its model answers.

    Args:
        folder: where the model is written.
        tested: whether there is a build record.
    """
    model = tiny_model(folder, seed=seed, external=external)
    rows = {"x": np.random.default_rng(seed + 1).standard_normal((20, TINY_FEATURES)).astype(np.float32)}
    golden = make_golden(model, rows, count=4)
    return Contents(
        name="tiny",
        model=model,
        record=tiny_record() if tested else None,
        parity=tiny_parity(golden),
        golden=golden,
        card="# Tiny\n\nA classifier of nothing.\n",
        licence="Apache-2.0\n",
    )


def tiny_parity(golden: Sequence[GoldenRequest]) -> ParityCertificate:
    """The certificate of an original that gave the golden requests' own answers."""
    outputs = [
        OutputParity(name=name, max_abs=0.0, mean_abs=0.0, max_rel=0.0, label_agreement=1.0, worst_input=0)
        for name in golden[0].expected
    ]
    return ParityCertificate(
        original="onnx as given",
        inputs="data",
        examples=len(golden),
        batch_sizes=(1,),
        outputs=tuple(outputs),
        tolerance=1e-4,
        recorded=tuple(Recording(inputs=one.inputs, outputs=one.expected) for one in golden),
    )


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
_SIZES = st.integers(min_value=0, max_value=3)


def tensor_specs(name: str) -> st.SearchStrategy[TensorSpec]:
    """Specs of any datatype, of rank 0 to 3."""
    dims = st.one_of(_SIZES, st.sampled_from(["batch", "?time"]))
    return st.builds(
        TensorSpec,
        name=st.just(name),
        datatype=st.sampled_from(sorted(NUMPY_DTYPES)),
        shape=st.lists(dims, max_size=3).map(tuple),
    )


@st.composite
def arrays(draw: st.DrawFn, spec: TensorSpec) -> Array:
    """Arrays that fit a spec: any bit pattern of its datatype, any text for BYTES; symbolic dimensions are 2."""
    shape = tuple(d if isinstance(d, int) else 2 for d in spec.shape)
    count = int(np.prod(shape, dtype=np.int64))
    if spec.datatype == "BYTES":
        array = np.empty(count, dtype=object)
        array[:] = draw(st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=count, max_size=count))
        return array.reshape(shape)
    if spec.datatype == "BOOL":
        return np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=bool).reshape(shape)
    size = count * spec.dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), spec.dtype).reshape(shape)


@st.composite
def golden_requests(draw: st.DrawFn, signature: Signature) -> GoldenRequest:
    """Requests that fit a signature; the answers are arbitrary."""
    number = st.floats(min_value=0, max_value=10)
    return GoldenRequest(
        inputs={spec.name: draw(arrays(spec)) for spec in signature.inputs},
        expected={spec.name: draw(arrays(spec)) for spec in signature.outputs},
        tolerances={
            spec.name: Tolerance(abs=draw(number), rel=draw(number), mismatch=draw(number))
            for spec in signature.outputs
        },
        kind=draw(st.sampled_from(["real", "synthetic"])),
    )


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def contents(draw: st.DrawFn, folder: Path) -> Contents:
    """Contents with arbitrary model bytes, signature, golden requests and texts; they seal but do not run.

    Args:
        folder: where the model files are written; used again for each example.
    """
    names = draw(st.lists(st.sampled_from(["m.onnx", "w.bin", "d/w.bin", "ü"]), min_size=1, max_size=3, unique=True))
    blobs = []
    for number, name in enumerate(names):
        file = folder / f"blob{number}"
        file.write_bytes(draw(st.binary(max_size=1200)))
        blobs.append(Blob.of(file, name))
    inputs = tuple(draw(tensor_specs(f"in{i}")) for i in range(draw(st.integers(1, 2))))
    outputs = tuple(draw(tensor_specs(f"out{i}")) for i in range(draw(st.integers(1, 2))))
    signature = Signature(inputs=inputs, outputs=outputs)
    step = st.builds(
        Step, action=_NAMES, name=_NAMES, output_digest=_NAMES, config=st.dictionaries(_NAMES, _JSON, max_size=2)
    )
    model = Model(
        format=draw(_NAMES),
        signature=signature,
        blobs=tuple(blobs),
        lineage=tuple(draw(st.lists(step, max_size=2))),
        notes=tuple(draw(st.lists(_NAMES, max_size=2))),
    )
    return Contents(
        name=draw(_NAMES),
        model=model,
        record=draw(st.none() | st.just(tiny_record())),
        parity=draw(st.none() | st.lists(golden_requests(signature), min_size=1, max_size=2).map(tiny_parity)),
        golden=tuple(draw(st.lists(golden_requests(signature), max_size=2))),
        card=draw(st.text(st.characters(codec="utf-8"), max_size=40)),
        licence=draw(st.text(st.characters(codec="utf-8"), max_size=40)),
    )
