"""Reads steps as a person declares them: a TOML file, with the files it names beside it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from salver.core.errors import InvalidArgument, NotFound, SalverError
from salver.core.model import Blob, Model, Processing
from salver.core.tensors import Signature
from salver.processing import make_pipeline, step_class
from salver.processing.base import ProcessingStep

_EMPTY = Signature(inputs=(), outputs=())


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    before: list[dict[str, Any]] = []
    after: list[dict[str, Any]] = []
    outputs: list[str] = []


def read_steps(path: Path) -> Processing:
    """Steps that are not bound to a model yet: their signature is empty.

    Args:
        path: a TOML file of ``[[before]]`` and ``[[after]]`` tables, each with ``step`` and that step's settings, and
            ``outputs``.

    Raises:
        NotFound: it, or a file that a step names, does not exist.
        InvalidArgument: it is not such a file.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        document = msgspec.convert(data, _Document)
    except FileNotFoundError:
        raise NotFound(f"no such file of processing steps: '{path}'") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidArgument(f"'{path}' is no file of processing steps: {error}") from None
    if not document.before and not document.after:
        raise InvalidArgument(f"'{path}' declares no step; expected [[before]] or [[after]] tables")
    files: dict[str, Blob] = {}
    stages = (("before", document.before), ("after", document.after))
    for where, steps in stages:
        for number, step in enumerate(steps, 1):
            place = f"'{path}': step {number} {where} the model"
            member = step_class(step, place)
            for field in member.files:
                if step.get(field):
                    step[field] = _add_file(files, path.parent / str(step[field]))
            steps[number - 1] = _settled(member, step, place)
    return Processing(
        before=tuple(document.before),
        after=tuple(document.after),
        outputs=tuple(document.outputs),
        files=tuple(files.values()),
        signature=_EMPTY,
    )


def takes_files(processing: Processing) -> bool:
    """Whether clients send files (images) to these steps."""
    return any(step_class(step, "a step").takes_files for step in processing.before)


def attach(model: Model, processing: Processing) -> Model:
    """A model with these steps around it, bound to its graph.

    Raises:
        SalverError: they do not fit; see `make_pipeline`.
    """
    by_name = {blob.name: blob for blob in processing.files}
    pipeline = make_pipeline(
        processing.before,
        processing.after,
        processing.outputs,
        lambda name: by_name[name].read(),
        model.signature,
        trusted=model.trusted,
    )
    bound = msgspec.structs.replace(processing, signature=pipeline.signature)
    return msgspec.structs.replace(model, processing=bound)


def _settled(member: type[ProcessingStep], step: dict[str, Any], place: str) -> dict[str, Any]:
    """A step with all its settings, so that it stays what it is when a default changes."""
    try:
        config = member.Config.from_data({key: value for key, value in step.items() if key != "step"})
    except SalverError as error:
        raise error.reworded(f"{place} ({member.name}): {error.message}") from None
    return {"step": member.name, **config.to_data()}


def _add_file(files: dict[str, Blob], path: Path) -> str:
    blob = Blob.of(path)
    known = files.get(blob.name)
    if known is not None and known.digest != blob.digest:
        raise InvalidArgument(f"two steps name different files called '{blob.name}'; rename one")
    files[blob.name] = blob
    return blob.name
