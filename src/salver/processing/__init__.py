"""Declared steps around a graph, which travel with it: a text, an image file or a row in, a label out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from salver.backends import open_session
from salver.backends.base import Session, SessionOptions
from salver.core.errors import CorruptArtifact, InvalidArgument, PermissionDenied, SalverError
from salver.core.model import Model, Processing, digest_bytes
from salver.core.registry import Family
from salver.core.tensors import Signature
from salver.processing.base import ProcessingStep, Read
from salver.processing.pipeline import Pipeline
from salver.processing.session import ProcessedSession

BUILTIN: Final = {
    "tokenizer": "salver.processing._tokenizer:TokenizerStep",
    "image": "salver.processing._image:ImageStep",
    "tabular": "salver.processing._tabular:TabularStep",
    "pooling": "salver.processing._pooling:PoolingStep",
    "normalize": "salver.processing._normalize:NormalizeStep",
    "activation": "salver.processing._activation:ActivationStep",
    "labels": "salver.processing._labels:LabelsStep",
    "threshold": "salver.processing._threshold:ThresholdStep",
    "python": "salver.processing._python:PythonStep",
}

PROCESSING: Final[Family[type[ProcessingStep]]] = Family("processing", BUILTIN)

__all__ = [
    "BUILTIN",
    "PROCESSING",
    "Pipeline",
    "ProcessingStep",
    "make_pipeline",
    "open_processed",
    "pipeline_of",
    "runs_code",
    "step_class",
]


def open_processed(
    model: Model,
    options: SessionOptions | None = None,
    open_graph: Callable[[Model, SessionOptions], Session] = open_session,
) -> Session:
    """Load a model with its steps, if it has any.

    Args:
        open_graph: loads what is between the steps.

    Raises:
        PermissionDenied: a step runs code, and the model is not trusted.
        SalverError: as `open_session`, and as the steps' construction.
    """
    chosen = options or SessionOptions()
    if model.processing is None:
        return open_graph(model, chosen)
    pipeline = pipeline_of(model)
    return ProcessedSession(open_graph(model, chosen), pipeline)


def pipeline_of(model: Model) -> Pipeline:
    """The steps of a model that has some, bound to its graph.

    Raises:
        CorruptArtifact: a file is damaged, or the steps make another signature than the one they are sealed with.
        SalverError: as `make_pipeline`.
    """
    processing = model.processing
    if processing is None:
        raise InvalidArgument("the model has no steps")
    pipeline = make_pipeline(
        processing.before,
        processing.after,
        processing.outputs,
        _reader(processing),
        model.signature,
        trusted=model.trusted,
        distrust=model.distrust,
    )
    if pipeline.signature != processing.signature:
        raise CorruptArtifact("the steps around the model do not make the signature that is stored with them")
    return pipeline


def make_pipeline(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    outputs: Sequence[str],
    read: Read,
    inner: Signature,
    *,
    trusted: bool = False,
    distrust: str = "",
) -> Pipeline:
    """Make steps from plain data and bind them to a graph.

    Args:
        before, after, outputs: as in `Processing`.
        read: gives the files that steps name.
        inner: the graph's signature.
        trusted: whether steps that run code may.
        distrust: why not, where a key was tried.

    Raises:
        UnknownName, InvalidArgument: a step or a setting that does not exist, or steps that do not fit.
        MissingExtra: a step needs an optional package.
        PermissionDenied: a step runs code, and may not.
    """
    stages = (("before", before), ("after", after))
    made = [
        [_make_step(data, read, f"step {i} {where} the model", trusted, distrust) for i, data in enumerate(steps, 1)]
        for where, steps in stages
    ]
    return Pipeline(made[0], made[1], outputs, inner)


def runs_code(processing: Processing | None) -> bool:
    """Whether there are steps that run code which came with the model."""
    steps = () if processing is None else (*processing.before, *processing.after)
    return any(step_class(step, "a step").runs_code for step in steps)


def step_class(data: Mapping[str, Any], where: str) -> type[ProcessingStep]:
    """The member that a declared step names.

    Raises:
        InvalidArgument: it names none.
    """
    name = data.get("step")
    if not isinstance(name, str):
        raise InvalidArgument(f'{where}: expected step = "NAME", one of {", ".join(BUILTIN)}')
    try:
        return PROCESSING.get(name)
    except SalverError as error:
        raise error.reworded(f"{where}: {error.message}") from None


def _make_step(data: Mapping[str, Any], read: Read, where: str, trusted: bool, distrust: str) -> ProcessingStep:
    member = step_class(data, where)
    if member.runs_code and not trusted:
        raise PermissionDenied(
            f"{where} ({member.name}) runs code that came with the model, and {distrust or 'no key is trusted'}: give "
            "the public key of the one who signed the bundle (serve and predict: --trusted-key public.pem; verify: "
            "--key public.pem)"
        )
    try:
        config = member.Config.from_data({key: value for key, value in data.items() if key != "step"})
        return member(config, read)
    except SalverError as error:
        raise error.reworded(f"{where} ({member.name}): {error.message}") from None


def _reader(processing: Processing) -> Read:
    blobs = {blob.name: blob for blob in processing.files}

    def read(name: str) -> bytes:
        if name not in blobs:
            raise CorruptArtifact(f"the file '{name}', which a step reads, is not in the bundle")
        data = blobs[name].read()
        if digest_bytes(data) != blobs[name].digest:
            raise CorruptArtifact(f"the file '{name}', which a step reads, is not what it was when it was sealed")
        return data

    return read
