"""Checks a bundle, all of it: every byte of the archive, every JSON that is not under a digest, every digest."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from salver.bundle import manifest as m
from salver.bundle.archive import Member, scan
from salver.bundle.dsse import Envelope, read_envelope
from salver.bundle.manifest import Descriptor, Manifest
from salver.core.config import canonical_json
from salver.core.errors import CorruptArtifact, Unimplemented
from salver.core.model import Blob, digest_bytes

_ONCE: Final = (m.SIGNATURE, m.LINEAGE)
_AT_MOST_ONCE: Final = (m.EVALUATION, m.PARITY, m.PARITY_TENSORS, m.PROCESSING, m.GOLDEN, m.GOLDEN_TENSORS)


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle whose bytes were all checked.

    Args:
        path: the file.
        members: by name.
        subject: descriptor of the manifest; its digest is the bundle's identity.
        manifest, config: of the model.
        signatures: the envelopes beside the content, not yet verified against a key.
    """

    path: Path
    members: dict[str, Member]
    subject: Descriptor
    manifest: Manifest
    config: m.ModelConfig
    signatures: tuple[Envelope, ...]

    def layer(self, media_type: str) -> Descriptor | None:
        """The only layer of that type, or None."""
        return next((layer for layer in self.manifest.layers if layer.media_type == media_type), None)

    def document(self, file: str) -> str:
        """A documentation layer's text; empty without one."""
        for layer in self.manifest.layers:
            if layer.media_type == m.DOCUMENT and layer.file == file:
                return self.read(layer).decode()
        return ""

    def blob(self, layer: Descriptor) -> Blob:
        """Where a layer lies in the file."""
        member = self.members[layer.member]
        return Blob(name=layer.file, path=self.path, offset=member.offset, size_bytes=layer.size, digest=layer.digest)

    def read(self, layer: Descriptor) -> bytes:
        """A layer's content, its digest checked again: the file may have been replaced since it was opened."""
        data = self.blob(layer).read()
        if digest_bytes(data) != layer.digest:
            raise CorruptArtifact(
                f"'{self.path}': {_role(layer)} has changed since the bundle was opened; open it again"
            )
        return data


def read_layout(path: Path) -> Layout:
    """Check a whole bundle.

    Raises:
        NotFound: there is no such file.
        CorruptArtifact: naming the part that is damaged, missing, altered or not known.
        Unimplemented: made by a newer Salver.
    """
    members = scan(path)
    by_name = {member.name: member for member in members}
    index = _read_json(path, by_name, m.INDEX_NAME, "index.json")
    subject, others = _read_index(path, index)
    manifest_data = _read_json(path, by_name, subject.member, "the manifest")
    _check_digest(path, by_name[subject.member], "the manifest")
    _check_version(path, manifest_data)
    manifest = m.decode_exact(manifest_data, Manifest, f"'{path}': the manifest")
    _check_manifest(path, manifest)

    roles = {layer.member: _role(layer) for layer in manifest.layers}
    sizes = {layer.member: layer.size for layer in manifest.layers}
    roles[manifest.config.member], sizes[manifest.config.member] = "the config", manifest.config.size
    roles[subject.member], sizes[subject.member] = "the manifest", subject.size
    envelopes, signature_manifests = [], []
    for number, other in enumerate(others, 1):
        what = f"signature {number}"
        data = _read_json(path, by_name, other.member, what)
        _check_digest(path, by_name[other.member], what)
        signature_manifests.append(data)
        referrer, envelope = _read_signature(path, by_name, data, subject, what)
        envelopes.append(envelope)
        for descriptor in (other, referrer.config, *referrer.layers):
            roles[descriptor.member], sizes[descriptor.member] = what, descriptor.size

    expected = [m.LAYOUT_NAME, m.INDEX_NAME, *sorted(roles)]
    found = [member.name for member in members]
    _check_names(path, expected, found, roles)
    for name, role in roles.items():
        _check_digest(path, by_name[name], role)
        if by_name[name].size_bytes != sizes[name]:
            raise CorruptArtifact(
                f"'{path}': {role} is {by_name[name].size_bytes} bytes, its descriptor says {sizes[name]}"
            )
    if _content(path, by_name[m.LAYOUT_NAME]) != m.LAYOUT_BYTES:
        raise CorruptArtifact(f"'{path}': oci-layout is damaged")
    if index != m.index_bytes(manifest_data, tuple(signature_manifests)):
        raise CorruptArtifact(f"'{path}': index.json is damaged: it is not written as Salver writes it")
    config_data = _read_json(path, by_name, manifest.config.member, "the config")
    config = m.decode_exact(config_data, m.ModelConfig, f"'{path}': the config")
    if config_data != m.config_bytes(config.descriptor.name, config.config.format, manifest.layers):
        raise CorruptArtifact(f"'{path}': the config does not belong to the manifest")
    return Layout(
        path=path,
        members=by_name,
        subject=subject,
        manifest=manifest,
        config=config,
        signatures=tuple(envelopes),
    )


