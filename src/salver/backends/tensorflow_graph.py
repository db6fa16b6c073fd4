"""A SavedModel, a frozen graph or a Keras model as one function of named tensors; the only file that imports TensorFlow
and Keras."""

from __future__ import annotations

import errno
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError

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
from salver.core.tensors import ANY_RANK, NUMPY_DTYPES, Signature, TensorSpec

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what it prints at import goes past Python's logging
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
try:
    import keras as keras
    import tensorflow as tf
except ImportError as missing:
    raise MissingExtra("running a TensorFlow or Keras model", str(missing.name), "tensorflow") from None

from salver.backends.keras_files import examine

logging.getLogger("absl").setLevel(logging.ERROR)
logging.getLogger("tensorflow").setLevel(logging.ERROR)

SERVING: Final = "serving_default"
MAIN: Final = "saved_model.pb"
BATCH: Final = "batch"

DATATYPES: Final = {
    tf.bool: "BOOL",
    tf.uint8: "UINT8",
    tf.uint16: "UINT16",
    tf.uint32: "UINT32",
    tf.uint64: "UINT64",
    tf.int8: "INT8",
    tf.int16: "INT16",
    tf.int32: "INT32",
    tf.int64: "INT64",
    tf.float16: "FP16",
    tf.bfloat16: "BF16",
    tf.float32: "FP32",
    tf.float64: "FP64",
    tf.string: "BYTES",
}
# Operators that read or write files, or call back into Python: no computation of a model.
_FOREIGN_OPS: Final = frozenset(
    {
        "EagerPyFunc", "PyFunc", "PyFuncStateless", "ReadFile", "WriteFile", "MatchingFiles", "ReaderReadV2",
        "WholeFileReaderV2", "FixedLengthRecordDataset", "TextLineDataset", "TFRecordDataset", "Save", "SaveSlices",
        "ShardedFilename", "DebugIdentity", "DebugIdentityV2", "PrintV2", "Print", "RpcCall", "XlaLaunch",
    }
)  # fmt: skip


_SUFFIXES: Final = {".keras": (".keras",), ".h5": (".h5", ".hdf5")}
_FLEX: Final = re.compile(r"(?:tf\.|Flex|TF Select ops: )([A-Z]\w+)")


def versions() -> dict[str, str]:
    """Versions of TensorFlow and Keras."""
    return {"tensorflow": tf.__version__, "keras": keras.__version__}


