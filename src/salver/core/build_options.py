"""Options of the build wing's verb."""

from __future__ import annotations

from typing import Final

from salver.core.option import Option

_BUILD: Final = ("build",)

BUILD_OPTIONS: Final = (
    Option(
        name="data",
        kind="text",
        verbs=_BUILD,
        example="val.npz",
        default="(required)",
        help="Validation examples: a .npz, .npy, .csv, .jsonl or .parquet file, an image folder, or module:function",
    ),
    Option(
        name="label",
        kind="text",
        verbs=_BUILD,
        example="species",
        default="(found by name)",
        help="The column of the data that holds the labels",
    ),
    Option(
        name="metric",
        kind="text",
        verbs=_BUILD,
        example="macro-f1",
        default="(accuracy where there are labels, else agreement)",
        help="What must not get worse: accuracy, top-5, macro-f1, auc, mse, mae, r2, agreement, or module:function",
    ),
    Option(
        name="max_drop",
        kind="margin",
        verbs=_BUILD,
        example="1%",
        default="(0.5pp where the metric is a share, such as accuracy; else 1%)",
        help="How much worse is still not worse, in percentage points (0.5pp) or relative (1%)",
    ),
    Option(
        name="objective",
        kind="text",
        verbs=_BUILD,
        example="size",
        default="latency",
        choices=("latency", "throughput", "size"),
        help="What to improve",
    ),
    Option(
        name="batch",
        kind="integer",
        verbs=_BUILD,
        example="8",
        default="1",
        minimum=1,
        help="Rows per run at which latency is measured",
    ),
    Option(
        name="calibration",
        kind="text",
        verbs=_BUILD,
        example="calib.npz",
        default="(a part of the data, then used for nothing else)",
        help="Examples that calibrate quantization",
    ),
    Option(
        name="budget",
        kind="duration",
        verbs=("build", "tune"),
        example="5m",
        default="5m",
        field="budget_s",
        minimum=0,
        help="Time for the search; the best so far is what counts",
    ),
    Option(
        name="labels",
        kind="path",
        verbs=_BUILD,
        example="labels.txt",
        default="(none)",
        help="Class names, one per line, in the order of the output's last dimension",
    ),
    Option(
        name="golden",
        kind="text",
        verbs=_BUILD,
        example="synthetic",
        default="real",
        choices=("real", "synthetic"),
        help="Whether golden requests are taken from the data, or made up because the data must not travel",
    ),
    Option(
        name="trust_pickle",
        kind="boolean",
        verbs=_BUILD,
        flag_only=True,
        default="false",
        help="Load a pickled model, which runs code from the file",
    ),
    Option(
        name="seed",
        kind="integer",
        verbs=_BUILD,
        example="7",
        default="0",
        minimum=0,
        help="Seed of the split into calibration, steering and certification examples",
    ),
    Option(
        name="cache",
        kind="path",
        verbs=_BUILD,
        example="build-cache",
        default="(the user's cache folder)",
        help="Folder where finished trials are kept, so that a build resumes",
    ),
    Option(
        name="threads",
        kind="integer",
        verbs=("build", "serve", "verify"),
        example="2",
        default="(build: 1; otherwise what the bundle advises)",
        minimum=1,
        per_model=True,
        help="Threads inside one operator",
    ),
)
