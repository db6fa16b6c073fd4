"""OpenVINO behind a `Session`; the only file that imports openvino. Nothing is reported to anybody: the package that
would is kept out."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from salver.backends.base import Backend, Session, SessionOptions
from salver.backends.laid_out import LaidOut
from salver.core.arrays import Array
from salver.core.errors import (
    CorruptArtifact,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    MissingExtra,
    SalverError,
    Unimplemented,
    UnknownName,
)
from salver.core.model import Blob, Model
from salver.core.tensors import ANY_RANK, NUMPY_DTYPES, Signature, TensorSpec

# openvino tells Google Analytics that it was imported, through this package; without it, it goes on in silence.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is how Python blocks an import

try:
    import openvino as ov
except ImportError as missing:
    raise MissingExtra("running a model with OpenVINO", str(missing.name), "openvino") from None

_DATATYPES: Final = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "bf16": "BF16",
    "f32": "FP32",
    "f64": "FP64",
}
_DEVICES: Final = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
_ERRORS: Final = (RuntimeError, ValueError, TypeError)
_SUMMARY: Final = "Summary:"
_ENDS: Final = ("Parameter", "Result")
BATCH: Final = "batch"


class OpenvinoBackend(Backend):
    """Runs OpenVINO IR (https://docs.openvino.ai) in the precision of the file: 16-bit shortcuts that the CPU may offer
    are not taken, so that answers do not depend on it. The weights lie in a second blob, the ``.bin``."""

    name = "openvino"
    formats = ("openvino",)
    isolated = False

    def versions(self) -> dict[str, str]:
        return {"openvino": str(ov.__version__).partition("-")[0]}

    def providers(self) -> tuple[str, ...]:
        present = {device.partition(".")[0] for device in ov.Core().available_devices}
        return tuple(name for name, device in _DEVICES.items() if device in present)

    def load(self, model: Model, options: SessionOptions) -> Session:
        device = self._choose(options.provider)
        files = LaidOut({blob.name: blob for blob in model.blobs})
        try:
            graph = read(files.folder / model.blobs[0].name, *(files.folder / blob.name for blob in model.blobs[1:2]))
            compiled = _compile(graph, device, options, model.blobs[0].name)
        except BaseException:
            files.close()
            raise
        return OpenvinoSession(compiled, model.signature, files)

    def describe(self, blob: Blob) -> Signature:
        beside = blob.path.with_suffix(".bin")
        if not blob.is_whole_file:
            raise Unimplemented(f"'{blob.name}' lies in another file; its weights cannot be found beside it")
        return read_signature(read(blob.path, *([beside] if beside.is_file() else [])))

    def _choose(self, provider: str) -> str:
        present = self.providers()
        name = present[0] if provider == "auto" else provider
        if name not in present:
            raise UnknownName("execution provider", provider, ("auto", *present))
        return _DEVICES[name]


def read(path: Path, *weights: Path) -> Any:
    """An ``openvino.Model`` of an IR, or of an ONNX file.

    Raises:
        CorruptArtifact: it is neither, or damaged.
        Unimplemented: an operator OpenVINO lacks, by name.
    """
    try:
        return ov.Core().read_model(str(path), *(str(file) for file in weights))
    except _ERRORS as error:
        raise _translate(error, path.name) from error


def write(graph: Any, path: Path, *, float16: bool) -> None:
    """Write IR: ``path`` and its weights beside it, with the suffix ``.bin``. The same graph gives the same bytes.

    Args:
        float16: whether weights are kept as FP16, and turned back where they are used.

    Raises:
        FailedPrecondition: it could not be written.
    """
    _number(graph)
    try:
        ov.save_model(graph, str(path), compress_to_fp16=float16)
    except _ERRORS as error:
        raise FailedPrecondition(f"OpenVINO could not write '{path.name}': {_line(error)}") from error


def _number(graph: Any) -> None:
    """Name what has no name of its own after its place: in OpenVINO's names is a number that counts all that this
    process made."""
    nodes = graph.get_ordered_ops()
    nameless = [node for node in nodes if _is_nameless(node)]
    taken = {node.friendly_name for node in nodes} - {node.friendly_name for node in nameless}
    for place, node in enumerate(nameless):
        name = f"{node.get_type_name()}_{place}"
        node.friendly_name = name if name not in taken else f"{name}_"
    for node in nodes:
        for body in _bodies(node):
            _number(body)


def _is_nameless(node: Any) -> bool:
    if node.friendly_name == node.get_name():
        return True
    kind = node.get_type_name()
    return kind not in _ENDS and re.fullmatch(rf"{kind}_\d+(_\d+)*", node.friendly_name) is not None


def _bodies(node: Any) -> list[Any]:
    """The graphs inside a node: of a loop or a branch."""
    kind = node.get_type_name()
    if kind in ("Loop", "TensorIterator"):
        return [node.get_function()]
    return [node.get_function(0), node.get_function(1)] if kind == "If" else []


def read_signature(graph: Any) -> Signature:
    """Inputs and outputs; leading dimensions that may have any size are called ``batch``.

    Raises:
        Unimplemented: a type that Salver does not carry.
    """
    return Signature(
        inputs=tuple(_spec(port) for port in graph.inputs), outputs=tuple(_spec(port) for port in graph.outputs)
    )


def name_of(port: Any) -> str:
    """The name of an input or output: its tensor's, else its node's."""
    return str(min(port.names, default="") or port.node.friendly_name)


def _spec(port: Any) -> TensorSpec:
    name, kind = name_of(port), str(port.element_type.get_type_name())
    if kind not in _DATATYPES:
        raise Unimplemented(f"'{name}' is of type {kind}; Salver serves tensors of {', '.join(NUMPY_DTYPES)}")
    return TensorSpec(name=name, datatype=_DATATYPES[kind], shape=_shape(name, port.partial_shape))


def _shape(name: str, shape: Any) -> tuple[int | str, ...]:
    if shape.rank.is_dynamic:
        return (ANY_RANK,)
    dims = [None if dim.is_dynamic else dim.get_length() for dim in shape]
    return tuple(d if d is not None else BATCH if axis == 0 else f"?{name}_{axis}" for axis, d in enumerate(dims))


def _compile(graph: Any, device: str, options: SessionOptions, name: str) -> Any:
    settings = {
        "NUM_STREAMS": str(options.lanes),  # runs beyond these wait for each other
        "PERFORMANCE_HINT": "LATENCY",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if device == "CPU":
        settings["INFERENCE_NUM_THREADS"] = str(options.threads * options.lanes)
        settings["ENABLE_HYPER_THREADING"] = "YES"  # as many threads as were asked for
        settings["ENABLE_CPU_PINNING"] = "NO"  # each of several processes would take the same cores
    try:
        return ov.Core().compile_model(graph, device, settings)
    except _ERRORS as error:
        raise _translate(error, name) from error


class OpenvinoSession(Session):
    """A compiled model. Each run takes an inference request that no other run has."""

    def __init__(self, compiled: Any, signature: Signature, files: LaidOut) -> None:
        self._compiled = compiled
        self._signature = signature
        self._files = files
        self._idle: list[Any] = []
        self._inputs = _places(compiled.inputs, [spec.name for spec in signature.inputs])
        self._outputs = _places(compiled.outputs, [spec.name for spec in signature.outputs])
        self._bfloat16 = {spec.name for spec in signature.inputs if spec.datatype == "BF16"}

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        compiled = self._compiled
        if compiled is None:
            raise FailedPrecondition("the session is closed")
        self._signature.check(inputs)
        names = self._signature.output_names if outputs is None else outputs
        request = self._idle.pop() if self._idle else compiled.create_infer_request()
        try:
            for name, place in self._inputs.items():
                request.set_input_tensor(place, self._tensor(name, inputs[name]))
            request.infer()
            return {name: self._array(name, request.get_output_tensor(self._outputs[name]).data) for name in names}
        except _ERRORS as error:
            raise _translate_run(error) from error
        finally:
            self._idle.append(request)

    def _tensor(self, name: str, array: Array) -> Any:
        whole = np.ascontiguousarray(array).reshape(array.shape)
        if name in self._bfloat16:
            return ov.Tensor(whole, ov.Shape(list(array.shape)), ov.Type.bf16)
        return ov.Tensor(whole, shared_memory=False)

    def _array(self, name: str, data: Array) -> Array:
        spec = self._signature.output(name)
        return np.array(data.view(spec.dtype) if spec.datatype == "BF16" else data, dtype=spec.dtype, order="C")

    def close(self) -> None:
        if self._compiled is not None:
            self._compiled = None
            self._idle.clear()
            self._files.close()


def _places(ports: Sequence[Any], names: Sequence[str]) -> dict[str, int]:
    """Name -> position; by position where the file has other names."""
    known = {name: i for i, port in enumerate(ports) for name in (*port.names, port.node.friendly_name)}
    if all(name in known for name in names):
        return {name: known[name] for name in names}
    return {name: i for i, name in enumerate(names)}


def _translate(error: Exception, name: str) -> SalverError:
    text = _line(error)
    lacking = ("not supported", "not implemented", "unsupported", "opconversionfailure", "cannot create")
    if any(words in str(error).lower() for words in lacking):
        version = str(ov.__version__).partition("-")[0]
        return Unimplemented(f"'{name}': this OpenVINO ({version}) cannot run it: {text}")
    return CorruptArtifact(f"'{name}' is no OpenVINO IR, or it is damaged: {text}")


def _translate_run(error: Exception) -> SalverError:
    if isinstance(error, ValueError | TypeError) or "incompatible" in str(error).lower():
        return InvalidArgument(f"the model refused its inputs: {_line(error)}")
    return Internal(f"the model failed while running: {_line(error)}")


def _line(error: Exception) -> str:
    """What it says, without the places in OpenVINO's own source; of operators that it could not convert, their
    names."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if _SUMMARY in lines:
        return "; ".join(line.removeprefix("-- ") for line in lines[lines.index(_SUMMARY) + 1 :])[:400]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '", "src/"))]
    return (told or lines or [type(error).__name__])[0][:400]
