"""Seals a model and its proof in one file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from salver.bundle import manifest as m
from salver.bundle.bundle import Bundle, Lineage, Steps, write_bundle
from salver.bundle.golden import GoldenRequest
from salver.bundle.manifest import Descriptor
from salver.bundle.recorded import encode_parity
from salver.bundle.tensors import encode_golden
from salver.core.config import canonical_json
from salver.core.errors import InvalidArgument, TooLarge
from salver.core.model import Blob, Model
from salver.evaluation.parity import ParityCertificate
from salver.evaluation.types import BuildRecord


class Contents(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What goes into a bundle.

    Args:
        name: the model's name, as a server offers it.
        model: its files are copied as they are.
        record: what the build found out; a bundle without one is not ``tested``.
        parity: the importer's parity certificate, with the runs of the original that it recorded.
        golden: requests to be replayed wherever the bundle is loaded.
        card, licence: model card (Markdown) and licence text; empty for none.
    """

    name: str
    model: Model
    record: BuildRecord | None = None
    parity: ParityCertificate | None = None
    golden: tuple[GoldenRequest, ...] = ()
    card: str = ""
    licence: str = ""


def seal(path: Path, contents: Contents) -> Bundle:
    """Write a bundle, atomically: it is there whole or not at all. The same contents give the same bytes.

    Raises:
        InvalidArgument: contents that cannot be sealed (empty name, file names that leave the folder, golden requests
            that do not fit the signature, numbers that are not finite in plain data).
        FailedPrecondition: a model file changed since it was read.
        ResourceExhausted: the disk is full; no partial file is left.
        TooLarge, NotFound, PermissionDenied: as `write_archive`.
    """
    if not contents.name:
        raise InvalidArgument("a bundle needs a name that is not empty")
    _check_blobs(contents.model.blobs)
    if contents.model.processing is not None:
        _check_blobs(contents.model.processing.files)
    layers: list[Descriptor] = []
    blobs: dict[str, bytes | Blob] = {}
    for blob in contents.model.blobs:
        layers.append(
            Descriptor(
                media_type=m.WEIGHTS,
                digest=blob.digest,
                size=blob.size_bytes,
                annotations={m.FILEPATH: blob.name},
            )
        )
        blobs[blob.digest] = blob
    for blob in contents.model.processing.files if contents.model.processing else ():
        layers.append(
            Descriptor(
                media_type=m.PROCESSING_FILE,
                digest=blob.digest,
                size=blob.size_bytes,
                annotations={m.FILEPATH: m.PROCESSING_FOLDER + blob.name},
            )
        )
        blobs[blob.digest] = blob
    for media_type, file, data in _parts(contents):
        if len(data) > m.max_bytes(media_type):
            raise TooLarge(
                f"'{file}' would be {len(data)} bytes, more than a reader takes; seal fewer golden requests, less text"
            )
        layers.append(m.describe(media_type, data, file))
        blobs[layers[-1].digest] = data
    config = m.config_bytes(contents.name, contents.model.format, tuple(layers))
    manifest = m.manifest_bytes(m.describe(m.MODEL_CONFIG, config), tuple(layers))
    content = {
        m.describe(m.IMAGE_MANIFEST, manifest).digest: manifest,
        m.describe(m.MODEL_CONFIG, config).digest: config,
        **blobs,
    }
    return Bundle.of_layout(write_bundle(path, content, ()))


def _parts(contents: Contents) -> list[tuple[str, str, bytes]]:
    """Media type, file and content of every layer that is not a model file."""
    model = contents.model
    made: list[tuple[str, bytes]] = [
        (m.SIGNATURE, canonical_json(model.signature)),
        (m.LINEAGE, _plain(Lineage(steps=model.lineage, notes=model.notes), "lineage")),
    ]
    if model.processing is not None:
        steps = Steps(
            before=model.processing.before,
            after=model.processing.after,
            outputs=model.processing.outputs,
            signature=model.processing.signature,
        )
        made.append((m.PROCESSING, _plain(steps, "processing")))
    if contents.record is not None:
        made.append((m.EVALUATION, canonical_json(_spell(msgspec.to_builtins(contents.record)))))
    if contents.parity is not None:
        certificate, tensors = encode_parity(contents.parity)
        made.append((m.PARITY, _plain(certificate, "parity")))
        made += [(m.PARITY_TENSORS, tensors)] if tensors else []
    if contents.golden:
        manifest, tensors = encode_golden(contents.golden, model.served)
        made += [(m.GOLDEN, manifest), (m.GOLDEN_TENSORS, tensors)]
    parts = [(media_type, m.FILES[media_type], data) for media_type, data in made]
    texts = ((m.CARD_FILE, contents.card), (m.LICENCE_FILE, contents.licence))
    return parts + [(m.DOCUMENT, file, text.encode()) for file, text in texts if text]


def _check_blobs(blobs: tuple[Blob, ...]) -> None:
    names: set[str] = set()
    for blob in blobs:
        why = m.check_file_name(blob.name)
        if why or blob.name in names:
            raise InvalidArgument(f"model file '{blob.name}' cannot be sealed: {why or 'two files have this name'}")
        names.add(blob.name)


def _plain(value: Any, what: str) -> bytes:
    data = msgspec.to_builtins(value)
    if canonical_json(_spell(data)) != canonical_json(data):
        raise InvalidArgument(
            f"{what}: a number is NaN or infinite, which JSON cannot say; leave it out or write it as text"
        )
    return canonical_json(data)


def _spell(data: Any) -> Any:
    """Plain data with numbers that are not finite written as strings, which the typed reader turns back."""
    if isinstance(data, float) and not math.isfinite(data):
        return "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"
    if isinstance(data, dict):
        return {key: _spell(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_spell(value) for value in data]
    return data
