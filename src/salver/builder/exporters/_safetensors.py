"""safetensors: the weights alone, by name; the only file that imports safetensors to write."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from salver.builder.exporters.base import Exported, Exporter, ExportOptions, exported_model
from salver.builder.exporters.onnx_source import require_onnx
from salver.builder.importers.base import Imported
from salver.builder.importers.onnx_files import all_graphs
from salver.core.arrays import Array
from salver.core.dataset import Dataset
from salver.core.errors import FailedPrecondition, MissingExtra, ParityFailed, Unimplemented
from salver.core.model import Blob

try:
    import safetensors
    import safetensors.numpy
except ImportError as missing:
    raise MissingExtra("exporting to safetensors", str(missing.name), "safetensors") from None

_HELD: Final = frozenset(
    getattr(TensorProto, name)
    for name in (
        *("BOOL", "UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64"),
        *("FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE", "FLOAT8E4M3FN", "FLOAT8E5M2"),
    )
)


class SafetensorsExporter(Exporter):
    """Writes the initializers of the imported graph (https://huggingface.co/docs/safetensors), each under its name, bit
    for bit. A file of weights holds no graph: nothing runs it, and there is no parity certificate."""

    name = "safetensors"
    format = "safetensors"
    suffix = ".safetensors"
    extra = "safetensors"

    def route(self, imported: Imported) -> str:
        require_onnx(imported, self.name)
        return "the weights of the imported graph, by name"

    def export(
        self, imported: Imported, output: Path, workdir: Path, data: Dataset | None, options: ExportOptions
    ) -> Exported:
        route = self.route(imported)
        model = onnx.ModelProto.FromString(imported.model.blobs[0].read())
        beside = {blob.name: blob for blob in imported.model.blobs[1:]}
        tensors = {tensor.name: tensor for tensor in _weights(model)}
        arrays = {name: _array(tensor, beside) for name, tensor in tensors.items()}
        try:
            safetensors.numpy.save_file(arrays, str(output), {"format": "onnx"})
        except safetensors.SafetensorError as error:
            raise FailedPrecondition(f"'{output.name}' could not be written: {error}") from error
        _read_back(output, arrays)
        made = exported_model(
            self,
            imported.model,
            {output.name: output},
            options,
            tools={"safetensors": safetensors.__version__, "onnx": onnx.__version__},
        )
        note = f"{len(arrays)} tensors, named as in the graph; safetensors holds weights, and no graph to run them"
        return Exported(model=made, parity=None, route=route, notes=(note,))


def _weights(model: onnx.ModelProto) -> Iterator[TensorProto]:
    for graph in all_graphs(model):
        yield from graph.initializer


def _array(tensor: TensorProto, beside: Mapping[str, Blob]) -> Array:
    """The values; those of external data stay in their file until they are written."""
    if tensor.data_type not in _HELD:
        kind = TensorProto.DataType.Name(tensor.data_type)
        raise Unimplemented(f"weight '{tensor.name}' is {kind}, which safetensors cannot hold; export with --to onnx")
    if tensor.data_location != TensorProto.EXTERNAL:
        return np.ascontiguousarray(numpy_helper.to_array(tensor)).reshape(tuple(tensor.dims))
    where = {entry.key: entry.value for entry in tensor.external_data}
    view = beside[where["location"]].map()
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    count = int(np.prod(tensor.dims, dtype=np.int64))
    return np.frombuffer(view, dtype, count, int(where.get("offset", 0))).reshape(tuple(tensor.dims))


def _read_back(path: Path, arrays: Mapping[str, Array]) -> None:
    """Compare what stands in the file, bit for bit: a length, a JSON header, the values."""
    view = Blob.of(path).map()
    (length,) = struct.unpack("<Q", view[:8])
    header = msgspec.json.decode(view[8 : 8 + length])
    values = view[8 + length :]
    for name, array in arrays.items():
        entry = header.get(name, {"data_offsets": (0, 0), "shape": None})
        first, last = entry["data_offsets"]
        same = entry["shape"] == list(array.shape) and last - first == array.nbytes
        if not same or not np.array_equal(
            np.frombuffer(values[first:last], np.uint8), array.reshape(-1).view(np.uint8)
        ):
            raise ParityFailed(f"weight '{name}' reads back from '{path.name}' differently than it was written")
