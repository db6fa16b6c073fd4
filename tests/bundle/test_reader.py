from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from salver.bundle import Bundle, Contents, archive, seal
from salver.bundle import manifest as m
from salver.bundle.bundle import write_bundle
from salver.bundle.reader import read_layout
from salver.core.config import canonical_json
from salver.core.errors import CorruptArtifact, NotFound, Unimplemented
from salver.core.model import Blob, digest_bytes
from salver.testing.bundles import tiny_contents


@pytest.fixture(scope="module")
def signed(contents: Contents, keys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("signed") / "tiny.salver"
    return seal(path, contents).sign(keys[0]).path.read_bytes()


def refused(path: Path, data: bytes, match: str | None = None) -> None:
    path.write_bytes(data)
    with pytest.raises(CorruptArtifact, match=match):
        read_layout(path)


@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_every_single_byte_change_is_refused(mask: int, signed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "changed.salver"
    path.write_bytes(signed)
    read_layout(path)
    accepted = []
    with path.open("r+b", buffering=0) as file:
        for offset, byte in enumerate(signed):
            file.seek(offset)
            file.write(bytes([byte ^ mask]))
            try:
                read_layout(path)
                accepted.append(offset)
            except CorruptArtifact as error:
                assert str(path) in error.message
            file.seek(offset)
            file.write(bytes([byte]))
    assert accepted == []
    read_layout(path)


def test_a_sample_of_changes_to_a_large_bundle_is_refused(tmp_path: Path) -> None:
    wanted = tiny_contents(tmp_path)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(np.random.default_rng(0).bytes(1_000_003))
    model = msgspec.structs.replace(wanted.model, blobs=(*wanted.model.blobs, Blob.of(weights)))
    path = seal(tmp_path / "large.salver", msgspec.structs.replace(wanted, model=model)).path
    data = path.read_bytes()
    chance = random.Random(1)
    with path.open("r+b", buffering=0) as file:
        for offset in chance.sample(range(len(data)), 600):
            file.seek(offset)
            file.write(bytes([data[offset] ^ chance.randint(1, 255)]))
            with pytest.raises(CorruptArtifact):
                read_layout(path)
            file.seek(offset)
            file.write(data[offset : offset + 1])
    assert path.read_bytes() == data


def test_truncation_is_refused_at_every_block(signed: bytes, tmp_path: Path) -> None:
    for length in (*range(0, len(signed), 512), len(signed) - 1):
        refused(tmp_path / "short.salver", signed[:length], "truncated|damaged")


@pytest.mark.parametrize("extra", [b"\0", bytes(512), bytes(8192), b"garbage"])
def test_bytes_after_the_end_are_refused(extra: bytes, signed: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "long.salver", signed + extra, "after the end of the archive")


def test_bytes_inserted_or_removed_anywhere_are_refused(signed: bytes, tmp_path: Path) -> None:
    for offset in range(0, len(signed), 97):
        refused(tmp_path / "in.salver", signed[:offset] + b"\0" + signed[offset:])
        refused(tmp_path / "out.salver", signed[:offset] + signed[offset + 1 :])


@pytest.mark.parametrize(
    ("find", "part"),
    [
        (lambda b: b.model.blobs[0], "the model file 'tiny.onnx' is damaged"),
        (lambda b: b._layout.blob(b._layout.layer(m.GOLDEN_TENSORS)), "the golden requests' tensors is damaged"),
        (lambda b: b._layout.blob(b._layout.layer(m.EVALUATION)), "the evaluation is damaged"),
        (lambda b: b._layout.blob(b._layout.layer(m.LINEAGE)), "the lineage is damaged"),
        (lambda b: b._layout.blob(b._layout.subject), "the manifest is damaged"),
    ],
)
def test_the_damaged_part_is_named(find: Callable[[Bundle], Blob], part: str, bundle: Bundle) -> None:
    blob = find(bundle)
    data = bytearray(bundle.path.read_bytes())
    data[blob.offset + blob.size_bytes // 2] ^= 1
    refused(bundle.path, bytes(data), part)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "empty", b"", "truncated")
    refused(tmp_path / "zeros", bytes(1024), "index.json is missing")
    refused(tmp_path / "model.onnx", b"\x08\x09" * 600, "is not a Salver bundle")
    with pytest.raises(NotFound, match="no such bundle"):
        Bundle.open(tmp_path / "missing.salver")


def special(name: str, type: bytes) -> bytes:
    """Our header of an empty member, but of another type, with a right checksum."""
    block = bytearray(archive.header(name, 0))
    block[156:157] = type
    block[157:168] = b"/etc/passwd"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def ours(members: list[tuple[str, bytes]]) -> bytes:
    """Members as Salver writes them."""
    body = b"".join(archive.header(n, len(c)) + c + bytes(-len(c) % 512) for n, c in members)
    return body + bytes(1024)


def members_of(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar.getmembers()]


def test_another_writers_tar_is_refused(signed: bytes, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members_of(signed):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    refused(tmp_path / "x", out.getvalue(), "header of 'oci-layout' is damaged, or not written by Salver")


@pytest.mark.parametrize("type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_links_and_special_files_are_refused(type: bytes, signed: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "x", signed[:-1024] + special("blobs/link", type) + bytes(1024), "plain files only")


@pytest.mark.parametrize("name", ["/etc/passwd", "../escape", "blobs/../../escape"])
def test_names_that_point_outside_are_refused(name: str, signed: bytes, tmp_path: Path) -> None:
    refused(tmp_path / "x", ours([*members_of(signed), (name, b"x")]), "points outside")


def test_members_nobody_refers_to_are_refused(signed: bytes, tmp_path: Path) -> None:
    members = members_of(signed)
    refused(tmp_path / "x", ours([*members, ("notes.txt", b"x")]), "'notes.txt' .* nothing refers to it")
    stray = (m.blob_name(digest_bytes(b"x")), b"x")
    refused(tmp_path / "x", ours([*members, stray]), "nothing refers to it")
    refused(tmp_path / "x", ours([*members, members[-1]]), "twice")


def test_missing_and_reordered_members_are_refused(signed: bytes, tmp_path: Path) -> None:
    members = members_of(signed)
    for missing in range(len(members)):
        refused(tmp_path / "x", ours(members[:missing] + members[missing + 1 :]), "missing")
    refused(tmp_path / "x", ours([*members[:2], *reversed(members[2:])]), "not in order")
    refused(tmp_path / "x", ours([members[1], members[0], *members[2:]]), "not in order")


def test_an_index_written_another_way_is_refused(signed: bytes, tmp_path: Path) -> None:
    members = members_of(signed)
    index = msgspec.json.decode(members[1][1])
    for changed in (
        msgspec.json.format(members[1][1]),
        canonical_json({**index, "annotations": {"a": "b"}}),
        canonical_json({**index, "manifests": index["manifests"][:1]}),
        canonical_json({**index, "manifests": [{**index["manifests"][0], "size": 1}, *index["manifests"][1:]]}),
        canonical_json({"manifests": []}),
        b"{}",
        b"[]",
        b"\xff",
    ):
        refused(tmp_path / "x", ours([members[0], (members[1][0], changed), *members[2:]]))


def test_json_that_says_it_is_huge_is_not_read(contents: Contents, tmp_path: Path) -> None:
    path = tmp_path / "huge.salver"
    size = m.MAX_JSON_BYTES + 1
    with path.open("wb") as file:
        file.write(archive.header(m.LAYOUT_NAME, len(m.LAYOUT_BYTES)) + m.LAYOUT_BYTES.ljust(512, b"\0"))
        file.write(archive.header(m.INDEX_NAME, size))
        file.seek(size + (-size % 512) + 1024 - 1, 1)
        file.write(b"\0")
    with pytest.raises(CorruptArtifact, match=r"index.json is 67108865 bytes; at most 67108864 are read"):
        Bundle.open(path)


def resealed(bundle: Bundle, change: Callable[[dict[str, object]], None], path: Path) -> Path:
    """A bundle whose manifest says something else, with all digests right."""
    layout = bundle._layout
    manifest = msgspec.json.decode(layout.blob(layout.subject).read())
    change(manifest)
    layers = [layout.blob(layer) for layer in layout.manifest.layers]
    contents = [canonical_json(manifest), layout.blob(layout.manifest.config).read(), *(b.read() for b in layers)]
    signatureless = {digest_bytes(c): c for c in contents}
    first = next(iter(signatureless.values()))
    members = [
        (m.LAYOUT_NAME, m.LAYOUT_BYTES),
        (m.INDEX_NAME, m.index_bytes(first, ())),
        *sorted((m.blob_name(d), c) for d, c in signatureless.items()),
    ]
    path.write_bytes(ours(members))
    return path


def test_a_newer_format_is_refused_clearly(bundle: Bundle, tmp_path: Path) -> None:
    def newer(manifest: dict[str, object]) -> None:
        manifest["annotations"] = {m.FORMAT_KEY: "2"}
        manifest["something"] = "new"

    path = resealed(bundle, newer, tmp_path / "newer.salver")
    with pytest.raises(Unimplemented, match=r"newer Salver: format 2, this one reads 1; pip install -U salver"):
        Bundle.open(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.pop("annotations"), "did not make"),
        (lambda d: d.update(annotations={m.FORMAT_KEY: "one"}), "did not make"),
        (lambda d: d.update(extra=1), "manifest is damaged"),
        (lambda d: d.update(artifactType="other"), "not that of a model"),
        (lambda d: d["layers"][0].update(mediaType="application/x"), "unknown type"),
        (lambda d: d["layers"][0]["annotations"].update({m.FILEPATH: "../../escape"}), "stay inside"),
        (lambda d: d["layers"][0]["annotations"].update({m.FILEPATH: "salver/golden.json"}), "taken"),
        (lambda d: d["layers"].append(d["layers"][0]), "two layers stand for"),
        (lambda d: d["layers"].pop(0), "lacks a layer"),
        (lambda d: d["layers"].pop(1), "0 layers of type"),
        (lambda d: d["layers"][0].update(size=1), "descriptor says 1"),
        (lambda d: d["layers"].reverse(), "config does not belong"),
        (lambda d: d["layers"][-1].update(size=1 << 40), "at most"),
        (lambda d: d["layers"][0].update(digest="sha256:../../x"), "matching regex"),
    ],
)
def test_a_manifest_with_right_digests_but_wrong_content(
    change: Callable[[dict[str, object]], None], match: str, bundle: Bundle, tmp_path: Path
) -> None:
    path = resealed(bundle, change, tmp_path / "forged.salver")
    with pytest.raises(CorruptArtifact, match=match):
        Bundle.open(path)


def test_a_file_replaced_after_it_was_opened_is_noticed(bundle: Bundle, contents: Contents) -> None:
    opened = Bundle.open(bundle.path)
    seal(bundle.path, msgspec.structs.replace(contents, card="another one", record=None))
    with pytest.raises(CorruptArtifact, match=r"has changed|truncated"):
        _ = opened.golden
    with pytest.raises(CorruptArtifact, match="has been replaced"):
        opened.verify()


def test_writing_reads_back_before_it_publishes(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifact):
        write_bundle(tmp_path / "x.salver", {digest_bytes(b"{}"): b"{}"}, ())
    assert list(tmp_path.iterdir()) == []
