"""ONNX Runtime behind a `Session`; the only file that imports onnxruntime to run models."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from salver.backends.base import Backend, Profile, Session, SessionOptions
from salver.backends.profiles import read_profile
from salver.backends.weights import WeightStore
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
from salver.core.model import Blob, Model, digest_bytes
from salver.core.tensors import NUMPY_DTYPES, Signature, TensorSpec

_DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_CPUINFO: Final = Path("/proc/cpuinfo")
_MODEL: Final = "model.onnx"
_WEIGHTS: Final = "weights.bin"
_LAYOUT: Final = 1
_WORTH_BYTES: Final = 1 << 20
_EXTENSIONS_DOMAIN: Final = "ai.onnx.contrib"
_BFLOAT16: Final = 16  # onnx.TensorProto.BFLOAT16
# Fastest first. Providers that need credentials or a network are never chosen.
_PROVIDERS: Final = {
    "cuda": "CUDAExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "directml": "DmlExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
_AUTO: Final = ("cuda", "rocm", "cpu")

# Its warnings and errors go to stderr past Python's logging; errors arrive as exceptions.
ort.set_default_logger_severity(4)


class OnnxRuntimeBackend(Backend):
    """Runs ONNX files with ONNX Runtime (https://onnxruntime.ai), sequential execution, on the provider asked for."""

    name = "onnxruntime"
    formats = ("onnx", "ort")
    isolated = False

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": ort.__version__}

    def providers(self) -> tuple[str, ...]:
        present = set(ort.get_available_providers())
        names = [name for name, provider in _PROVIDERS.items() if provider in present]
        auto = [n for n in _AUTO if n in names]
        return tuple(dict.fromkeys([*auto, *names]))

    def load(self, model: Model, options: SessionOptions) -> Session:
        reason = ""
        if options.shared_weights:
            try:
                return OnnxRuntimeSession(self._open_shared(model.blobs, options), model.signature, shares_weights=True)
            except (*_ORT_ERRORS, SalverError, OSError) as error:
                reason = error.message if isinstance(error, SalverError) else _first_line(error)
        return OnnxRuntimeSession(self._open(model.blobs, options), model.signature, not_shared=reason)

    def describe(self, blob: Blob) -> Signature:
        options = SessionOptions(optimize="none")
        settings = _settings(options)
        settings.add_session_config_entry("session.disable_prepacking", "1")  # it runs nothing
        handle = self._open((blob,), options, settings)
        return _read_signature(handle.session)

    def profile(
        self,
        model: Model,
        options: SessionOptions,
        inputs: Sequence[Mapping[str, Array]],
        rewritten: Path | None = None,
    ) -> Profile:
        settings = _settings(options)
        settings.enable_profiling = True
        if rewritten is not None:
            settings.optimized_model_filepath = str(rewritten)
        with tempfile.TemporaryDirectory(prefix="salver-profile-") as folder:
            settings.profile_file_prefix = str(Path(folder) / "profile")
            handle = self._open(model.blobs, options, settings)
            with OnnxRuntimeSession(handle, model.signature) as session:
                for one in inputs:
                    session.run(one)
                written = Path(handle.session.end_profiling()).read_bytes()
        return read_profile(written)

    def _open_shared(self, blobs: tuple[Blob, ...], options: SessionOptions) -> _Handle:
        """Map weights that were laid out once for this runtime on this CPU: optimized, and packed as its kernels read
        them, so that a process neither copies nor packs them (https://onnxruntime.ai, "session options":
        ``session.save_external_prepacked_constant_initializers``).

        Raises:
            FailedPrecondition: they cannot be mapped, and why.
        """
        main = blobs[0]
        beside = () if len(blobs) > 1 or not main.is_whole_file else _beside(main.path)
        if sum(blob.size_bytes for blob in blobs) + sum(size for _, size, _ in beside) < _WORTH_BYTES:
            raise FailedPrecondition(f"a model of less than {_WORTH_BYTES >> 20} MiB is not worth it")
        providers = self._choose(options.provider)
        if providers != [_PROVIDERS["cpu"]]:
            raise FailedPrecondition(f"the weights are in the memory of {providers[0]}")
        made_by = (ort.__version__, _cpu(), options.optimize, _LAYOUT)
        key = digest_bytes(repr((made_by, [(b.name, b.digest) for b in blobs], beside)).encode())
        folder = WeightStore(Path(options.shared_weights)).get(
            key.removeprefix("sha256:"), lambda folder: self._lay_out_weights(blobs, options, folder)
        )
        settings = _settings(options)
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it was; again would copy
        return _Handle(ort.InferenceSession(str(folder / _MODEL), settings, providers=providers), None)

    def _lay_out_weights(self, blobs: tuple[Blob, ...], options: SessionOptions, folder: Path) -> None:
        settings = _settings(options)
        settings.optimized_model_filepath = str(folder / _MODEL)
        for name, value in (
            ("optimized_model_external_initializers_file_name", _WEIGHTS),
            ("optimized_model_external_initializers_min_size_in_bytes", "1024"),
            ("save_external_prepacked_constant_initializers", "1"),
        ):
            settings.add_session_config_entry(f"session.{name}", value)
        handle = self._open(blobs, options, settings)
        if handle.folder is not None:
            handle.folder.cleanup()

    def _open(
        self, blobs: tuple[Blob, ...], options: SessionOptions, settings: ort.SessionOptions | None = None
    ) -> _Handle:
        main = blobs[0]
        if not main.path.is_file():
            raise NotFound(f"no such model file: '{main.path}'")
        folder: tempfile.TemporaryDirectory[str] | None = None
        source: str | bytes
        if len(blobs) == 1:
            source = str(main.path) if main.is_whole_file else main.read()
        elif _is_laid_out(blobs):
            source = str(main.path)
        else:
            folder = _lay_out(blobs)
            source = str(Path(folder.name) / main.name)
        session = _create(source, settings or _settings(options), self._choose(options.provider), main.name)
        return _Handle(session, folder)

    def _choose(self, provider: str) -> list[str]:
        present = self.providers()
        name = present[0] if provider == "auto" else provider
        if name not in present:
            raise UnknownName("execution provider", provider, ("auto", *present))
        return list(dict.fromkeys([_PROVIDERS[name], _PROVIDERS["cpu"]]))


def _settings(options: SessionOptions) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.enable_cpu_mem_arena = options.arena
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
    if _int8_overflows():
        settings.add_session_config_entry("session.x64quantprecision", "1")
    if options.optimize == "none":
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return settings


def _create(source: str | bytes, settings: ort.SessionOptions, providers: list[str], name: str) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(source, settings, providers=providers)
    except _ORT_ERRORS as error:
        if f"{_EXTENSIONS_DOMAIN}:" not in str(error):
            raise _translate_load(error, name) from error
    settings.register_custom_ops_library(_extensions_library(name))
    try:
        return ort.InferenceSession(source, settings, providers=providers)
    except _ORT_ERRORS as error:
        raise _translate_load(error, name) from error


def _extensions_library(name: str) -> str:
    """The operators of https://github.com/microsoft/onnxruntime-extensions, without importing that package.

    Raises:
        MissingExtra: it is not installed.
    """
    found = importlib.util.find_spec("onnxruntime_extensions")
    folders = found.submodule_search_locations if found is not None else None
    for folder in folders or ():
        for library in sorted(Path(folder).glob("_extensions_pydll*")):
            return str(library)
    raise MissingExtra(f"'{name}': operators of domain '{_EXTENSIONS_DOMAIN}'", "onnxruntime-extensions", "extensions")


class _Handle:
    """An ONNX Runtime session and the folder its external data is mapped from."""

    def __init__(self, session: ort.InferenceSession, folder: tempfile.TemporaryDirectory[str] | None) -> None:
        self.session = session
        self.folder = folder


class OnnxRuntimeSession(Session):
    """A loaded ONNX model. ONNX Runtime itself allows concurrent runs of one session."""

    def __init__(
        self, handle: _Handle, signature: Signature, *, shares_weights: bool = False, not_shared: str = ""
    ) -> None:
        self.shares_weights = shares_weights
        self.not_shared = not_shared
        self._handle: _Handle | None = handle
        self._run = handle.session.run
        self._signature = signature
        self._output_names = list(signature.output_names)
        specs = (*signature.inputs, *signature.outputs)
        self._uses_bf16 = any(spec.datatype == "BF16" for spec in specs)

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        names = self._output_names if outputs is None else list(outputs)
        try:
            if self._uses_bf16:
                return self._run_with_ort_values(inputs, names)
            return dict(zip(names, self._run(names, inputs), strict=True))
        except (*_ORT_ERRORS, AttributeError) as error:
            if self._handle is None:
                raise FailedPrecondition("the session is closed") from None
            raise _translate_run(error) from error

    def _run_with_ort_values(self, inputs: Mapping[str, Array], names: list[str]) -> dict[str, Array]:
        # numpy has no bfloat16: bit patterns go in and come out through OrtValue.
        feed = {}
        for spec in self._signature.inputs:
            if spec.name not in inputs:
                raise InvalidArgument(f"the model refused its inputs: input '{spec.name}' is missing")
            array = np.asarray(inputs[spec.name], order="C")
            feed[spec.name] = (
                ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
                if spec.datatype == "BF16"
                else ort.OrtValue.ortvalue_from_numpy(array)
            )
        if self._handle is None:
            raise FailedPrecondition("the session is closed")
        values = self._handle.session.run_with_ort_values(names, feed)
        return {name: _to_numpy(value) for name, value in zip(names, values, strict=True)}

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None and handle.folder is not None:
            handle.folder.cleanup()  # what is mapped stays mapped until the runtime lets go of it
        self._run = None


@functools.cache
def _int8_overflows() -> bool:
    """Whether the fast 8-bit kernels overflow 16-bit sums here: x86 without VNNI. The exact kernels are then asked
    for, so that answers do not differ between hosts; where VNNI is, they would only be slower."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not _CPUINFO.exists():
        return False
    return not {"avx512_vnni", "avx_vnni"}.intersection(_cpu())


@functools.cache
def _cpu() -> tuple[str, ...]:
    """What kernels are chosen by: the architecture, and the instruction sets of the first core."""
    names = ("flags", "Features", "CPU part", "model name")
    lines = _CPUINFO.read_text().split("\n\n")[0].splitlines() if _CPUINFO.exists() else []
    words = [word for line in lines if line.startswith(names) for word in line.partition(":")[2].split()]
    return (platform.machine(), *words)


def _beside(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of files that may be a bare model's external data: those that lie beside it."""
    files = sorted(p for p in path.parent.iterdir() if p.suffix not in (".onnx", ".salver") and p.is_file())
    facts = [(file.name, file.stat()) for file in files]
    return tuple((name, fact.st_size, fact.st_mtime_ns) for name, fact in facts)


def _to_numpy(value: ort.OrtValue) -> Array:
    if value.element_type() != _BFLOAT16:
        return np.asarray(value.numpy())
    count = int(np.prod(value.shape(), dtype=np.int64))
    raw = ctypes.string_at(value.data_ptr(), 2 * count) if count else b""
    return np.frombuffer(raw, np.uint16).reshape(value.shape()).copy()


def _read_signature(session: ort.InferenceSession) -> Signature:
    return Signature(
        inputs=tuple(_spec(node) for node in session.get_inputs()),
        outputs=tuple(_spec(node) for node in session.get_outputs()),
    )


def _spec(node: Any) -> TensorSpec:
    if node.type not in _DATATYPES:
        raise Unimplemented(
            f"'{node.name}' is a {node.type}; Salver serves tensors of {', '.join(NUMPY_DTYPES)}. "
            "For a scikit-learn classifier, convert with zipmap off ('salver build' does)"
        )
    dims = (d if isinstance(d, int) and d >= 0 else d or f"?{node.name}_{i}" for i, d in enumerate(node.shape))
    return TensorSpec(name=node.name, datatype=_DATATYPES[node.type], shape=tuple(dims))


def _is_laid_out(blobs: tuple[Blob, ...]) -> bool:
    """Whether external data already lies beside the main file under the names it uses."""
    folder = blobs[0].path.parent
    return all(b.is_whole_file and b.path == folder / b.name for b in blobs[1:]) and blobs[0].is_whole_file


def _lay_out(blobs: tuple[Blob, ...]) -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="salver-model-")
    for blob in blobs:
        target = Path(folder.name) / blob.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with blob.path.open("rb") as source, target.open("wb") as out:
            source.seek(blob.offset)
            shutil.copyfileobj(_Limited(source, blob.size_bytes), out, 1 << 20)
    return folder


