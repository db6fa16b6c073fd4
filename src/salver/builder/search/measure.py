"""Everything that is measured of one candidate, beside the original and in this process."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np

from salver.backends import Session, SessionOptions, open_session
from salver.backends.apart import open_as_served
from salver.builder.passes import make_pass
from salver.builder.passes._int8_static import quantizable_nodes
from salver.builder.passes.base import PassContext
from salver.builder.search.choose import Objective
from salver.core.arrays import Array
from salver.core.dataset import Dataset, Subset
from salver.core.errors import InvalidArgument, PassNotApplicable
from salver.core.model import Model
from salver.evaluation.invariance import check_invariance
from salver.evaluation.memory import PeakMemory
from salver.evaluation.meter import measure, measure_throughput, take_rows
from salver.evaluation.metrics import Metric, make_metric
from salver.evaluation.noninferiority import assess
from salver.evaluation.runner import RowRunner, Scores, count_new_nonfinite, fixed_batch, score
from salver.evaluation.types import Evaluation, Margin
from salver.processing import open_processed

_SAMPLE_ROWS: Final = 64
_STEER_TIMING_S: Final = 4.0
_ORIGINAL_TIMING_S: Final = 2.0  # against itself: there is no ratio to find
_CERTIFY_TIMING_S: Final = 6.0
_RANK_ROWS: Final = 32
_RANK_LAYERS: Final = 48
_STEER_SCORING_S: Final = 10.0
_STEER_LEAST_ROWS: Final = 32
_LABEL_ROWS: Final = 1024


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be measured.

    Args:
        metric: what quality means, as users write it.
        margin: how much worse is still not worse.
        threads, batch: for latency.
        role: which examples they are; ``certify`` is timed longer, and at the throughput batch too.
        scores: file that keeps the original's per-example statistics between trials.
        rows: how many of the examples to use; 0 for all. While steering fewer are used where the original is slow.
        objective: what has to get better. Where that is speed, a candidate slower than the original is lost whatever
            its quality, so while steering it is scored on fewer examples, in the time the original takes for all.
    """

    metric: str
    margin: Margin
    threads: int
    batch: int
    role: Literal["steer", "certify"]
    scores: Path
    rows: int = 0
    objective: Objective = "latency"


def evaluate(candidate: Model, original: Model, data: Dataset, question: Question) -> tuple[Evaluation, float]:
    """Measure quality, latency, size, memory and batch invariance of a candidate.

    Returns:
        The evaluation, and about how long one example takes, in seconds.

    Args:
        candidate, original: models of the same signature; the same one to measure the original.
        data: examples bound to the inputs.
        question: what is asked.

    Raises:
        SalverError: a model cannot be loaded or run, or labels do not fit.
    """
    options = SessionOptions(threads=question.threads)
    sample = next(iter(data.batches(_SAMPLE_ROWS))).inputs
    # What moved to another framework is measured with the way to the process that a server would give it.
    own, own_peak = _open_watched(candidate, options, sample, apart=candidate.format != original.format)
    theirs, their_peak = _open_watched(original, options, sample)
    with own, theirs:
        is_original = candidate.digest == original.digest
        timing_s = _ORIGINAL_TIMING_S if is_original else _STEER_TIMING_S
        timing_s = _CERTIFY_TIMING_S if question.role == "certify" else timing_s
        rows = take_rows(sample, fixed_batch(original.served) or question.batch)
        latency = [measure(own, theirs, rows, threads=question.threads, budget_s=timing_s)]
        if question.role == "certify" or is_original or question.objective == "throughput":
            latency.append(measure_throughput(own, theirs, sample, threads=question.threads, budget_s=timing_s))
        metric = make_metric(question.metric, original.served)
        baseline, data = _baseline_scores(theirs, data, metric, question)
        share = latency[0 if question.objective == "latency" else -1].speedup_ci.high
        may_save = question.role == "steer" and question.objective != "size" and not is_original
        if may_save and share < 1.0 and len(data) > _STEER_LEAST_ROWS:
            data = _spread(data, max(int(len(data) * share), _STEER_LEAST_ROWS))
            baseline = score(theirs, data, [metric])
        scores = baseline if is_original else score(own, data, [metric])
        quality = assess(metric, baseline.stats[metric.name], scores.stats[metric.name], question.margin, question.role)
        evaluation = Evaluation(
            **{question.role: (quality,)},
            latency=tuple(latency),
            size_bytes=candidate.size_bytes,
            baseline_size_bytes=original.size_bytes,
            peak_memory_bytes=own_peak,
            baseline_peak_memory_bytes=their_peak,
            invariance=check_invariance(own, sample),
            nonfinite_outputs=count_new_nonfinite(baseline, scores),
        )
    return evaluation, latency[-1].p50_ms / 1000.0 / latency[-1].batch