class GraphFunction:
    """One function of named tensors.

    Args:
        concrete: a ``tf.types.experimental.ConcreteFunction`` of keyword arguments that gives a dictionary.
        root: what holds its variables; without it they are freed under the function.
        inputs, outputs: names in the order in which users know them; that of the function where there are none.
    """

    def __init__(self, concrete: Any, root: Any, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> None:
        self.concrete = concrete
        self.root = root
        taken, given = concrete.structured_input_signature[1], concrete.structured_outputs
        self.flat_outputs = sorted(given)
        """Output names in the order of the graph's tensors."""
        named = {name: (taken[name].dtype, taken[name].shape) for name in inputs or taken}
        made = {name: (given[name].dtype, given[name].shape) for name in outputs or given}
        batched = all(_leads(shape) for _, shape in (*named.values(), *made.values()))
        self.signature = Signature(
            inputs=tuple(_spec(name, *kind, batched) for name, kind in named.items()),
            outputs=tuple(_spec(name, *kind, batched) for name, kind in made.items()),
        )

    def run(self, inputs: Mapping[str, Array], names: Sequence[str] | None = None) -> dict[str, Array]:
        """Run it once.

        Raises:
            InvalidArgument: TensorFlow refuses the inputs, by name, type, shape or value.
            Internal: it failed otherwise.
        """
        self.signature.check(inputs)
        try:
            given = {spec.name: to_tensor(inputs[spec.name], spec) for spec in self.signature.inputs}
            outputs = self.concrete(**given)
            wanted = self.signature.output_names if names is None else names
            return {name: to_array(outputs[name]) for name in wanted}
        except (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError, TypeError, ValueError) as error:
            raise InvalidArgument(f"the model refused its inputs: {first_line(error)}") from error
        except tf.errors.OpError as error:
            raise Internal(f"the model failed while running: {first_line(error)}") from error

    def operators(self) -> set[str]:
        """Types of all operators it may run, in its own graph and in those of the functions it calls."""
        graph = self.concrete.graph.as_graph_def()
        bodies = {function.signature.name: function for function in graph.library.function}
        found = {node.op for node in graph.node}
        pending = _called(graph.node)
        seen: set[str] = set()
        while pending:
            name = pending.pop()
            if name in bodies and name not in seen:
                seen.add(name)
                found |= {node.op for node in bodies[name].node_def}
                pending |= _called(bodies[name].node_def)
        return found


def _called(nodes: Any) -> set[str]:
    """Names of the functions that nodes call."""
    names = {node.op for node in nodes}
    for node in nodes:
        for value in node.attr.values():
            names.update(function.name for function in (value.func, *value.list.func) if function.name)
    return names


def open_saved_model(folder: Path, chosen: str = "") -> GraphFunction:
    """The function of a SavedModel's signature: the one chosen, ``serving_default``, or the only one.

    Raises:
        NotFound: the folder or its ``saved_model.pb`` is missing.
        CorruptArtifact: it cannot be loaded.
        UnknownName: no signature of that name.
        InvalidArgument: it has none, or several and none is the default.
    """
    if not (folder / MAIN).is_file():
        raise NotFound(f"no such SavedModel: '{folder}' holds no {MAIN}")
    try:
        with quiet():
            root = tf.saved_model.load(str(folder))
    except Exception as error:  # boundary: files from anywhere, read by a foreign library
        raise _load_error(folder, error) from error
    if not hasattr(root, "signatures"):
        raise InvalidArgument(f"'{folder}' holds values and no graph; export a model with a signature")
    signatures = {name: function for name, function in root.signatures.items() if not name.startswith("__")}
    name = _choose(folder, list(signatures), chosen)
    function = GraphFunction(signatures[name], root)
    foreign = sorted(function.operators() & _FOREIGN_OPS)
    if foreign:
        raise Unimplemented(
            f"'{folder}': signature '{name}' uses {', '.join(foreign)}, which reach beyond the model (files, Python); "
            "export a signature without them"
        )
    return function


def _load_error(folder: Path, error: Exception) -> SalverError:
    text = first_line(error)
    if "Op type not registered" in str(error):
        return Unimplemented(f"'{folder}' needs an operator that TensorFlow {tf.__version__} lacks: {text}")
    return CorruptArtifact(f"'{folder}' is no SavedModel, or it is damaged or truncated: {text}")


def _choose(folder: Path, names: list[str], chosen: str) -> str:
    if chosen:
        if chosen not in names:
            raise UnknownName(f"signature of '{folder.name}'", chosen, names)
        return chosen
    if SERVING in names:
        return SERVING
    if len(names) == 1:
        return names[0]
    if not names:
        raise InvalidArgument(
            f"'{folder}' has no signature; export it with one: model.export(folder), or "
            "tf.saved_model.save(module, folder, signatures=module.call.get_concrete_function(tf.TensorSpec(...)))"
        )
    raise InvalidArgument(
        f"'{folder}' has {len(names)} signatures ({', '.join(names)}) and none is called '{SERVING}'. Save it again "
        f"with the one to serve under that name: model = tf.saved_model.load('{folder.name}'); "
        f"tf.saved_model.save(model, '{folder.name}-serving', "
        f"signatures={{'{SERVING}': model.signatures['{names[0]}']}})"
    )


def open_frozen(path: Path) -> GraphFunction:
    """The function of a frozen graph (a ``GraphDef`` whose variables are constants): from its placeholders to the
    outputs that nothing reads.

    Raises:
        CorruptArtifact: no such graph.
        InvalidArgument: it has variables still, or neither inputs nor outputs.
    """
    definition = tf.compat.v1.GraphDef()
    try:
        definition.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise CorruptArtifact(f"'{path}' is no frozen TensorFlow graph, or it is truncated: {error}") from None
    nodes = {node.name: node for node in definition.node}
    read = {name.lstrip("^").partition(":")[0] for node in definition.node for name in node.input}
    unfrozen = [n.name for n in definition.node if n.op in ("Variable", "VariableV2", "VarHandleOp")]
    if unfrozen:
        raise InvalidArgument(f"'{path}' has variables ('{unfrozen[0]}' and others): freeze it, or give the SavedModel")
    inputs = [name for name, node in nodes.items() if node.op == "Placeholder"]
    outputs = [n for n, node in nodes.items() if n not in read and node.op not in ("Placeholder", "Const", "NoOp")]
    if not inputs or not outputs:
        raise CorruptArtifact(f"'{path}' is no frozen TensorFlow graph: it has no inputs and outputs")
    foreign = sorted({node.op for node in definition.node} & _FOREIGN_OPS)
    if foreign:
        raise Unimplemented(f"'{path}' uses {', '.join(foreign)}, which reach beyond the model (files, Python)")
    try:
        wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(definition, name=""), [])
    except (ValueError, tf.errors.OpError) as error:
        raise CorruptArtifact(f"'{path}' cannot be loaded: {first_line(error)}") from error
    tensors = {name: wrapped.graph.as_graph_element(f"{name}:0") for name in (*inputs, *outputs)}
    pruned = wrapped.prune([tensors[n] for n in inputs], [tensors[n] for n in outputs])

    def call(**given: Any) -> dict[str, Any]:
        results = pruned(*[given[_argument(name)] for name in inputs])
        return dict(zip(map(_argument, outputs), results, strict=True))

    specs = {_argument(n): tf.TensorSpec(tensors[n].shape, tensors[n].dtype, name=_argument(n)) for n in inputs}
    return GraphFunction(tf.function(call).get_concrete_function(**specs), pruned)


