"""PyTorch models: programs, TorchScript, modules with their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from salver.builder.importers.base import Imported, Importer, ImportOptions
from salver.core.dataset import Dataset
from salver.core.errors import MissingExtra, NotFound

try:
    import onnxscript
    import safetensors
    import torch
except ImportError as missing:
    raise MissingExtra("importing a PyTorch model", str(missing.name), "torch") from None

from salver.builder.importers.onnx_finish import Draft, backend_versions
from salver.builder.importers.torch_inputs import Call, make_probe, make_sample, plan_inputs, settle_dims
from salver.builder.importers.torch_ladder import climb
from salver.builder.importers.torch_sources import open_source

_SUFFIXES: Final = (".pt2", ".pt", ".pth", ".jit", ".ckpt", ".safetensors")


class TorchImporter(Importer):
    """Reads programs (``.pt2``), TorchScript (``.pt``), and modules in memory or by the name of their code
    (``module:factory`` with its weights).

    The original is the model itself, run by PyTorch without gradients on the CPU. It is exported to ONNX by a ladder of
    exporters, each judged by the answers of what it made; where none passes, the model stays in a format of PyTorch.
    """

    name = "torch"

    def recognizes(self, source: Any) -> bool:
        if isinstance(source, Path):
            return source.suffix.lower() in _SUFFIXES
        kinds = (torch.nn.Module, torch.export.ExportedProgram)
        return issubclass(source, torch.nn.Module) if isinstance(source, type) else isinstance(source, kinds)

    def load(self, source: Any, workdir: Path, data: Dataset | None, options: ImportOptions) -> Imported:
        if isinstance(source, Path) and not source.is_file():
            raise NotFound(f"no such model file: '{source}'")
        opened = open_source(source, options)
        specs, note = plan_inputs(opened, data, options)
        call = Call(opened, specs)
        probe, leading = make_probe(call, data)
        settled, notes = settle_dims(call, probe, leading)
        call = Call(opened, settled)
        versions = {"torch": str(torch.__version__), "onnxscript": onnxscript.__version__}
        draft = Draft(
            importer=self.name,
            original=call,
            described=f"PyTorch {torch.__version__}, {type(opened.module).__name__} run eagerly",
            probe=probe,
            leading=leading,
            workdir=workdir,
            options=options,
            lineage=(opened.step,),
            tools={**backend_versions(), **versions, "safetensors": safetensors.__version__},
            notes=tuple(n for n in (note, *notes) if n),
        )
        return climb(call, make_sample(call, probe, leading), draft)