def _open_watched(
    model: Model, options: SessionOptions, sample: dict[str, Array], *, apart: bool = False
) -> tuple[Session, int]:
    """Open a session and run it once; how much memory that took."""
    with PeakMemory() as peak:
        session = open_processed(model, options, open_as_served if apart else open_session)
        RowRunner(session).run(take_rows(sample, 1), 1)
    return session, peak.growth_bytes


def _baseline_scores(session: Session, data: Dataset, metric: Metric, question: Question) -> tuple[Scores, Dataset]:
    """The original's scores, and the examples they are of: all of them, or as many as were asked for or are affordable.
    What the first trial finds affordable holds for all that follow, so that they see the same examples."""
    path = question.scores
    if path.is_file():
        scores = Scores.read(path)
        return scores, _spread(data, scores.rows)
    wanted = question.rows or len(data)
    if question.role == "steer":
        wanted = min(wanted, _affordable_rows(session, data))
    data = _spread(data, wanted)
    scores = score(session, data, [metric])
    if metric.is_share is not True and scores.nonfinite:
        raise InvalidArgument(
            f"metric '{metric.name}': the original's output '{next(iter(scores.nonfinite))}' is NaN or infinite for "
            "some examples; leave those examples out of the data"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    scores.save(partial)
    partial.replace(path)
    return scores, data


def check_labels(original: Model, datasets: Iterable[Dataset], metric_name: str) -> None:
    """Read the labels of all examples once, beside one example's answer, so that a wrong one is found before anything
    long begins.

    Raises:
        InvalidArgument, FailedPrecondition: labels that do not fit the metric or the model.
    """
    metric = make_metric(metric_name, original.served)
    answer: dict[str, Array] = {}
    for data in datasets if metric.needs_labels else ():
        for batch in data.batches(_LABEL_ROWS):
            if not answer:
                with open_processed(original, SessionOptions(threads=1)) as session:
                    answer = RowRunner(session).run(take_rows(batch.inputs, 1), 1)
            metric.reduce(take_rows(answer, batch.rows), batch.labels)


def _affordable_rows(session: Session, data: Dataset) -> int:
    first = next(iter(data.batches(_STEER_LEAST_ROWS)))
    began = time.monotonic()
    RowRunner(session).run(first.inputs, first.rows)
    seconds_per_row = (time.monotonic() - began) / first.rows
    return max(_STEER_LEAST_ROWS, int(_STEER_SCORING_S / seconds_per_row))


def _spread(data: Dataset, rows: int) -> Dataset:
    """So many of the examples, evenly spread, since files are often ordered by class."""
    if rows >= len(data):
        return data
    return Subset(data, np.arange(rows, dtype=np.int64) * len(data) // rows)


def rank_layers(
    model: Model, item: dict[str, Any], calibration: Dataset, data: Dataset, workdir: Path, threads: int
) -> tuple[str, ...]:
    """Order the layers that a static int8 recipe quantizes by how much each one alone moves the outputs.

    Each layer is quantized by itself and the outputs are compared with the original's on a few examples.

    Returns:
        Node names, the one that hurts most first.
    """
    config = dict(item["config"])
    probe = make_pass(item["pass"], {k: v for k, v in config.items() if k != "runtime_defaults"})
    (workdir / "nodes").mkdir(parents=True, exist_ok=True)
    names = quantizable_nodes(model, probe.config.op_types, workdir / "nodes")[:_RANK_LAYERS]
    few = Subset(calibration, np.arange(min(len(calibration), _RANK_ROWS), dtype=np.int64))
    rows = next(iter(data.batches(_RANK_ROWS)))
    options = SessionOptions(threads=threads)
    with open_processed(model, options) as session:
        expected = RowRunner(session).run(rows.inputs, rows.rows)
    moved: dict[str, float] = {}
    for number, name in enumerate(names):
        others = [n for n in names if n != name]
        one = make_pass(item["pass"], {**probe.config.to_data(), "exclude_nodes": others})
        folder = workdir / f"layer{number}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            made = one.apply(model, PassContext(workdir=folder, calibration=few, threads=threads))
            changed = msgspec.structs.replace(made, processing=model.processing, trusted=model.trusted)
        except PassNotApplicable:
            continue
        with open_processed(changed, options) as session:
            got = RowRunner(session).run(rows.inputs, rows.rows)
        moved[name] = sum(_distance(expected[k], got[k]) for k in expected)
    return tuple(sorted(moved, key=lambda name: -moved[name]))


def _distance(expected: Array, got: Array) -> float:
    """Mean absolute difference relative to the spread of what is expected; 1 for classes that differ."""
    if expected.dtype.kind != "f":
        return float(np.mean(expected != got))
    wide = expected.astype(np.float64)
    return float(np.mean(np.abs(wide - got.astype(np.float64))) / (np.std(wide) + 1e-12))
