"""The same graph on another runtime: OpenVINO."""

from __future__ import annotations

from pathlib import Path

from salver.backends._openvino import read, read_signature, write
from salver.builder.exporters.onnx_source import lay_out
from salver.builder.passes._graph import require_onnx
from salver.builder.passes._move import move
from salver.builder.passes._quiet import contained
from salver.builder.passes.base import Pass, PassContext
from salver.core.config import Config
from salver.core.errors import PassNotApplicable, SalverError
from salver.core.model import Blob, Model


class OpenvinoConfig(Config, frozen=True, kw_only=True):
    """Nothing can be set: weights stay in the precision they have, and are computed in it."""


class OpenvinoPass(Pass[OpenvinoConfig]):
    """Makes OpenVINO IR of an ONNX graph, so that OpenVINO's kernels run it (https://docs.openvino.ai). Where no pass
    before it was meant to change numbers, the answers are proved to be the same within what rounding can do."""

    name = "openvino"
    Config = OpenvinoConfig
    changes_numbers = False
    moves = True
    gives_speed = "depends on the operators and the CPU: another runtime has other kernels"

    def apply(self, model: Model, context: PassContext) -> Model:
        require_onnx(model)
        main = context.workdir / f"{Path(model.blobs[0].name).stem}.xml"
        try:
            with contained(context.workdir) as folder:
                graph = read(next(iter(lay_out(model.blobs, folder / "source.onnx").values())))
                read_signature(graph)  # refuses types that cannot be carried
                write(graph, main, float16=False)
                del graph  # it maps the file that is removed now
            files = tuple(Blob.of(path) for path in (main, main.with_suffix(".bin")))
            return move(model, "openvino", files, self, context)
        except PassNotApplicable:
            raise
        except SalverError as error:
            raise PassNotApplicable(f"OpenVINO cannot run the model: {error.message}") from error
