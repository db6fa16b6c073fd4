"""What can be done about a graph that this runtime refuses and that means the same when it is written otherwise."""

from __future__ import annotations

import re
from typing import Any, Final

import onnx
from onnx import inliner, version_converter

from salver.builder.importers.onnx_check import ONNX_ERRORS, first_line, lower_ir, opset
from salver.builder.importers.onnx_files import all_graphs, external_tensors
from salver.core.errors import Unimplemented

_OLDEST_RUN: Final = 7
"""Opset that ONNX Runtime begins with (https://onnxruntime.ai/docs/reference/compatibility.html)."""
_LEAST_STEP: Final = 13
_STANDARD: Final = ("", "ai.onnx")
_MISSING: Final = re.compile(r"(?:implementation|kernel) for (\w+)\(|(\w+)\(-?\d+\) is not a registered function/op")
_NEWER: Final = re.compile(r"implementation for (\w+)\((\d+)\)")
_LOCALE: Final = "C.UTF-8"


def adapt(model: onnx.ModelProto, refusal: str) -> str:
    """Change a graph in place so that the runtime may take it, or leave it alone.

    Args:
        refusal: what the runtime said.

    Returns:
        A note for the user; empty where nothing is to be done about this refusal.

    Raises:
        Unimplemented: the graph is of an opset that is too new, and uses what is new in it; names the operator.
    """
    for repair in (lower_ir, _lower_opset, _raise_opset, _inline, _step_down, _set_locale):
        note = repair(model, refusal)
        if note:
            return note
    return ""


def _lower_opset(model: onnx.ModelProto, refusal: str) -> str:
    """An opset that is too new for the runtime says the same as an older one where no operator changed between them."""
    match = re.search(r"reads opset (\d+) of domain 'ai\.onnx'", refusal)
    if match is None or opset(model) <= int(match[1]):
        return ""
    before, newest = opset(model), int(match[1])
    changed = _changed(model, before, newest)
    inlined = [op for op in changed if _has_body(op, "", before) and _inlined(model, "", op)]
    if inlined:
        changed = _changed(model, before, newest)
    if changed:
        place = next((f"node '{n.name or n.output[0]}'" for n in model.graph.node if n.op_type == changed[0]), "it")
        why = f"{place} uses operator '{changed[0]}' as of opset {before}, and this runtime reads opset {newest}"
        _convert(model, newest, why)
    for entry in model.opset_import:
        if entry.domain in _STANDARD:
            entry.version = newest
    for function in model.functions:
        for entry in function.opset_import:
            if entry.domain in _STANDARD:
                entry.version = min(entry.version, newest)
    how = f"; {', '.join(inlined)} replaced by what ONNX defines it as" if inlined else ""
    return f"opset {before} was lowered to {newest}, the newest this runtime reads{how}"


def _changed(model: onnx.ModelProto, before: int, after: int) -> list[str]:
    """Operators of which one opset has another version than the other."""
    nodes = [node for graph in all_graphs(model) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    ops = dict.fromkeys(node.op_type for node in nodes if node.domain in _STANDARD)
    return [op for op in ops if _since(op, before) != _since(op, after)]


def _since(op: str, version: int) -> int:
    return onnx.defs.get_schema(op, version, "").since_version if onnx.defs.has(op, version, "") else 0


def _has_body(op: str, domain: str, version: int) -> bool:
    if not onnx.defs.has(op, version, domain):
        return False
    schema: Any = onnx.defs.get_schema(op, version, domain)  # its stubs lag behind
    return bool(schema.has_function or schema.has_context_dependent_function)


def _raise_opset(model: onnx.ModelProto, refusal: str) -> str:
    before = opset(model)
    if before >= _OLDEST_RUN or "implementation" not in refusal:
        return ""
    _convert(model, _OLDEST_RUN, f"opset {before} is older than {_OLDEST_RUN}, which this runtime begins with")
    return f"opset {before} was raised to {_OLDEST_RUN}, the oldest this runtime runs, and that is what was compared"


def _convert(model: onnx.ModelProto, version: int, why: str) -> None:
    if any(external_tensors(model)):
        raise Unimplemented(f"{why}; ONNX's converter does not take external data: export with another opset")
    try:
        model.CopyFrom(version_converter.convert_version(model, version))
    except ONNX_ERRORS as error:
        raise Unimplemented(f"{why}, and ONNX's converter cannot tell it otherwise ({first_line(error)})") from None


def _inline(model: onnx.ModelProto, refusal: str) -> str:
    """An operator that the runtime lacks and that ONNX defines by others is replaced by those."""
    match = _MISSING.search(refusal)
    if match is None:
        return ""
    op = match[1] or match[2]
    wanted = [
        (node.domain, op)
        for graph in all_graphs(model)
        for node in graph.node
        if node.op_type == op and _has_body(op, _domain(node), _version(model, _domain(node)))
    ]
    if not wanted or not _inlined(model, *wanted[0]):
        return ""
    return f"operator '{op}', which this runtime lacks, was replaced by what ONNX defines it as"


def _inlined(model: onnx.ModelProto, domain: str, op: str) -> bool:
    """Replace an operator by what ONNX defines it as; whether that went well (types must be known)."""
    for graph in all_graphs(model):
        for node in graph.node:
            if node.op_type == op and _domain(node) == domain:
                _write_defaults(node, _version(model, domain))
    try:
        made = inliner.inline_selected_functions(model, [(domain, op)], False, True)
    except ONNX_ERRORS:
        return False
    if any(a.ref_attr_name for graph in all_graphs(made) for node in graph.node for a in node.attribute):
        return False
    model.CopyFrom(made)
    return True


def _write_defaults(node: onnx.NodeProto, version: int) -> None:
    """Say what a node leaves to its definition: the inliner leaves such attributes open."""
    given = {attribute.name for attribute in node.attribute}
    for name, attribute in onnx.defs.get_schema(node.op_type, version, _domain(node)).attributes.items():
        if name not in given and attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
            node.attribute.append(attribute.default_value)


def _step_down(model: onnx.ModelProto, refusal: str) -> str:
    """A version of an operator that the runtime does not have yet may be told as the one before."""
    match = _NEWER.search(refusal)
    before = opset(model)
    if match is None:
        return ""
    version = int(match[2]) - 1
    if version < _LEAST_STEP or version >= before or any(external_tensors(model)):
        return ""
    try:
        made = version_converter.convert_version(model, version)
    except ONNX_ERRORS:
        return ""
    model.CopyFrom(made)
    return f"opset {before} was lowered to {version}: this runtime has operator '{match[1]}' of that, and no newer one"


def _domain(node: onnx.NodeProto) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _version(model: onnx.ModelProto, domain: str) -> int:
    return next((o.version for o in model.opset_import if _plain(o.domain) == domain), 1)


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _set_locale(model: onnx.ModelProto, refusal: str) -> str:
    """Slim images have few locales (https://github.com/onnx/sklearn-onnx/issues/1019); this one is part of the C
    library, and changes case in all scripts."""
    if "construct locale" not in refusal:
        return ""
    changed = []
    for graph in all_graphs(model):
        for node in graph.node:
            if node.op_type != "StringNormalizer":
                continue
            given = next((a for a in node.attribute if a.name == "locale"), None)
            if given is not None and given.s.decode() == _LOCALE:
                continue
            if given is None:
                node.attribute.append(onnx.helper.make_attribute("locale", _LOCALE))
            else:
                given.s = _LOCALE.encode()
            changed.append(node.name)
    return f"locale of {len(changed)} StringNormalizer set to {_LOCALE}: that asked for is not here" if changed else ""
