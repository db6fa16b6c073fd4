"""What a bundle's JSON says, and the only bytes in which it may be said.

OCI image layout, index and manifest (https://github.com/opencontainers/image-spec), ModelPack config and layers
(https://github.com/modelpack/model-spec).
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec

from salver.core.config import canonical_json
from salver.core.errors import CorruptArtifact
from salver.core.model import digest_bytes

FORMAT: Final = 1
"""The version of the bundle format that this release writes, and the newest it reads."""

MODEL_MANIFEST: Final = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"
WEIGHTS: Final = "application/vnd.cncf.model.weight.v1.raw"
DOCUMENT: Final = "application/vnd.cncf.model.doc.v1.raw"
SIGNATURE: Final = "application/vnd.salver.signature.v1+json"
LINEAGE: Final = "application/vnd.salver.lineage.v1+json"
EVALUATION: Final = "application/vnd.salver.evaluation.v1+json"
PARITY: Final = "application/vnd.salver.parity.v1+json"
PARITY_TENSORS: Final = "application/vnd.salver.parity.tensors.v1.raw"
PROCESSING: Final = "application/vnd.salver.processing.v1+json"
PROCESSING_FILE: Final = "application/vnd.salver.processing.file.v1.raw"
GOLDEN: Final = "application/vnd.salver.golden.v1+json"
GOLDEN_TENSORS: Final = "application/vnd.salver.golden.tensors.v1.raw"
ENVELOPE: Final = "application/vnd.dsse.envelope.v1+json"

IMAGE_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX: Final = "application/vnd.oci.image.index.v1+json"
DESCRIPTOR: Final = "application/vnd.oci.descriptor.v1+json"
EMPTY: Final = "application/vnd.oci.empty.v1+json"

FILEPATH: Final = "org.cncf.model.filepath"
FORMAT_KEY: Final = "io.salver.bundle.format"
REF_NAME: Final = "org.opencontainers.image.ref.name"

FILES: Final = {
    SIGNATURE: "salver/signature.json",
    LINEAGE: "salver/lineage.json",
    EVALUATION: "salver/evaluation.json",
    PARITY: "salver/parity.json",
    PARITY_TENSORS: "salver/parity.tensors",
    PROCESSING: "salver/processing.json",
    GOLDEN: "salver/golden.json",
    GOLDEN_TENSORS: "salver/golden.tensors",
}
"""Media type -> the path under which tools that unpack ModelPack layers put it."""
PROCESSING_FOLDER: Final = "salver/processing/"
"""What steps read lies below this, under the name by which they find it."""
CARD_FILE: Final = "README.md"
LICENCE_FILE: Final = "LICENSE"

LAYOUT_NAME: Final = "oci-layout"
INDEX_NAME: Final = "index.json"
LAYOUT_BYTES: Final = canonical_json({"imageLayoutVersion": "1.0.0"})
EMPTY_BYTES: Final = b"{}"

MAX_JSON_BYTES: Final = 64 << 20
MAX_TENSORS_BYTES: Final = 256 << 20


def max_bytes(media_type: str) -> int:
    """The most that a reader takes of a layer that is no model file."""
    return MAX_TENSORS_BYTES if media_type in (GOLDEN_TENSORS, PARITY_TENSORS) else MAX_JSON_BYTES


Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
"""A digest in JSON that is read; decoding refuses anything else, so that no name can be made of it."""


class Descriptor(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, rename="camel"
):
    """OCI content descriptor: which bytes, and what they are."""

    media_type: str
    digest: Digest
    size: int
    annotations: dict[str, str] = {}
    artifact_type: str = ""

    @property
    def member(self) -> str:
        """Name of the archive member that holds the content."""
        return blob_name(self.digest)

    @property
    def file(self) -> str:
        """The path the layer stands for."""
        return self.annotations.get(FILEPATH, "")


class Manifest(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, rename="camel"
):
    """OCI image manifest: of the model, or of a signature, which has a ``subject``."""

    schema_version: int
    media_type: str
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | None = None
    annotations: dict[str, str] = {}


class Index(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """OCI image index: the model's manifest first, then those of the signatures by digest."""

    schema_version: int
    media_type: str
    manifests: tuple[Descriptor, ...]


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``descriptor`` object of a ModelPack config."""

    name: str


class Technical(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``config`` object of a ModelPack config."""

    format: str


