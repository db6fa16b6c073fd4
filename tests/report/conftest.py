"""A build record as a real build leaves it: the qualities are assessed, not made up."""

from __future__ import annotations

import numpy as np
import pytest

from salver.core.tensors import TensorSpec
from salver.evaluation import assess, certify
from salver.evaluation.metrics._accuracy import AccuracyConfig, AccuracyMetric
from salver.evaluation.types import (
    BuildRecord,
    CandidateRecord,
    Evaluation,
    Host,
    Interval,
    Invariance,
    Latency,
    Margin,
    Quality,
    Verdict,
)

CLASSES = (
    "zip",
    "pdf",
    "png",
    "jpeg",
    "html",
    "css",
    "javascript",
    "python",
    "c",
    "cpp",
    "markdown",
    "json",
    "xml",
    "yaml",
    "elf",
)
MARGIN = Margin(value=0.01)
_METRIC = AccuracyMetric(
    AccuracyConfig(), (TensorSpec(name="y", datatype="FP32", shape=("batch", 15), labels=CLASSES),)
)
_SIZE = 3_120_000


def make_quality(lost: int, won: int, role: str = "certify", examples: int = 804) -> Quality:
    rng = np.random.default_rng(lost * 100 + won)
    label = np.array(CLASSES)[np.sort(rng.integers(0, 15, examples))]
    other = np.roll(np.array(CLASSES), 1)[np.searchsorted(np.sort(CLASSES), label)]
    order = rng.permutation(examples)
    wrong = order[: examples // 25]
    baseline, candidate = label.copy(), label.copy()
    baseline[wrong], candidate[wrong] = other[wrong], other[wrong]
    candidate[wrong[:won]] = label[wrong[:won]]
    candidate[order[-lost:] if lost else []] = other[order[-lost:] if lost else []]
    stats = [{"answer": answer, "label": label} for answer in (baseline, candidate)]
    return assess(_METRIC, stats[0], stats[1], MARGIN, "certify" if role == "certify" else "steer")


def make_latency(speedup: float, batch: int = 1) -> Latency:
    base = 4.1 * batch**0.8
    p50 = base / speedup
    interval = Interval(low=speedup * 0.985, high=speedup * 1.014)
    return Latency(
        threads=1,
        batch=batch,
        runs=240,
        p50_ms=p50,
        p95_ms=p50 * 1.06,
        p99_ms=p50 * 1.21,
        cpu_ms=p50 * 1.003,
        baseline_p50_ms=base,
        baseline_cpu_ms=base * 1.003,
        speedup=speedup,
        speedup_ci=interval,
    )


def make_candidate(
    name: str,
    lost: int,
    won: int,
    speedup: float,
    smaller: float,
    *,
    origin: str = "preset",
    verdict: Verdict | None = None,
    role: str = "certify",
    on_front: bool = False,
    merges: bool = True,
) -> CandidateRecord:
    quality = make_quality(lost, won, role)
    invariance = Invariance(
        batch_sizes=(2, 8, 32),
        max_abs=2e-7 if merges else 0.31,
        max_rel=1e-7 if merges else 0.2,
        label_flips=0 if merges else 3,
        rows=64,
        invariant=merges,
        reason="" if merges else "batch-mates change its answers: by up to 0.2 of 1 + |value| at batch 32",
    )
    evaluation = Evaluation(
        certify=(quality,) if role == "certify" else (),
        steer=(make_quality(lost, won, "steer", 402),),
        latency=(make_latency(speedup), make_latency(speedup * 0.93, 32)),
        size_bytes=round(_SIZE / smaller),
        baseline_size_bytes=_SIZE,
        peak_memory_bytes=21_000_000,
        baseline_peak_memory_bytes=34_000_000,
        invariance=invariance,
    )
    return CandidateRecord(
        name=name,
        recipe=(
            {
                "pass": name.partition(" ")[0],
                "config": {"version": 1, "per_channel": False, "op_types": ["Conv", "MatMul"]},
            },
        ),
        origin=origin,
        verdict=verdict or certify([quality], MARGIN)[0],
        evaluation=evaluation,
        digest="sha256:" + name.encode().hex().ljust(64, "0")[:64],
        on_front=on_front,
        seconds=14.2,
    )


@pytest.fixture(scope="session")
def record() -> BuildRecord:
    skipped = Verdict(
        outcome="not-certified", reason="measured, but slower than the finalists on the steering examples"
    )
    slower = Verdict(
        outcome="rejected", reason="slower than the original: 0.21 times (95 %: 0.20 to 0.22)", gate="speed"
    )
    original = make_candidate(
        "original", 0, 0, 1.0, 1.0, origin="baseline", verdict=Verdict(outcome="accepted", reason="")
    )
    candidates = (
        original,
        make_candidate(
            "int8-dynamic default", 3, 2, 0.212, 3.71, origin="runtime-default", verdict=slower, merges=False
        ),
        make_candidate("int8-static default", 287, 1, 2.31, 3.66, origin="runtime-default"),
        make_candidate("graph ort-all", 0, 0, 1.07, 1.0, on_front=True),
        make_candidate("fp16", 0, 0, 0.62, 1.99, verdict=slower),
        make_candidate("int8-static conv+matmul minmax", 1, 2, 1.98, 3.69, on_front=True),
        make_candidate("int8-static conv+matmul percentile", 9, 2, 2.02, 3.70),
        make_candidate("int8-static conv+matmul minmax, 2 layers kept", 2, 2, 1.91, 3.31, origin="refined"),
        make_candidate("prune 50% + int8-static", 14, 3, 2.05, 3.70, role="steer", verdict=skipped),
        CandidateRecord(
            name="weights-int4",
            recipe=({"pass": "weights-int4", "config": {}},),
            origin="preset",
            verdict=Verdict(outcome="not-applicable", reason="no MatMul has a constant weight of 2 dimensions"),
        ),
        CandidateRecord(
            name="int8-static entropy",
            recipe=({"pass": "int8-static", "config": {"method": "entropy"}},),
            origin="preset",
            verdict=Verdict(outcome="failed", reason="ran out of memory: over the 4 GB a trial may use"),
            seconds=31.0,
        ),
    )
    return BuildRecord(
        settings={
            "metric": "accuracy",
            "margin": MARGIN,
            "objective": "latency",
            "threads": 1,
            "batch": 1,
            "budget_s": 600.0,
        },
        splits={"calibrate": 200, "steer": 402, "certify": 804},
        candidates=candidates,
        chosen="int8-static conv+matmul minmax",
        why=("Of 3 accepted candidates it is the fastest at batch 1 on one thread.", "It is 3.69 times smaller."),
        hints={"threads": 1, "batch": 16, "merge": True},
        host=Host(
            cpu="AMD EPYC 9R14",
            features=("avx2", "fma", "avx512f", "avx512_vnni"),
            cores=2,
            memory_bytes=8_200_000_000,
            os="Linux 6.1 x86_64",
            python="3.11.7",
            fingerprint="sha256:" + "4f" * 32,
        ),
        tools={"onnxruntime": "1.23.0", "numpy": "2.1.0", "onnx": "1.19.0"},
        seconds=214.0,
    )