def _argument(name: str) -> str:
    """A node's name as the name of an argument."""
    return "".join(c if c.isalnum() else "_" for c in name)


def open_keras(path: Path, *, trusted: bool = False) -> Any:
    """The Keras model of a ``.keras`` or HDF5 file; the file is examined before Keras reads it, and nothing is
    compiled.

    Args:
        path: ends in ``.keras`` or ``.h5``, as the content is.

    Raises:
        NotFound, CorruptArtifact, TooLarge, PermissionDenied: as `salver.backends.keras_files.examine`.
        InvalidArgument: it holds layers or functions that are not Keras' own, by name.
    """
    needs_tensorflow()
    contents = examine(path, trusted=trusted)
    if path.suffix.lower() not in _SUFFIXES[contents.suffix]:
        kind = "a .keras archive" if contents.suffix == ".keras" else "an HDF5 file"
        raise InvalidArgument(f"'{path.name}' ends in {path.suffix} and is {kind}: rename it to {contents.suffix}")
    unknown = [name for name in contents.custom if keras.saving.get_registered_object(name) is None]
    if unknown and not trusted:
        raise InvalidArgument(
            f"'{path.name}' holds {', '.join(unknown)}, not of Keras itself: the file names them and does not hold "
            "their code. Give the model as a SavedModel (model.export(folder)), which does, or the model in memory"
        )
    try:
        with quiet():
            return keras.saving.load_model(path, compile=False, safe_mode=not trusted)
    except Exception as error:  # boundary: a file from anywhere, read by a foreign library
        raise _keras_error(path, contents.keras, error) from error


def needs_tensorflow() -> None:
    """Refuse Keras on another backend than TensorFlow, which it cannot leave once it has begun.

    Raises:
        FailedPrecondition: naming the setting.
    """
    if keras.backend.backend() != "tensorflow":
        raise FailedPrecondition(
            f"Keras runs on {keras.backend.backend()} here; Salver reads its models on TensorFlow: set "
            "KERAS_BACKEND=tensorflow before Keras is imported, or save the model and import the file"
        )


def _keras_error(path: Path, version: str, error: Exception) -> SalverError:
    text = first_line(error)
    wrote = f" (written by Keras {version})" if version else ""
    if "Could not locate" in text or "Unknown layer" in text or "Unknown" in text.split(":")[0]:
        return InvalidArgument(
            f"'{path.name}'{wrote} holds what Keras {keras.__version__} does not know: {text}. Give the model as a "
            "SavedModel (model.export(folder)), which holds its computation"
        )
    return CorruptArtifact(f"'{path.name}'{wrote} cannot be loaded by Keras {keras.__version__}: {text}")


