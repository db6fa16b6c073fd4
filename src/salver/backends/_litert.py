"""LiteRT (TensorFlow Lite) behind a `Session`; the only file that imports ai-edge-litert."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Final

import numpy as np

from salver.backends.base import Backend, Session, SessionOptions
from salver.backends.native import read_blob
from salver.core.arrays import Array
from salver.core.errors import (
    CorruptArtifact,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    MissingExtra,
    NotFound,
    SalverError,
    Unimplemented,
    UnknownName,
)
from salver.core.model import Blob, Model
from salver.core.tensors import NUMPY_DTYPES, Signature, TensorSpec, to_datatype

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError as missing:
    raise MissingExtra("running a TensorFlow Lite model", str(missing.name), "litert") from None

_SERVING: Final = "serving_default"
_BATCH: Final = "batch"
_ERRORS: Final = (ValueError, RuntimeError, TypeError, OverflowError)


class LitertBackend(Backend):
    """Runs ``.tflite`` files with LiteRT's interpreter (https://ai.google.dev/edge/litert), its built-in operators and
    XNNPACK, on the CPU.

    Inputs and outputs have the names of the signature ``serving_default``, or of the only one; in a file without
    signatures those of its tensors. Integer models take and give their integers, with nothing scaled.
    """

    name = "litert"
    formats = ("tflite",)
    isolated = True  # a kernel that meets integers out of its range ends the process

    def versions(self) -> dict[str, str]:
        return {"ai-edge-litert": version("ai-edge-litert")}

    def providers(self) -> tuple[str, ...]:
        return ("cpu",)

    def load(self, model: Model, options: SessionOptions) -> Session:
        if options.provider not in ("auto", "cpu"):
            raise UnknownName("execution provider", options.provider, ("auto", "cpu"))
        return LitertSession(LitertFile(model.blobs[0]), model.signature, options.threads)

    def describe(self, blob: Blob) -> Signature:
        return LitertFile(blob).open(1).signature


class LitertFile:
    """A ``.tflite`` file, of which interpreters are made. A whole file is mapped, so that all share its weights.

    Raises:
        NotFound: it is missing.
    """

    def __init__(self, blob: Blob) -> None:
        if not blob.path.is_file():
            raise NotFound(f"no such model file: '{blob.path}'")
        self._name = blob.name
        self._path = blob.path if blob.is_whole_file else None
        self._content = None if blob.is_whole_file else read_blob(blob)

    def open(self, threads: int) -> LitertRunner:
        """A new interpreter.

        Raises:
            CorruptArtifact: no TensorFlow Lite model, or a truncated one.
            Unimplemented: naming the operators that LiteRT lacks.
        """
        if self._path is not None and not self._path.is_file():
            raise NotFound(f"no such model file: '{self._path}'")
        try:
            made = Interpreter(
                model_path=str(self._path) if self._path else None, model_content=self._content, num_threads=threads
            )
            runner = LitertRunner(made)
        except _ERRORS as error:
            raise self._translate(error) from error
        try:
            made.allocate_tensors()
        except RuntimeError as error:
            if isinstance(refusal := self._translate(error), Unimplemented):
                raise refusal from error  # else it may be the sizes, of which each run brings its own
        return runner

    def _translate(self, error: Exception) -> SalverError:
        text = _text(error)
        if "custom op" in text or "unsupported op" in text.lower() or "Select TensorFlow" in text:
            return Unimplemented(
                f"'{self._name}' uses operators that LiteRT {version('ai-edge-litert')} lacks: {text}. Convert the "
                "model with built-in operators alone"
            )
        return CorruptArtifact(f"'{self._name}' is no TensorFlow Lite model, or it is truncated: {text}")


class LitertRunner:
    """One interpreter; used by one thread at a time."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        self.inputs, self.outputs = _details(interpreter)
        self._strings = {name for name, d in self.inputs.items() if d["dtype"] is np.bytes_}
        self.signature = _signature(self.inputs, self.outputs)
        self._shapes: dict[str, tuple[int, ...]] = {}

    def run(self, inputs: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        """Run once; tensors are laid out anew where a shape is not that of the run before."""
        for name, detail in self.inputs.items():
            if self._shapes.get(name) != inputs[name].shape:
                self._shapes = {}
                self._interpreter.resize_tensor_input(detail["index"], inputs[name].shape)
        if not self._shapes:
            self._interpreter.allocate_tensors()
            self._shapes = {name: inputs[name].shape for name in self.inputs}
        for name, detail in self.inputs.items():
            array = inputs[name]
            self._interpreter.set_tensor(detail["index"], _encode(array) if name in self._strings else array)
        self._interpreter.invoke()
        return {name: _decode(self._interpreter.get_tensor(self.outputs[name]["index"])) for name in names}


class LitertSession(Session):
    """A loaded model: as many interpreters as threads have run it at once, each with tensors of its own."""

    def __init__(self, file: LitertFile, signature: Signature, threads: int) -> None:
        self._signature = signature
        self._file: LitertFile | None = file
        self._threads = threads
        self._idle: list[LitertRunner] = [file.open(threads)]
        self._lock = threading.Lock()

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        names = self._signature.output_names if outputs is None else outputs
        with self._runner() as runner:
            self._signature.check(inputs)
            try:
                return runner.run(inputs, names)
            except (ValueError, TypeError) as error:
                raise InvalidArgument(f"the model refused its inputs: {_text(error)}") from error
            except RuntimeError as error:
                raise Internal(f"the model failed while running: {_text(error)}") from error

    @contextmanager
    def _runner(self) -> Iterator[LitertRunner]:
        with self._lock:
            file = self._file
            if file is None:
                raise FailedPrecondition("the session is closed")
            runner = self._idle.pop() if self._idle else None
        runner = runner or file.open(self._threads)
        yield runner  # one that failed is in no known state and is not used again
        with self._lock:
            if self._file is not None:
                self._idle.append(runner)

    def close(self) -> None:
        with self._lock:
            self._file = None
            self._idle.clear()


def quantization_of(blob: Blob) -> dict[str, tuple[float, int]]:
    """Scale and zero point of the inputs and outputs that are 8-bit integers, by name."""
    runner = LitertFile(blob).open(1)
    return {
        name: (float(detail["quantization"][0]), int(detail["quantization"][1]))
        for name, detail in (*runner.inputs.items(), *runner.outputs.items())
        if detail["dtype"] in (np.int8, np.uint8) and detail["quantization"][0]
    }


def _details(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    signatures = interpreter.get_signature_list()
    if signatures:
        name = _SERVING if _SERVING in signatures else next(iter(signatures))
        if len(signatures) > 1 and name != _SERVING:
            raise ValueError(f"it has {len(signatures)} signatures ({', '.join(signatures)}), none '{_SERVING}'")
        # Signatures list their tensors sorted by name; the graph has its own order, which users know.
        runner = interpreter.get_signature_runner(name)
        order = [d["index"] for d in (*interpreter.get_input_details(), *interpreter.get_output_details())]
        inputs, outputs = (
            sorted(details.items(), key=lambda item: order.index(item[1]["index"]))
            for details in (runner.get_input_details(), runner.get_output_details())
        )
        return dict(inputs), dict(outputs)
    return _by_name(interpreter.get_input_details()), _by_name(interpreter.get_output_details())


def _by_name(details: Sequence[Any]) -> dict[str, Any]:
    return {detail["name"].removesuffix(":0"): detail for detail in details}


def _signature(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Signature:
    shapes = [[int(d) for d in detail["shape_signature"]] for detail in (*inputs.values(), *outputs.values())]
    batched = all(shape and shape[0] == -1 for shape in shapes)
    return Signature(
        inputs=tuple(_spec(name, detail, batched) for name, detail in inputs.items()),
        outputs=tuple(_spec(name, detail, batched) for name, detail in outputs.items()),
    )


def _spec(name: str, detail: Any, batched: bool) -> TensorSpec:
    dims = tuple(int(d) if d >= 0 else f"?{name}_{i}" for i, d in enumerate(detail["shape_signature"]))
    try:
        datatype = "BYTES" if detail["dtype"] is np.bytes_ else to_datatype(np.dtype(detail["dtype"]))
    except InvalidArgument:
        raise Unimplemented(
            f"'{name}' is a tensor of {detail['dtype']}; Salver serves {', '.join(NUMPY_DTYPES)}"
        ) from None
    return TensorSpec(name=name, datatype=datatype, shape=(_BATCH, *dims[1:]) if batched else dims)


def _encode(array: Array) -> Array:
    return np.array([str(item).encode() for item in array.reshape(-1)], dtype=np.bytes_).reshape(array.shape)


def _decode(array: Array) -> Array:
    if array.dtype.kind not in "SO":
        return array  # a copy already
    made = np.empty(array.size, dtype=object)
    made[:] = [bytes(item).decode("utf-8", "replace") for item in array.reshape(-1)]
    return made.reshape(array.shape)


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
