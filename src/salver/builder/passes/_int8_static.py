"""Static int8: weights and activations as 8-bit integers, ranges of activations found on calibration examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.calibrate import TensorsData

from salver.builder.passes._graph import (
    calibration_batches,
    describe_ops,
    finish,
    float_weights,
    name_nodes,
    opset_of,
    read_graph,
)
from salver.builder.passes._graph_optimize import ORT_ERRORS, optimize, runtime_version
from salver.builder.passes._quiet import contained
from salver.builder.passes.base import Pass, PassContext
from salver.builder.passes.calibrate import Calibrator, Method
from salver.core.config import Config
from salver.core.dataset import Dataset
from salver.core.errors import FailedPrecondition, InvalidArgument, PassNotApplicable, UnknownName
from salver.core.model import Model
from salver.core.tensors import Signature

T = TypeVar("T")
IntType = Literal["int8", "uint8"]

WEIGHTED: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with a kernel for 8-bit integers and weights to shrink."""
PASSING: Final = ("Relu", "Clip", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
"""Operators that hand 8-bit values on at no loss, so that those between two weighted ones stay integers."""

TYPES: Final = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
_OLDEST_OPSET: Final = 13
_READ_ROWS: Final = 16
_QUANTIZER_ERRORS: Final[tuple[type[Exception], ...]] = (
    *ORT_ERRORS,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""What ONNX Runtime's quantizer raises on graphs it cannot take."""


class Int8StaticConfig(Config, frozen=True, kw_only=True):
    """Args:
    op_types: which operators become integer; ``MatMul`` covers Gemm too.
    exclude_nodes: names of nodes that stay fp32.
    per_channel: one scale per output channel of each weight, not one per weight.
    activation_type, weight_type: ``int8`` or ``uint8``.
    activation_symmetric, weight_symmetric: zero point in the middle of the range; None means for ``int8`` weights.
    calibration: how ranges are found from the examples.
    percentile: share of the values kept by ``percentile``, in percent.
    reduce_range: 7-bit weights, for CPUs whose 8-bit products saturate (x86 without VNNI).
    runtime_defaults: exactly what ``onnxruntime.quantization.quantize_static(model, output, reader)`` does, with its
        own calibrator and no preparation; the other fields must be left alone.
    """

    op_types: tuple[str, ...] = WEIGHTED + PASSING
    exclude_nodes: tuple[str, ...] = ()
    per_channel: bool = False
    activation_type: IntType = "uint8"
    weight_type: IntType = "int8"
    activation_symmetric: bool = False
    weight_symmetric: bool | None = None
    calibration: Method = "minmax"
    percentile: float = 99.99
    reduce_range: bool = False
    runtime_defaults: bool = False


class Int8StaticPass(Pass[Int8StaticConfig]):
    """Puts QuantizeLinear and DequantizeLinear pairs around operators (QDQ); the runtime runs them as integer kernels.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """

    name = "int8-static"
    Config = Int8StaticConfig
    needs_calibration = True

    def __init__(self, config: Int8StaticConfig) -> None:
        refuse_mixed_defaults(config)
        if not 50.0 < config.percentile <= 100.0:
            raise InvalidArgument(f"percentile: got {config.percentile}, expected more than 50 and at most 100")
        super().__init__(config)

    def apply(self, model: Model, context: PassContext) -> Model:
        data = context.calibration
        if data is None:
            raise FailedPrecondition("pass 'int8-static' needs calibration examples: give --calibration or --data")
        original = read_graph(model)
        with contained(context.workdir) as folder:
            if self.config.runtime_defaults:
                changed = run_quantizer(lambda: _quantize_as_runtime_does(original, model.signature, data, folder))
            else:
                changed = self._quantize(original, model.signature, data, context.threads, folder)
        return finish(model, original, changed, self, context, {**runtime_version(), "numpy": np.__version__})

    def _quantize(
        self, original: ModelProto, signature: Signature, data: Dataset, threads: int, folder: Path
    ) -> ModelProto:
        config = self.config
        prepared = prepare(original, folder)
        nodes = select(prepared, config.op_types, config.exclude_nodes)
        tensors = _activations(prepared, nodes)
        calibrator = Calibrator(method=config.calibration, percentile=config.percentile, threads=threads)
        ranges = calibrator.observe(prepared, signature, tensors, data, folder)
        options: dict[str, Any] = {"ActivationSymmetric": config.activation_symmetric}
        if config.weight_symmetric is not None:
            options["WeightSymmetric"] = config.weight_symmetric
        found = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}

        def quantize() -> ModelProto:
            quantizer = QDQQuantizer(
                prepared,
                config.per_channel,
                config.reduce_range,
                TYPES[config.weight_type],
                TYPES[config.activation_type],
                TensorsData(CalibrationMethod.MinMax, found),
                [node.name for node in nodes],
                [],
                covered(config.op_types),
                options,
            )
            quantizer.quantize_model()
            result: ModelProto = quantizer.model.model
            return result

        return run_quantizer(quantize)


def quantizable_nodes(model: Model, op_types: Sequence[str], workdir: Path) -> tuple[str, ...]:
    """Names that ``exclude_nodes`` of ``int8-static`` and ``int8-dynamic`` take for a model: the nodes with weights.

    They are those of the graph after preparation, in which batch normalization and biases are merged.
    """
    with contained(workdir) as folder:
        prepared = prepare(read_graph(model), folder)
    return tuple(n.name for n in select(prepared, op_types, ()) if n.op_type in WEIGHTED)


def prepare(original: ModelProto, folder: Path) -> ModelProto:
    """The graph a quantizer works on: constants folded, batch normalization merged, nodes named, types inferred.

    Raises:
        PassNotApplicable: an operator set too old.
    """
    if opset_of(original) < _OLDEST_OPSET:
        raise PassNotApplicable(f"the model has opset {opset_of(original)}; int8 needs {_OLDEST_OPSET} or newer")
    optimized = optimize(original, "basic", folder)
    name_nodes(optimized)
    _flatten_biases(optimized)
    prepared = onnx.shape_inference.infer_shapes(optimized)
    # The quantizer infers no shapes of its own when it sees this mark.
    onnx.helper.set_model_props(prepared, {"onnx.infer": "onnxruntime.quant"})
    return prepared


def _flatten_biases(proto: ModelProto) -> None:
    """``[1, N]`` biases of Gemm become ``[N]``: the quantizer fails on the former when it works per channel."""
    biases = {node.input[2] for node in proto.graph.node if node.op_type == "Gemm" and len(node.input) == 3}
    used_elsewhere = {
        name
        for node in proto.graph.node
        for position, name in enumerate(node.input)
        if not (node.op_type == "Gemm" and position == 2)
    }
    for tensor in proto.graph.initializer:
        if tensor.name in biases - used_elsewhere and len(tensor.dims) == 2 and tensor.dims[0] == 1:
            del tensor.dims[0]


def select(proto: ModelProto, op_types: Sequence[str], exclude: Sequence[str]) -> list[NodeProto]:
    """Nodes of these types that are not excluded; products of two activations (attention) stay fp32.

    ``MatMul`` covers Gemm too: preparation turns a MatMul and the Add of its bias into one.

    Raises:
        UnknownName: a name to exclude that no such node has.
        PassNotApplicable: no node with weights is left.
    """
    weights = {t.name for t in proto.graph.initializer}
    candidates = [
        node
        for node in proto.graph.node
        if node.op_type in covered(op_types) and (node.op_type not in WEIGHTED or node.input[1] in weights)
    ]
    names = {node.name for node in candidates}
    for name in exclude:
        if name not in names:
            raise UnknownName("node to exclude", name, names)
    chosen = [node for node in candidates if node.name not in exclude]
    floats = float_weights(proto)
    if not any(node.op_type not in PASSING and floats.keys() & set(node.input) for node in chosen):
        raise PassNotApplicable(
            f"no node of type {', '.join(op_types)} with constant weights; the graph has {describe_ops(proto)}"
        )
    return chosen


def covered(op_types: Sequence[str]) -> list[str]:
    """The operators that a list of types stands for."""
    return [*op_types, "Gemm"] if "MatMul" in op_types and "Gemm" not in op_types else list(op_types)


def _activations(proto: ModelProto, nodes: Sequence[NodeProto]) -> list[str]:
    """fp32 tensors that enter or leave these nodes, weights aside, in the order of the graph."""
    graph = proto.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    weights = {t.name for t in graph.initializer}
    touched = dict.fromkeys(name for node in nodes for name in (*node.input, *node.output))
    return [name for name in touched if name not in weights and types.get(name) == TensorProto.FLOAT]


def run_quantizer(quantize: Callable[[], T]) -> T:
    """Run ONNX Runtime's quantizer; its failures become a reason.

    Raises:
        PassNotApplicable: with the runtime's words.
    """
    try:
        return quantize()
    except _QUANTIZER_ERRORS as error:
        first = (str(error).splitlines() or [""])[0]
        raise PassNotApplicable(f"ONNX Runtime's quantizer failed: {type(error).__name__}: {first}") from error


def refuse_mixed_defaults(config: Config) -> None:
    """``runtime_defaults`` stands alone.

    Raises:
        InvalidArgument: another field is set beside it.
    """
    cls = type(config)
    if config.to_data()["runtime_defaults"] and config != cls.from_data({"runtime_defaults": True}):
        raise InvalidArgument("runtime_defaults: takes all settings from the runtime; leave the other fields out")


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
    """Examples as ONNX Runtime's own calibrator asks for them."""

    def __init__(self, signature: Signature, data: Dataset) -> None:
        self._batches = calibration_batches(signature, data, _READ_ROWS)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else batch.inputs


def _quantize_as_runtime_does(original: ModelProto, signature: Signature, data: Dataset, folder: Path) -> ModelProto:
    source, target = folder / "source.onnx", folder / "target.onnx"
    source.write_bytes(original.SerializeToString())
    quantize_static(source, target, _Reader(signature, data))
    return onnx.load(target)
