"""Is it a sound ONNX model, and of a version that can be run and optimized here?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import onnx
from onnx import checker, shape_inference, version_converter

from salver.builder.importers.onnx_files import all_graphs, external_tensors, write_onnx
from salver.core.errors import CorruptArtifact, InvalidArgument, Unimplemented

MIN_OPSET: Final = 13
"""QDQ with one scale per channel begins here (https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html)."""

_STANDARD: Final = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training")
_RUNTIME: Final = ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc", "ai.onnx.contrib")
_IR_WITH_PURE_INITIALIZERS: Final = 4
_IR_FOR_MIN_OPSET: Final = 7

ONNX_ERRORS: Final = (
    checker.ValidationError,
    shape_inference.InferenceError,
    onnx.defs.SchemaError,
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    UnicodeDecodeError,
)
"""What the onnx package's own C++ raises on models it cannot take."""


def check_operators(model: onnx.ModelProto, name: str) -> None:
    """Refuse operators that neither ONNX, nor the runtime, nor the model itself defines.

    Raises:
        Unimplemented: naming operator, domain and node.
    """
    own = {(f.domain, f.name) for f in model.functions}
    versions = {o.domain: o.version for o in model.opset_import}
    for graph in all_graphs(model):
        for node in graph.node:
            if (node.domain, node.op_type) in own or node.domain in _RUNTIME:
                continue
            if node.domain not in _STANDARD and not onnx.defs.has(node.op_type, domain=node.domain):
                raise _missing(name, node, f"no installed runtime knows the domain '{node.domain}'")
            domain = "" if node.domain == "ai.onnx" else node.domain
            version = versions.get(domain, versions.get("ai.onnx", 1) if not domain else 1)
            if not onnx.defs.has(node.op_type, max_inclusive_version=version, domain=domain):
                raise _missing(name, node, f"there is no such operator in opset {version}")


def _missing(name: str, node: onnx.NodeProto, why: str) -> Unimplemented:
    return Unimplemented(
        f"'{name}': node '{node.name or '(unnamed)'}' uses operator '{node.op_type}' of domain "
        f"'{node.domain or 'ai.onnx'}': "
        f"{why}. Export the model with standard operators"
    )


def check_model(model: onnx.ModelProto, name: str, folder: Path) -> None:
    """The ONNX checker, by way of a file in ``folder``, where external data lie, if there are any.

    Raises:
        CorruptArtifact: with the checker's reason.
    """
    shaped = _with_shapes(model)
    path = folder / "checked.onnx"
    try:
        if any(external_tensors(shaped)):
            write_onnx(shaped, path)
            checker.check_model(str(path))
        else:
            checker.check_model(shaped)
    except ONNX_ERRORS as error:
        raise CorruptArtifact(f"'{name}' is not a valid ONNX model: {first_line(error)}") from None
    finally:
        path.unlink(missing_ok=True)


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which inputs and outputs without a shape have one: the checker wants it, the runtime does not."""
    shaped = onnx.ModelProto()
    shaped.CopyFrom(model)
    for value in (*shaped.graph.input, *shaped.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    return shaped


def infer_shapes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Shape inference, strict where that works.

    Returns:
        The model with what was inferred, and a note when strict inference failed.
    """
    note = ""
    for strict in (True, False):
        try:
            return shape_inference.infer_shapes(model, check_type=strict, strict_mode=strict, data_prop=True), note
        except ONNX_ERRORS as error:
            note = f"strict shape inference failed ({first_line(error)}); shapes are partly unknown"
    return model, note


_RANDOM: Final = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def deviations(model: onnx.ModelProto) -> list[str]:
    """Where ONNX Runtime is known to give other answers than ONNX defines: notes. Found by the onnx package's own
    backend tests (docs/onnx-nodes.md)."""
    nodes = [node for graph in all_graphs(model) for node in graph.node if node.domain in ("", "ai.onnx")]
    return [f"node '{node.name or node.output[0]}': {why}" for node in nodes if (why := _deviation(node))]


def _deviation(node: onnx.NodeProto) -> str:
    texts = {a.name: a.s.decode() for a in node.attribute if a.type == onnx.AttributeProto.STRING}
    given = [bool(name) for name in node.input]
    if (
        node.op_type == "Resize"
        and texts.get("coordinate_transformation_mode") == "align_corners"
        and given[2:3] == [True]
    ):
        return "ONNX Runtime's Resize by scales with align_corners differs from ONNX's where the new size is no integer"
    if node.op_type == "MaxUnpool" and len(given) > 2:
        return "ONNX Runtime's MaxUnpool with an output shape puts values elsewhere than ONNX does"
    if node.op_type == "Attention" and len(node.output) > 3 and node.output[3]:
        return (
            "ONNX Runtime's Attention gives the smallest number for inner products that are masked, ONNX minus infinity"
        )
    if node.op_type in _RANDOM:
        return "it draws random numbers: the same request may get other answers"
    if node.op_type == "Dropout" and given[2:3] == [True]:
        return "in training mode it drops values at random: the same request may get other answers"
    return ""


def opset(model: onnx.ModelProto) -> int:
    """The version of the default operator set; 1 when the model names none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def upgrade(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Raise opset to `MIN_OPSET` with ONNX's own converter.

    Returns:
        The converted model and a note; the model itself when nothing is to be done or the converter fails.
    """
    version = opset(model)
    if version >= MIN_OPSET or not any(n.domain in ("", "ai.onnx") for g in all_graphs(model) for n in g.node):
        return model, ""
    if any(external_tensors(model)):
        return model, f"opset {version} was kept: the converter does not take external data"
    try:
        converted = version_converter.convert_version(model, MIN_OPSET)
        converted.ir_version = max(converted.ir_version, _IR_FOR_MIN_OPSET)
        checker.check_model(converted)
    except ONNX_ERRORS as error:
        return model, f"opset {version} was kept: the converter to opset {MIN_OPSET} failed ({first_line(error)})"
    return converted, f"opset {version} was raised to {MIN_OPSET}"


def raise_ir(model: onnx.ModelProto) -> str:
    """Raise an IR version in which weights must be listed as inputs; returns a note when it did."""
    if model.ir_version >= _IR_WITH_PURE_INITIALIZERS:
        return ""
    before = model.ir_version
    model.ir_version = _IR_FOR_MIN_OPSET
    return f"IR version {before} was raised to {model.ir_version}"


def lower_ir(model: onnx.ModelProto, refusal: str) -> str:
    """Lower an IR version that the runtime refused as too new, as its message says; returns a note, or nothing."""
    match = re.search(r"max supported IR version: (\d+)", refusal)
    if match is None or model.ir_version <= int(match[1]):
        return ""
    before = model.ir_version
    model.ir_version = int(match[1])
    return f"IR version {before} was lowered to {model.ir_version}, the newest this runtime reads"


def check_versions(model: onnx.ModelProto, name: str) -> None:
    """Refuse an opset newer than what is installed knows.

    Raises:
        Unimplemented: naming both versions.
        InvalidArgument: the model names no operator set.
    """
    if not model.opset_import:
        raise InvalidArgument(f"'{name}' names no operator set; export it again")
    newest = onnx.defs.onnx_opset_version()
    if opset(model) > newest:
        raise Unimplemented(
            f"'{name}' uses opset {opset(model)}, newest known here is {newest}; upgrade onnx or export lower"
        )


def first_line(error: Exception) -> str:
    """The first line of a foreign message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300].rstrip(" :")