def _read_index(path: Path, data: bytes) -> tuple[Descriptor, tuple[Descriptor, ...]]:
    """The model's manifest and the signatures'. Read leniently: a newer format is to be named as such."""
    try:
        raw = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        entries = msgspec.json.decode(raw.get("manifests", b"[]"), type=list[msgspec.Raw])
        loose = [msgspec.json.decode(entry, type=_Entry) for entry in entries]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptArtifact(f"'{path}': index.json is damaged: {error}") from None
    if not loose:
        raise CorruptArtifact(f"'{path}': index.json names no manifest")
    found = [
        Descriptor(media_type=m.IMAGE_MANIFEST, digest=e.digest, size=e.size, artifact_type=m.MODEL_MANIFEST)
        for e in loose
    ]
    return found[0], tuple(found[1:])


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    digest: m.Digest
    size: int


class _Versioned(msgspec.Struct, frozen=True, kw_only=True):
    annotations: dict[str, str] = {}


def _check_version(path: Path, manifest: bytes) -> None:
    try:
        version = msgspec.json.decode(manifest, type=_Versioned).annotations.get(m.FORMAT_KEY, "")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptArtifact(f"'{path}': the manifest is damaged: {error}") from None
    if not (version.isascii() and version.isdigit()) or len(version) > 9:
        raise CorruptArtifact(f"'{path}' holds an OCI image that Salver did not make: it has no '{m.FORMAT_KEY}'")
    if int(version) > m.FORMAT:
        raise Unimplemented(
            f"'{path}' was made by a newer Salver: format {version}, this one reads {m.FORMAT}; pip install -U salver"
        )


def _check_manifest(path: Path, manifest: Manifest) -> None:
    layers = manifest.layers
    expected = m.manifest_bytes(manifest.config, layers)
    if expected != canonical_json(manifest) or manifest.config.media_type != m.MODEL_CONFIG:
        raise CorruptArtifact(f"'{path}': the manifest is not that of a model")
    files: set[str] = set()
    kinds = [layer.media_type for layer in layers]
    known = (m.WEIGHTS, m.DOCUMENT, m.PROCESSING_FILE, *_ONCE, *_AT_MOST_ONCE)
    for layer in layers:
        if layer.media_type not in known:
            raise CorruptArtifact(f"'{path}': layer of unknown type '{layer.media_type[:80]}'")
        if layer.file in files:
            raise CorruptArtifact(f"'{path}': two layers stand for the file '{layer.file}'")
        files.add(layer.file)
        why = m.check_file_name(layer.file) if layer.media_type == m.WEIGHTS else None
        if why:
            raise CorruptArtifact(f"'{path}': model file '{layer.file[:80]}': {why}")
        fixed = m.FILES.get(layer.media_type)
        name = layer.file.removeprefix(m.PROCESSING_FOLDER)
        if (
            (fixed and layer.file != fixed)
            or (layer.media_type == m.DOCUMENT and layer.file not in (m.CARD_FILE, m.LICENCE_FILE))
            or (layer.media_type == m.PROCESSING_FILE and (name == layer.file or m.check_file_name(name)))
        ):
            raise CorruptArtifact(f"'{path}': {_role(layer)} stands for an unexpected file '{layer.file[:80]}'")
    for kind in _ONCE:
        if kinds.count(kind) != 1:
            raise CorruptArtifact(f"'{path}': {kinds.count(kind)} layers of type '{kind}', expected one")
    for kind in _AT_MOST_ONCE:
        if kinds.count(kind) > 1:
            raise CorruptArtifact(f"'{path}': {kinds.count(kind)} layers of type '{kind}', expected at most one")
    halved = (m.GOLDEN in kinds) != (m.GOLDEN_TENSORS in kinds) or (m.PARITY_TENSORS in kinds and m.PARITY not in kinds)
    halved = halved or (m.PROCESSING_FILE in kinds and m.PROCESSING not in kinds)
    if m.WEIGHTS not in kinds or halved:
        raise CorruptArtifact(f"'{path}': the manifest lacks a layer: it has {kinds}")
    for layer in layers:
        limit = _limit(layer)
        if limit and layer.size > limit:
            raise CorruptArtifact(f"'{path}': {_role(layer)} says it is {layer.size} bytes; at most {limit} are read")


