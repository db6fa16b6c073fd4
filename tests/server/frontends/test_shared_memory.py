"""Regions of shared memory: who may, which objects, and files that change under the server."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.core.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    SalverError,
    TooLarge,
)
from salver.server.frontends import shared_memory as module
from salver.server.frontends.access import Peer
from salver.server.frontends.shared_memory import FOLDER, MAX_REGIONS, Region, SharedMemory
from salver.server.settings import ServeSettings

ME = Peer(uid=os.geteuid())
SIZE = 4096


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "shm"
    path.mkdir()
    return path


@pytest.fixture
def hits() -> list[str]:
    return []


@pytest.fixture
def memory(folder: Path, hits: list[str]) -> Iterator[SharedMemory]:
    memory = SharedMemory("/t-", 1 << 20, hits.append, folder)
    yield memory
    memory.close()


@pytest.fixture
def file(folder: Path) -> Path:
    path = folder / "t-a"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


@pytest.fixture
def region(memory: SharedMemory, file: Path) -> SharedMemory:
    """Region ``a``: bytes 256 to 1280 of the file."""
    memory.register("a", "/t-a", 256, 1024, ME)
    return memory


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestReadAndWrite:
    def test_bytes_come_out_as_they_lie(self, region, file):
        data = file.read_bytes()
        assert region.read("a", 0, 1024, ME) == data[256:1280]
        assert region.read("a", 10, 5, ME) == data[266:271]
        assert region.read("a", 1024, 0, ME) == b""

    def test_bytes_go_in_where_they_belong(self, region, file):
        before = file.read_bytes()
        region.write("a", 1000, b"x" * 24, ME)
        region.write("a", 0, memoryview(np.arange(3, dtype="<f4")).cast("B"), ME)
        region.write("a", 20, np.arange(2, dtype="<i8").data, ME)
        after = bytearray(before)
        after[1256:1280] = b"x" * 24
        after[256:268] = np.arange(3, dtype="<f4").tobytes()
        after[276:292] = np.arange(2, dtype="<i8").tobytes()
        assert file.read_bytes() == after

    @given(offset=st.integers(-(1 << 70), 1 << 70), size=st.integers(-(1 << 70), 1 << 70))
    def test_nothing_outside_the_region_is_reached(self, tmp_path_factory, offset, size):
        folder = tmp_path_factory.getbasetemp()
        (folder / "t-b").write_bytes(b"o" * 8 + b"i" * 16 + b"o" * 8)
        memory = SharedMemory("/t-", folder=folder)
        memory.register("b", "t-b", 8, 16, ME)
        try:
            assert memory.read("b", offset, size, ME) == b"i" * size
        except InvalidArgument:
            assert offset < 0 or size < 0 or offset + size > 16
        finally:
            memory.close()

    def test_a_write_that_does_not_fit_is_refused_whole(self, region, file):
        before = file.read_bytes()
        for offset, size in ((1020, 5), (0, 1025), (-1, 1), (1 << 40, 1)):
            with pytest.raises(InvalidArgument, match="not all within it"):
                region.write("a", offset, b"x" * size, ME)
        assert file.read_bytes() == before

    def test_a_read_is_bounded(self, memory, file, hits):
        os.truncate(file, 2 << 20)
        memory.register("big", "/t-a", 0, 2 << 20, ME)
        with pytest.raises(TooLarge, match="max_body_bytes") as caught:
            memory.read("big", 0, (1 << 20) + 1, ME)
        assert caught.value.limit == "max_body_bytes"
        assert len(memory.read("big", 0, 1 << 20, ME)) == 1 << 20

    def test_an_unknown_region(self, memory):
        for call in (lambda: memory.read("b", 0, 1, ME), lambda: memory.write("b", 0, b"x", ME)):
            with pytest.raises(NotFound, match="'b'"):
                call()


class TestFilesThatChange:
    def test_a_file_that_shrank_is_an_error_and_not_a_crash(self, region, file):
        os.truncate(file, 300)
        assert region.read("a", 0, 44, ME) == file.read_bytes()[256:]
        with pytest.raises(InvalidArgument, match="reaches to byte 1280 of its object, which has 300 now"):
            region.read("a", 0, 1024, ME)

    def test_a_write_never_makes_a_file_grow(self, region, file):
        os.truncate(file, 300)
        with pytest.raises(InvalidArgument, match="has 300 now"):
            region.write("a", 0, b"x" * 100, ME)
        assert file.stat().st_size == 300

    def test_a_file_that_shrinks_and_grows_all_the_time(self, region, file):
        """The server's own process reads while the file changes: every read is whole, or refused."""
        stop = threading.Event()

        def change() -> None:
            while not stop.is_set():
                os.truncate(file, 0)
                os.truncate(file, SIZE)

        thread = threading.Thread(target=change)
        thread.start()
        refused = 0
        try:
            for _ in range(2000):
                try:
                    assert len(region.read("a", 0, 1024, ME)) == 1024
                except InvalidArgument:
                    refused += 1
        finally:
            stop.set()
            thread.join()
        assert refused < 2000

    def test_a_file_that_is_gone_is_still_the_region(self, region, file):
        data = file.read_bytes()[256:1280]
        file.unlink()
        file.write_bytes(b"another")
        assert region.read("a", 0, 1024, ME) == data