class _Limited:
    """The next bytes of a file, and no more."""

    def __init__(self, file: Any, left: int) -> None:
        self._file, self._left = file, left

    def read(self, size: int = 0, /) -> bytes:
        data: bytes = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


_ORT_ERRORS: Final = (
    *(
        getattr(ort_state, name)
        for name in (
            "Fail",
            "InvalidArgument",
            "InvalidGraph",
            "InvalidProtobuf",
            "NotImplemented",
            "NoSuchFile",
            "NoModel",
            "EngineError",
            "EPFail",
            "ModelLoaded",
            "RuntimeException",
        )
        if hasattr(ort_state, name)
    ),
    RuntimeError,
    ValueError,
    TypeError,
)


_LACKING: Final = (
    "is not a registered function/op",
    "No Op registered",
    "are not supported",
    "is not supported",
    "Unrecognized attribute",
)
"""How it says that it lacks something, among the words it has for broken models."""


def _translate_load(error: Exception, name: str) -> SalverError:
    text = _first_line(error)
    if isinstance(error, ort_state.NotImplemented):
        return Unimplemented(f"'{name}': this ONNX Runtime ({ort.__version__}) has no implementation: {text}")
    if isinstance(error, ort_state.InvalidProtobuf):
        return CorruptArtifact(f"'{name}' is not an ONNX model, or it is truncated: {text}")
    if isinstance(error, ort_state.NoSuchFile):
        return NotFound(f"'{name}': {text}")
    newest = re.search(r"Opset (\d+) is under development.*?domain (\S+) is till opset (\d+)", str(error), re.DOTALL)
    if newest is not None:
        return Unimplemented(
            f"'{name}' uses opset {newest[1]}; this ONNX Runtime ({ort.__version__}) reads opset {newest[3]} of domain "
            f"'{newest[2]}' at most"
        )
    if any(words in text for words in _LACKING):
        return Unimplemented(
            f"'{name}': the model uses an operator this ONNX Runtime ({ort.__version__}) lacks: {text}"
        )
    return CorruptArtifact(f"'{name}' cannot be loaded: {text}")


def _translate_run(error: Exception) -> SalverError:
    text = _first_line(error)
    if isinstance(error, ort_state.InvalidArgument | ValueError | TypeError):
        return InvalidArgument(f"the model refused its inputs: {text}")
    return Internal(f"the model failed while running: {text}")


@functools.cache
def _prefix() -> re.Pattern[str]:
    return re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")


def _first_line(error: Exception) -> str:
    text = _prefix().sub("", str(error)).strip()
    return (text.splitlines() or [type(error).__name__])[0][:500].rstrip(" :")