def _limit(layer: Descriptor) -> int | None:
    if layer.media_type == m.WEIGHTS:
        return None
    return m.max_bytes(layer.media_type)


def _read_signature(
    path: Path, by_name: dict[str, Member], data: bytes, subject: Descriptor, what: str
) -> tuple[Manifest, Envelope]:
    referrer = m.decode_exact(data, Manifest, f"'{path}': {what}")
    if len(referrer.layers) != 1:
        raise CorruptArtifact(f"'{path}': {what} has {len(referrer.layers)} layers, expected one envelope")
    name = referrer.layers[0].member
    envelope = _read_json(path, by_name, name, what)
    _check_digest(path, by_name[name], what)
    if m.signature_manifest_bytes(subject, envelope) != data:
        raise CorruptArtifact(f"'{path}': {what} belongs to another bundle, or is damaged")
    return referrer, read_envelope(envelope, subject, f"'{path}': {what}")


def _check_names(path: Path, expected: list[str], found: list[str], roles: dict[str, str]) -> None:
    if found == expected:
        return
    for name in found:
        if name not in expected:
            raise CorruptArtifact(f"'{path}': '{name}' is in the archive but nothing refers to it")
    for name in expected:
        if name not in found:
            raise CorruptArtifact(f"'{path}': {roles.get(name, name)} is missing ('{name}')")
    raise CorruptArtifact(f"'{path}': the files in the archive are not in order")


def _read_json(path: Path, by_name: dict[str, Member], name: str, what: str) -> bytes:
    member = by_name.get(name)
    if member is None:
        raise CorruptArtifact(f"'{path}': {what} is missing ('{name}')")
    if member.size_bytes > m.MAX_JSON_BYTES:
        raise CorruptArtifact(f"'{path}': {what} is {member.size_bytes} bytes; at most {m.MAX_JSON_BYTES} are read")
    return _content(path, member)


def _content(path: Path, member: Member) -> bytes:
    blob = Blob(name=member.name, path=path, offset=member.offset, size_bytes=member.size_bytes, digest=member.digest)
    return blob.read()


def _check_digest(path: Path, member: Member, role: str) -> None:
    if m.blob_name(member.digest) != member.name:
        expected = f"sha256:{member.name.rpartition('/')[2]}"
        raise CorruptArtifact(f"'{path}': {role} is damaged: its digest is {member.digest}, expected {expected}")


def _role(layer: Descriptor) -> str:
    """What a layer is, in words."""
    if layer.media_type == m.WEIGHTS:
        return f"the model file '{layer.file}'"
    if layer.media_type == m.PROCESSING_FILE:
        return f"the file '{layer.file[:80]}' of the processing steps"
    names = {
        m.SIGNATURE: "the signature of the model's inputs and outputs",
        m.LINEAGE: "the lineage",
        m.EVALUATION: "the evaluation",
        m.PARITY: "the parity certificate",
        m.PARITY_TENSORS: "the recorded runs of the original",
        m.PROCESSING: "the processing steps",
        m.GOLDEN: "the golden requests",
        m.GOLDEN_TENSORS: "the golden requests' tensors",
    }
    return names.get(layer.media_type, f"the document '{layer.file}'")
