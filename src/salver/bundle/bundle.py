"""An opened bundle: what it holds, checked; and what can be done with it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from salver.backends import open_session
from salver.backends.base import Session, SessionOptions
from salver.bundle import manifest as m
from salver.bundle.archive import publish, write_archive
from salver.bundle.casting import fit
from salver.bundle.dsse import Envelope, sign_manifest, verify_envelope
from salver.bundle.golden import GoldenRequest, ReplayReport, replay
from salver.bundle.reader import Layout, read_layout
from salver.bundle.recorded import decode_parity, replay_parity
from salver.bundle.tensors import decode_golden
from salver.core.arrays import Array
from salver.core.errors import CorruptArtifact, FailedPrecondition, PermissionDenied
from salver.core.model import Blob, Model, Processing, Step, digest_bytes, digest_file
from salver.core.tensors import Signature
from salver.evaluation.parity import ParityCertificate, ParityReplay
from salver.evaluation.types import BuildRecord
from salver.processing import open_processed


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """The lineage layer: what led to the model, and what its importer noted."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...]


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """The processing layer: the steps around the model, and what clients send and get. What the steps read lies in
    layers of its own."""

    before: tuple[dict[str, Any], ...]
    after: tuple[dict[str, Any], ...]
    outputs: tuple[str, ...]
    signature: Signature


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was verified. Damage, and a signature that is missing or wrong, are errors and never reach a report.

    Args:
        path, name, digest: of the bundle.
        files: files in the archive whose digests were recomputed.
        size_bytes: bytes read.
        signed_by: key ids that envelopes beside the content name; proven only for ``verified_key``.
        verified_key: id of the key whose signature was verified; empty when no key was given.
        replay: the golden requests' answers on this machine; None when there are none or they were not asked for.
        parity: how far the outputs are, on this machine, from those that the original gave to the recorded inputs;
            None when none were recorded or they were not asked for.
        assurance: one sentence: what this shows and what not.
    """

    path: str
    name: str
    digest: str
    files: int
    size_bytes: int
    signed_by: tuple[str, ...]
    verified_key: str
    replay: ReplayReport | None
    parity: ParityReplay | None
    assurance: str

    @property
    def ok(self) -> bool:
        """Whether golden requests and recorded runs, where replayed, gave the stored answers."""
        return (self.replay is None or self.replay.ok) and (self.parity is None or self.parity.ok)

    @property
    def wrong(self) -> str:
        """What is not as stored, in one sentence; empty when all is."""
        found = [str(part) for part in (self.replay, self.parity) if part is not None and not part.ok]
        return "; ".join(found)


class Bundle:
    """A sealed artifact, every byte of which was checked when it was opened; or a bare model, wrapped.

    Safe to use from several threads. `close` frees the session that `predict` opened.
    """

    def __init__(self, path: Path, name: str, model: Model, layout: Layout | None, reason: str = "") -> None:
        self.path = path
        self.name = name
        self.model = model
        self.reason = reason
        """Why it is not tested; empty when it is."""
        self._layout = layout
        self._session: Session | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a bundle and check all of it. Without a signature this detects damage, not tampering: who can write the
        file can seal another one.

        Raises:
            NotFound: there is no such file.
            CorruptArtifact: any byte was changed, added or removed; names the part.
            Unimplemented: made by a newer Salver.
        """
        return cls.of_layout(read_layout(Path(path)))

    @classmethod
    def of_layout(cls, layout: Layout) -> Self:
        """The bundle of a layout that `read_layout` checked."""
        untested = "" if layout.layer(m.EVALUATION) else "it was sealed without an evaluation"
        return cls(layout.path, layout.config.descriptor.name, _model(layout), layout, untested)

    @classmethod
    def wrap(cls, model: Model, name: str, reason: str) -> Self:
        """A bare model as an unsealed bundle, marked as not tested.

        Args:
            reason: why it is not tested, for whoever asks ("a raw ONNX file was given").
        """
        return cls(model.path, name, model, None, reason)

    @property
    def sealed(self) -> bool:
        """Whether there is a bundle file; False for a wrapped model."""
        return self._layout is not None

    @property
    def tested(self) -> bool:
        """Whether it was sealed with the evaluation that admitted it."""
        return not self.reason

    @property
    def digest(self) -> str:
        """The bundle's identity: ``sha256:<hex>`` of the manifest; of the model where it is only wrapped."""
        return self._layout.subject.digest if self._layout else self.model.digest

    @property
    def signature(self) -> Signature:
        """What clients send and get."""
        return self.model.served

    @property
    def lineage(self) -> tuple[Step, ...]:
        """What led to the model, oldest first."""
        return self.model.lineage

    @property
    def record(self) -> BuildRecord | None:
        """What the build found out; read when asked for."""
        data = self._optional(m.EVALUATION)
        # Not strict: what is not finite stands in the JSON as a string.
        return None if data is None else _decode(data, BuildRecord, f"'{self.path}': the evaluation", strict=False)

    @property
    def parity(self) -> ParityCertificate | None:
        """The importer's parity certificate, with the runs of the original that it recorded; read when asked for."""
        data = self._optional(m.PARITY)
        return None if data is None else decode_parity(data, self._optional(m.PARITY_TENSORS) or b"")

    @property
    def golden(self) -> tuple[GoldenRequest, ...]:
        """The golden requests; read when asked for."""
        manifest, tensors = self._optional(m.GOLDEN), self._optional(m.GOLDEN_TENSORS)
        return () if manifest is None or tensors is None else decode_golden(manifest, tensors)

    @property
    def card(self) -> str:
        """The model card, Markdown; empty without one."""
        return self._layout.document(m.CARD_FILE) if self._layout else ""

    @property
    def licence(self) -> str:
        """The licence text; empty without one."""
        return self._layout.document(m.LICENCE_FILE) if self._layout else ""

    @property
    def signatures(self) -> tuple[Envelope, ...]:
        """The signatures beside the content; `verify` with a key proves one."""
        return self._layout.signatures if self._layout else ()

    def sizes(self) -> dict[str, int]:
        """File that a layer stands for -> size in bytes; the model's files first."""
        if self._layout is None:
            return {blob.name: blob.size_bytes for blob in self.model.blobs}
        return {layer.file: layer.size for layer in self._layout.manifest.layers}

    def digests(self) -> dict[str, str]:
        """File that a layer stands for -> ``sha256:<hex>``, and ``manifest`` and ``config``."""
        if self._layout is None:
            return {blob.name: blob.digest for blob in self.model.blobs}
        layers = {layer.file: layer.digest for layer in self._layout.manifest.layers}
        return {"manifest": self.digest, "config": self._layout.manifest.config.digest, **layers}

    def verify(
        self,
        public_key: Path | bytes | None = None,
        *,
        replay: bool = True,
        threads: int = 1,
        tolerance: float | None = None,
    ) -> VerifyReport:
        """Check the file again, a signature, and that the model still gives the stored answers, and those that the
        original gave, on this machine.

        Args:
            public_key: Ed25519 in PEM, a file or its content.
            replay: whether to load the model and run the golden requests and the recorded inputs.
            tolerance: for the recorded runs; None takes twice that of the certificate.
            threads: of that session.

        Raises:
            CorruptArtifact: the file is damaged, or is another one than was opened.
            PermissionDenied: a key is given, and the bundle is not signed, not by it, or not validly.
        """
        if self._layout is None:
            return self._verify_wrapped(public_key)
        layout = self._reopen(self._layout)
        key = "" if public_key is None else verify_envelope(layout.signatures, public_key)
        if key:
            self._set_trusted()
        return VerifyReport(
            path=str(self.path),
            name=self.name,
            digest=self.digest,
            files=len(layout.members),
            size_bytes=self.path.stat().st_size,
            signed_by=tuple(e.keyid for e in layout.signatures),
            verified_key=key,
            replay=self._replay(threads) if replay else None,
            parity=self._replay_parity(threads, tolerance) if replay else None,
            assurance=_assurance(key, bool(layout.signatures)),
        )

    def trust(self, public_key: Path | bytes | None) -> Self:
        """Let code that came with the bundle be run, if it is signed by this key; `verify` with a key does so, too.

        Args:
            public_key: Ed25519 in PEM, a file or its content; None trusts nobody.

        Raises:
            PermissionDenied: it is not signed by that key.
            NotFound, InvalidArgument: the key cannot be read.
        """
        if public_key is None:
            raise PermissionDenied(
                f"'{self.path}' brings code with it, and no key is trusted: give the public key of the one who signed "
                "it (serve and predict: --trusted-key public.pem; verify: --key public.pem)"
            )
        try:
            verify_envelope(self.signatures, public_key)
        except PermissionDenied as error:
            self.model = msgspec.structs.replace(self.model, distrust=error.message)
            raise
        self._set_trusted()
        return self

    def predict(self, inputs: Mapping[str, Any] | Any | Path) -> dict[str, Array]:
        """Run the model in this process.

        Args:
            inputs: name -> array; one array where the model has one input; or a `Path` to an ``.npz`` or ``.npy`` file.
                Whole numbers become any type that holds them exactly, floats narrower floats; see `casting.cast`.

        Returns:
            Output name -> array.

        Raises:
            NotFound, InvalidArgument: inputs that do not fit the signature.
        """
        fitted = fit(inputs, self.signature)
        with self._lock:
            if self._session is None:
                self._session = open_processed(self.model)
            session = self._session
        return session.run(fitted)

    def sign(self, private_key: Path, password: str | bytes | None = None) -> Self:
        """Put a signature beside the content; the file is replaced atomically and the bundle's digest stays. Signing
        again with the same key changes nothing.

        Returns:
            This bundle, which has the signature now. Others that were opened from the file have to be opened again.

        Raises:
            FailedPrecondition: a wrapped model; it has to be sealed first.
            NotFound, InvalidArgument, PermissionDenied: the key cannot be used.
            ResourceExhausted: the disk is full; the bundle is as it was.
        """
        if self._layout is None:
            raise FailedPrecondition(f"'{self.path}' is not a bundle; only what 'salver build' sealed can be signed")
        layout = self._reopen(self._layout)
        envelope = sign_manifest(layout.subject, private_key, password)
        envelopes = {msgspec.json.encode(e, order="sorted") for e in layout.signatures} | {envelope}
        self._adopt(write_bundle(self.path, _content(layout), tuple(sorted(envelopes))))
        return self

    def close(self) -> None:
        """Free the session that `predict` opened; the next `predict` opens another."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Bundle({self.name!r}, {self.digest[:19]}, {'tested' if self.tested else 'not tested'})"

    def _reopen(self, layout: Layout) -> Layout:
        """Check the file again; it may have been signed since, but not replaced by another bundle."""
        again = read_layout(layout.path)
        if again.subject.digest != layout.subject.digest:
            raise CorruptArtifact(f"'{self.path}' has been replaced since it was opened; open it again")
        self._adopt(again)
        return again

    def _adopt(self, layout: Layout) -> None:
        """Follow the content to where it lies now: signatures move it within the file."""
        self._layout = layout
        self.model = msgspec.structs.replace(_model(layout), trusted=self.model.trusted, distrust=self.model.distrust)

    def _set_trusted(self) -> None:
        self.model = msgspec.structs.replace(self.model, trusted=True, distrust="")

    def _optional(self, media_type: str) -> bytes | None:
        layer = self._layout.layer(media_type) if self._layout else None
        return self._layout.read(layer) if self._layout and layer else None

    def _replay(self, threads: int) -> ReplayReport | None:
        golden = self.golden
        if not golden:
            return None
        with open_processed(self.model, SessionOptions(threads=threads)) as session:
            return replay(session, golden)

    def _replay_parity(self, threads: int, tolerance: float | None) -> ParityReplay | None:
        certificate = self.parity
        if certificate is None or not certificate.recorded:
            return None
        options = SessionOptions(threads=threads, optimize=certificate.optimize)
        with open_session(self.model, options) as session:
            return replay_parity(session, certificate, tolerance)

    def _verify_wrapped(self, public_key: Path | bytes | None) -> VerifyReport:
        if public_key is not None:
            raise PermissionDenied(f"'{self.path}' is a bare model file, which cannot carry a signature")
        for blob in self.model.blobs:
            if digest_file(blob.path) != blob.digest:
                raise CorruptArtifact(f"'{blob.path}' has changed since it was opened")
        return VerifyReport(
            path=str(self.path),
            name=self.name,
            digest=self.digest,
            files=len(self.model.blobs),
            size_bytes=self.model.size_bytes,
            signed_by=(),
            verified_key="",
            replay=None,
            parity=None,
            assurance="A bare model file: nothing stored says what its bytes or its answers should be.",
        )


def write_bundle(path: Path, content: Mapping[str, bytes | Blob], envelopes: tuple[bytes, ...]) -> Layout:
    """Write content and signatures, read everything back, and only then put the file in its place.

    Args:
        content: digest -> content, the manifest of the model first.
        envelopes: DSSE envelopes for that manifest.
    """
    manifest = next(iter(content.values()))
    if isinstance(manifest, Blob):
        manifest = manifest.read()
    subject = m.Descriptor(
        media_type=m.IMAGE_MANIFEST,
        digest=digest_bytes(manifest),
        size=len(manifest),
        artifact_type=m.MODEL_MANIFEST,
    )
    signatures = tuple(m.signature_manifest_bytes(subject, envelope) for envelope in envelopes)
    beside = (*signatures, *envelopes, m.EMPTY_BYTES) if envelopes else ()
    blobs = {**content, **{digest_bytes(data): data for data in beside}}
    members: list[tuple[str, bytes | Blob]] = [
        (m.LAYOUT_NAME, m.LAYOUT_BYTES),
        (m.INDEX_NAME, m.index_bytes(manifest, signatures)),
        *sorted(((m.blob_name(digest), data) for digest, data in blobs.items()), key=lambda pair: pair[0]),
    ]
    partial = write_archive(path, members)
    checked = False
    try:
        layout = read_layout(partial)
        checked = True
    finally:
        if not checked:
            partial.unlink(missing_ok=True)
    publish(partial, path)
    return msgspec.structs.replace(layout, path=path)


def _content(layout: Layout) -> dict[str, bytes | Blob]:
    """Digest -> content of all that is not a signature, the manifest first."""
    descriptors = (layout.subject, layout.manifest.config, *layout.manifest.layers)
    return {d.digest: layout.blob(d) for d in descriptors}


def _model(layout: Layout) -> Model:
    what = f"'{layout.path}': "
    lineage = _decode(_read(layout, m.LINEAGE), Lineage, what + "the lineage")
    return Model(
        format=layout.config.config.format,
        signature=_decode(_read(layout, m.SIGNATURE), Signature, what + "the signature of inputs and outputs"),
        blobs=tuple(layout.blob(layer) for layer in layout.manifest.layers if layer.media_type == m.WEIGHTS),
        lineage=lineage.steps,
        notes=lineage.notes,
        processing=_processing(layout),
    )


def _processing(layout: Layout) -> Processing | None:
    layer = layout.layer(m.PROCESSING)
    if layer is None:
        return None
    steps: Steps = _decode(layout.read(layer), Steps, f"'{layout.path}': the processing steps")
    blobs = (layout.blob(other) for other in layout.manifest.layers if other.media_type == m.PROCESSING_FILE)
    files = (msgspec.structs.replace(blob, name=blob.name.removeprefix(m.PROCESSING_FOLDER)) for blob in blobs)
    return Processing(
        before=steps.before, after=steps.after, outputs=steps.outputs, files=tuple(files), signature=steps.signature
    )


def _read(layout: Layout, media_type: str) -> bytes:
    layer = layout.layer(media_type)
    if layer is None:
        raise CorruptArtifact(f"'{layout.path}': there is no layer of type '{media_type}'")
    return layout.read(layer)


def _decode(data: bytes, type: Any, what: str, *, strict: bool = True) -> Any:
    try:
        return msgspec.json.decode(data, type=type, strict=strict)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptArtifact(f"{what} cannot be read: {error}") from None


def _assurance(verified_key: str, signed: bool) -> str:
    if verified_key:
        return f"The bundle is what the holder of key {verified_key} signed."
    if signed:
        return (
            "No key was given: this shows that the file is undamaged, not who sealed it. Verify with the signer's key."
        )
    return "Not signed: this shows that the file is undamaged, not who sealed it. Sign it to detect tampering."
