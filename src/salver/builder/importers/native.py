"""From a model in its framework's own format to an `Imported`, where no ONNX graph gives its answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from salver.backends.apart import open_judged
from salver.builder.importers.base import Imported
from salver.builder.importers.onnx_finish import Draft, casting
from salver.builder.importers.parity import batch_sizes_for, certify
from salver.core.errors import InvalidArgument, SalverError
from salver.core.model import Blob, Model, Step
from salver.core.tensors import Signature, TensorSpec


def native_model(format: str, signature: Signature, files: Mapping[str, Path], *, trusted: bool = False) -> Model:
    """A model in its framework's own format, of files that lie in the workdir, the main one first.

    Args:
        format: as `Model.format`.
        trusted: whether code in the files may be run.
    """
    blobs = tuple(Blob.of(path, name) for name, path in files.items())
    return Model(format=format, signature=signature, blobs=blobs, trusted=trusted)


def finish_native(native: Model, draft: Draft, why: str) -> Imported:
    """Serve a model by its own framework: certify that what was written gives the original's answers.

    Args:
        native: what a backend runs; its files, below the draft's ``workdir``, are removed when it is not certified.
        why: what no ONNX graph could do, a note for the user.

    Raises:
        ParityFailed: it gives other answers.
        InvalidArgument: class names that fit no output.
    """
    step = Step(
        action="import",
        name=draft.importer,
        input_digest=draft.lineage[-1].output_digest if draft.lineage else "",
        output_digest=native.blobs[0].digest,
        config=draft.options.to_data(),
        tools=dict(draft.tools),
    )
    note = f"served natively, by the framework of format '{native.format}' itself, and not optimized: {why}"
    leading = draft.leading
    try:
        model = msgspec.structs.replace(
            native,
            signature=_with_labels(native.signature, draft),
            lineage=(*draft.lineage, step),
            notes=(*(each for each in draft.notes if each), note),
        )
        with open_judged(model) as session:
            parity = certify(
                draft.original,
                casting(session.run, model.signature),
                draft.probe,
                batch_sizes_for(draft.probe.rows, leading.fixed) if leading.batched else (0,),
                described=draft.described,
                specs=model.signature.outputs,
                tolerance=draft.options.tolerance,
                original_size=leading.fixed if leading.batched else None,
                inputs=model.signature.inputs,
                versions=draft.tools,
            )
    except SalverError:
        for blob in native.blobs:
            blob.path.unlink(missing_ok=True)
        raise
    return Imported(model=model, parity=parity, native=model)


def _with_labels(signature: Signature, draft: Draft) -> Signature:
    wanted = draft.options.labels
    outputs = []
    for spec in signature.outputs:
        labels = wanted or draft.labels.get(spec.name, ())
        fits = spec.datatype in ("FP32", "FP64") and len(spec.shape) == 2 and spec.shape[1] == len(labels)
        tells = any(name != str(i) for i, name in enumerate(labels))
        outputs.append(msgspec.structs.replace(spec, labels=labels) if fits and tells else spec)
    if wanted and not any(_has(spec, wanted) for spec in signature.outputs):
        shapes = ", ".join(f"'{s.name}' {list(s.shape)}" for s in signature.outputs)
        raise InvalidArgument(f"{len(wanted)} labels were given, and no output has as many classes: {shapes}")
    return Signature(inputs=signature.inputs, outputs=tuple(outputs))


def _has(spec: TensorSpec, labels: tuple[str, ...]) -> bool:
    return len(spec.shape) == 2 and spec.shape[1] == len(labels)
