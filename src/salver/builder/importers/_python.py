"""Python classes: for everything that no other importer reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

from salver.backends import open_session
from salver.backends._python import find_declaration
from salver.builder.importers.base import Imported, Importer, ImportOptions
from salver.builder.importers.parity import batch_sizes_for, certify
from salver.builder.importers.probes import from_data, synthetic
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument, NotFound, PermissionDenied
from salver.core.model import Blob, Model, Step

_MAIN: Final = "model.py"
_LEFT_OUT: Final = ("__pycache__",)


class PythonImporter(Importer):
    """Reads a class with ``predict``, ``inputs`` and ``outputs``: a ``.py`` file, or a folder with ``model.py`` and
    what that needs beside it. Its code is run, so it must be trusted.

    The original is the class as it stands; the import is a copy of its files. Two runs must agree.
    """

    name = "python"

    def recognizes(self, source: Any) -> bool:
        if not isinstance(source, Path):
            return False
        return (source / _MAIN).is_file() if source.is_dir() else source.suffix == ".py"

    def load(self, source: Any, workdir: Path, data: Dataset | None, options: ImportOptions) -> Imported:
        if not source.exists():
            raise NotFound(f"no such model file: '{source}'")
        main = source / _MAIN if source.is_dir() else source
        files = [main] if main is source else _files(source)
        declared = find_declaration(main.read_bytes(), main.name)
        if not options.trust_pickle:
            raise PermissionDenied(
                f"'{source}' is a Python class: importing it runs its code. If you trust who made it, say "
                "--trust-pickle (Python: trust_pickle=True)"
            )
        given = tuple(Blob.of(path, str(path.relative_to(main.parent))) for path in files)
        copies = tuple(_copy(blob, workdir) for blob in given)
        step = Step(action="source", name=source.name, output_digest=given[0].digest)
        original = Model(format="python", signature=declared.signature, blobs=given, trusted=True)
        imported = Model(
            format="python",
            signature=declared.signature,
            blobs=copies,
            lineage=(
                step,
                Step(
                    action="import",
                    name=self.name,
                    input_digest=step.output_digest,
                    output_digest=copies[0].digest,
                    config=options.to_data(),
                    tools={"python": ".".join(map(str, sys.version_info[:3]))},
                ),
            ),
            notes=(f"served natively: class {declared.name} is run by Python",),
            trusted=True,
        )
        with open_session(original) as first, open_session(imported) as second:
            batched = declared.signature.batch_dim is not None
            if data is not None and batched:
                probe = from_data(data, declared.signature)
            else:
                probe = synthetic(declared.signature, first.run, batched=batched)
            parity = certify(
                first.run,
                second.run,
                probe,
                batch_sizes_for(probe.rows, None) if batched else (0,),
                described=f"class {declared.name} as it stands",
                specs=declared.signature.outputs,
                tolerance=options.tolerance,
                inputs=declared.signature.inputs,
            )
        return Imported(model=imported, parity=parity)


def _files(folder: Path) -> list[Path]:
    """All files of a folder, the class first."""
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and not set(p.parts) & set(_LEFT_OUT)]
    return sorted(found, key=lambda path: path != folder / _MAIN)


def _copy(blob: Blob, workdir: Path) -> Blob:
    target = workdir / blob.name
    if target.exists():
        raise InvalidArgument(f"'{target}' lies where the import would be written; choose another workdir")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(blob.read())
    return Blob.of(target, blob.name)