def function_of(model: Any) -> GraphFunction:
    """A Keras model as a function: inputs by the names of its `keras.Input`s, outputs by those of its output layers.

    Raises:
        InvalidArgument: nobody knows its inputs: it is neither functional nor sequential, or was not built.
    """
    needs_tensorflow()
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise InvalidArgument(
            f"the inputs of the {type(model).__name__} are not known: build it from keras.Input (a functional or "
            "sequential model), or call it once on examples"
        )
    names, call = _named_call(model)
    specs = {n: tf.TensorSpec(t.shape, t.dtype, name=n) for n, t in zip(names, inputs, strict=True)}
    return GraphFunction(tf.function(call).get_concrete_function(**specs), model, names, distinct(output_names(model)))


def _named_call(model: Any) -> tuple[list[str], Callable[..., dict[str, Any]]]:
    """Names of a Keras model's inputs, and a function of them that gives a dictionary of outputs."""
    names, outputs = distinct([tensor.name for tensor in model.inputs]), distinct(output_names(model))

    def call(**given: Any) -> dict[str, Any]:
        results = keras.tree.flatten(model(_packed(model, [given[name] for name in names]), training=False))
        return dict(zip(outputs, map(tf.identity, results), strict=True))

    return names, call


def run_keras(model: Any, signature: Signature, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run a Keras model itself, operator by operator.

    Args:
        signature: of `function_of`.

    Raises:
        InvalidArgument: it refuses the inputs.
    """
    signature.check(inputs)
    try:
        given = [to_tensor(inputs[spec.name], spec) for spec in signature.inputs]
        results = keras.tree.flatten(model(_packed(model, given), training=False))
    except (tf.errors.OpError, TypeError, ValueError) as error:
        raise InvalidArgument(f"the model refused its inputs: {first_line(error)}") from error
    return {name: to_array(result) for name, result in zip(signature.output_names, results, strict=True)}


def _packed(model: Any, flat: list[Any]) -> Any:
    if isinstance(model, keras.Sequential):
        return flat[0]
    return keras.tree.pack_sequence_as(model.input, flat)


def output_names(model: Any) -> list[str]:
    """Names of a Keras model's outputs, in flat order: keys where it gives a dictionary, else names of layers."""
    if isinstance(model, keras.Sequential):
        return [model.layers[-1].name]
    structure = model.output
    if isinstance(structure, dict):
        return [str(key) for key in sorted(structure)]
    return list(model.output_names)


def distinct(names: Sequence[str]) -> list[str]:
    """Names made fit to be arguments, and distinct."""
    made: list[str] = []
    for name in names:
        stem = candidate = _argument(name)
        count = 1
        while candidate in made:
            candidate, count = f"{stem}_{count}", count + 1
        made.append(candidate)
    return made


def write_saved_model(model: Any, folder: Path) -> None:
    """Write a Keras model as a SavedModel whose signature ``serving_default`` has the names of `function_of`, or those
    that Keras gives where nobody knows the inputs.

    Raises:
        InvalidArgument: it was never called, so that it has no weights.
    """
    with _writing(folder):
        if not getattr(model, "inputs", None):
            model.export(str(folder), verbose=False)
        else:
            archive = keras.export.ExportArchive()
            archive.track(model)
            names, call = _named_call(model)
            specs = [tf.TensorSpec(t.shape, t.dtype, name=n) for t, n in zip(model.inputs, names, strict=True)]
            archive.add_endpoint("serve", lambda *flat: call(**dict(zip(names, flat, strict=True))), specs)
            archive.write_out(str(folder), verbose=False)
    _tidy(folder)


def write_function(function: GraphFunction, folder: Path) -> None:
    """Write a function as the signature ``serving_default`` of a SavedModel."""
    module = tf.Module()
    module.root = function.root
    with _writing(folder):
        tf.saved_model.save(module, str(folder), signatures={SERVING: function.concrete})
    _tidy(folder)


def save_keras(model: Any, path: Path) -> None:
    """Write a Keras model as ``.keras`` or ``.h5``, whichever the path ends in."""
    with _writing(path):
        model.save(path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say as the operating system would what TensorFlow and Keras say of a full disk."""
    try:
        with quiet():
            yield
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, first_line(error), str(path)) from error


def _tidy(folder: Path) -> None:
    """Remove what is different each time and needed by nobody."""
    (folder / "fingerprint.pb").unlink(missing_ok=True)


def blob_names(folder: Path) -> list[str]:
    """Files of a SavedModel, relative to its folder, `MAIN` first."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return [MAIN, *(name for name in names if name not in (MAIN, "fingerprint.pb"))]


def convert_to_tflite(folder: Path, precision: str, calibration: Iterator[dict[str, Array]] | None) -> bytes:
    """A TensorFlow Lite file of a SavedModel's signature ``serving_default``, of built-in operators alone.

    Args:
        precision: ``source``, ``float16``, ``dynamic`` or ``int8``.
        calibration: for ``int8``, examples one row each.

    Raises:
        Unimplemented: naming operators without a counterpart, or as the converter says.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[_signature_of(folder)])
    if precision != "source":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if calibration is not None:
        function = open_saved_model(folder)
        examples = [
            {spec.name: to_tensor(row[spec.name], spec) for spec in function.signature.inputs} for row in calibration
        ]
        converter.representative_dataset = lambda: iter([(SERVING, row) for row in examples])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    try:
        with quiet():
            return bytes(converter.convert())
    except Exception as error:  # boundary: a converter meets a graph it was not written for
        missing = sorted(set(_FLEX.findall(str(error))))
        what = f"no counterpart of {', '.join(missing)}" if missing else first_line(error)
        raise Unimplemented(f"TensorFlow {tf.__version__} cannot write the model as TensorFlow Lite: {what}") from error


def _signature_of(folder: Path) -> str:
    loaded = tf.saved_model.load(str(folder))
    return _choose(folder, list(loaded.signatures), "")


def to_tensor(array: Array, spec: TensorSpec) -> Any:
    """A tensor of an array as Salver carries it."""
    if spec.datatype == "BF16":
        return tf.bitcast(tf.constant(np.ascontiguousarray(array)), tf.bfloat16)
    return tf.constant(array)


def to_array(tensor: Any) -> Array:
    """An array as Salver carries it, the caller's own."""
    if tensor.dtype == tf.bfloat16:
        return np.asarray(tf.bitcast(tensor, tf.uint16).numpy())
    array = np.asarray(tensor.numpy())
    if tensor.dtype == tf.string:
        flat = [bytes(item).decode("utf-8", "replace") for item in array.reshape(-1)]
        decoded = np.empty(len(flat), dtype=object)
        decoded[:] = flat
        return decoded.reshape(array.shape)
    return array


def devices() -> tuple[str, ...]:
    """Kinds of devices that TensorFlow finds, the fastest first."""
    return tuple(kind for kind in ("gpu", "tpu", "cpu") if tf.config.list_physical_devices(kind.upper()))


def on_device(kind: str) -> Any:
    """A context in which variables are made on a device."""
    return tf.device(f"/{kind}:0")


def limit_threads(threads: int) -> None:
    """Set the threads of TensorFlow's pool, which is one for the process: the first session's count stands."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        return


def first_line(error: Exception) -> str:
    """The first line of a message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    skipped = ("Graph execution error", "Detected at node", "<stack traces")
    useful = [line for line in lines if not line.startswith(skipped)]
    return (useful or lines or [type(error).__name__])[0][:500]


def _leads(shape: Any) -> bool:
    return shape.rank is not None and shape.rank > 0 and shape[0] is None


def _spec(name: str, dtype: Any, shape: Any, batched: bool) -> TensorSpec:
    if dtype not in DATATYPES:
        raise Unimplemented(f"'{name}' is a tensor of {dtype.name}; Salver serves {', '.join(NUMPY_DTYPES)}")
    if shape.rank is None:
        return TensorSpec(name=name, datatype=DATATYPES[dtype], shape=(ANY_RANK,))
    dims = tuple(f"?{name}_{i}" if d is None else int(d) for i, d in enumerate(shape))
    return TensorSpec(name=name, datatype=DATATYPES[dtype], shape=(BATCH, *dims[1:]) if batched else dims)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what TensorFlow and Keras warn of themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