class TestRegister:
    @pytest.mark.parametrize("key", ["/t-a", "t-a"])
    def test_status_tells_what_was_registered(self, memory, file, key):
        memory.register("a", key, 0, SIZE, ME)
        memory.register("b", key, 8, 16, ME)
        assert memory.status("a", ME) == [Region("a", key, 0, SIZE)]
        assert memory.status(None, ME) == memory.status("", ME) == [Region("a", key, 0, SIZE), Region("b", key, 8, 16)]

    def test_a_name_is_taken_until_it_is_unregistered(self, region):
        with pytest.raises(AlreadyExists, match="'a'"):
            region.register("a", "/t-a", 0, 1, ME)
        region.unregister("a", ME)
        region.register("a", "/t-a", 0, 1, ME)
        assert region.status("a", ME) == [Region("a", "/t-a", 0, 1)]

    def test_unregistering_is_not_particular(self, region):
        region.unregister("b", ME)
        region.unregister(None, ME)
        region.unregister(None, ME)
        assert region.status(None, ME) == []
        with pytest.raises(NotFound, match="'a'"):
            region.status("a", ME)

    @pytest.mark.parametrize(
        ("offset", "size"), [(0, SIZE + 1), (SIZE, 1), (-1, 1), (0, 0), (0, -1), (1 << 63, 1), (1, 1 << 64)]
    )
    def test_a_part_that_is_none(self, memory, file, offset, size):
        with pytest.raises(InvalidArgument):
            memory.register("a", "/t-a", offset, size, ME)
        assert memory.status(None, ME) == []

    @pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128])
    def test_a_name_that_is_none(self, memory, file, name):
        with pytest.raises(InvalidArgument, match="1 to 255 bytes"):
            memory.register(name, "/t-a", 0, 1, ME)

    def test_an_object_that_is_not_there(self, memory):
        with pytest.raises(NotFound, match="'/t-b'"):
            memory.register("a", "/t-b", 0, 1, ME)

    def test_regions_are_bounded_and_counted(self, memory, file, hits):
        for i in range(MAX_REGIONS):
            memory.register(str(i), "/t-a", 0, 1, ME)
        with pytest.raises(FailedPrecondition, match=f"{MAX_REGIONS} shared memory regions"):
            memory.register("more", "/t-a", 0, 1, ME)
        assert hits == ["shared_memory_regions"]
        memory.unregister("7", ME)
        memory.register("more", "/t-a", 0, 1, ME)

    def test_files_are_closed(self, memory, file):
        before = open_files()
        for name, offset in (("a", 0), ("b", 1), ("c", 2)):
            memory.register(name, "/t-a", offset, 1, ME)
        for _ in range(5):
            with pytest.raises(SalverError):
                memory.register("d", "/t-a", SIZE, 1, ME)
            with pytest.raises(SalverError):
                memory.register("a", "/t-a", 0, 1, ME)
        assert open_files() == before + 3
        memory.unregister("a", ME)
        assert open_files() == before + 2
        memory.close()
        assert open_files() == before


class TestWhoMay:
    CALLS: tuple[Callable[[SharedMemory, Peer], object], ...] = (
        lambda memory, peer: memory.register("b", "/t-a", 0, 1, peer),
        lambda memory, peer: memory.unregister("a", peer),
        lambda memory, peer: memory.unregister(None, peer),
        lambda memory, peer: memory.status("a", peer),
        lambda memory, peer: memory.status(None, peer),
        lambda memory, peer: memory.read("a", 0, 1, peer),
        lambda memory, peer: memory.write("a", 0, b"x", peer),
    )

    @pytest.mark.parametrize("call", CALLS)
    def test_off_is_off(self, call):
        with pytest.raises(FailedPrecondition, match="--shared-memory"):
            call(SharedMemory(""), ME)

    @pytest.mark.parametrize("call", CALLS)
    @pytest.mark.parametrize(
        ("peer", "text"),
        [
            (Peer(address="127.0.0.1:5"), "Unix socket"),
            (Peer(names=("ana",), is_tls=True), "Unix socket"),
            (Peer(uid=os.geteuid() + 1), f"not as uid {os.geteuid() + 1}"),
        ],
    )
    def test_strangers_may_nothing(self, region, file, call, peer, text):
        before = file.read_bytes()
        with pytest.raises(PermissionDenied, match=text):
            call(region, peer)
        assert region.status(None, ME) == [Region("a", "/t-a", 256, 1024)]
        assert file.read_bytes() == before

    def test_off_by_default(self):
        assert ServeSettings().shared_memory == ""

    @pytest.mark.parametrize("prefix", ["/a/b", "a/", "//a", "/a/../b"])
    def test_a_prefix_is_the_beginning_of_a_name(self, prefix):
        with pytest.raises(InvalidArgument, match="shared_memory"):
            ServeSettings(shared_memory=prefix)


