"""What came of all tests, kept as data, and the page that tells it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import onnx
import onnxruntime

from tests.onnx_nodes.outcomes import Outcome

HERE = Path(__file__).parent
RECORD = HERE / "outcomes.json"
PAGE = HERE.parents[1] / "docs" / "onnx-nodes.md"

REASONS = {
    r"is a tensor of |is a sequence_type|is a optional_type|is a map_type": (
        "not supported by Salver: inputs and outputs are tensors of the Open Inference Protocol's datatypes, which has "
        "no 2-, 4- and 8-bit floats and integers, no sequences and no optional values"
    ),
    r"has no implementation|lacks|cannot run|cannot be loaded|there is no such operator": (
        "ONNX Runtime lacks the operator, for this type, with this attribute or at all; Salver names operator and node"
    ),
    r"as of opset \d+, and this runtime reads": (
        "ONNX Runtime reads an older opset, and what is new in the newer one cannot be told in the older"
    ),
    r"failed while running|runs on no synthetic inputs|refused its inputs": (
        "ONNX Runtime loads it, and fails while it runs: import ends with its message"
    ),
}
DEVIATIONS = {
    r"test_resize_downsample_scales_(cubic|linear)_align_corners": (
        "ONNX Runtime's Resize by scales with align_corners is not ONNX's where the new size is no integer"
    ),
    r"test_maxunpool_export_with_output_shape": "ONNX Runtime's MaxUnpool puts values elsewhere than ONNX's",
    r"test_attention_4d_with_past_and_present_qk_matmul_bias_\dd_mask_causal": (
        "ONNX Runtime's Attention gives the smallest number for inner products that are masked, ONNX's minus infinity"
    ),
    r"test_training_dropout\w*|test_bernoulli\w*": "random numbers are drawn, and ONNX defines no generator of them",
}
"""Tests whose answer is not that of ONNX: such a node is named in the notes of the imported model."""

HEAD = """\
# ONNX's own backend tests

<!-- Written by `make node-tests` from tests/onnx_nodes/outcomes.json. -->

The [onnx package's backend tests](https://github.com/onnx/onnx/blob/main/docs/OnnxBackendTest.md), one or more for
each operator, and networks that PyTorch exported, run as a user's model would be: through `salver.load`, with inputs
made up for the parity check, then opened for serving, run on the test's inputs and compared with its outputs.
Tolerances are those of the package; 1e-6 of an output's largest value where large terms are summed; two units in the
last place of 16-bit floats.
"""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the outcomes were found with, how many tests passed, and what came of those that did not."""

    versions: dict[str, str]
    tests: int
    others: dict[str, Outcome]


def versions() -> dict[str, str]:
    """What the outcomes depend on."""
    return {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}


def read_record() -> Record:
    """The record."""
    return msgspec.json.decode(RECORD.read_bytes(), type=Record)


def write_record(record: Record) -> None:
    """Write it."""
    RECORD.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")


def explain(name: str, outcome: Outcome) -> str:
    """Why a test did not pass, in words of which there are few; empty where nobody has said it."""
    if outcome.result == "differs":
        said = next((why for pattern, why in DEVIATIONS.items() if re.fullmatch(pattern, name)), "")
        return f"{said}; such a node is named in the notes of the imported model" if said else ""
    if outcome.result != "refused":
        return ""
    return next((reason for pattern, reason in REASONS.items() if re.search(pattern, outcome.why)), "")


def write_page(record: Record) -> None:
    """Write the page."""
    groups: dict[str, list[str]] = {}
    for name, outcome in record.others.items():
        groups.setdefault(explain(name, outcome), []).append(name)
    passed = record.tests - len(record.others)
    with_what = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    lines = [HEAD, f"With {with_what}: **{passed} of {record.tests} pass**; none gives a wrong answer in silence.", ""]
    lines += ["| tests | why they do not pass |", "|---|---|"]
    lines += [f"| {len(names)} | {reason} |" for reason, names in groups.items()]
    for reason, names in groups.items():
        lines += ["", f"## {reason.partition(':')[0].partition(';')[0].capitalize()}", ""]
        lines += [f"- `{name}`: {_short(record.others[name].why)}" for name in names]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _short(why: str) -> str:
    text = why.partition("; Salver serves")[0].partition(": ")[2] or why
    text = re.sub(r"/\S+?:\d+ ", "", text).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    return text[:220]