class ModelFs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"diff_ids": "diffIds"}):
    """The ``modelfs`` object of a ModelPack config."""

    type: str
    diff_ids: tuple[str, ...]


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ModelPack config. Its schema allows no other fields: the format version is among the manifest's annotations."""

    descriptor: ModelInfo
    config: Technical
    modelfs: ModelFs


def blob_name(digest: str) -> str:
    """Archive member of a digest."""
    return f"blobs/sha256/{digest[7:]}"


def describe(media_type: str, content: bytes, file: str = "") -> Descriptor:
    """Descriptor of bytes; ``file`` is the path the layer stands for."""
    annotations = {FILEPATH: file} if file else {}
    return Descriptor(media_type=media_type, digest=digest_bytes(content), size=len(content), annotations=annotations)


def config_bytes(name: str, format: str, layers: tuple[Descriptor, ...]) -> bytes:
    """The ModelPack config of a model."""
    return canonical_json(
        ModelConfig(
            descriptor=ModelInfo(name=name),
            config=Technical(format=format),
            modelfs=ModelFs(type="layers", diff_ids=tuple(layer.digest for layer in layers)),
        )
    )


def manifest_bytes(config: Descriptor, layers: tuple[Descriptor, ...]) -> bytes:
    """The manifest of a model; its digest is the bundle's identity."""
    return canonical_json(
        Manifest(
            schema_version=2,
            media_type=IMAGE_MANIFEST,
            artifact_type=MODEL_MANIFEST,
            config=config,
            layers=layers,
            annotations={FORMAT_KEY: str(FORMAT)},
        )
    )


def signature_manifest_bytes(subject: Descriptor, envelope: bytes) -> bytes:
    """The manifest of a signature, an OCI referrer of the model's manifest."""
    return canonical_json(
        Manifest(
            schema_version=2,
            media_type=IMAGE_MANIFEST,
            artifact_type=ENVELOPE,
            config=describe(EMPTY, EMPTY_BYTES),
            layers=(describe(ENVELOPE, envelope),),
            subject=subject,
        )
    )


def index_bytes(manifest: bytes, signatures: tuple[bytes, ...]) -> bytes:
    """The index of a model's manifest and the manifests of its signatures."""
    main = Descriptor(
        media_type=IMAGE_MANIFEST,
        digest=digest_bytes(manifest),
        size=len(manifest),
        artifact_type=MODEL_MANIFEST,
        annotations={REF_NAME: "latest"},
    )
    others = sorted(
        (
            Descriptor(media_type=IMAGE_MANIFEST, digest=digest_bytes(s), size=len(s), artifact_type=ENVELOPE)
            for s in signatures
        ),
        key=lambda d: d.digest,
    )
    return canonical_json(Index(schema_version=2, media_type=IMAGE_INDEX, manifests=(main, *others)))


def check_file_name(name: str) -> str | None:
    """Why a model file may not have this name, or None. Runtimes find external data by it, so it must stay inside."""
    if not name or len(name.encode()) > 255 or "\\" in name or any(ord(c) < 32 for c in name):
        return "it must be 1 to 255 bytes long, without backslashes and control characters"
    if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
        return "it must be relative and stay inside the model's folder"
    if name == "salver" or name.startswith("salver/") or name in (CARD_FILE, LICENCE_FILE):
        return f"'salver/', '{CARD_FILE}' and '{LICENCE_FILE}' are taken"
    return None


S = TypeVar("S", bound=msgspec.Struct)


def decode_exact(data: bytes, type: type[S], what: str) -> S:
    """Decode JSON that must be, byte for byte, what Salver writes for the value it holds.

    Raises:
        CorruptArtifact: it is not.
    """
    try:
        value = msgspec.json.decode(data, type=type)
    except msgspec.DecodeError as error:  # ValidationError is one
        raise CorruptArtifact(f"{what} is damaged: {error}") from None
    except UnicodeDecodeError:
        raise CorruptArtifact(f"{what} is damaged: it is not UTF-8") from None
    if canonical_json(value) != data:
        raise CorruptArtifact(f"{what} is damaged: it is not written as Salver writes it")
    return value