class TestWhichObjects:
    @pytest.mark.parametrize(
        "key",
        [
            "",
            "/",
            "/other",
            "/t",
            "t",
            "/t-a/../x",
            "/../t-a",
            "/t-/../../etc/passwd",
            "//t-a",
            "/t-a/",
            "/etc/passwd",
            "..",
            "/..",
        ],
    )
    def test_keys_outside_the_prefix(self, memory, file, key):
        with pytest.raises(PermissionDenied, match="does not begin with '/t-'"):
            memory.register("a", key, 0, 1, ME)

    @pytest.mark.parametrize("key", ["/t-\0", "/t-a\0b", "/t-" + "x" * 300])
    def test_keys_that_are_no_names(self, memory, key):
        with pytest.raises(InvalidArgument, match="255 bytes"):
            memory.register("a", key, 0, 1, ME)

    @pytest.mark.parametrize("key", ["..", ".", "/..", "/."])
    def test_no_folder_even_where_every_name_may(self, folder, key):
        with pytest.raises(PermissionDenied):
            SharedMemory("/", folder=folder).register("a", key, 0, 1, ME)

    def test_lone_surrogates_do_no_harm(self, memory):
        for key in ("/t-\udcff", "/t-\ud800"):
            with pytest.raises(NotFound):
                memory.register("a\ud800", key, 0, 1, ME)
        with pytest.raises(NotFound):
            memory.status("a\ud800", ME)

    def test_a_symbolic_link_is_not_followed(self, memory, folder, tmp_path):
        (tmp_path / "secret").write_bytes(b"secret")
        (folder / "t-link").symlink_to(tmp_path / "secret")
        with pytest.raises(PermissionDenied, match="cannot be opened"):
            memory.register("a", "/t-link", 0, 6, ME)

    def test_only_regular_files(self, memory, folder):
        (folder / "t-folder").mkdir()
        os.mkfifo(folder / "t-pipe")
        before = open_files()
        for key in ("/t-folder", "/t-pipe"):
            with pytest.raises(PermissionDenied):
                memory.register("a", key, 0, 1, ME)
        assert open_files() == before

    @pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
    def test_somebody_elses_object(self, memory, file):
        os.chown(file, 65534, 65534)
        with pytest.raises(PermissionDenied, match="server's own user"):
            memory.register("a", "/t-a", 0, 1, ME)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything; run the tests as another user")
    def test_an_object_that_may_not_be_written(self, memory, file):
        file.chmod(0o400)
        with pytest.raises(PermissionDenied, match="cannot be opened"):
            memory.register("a", "/t-a", 0, 1, ME)


def test_more_than_one_read_call_is_put_together(region, file, monkeypatch):
    """Linux gives at most 2 GiB at a time; here it gives 100 bytes."""
    data = file.read_bytes()
    real = os.pread
    monkeypatch.setattr(module.os, "pread", lambda fd, count, at: real(fd, min(count, 100), at))
    assert region.read("a", 0, 1024, ME) == data[256:1280]


def test_a_file_that_shrinks_between_two_read_calls(region, file, monkeypatch):
    real = os.pread

    def shrink_after(fd: int, count: int, at: int) -> bytes:
        piece = real(fd, min(count, 100), at)
        os.truncate(file, 400)
        return piece

    monkeypatch.setattr(module.os, "pread", shrink_after)
    with pytest.raises(InvalidArgument, match="reaches to byte 1280"):
        region.read("a", 0, 1024, ME)


def test_objects_that_a_client_process_makes_are_found():
    """With the standard library's shared memory, in a process of its own, in the real place."""
    script = (
        "import sys\nfrom multiprocessing import resource_tracker, shared_memory\n"
        "block = shared_memory.SharedMemory(create=True, size=64)\nblock.buf[:5] = b'hello'\n"
        "print(block.name, flush=True)\nsys.stdin.readline()\nprint(bytes(block.buf[8:13]).decode(), flush=True)\n"
        "block.close()\nblock.unlink()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        key = client.stdout.readline().strip()
        memory = SharedMemory("/psm_")
        memory.register("block", key, 0, 64, ME)
        assert memory.read("block", 0, 5, ME) == b"hello"
        memory.write("block", 8, b"world", ME)
        client.stdin.write("\n")
        client.stdin.flush()
        assert client.stdout.readline().strip() == "world"
        memory.close()
    assert not (FOLDER / key).exists()
