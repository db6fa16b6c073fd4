"""What a process counts is read by another, also after it was killed."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.server.monitoring import memory as module
from salver.server.monitoring.memory import MappedMemory, MappedReader, Memory, make_file, pack, unpack

Adds = list[tuple[str, tuple[str, str], tuple[str, ...], float]]
NAMES = st.text(max_size=12)
ADDS = st.lists(
    st.tuples(
        st.sampled_from(["model", "failed", "last"]),
        st.tuples(NAMES, NAMES),
        st.one_of(st.just(()), st.tuples(NAMES)),
        st.floats(0, 1e6),
    ),
    max_size=40,
)
SIZES = {"model": 5, "failed": 1, "last": 1}

COUNTER = """
import os, sys
from salver.server.monitoring.memory import MappedMemory
cells = MappedMemory(int(sys.argv[1])).block("model", ("digits", "1"), (), 4)
while True:
    cells[2] += 1.0
    os.write(1, b".")
"""


def count(memory: Memory, adds: Adds) -> None:
    for kind, owner, detail, value in adds:
        cells = memory.block(kind, owner, detail, SIZES[kind])
        cells[-1] += value


@given(ADDS)
def test_another_process_s_view_is_what_was_counted(adds: Adds) -> None:
    fd = make_file()
    mapped, local, reader = MappedMemory(fd), Memory(), MappedReader(fd)
    os.close(fd)
    for part in (adds[: len(adds) // 2], adds[len(adds) // 2 :]):
        count(mapped, part)
        count(local, part)
        for owner in sorted({owner for _, owner, _, _ in part})[::3]:  # whose places are taken by others
            mapped.drop(owner)
            local.drop(owner)
        assert dict(reader.read()) == {key: list(cells) for key, cells in local}
        assert {key: list(cells) for key, cells in unpack(pack(mapped))} == {key: list(cells) for key, cells in local}


@given(ADDS, ADDS)
def test_what_was_counted_since_a_copy(before: Adds, after: Adds) -> None:
    memory = Memory()
    count(memory, before)
    copy = memory.copy()
    since = memory.since(copy)
    assert all(cells == [0.0] * len(cells) for key, cells in since if key.kind != "last")
    count(memory, after)
    again = copy.copy()
    again.add((key, cells) for key, cells in memory.since(copy))
    for key, cells in memory:
        assert again.block(key.kind, key.owner, key.detail, len(cells)) == pytest.approx(cells)


def test_of_the_latest_the_largest_counts() -> None:
    one, other = Memory(), Memory()
    one.block("last", ("m", "1"))[0] = 7.0
    other.block("last", ("m", "1"))[0] = 5.0
    one.add(other)
    assert one.block("last", ("m", "1")) == [7.0]


def test_a_killed_process_has_counted_all_that_it_said() -> None:
    fd = make_file()
    reader = MappedReader(fd)
    process = subprocess.Popen(
        [sys.executable, "-c", COUNTER, str(fd)], pass_fds=(fd,), stdout=subprocess.PIPE, bufsize=0
    )
    os.close(fd)
    assert process.stdout is not None
    heard = len(process.stdout.read(5000))
    process.send_signal(signal.SIGKILL)
    process.wait()
    heard += len(process.stdout.read())
    process.stdout.close()
    ((_, cells),) = reader.read()
    assert cells[2] - heard in (0, 1)
    assert heard >= 5000 or cells[2] > 0


def test_a_full_memory_counts_on_unseen(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "MAP_BYTES", 4096)
    fd = make_file()
    mapped, reader = MappedMemory(fd), MappedReader(fd)
    os.close(fd)
    with caplog.at_level(logging.ERROR):
        for number in range(20):
            mapped.block("model", ("m", str(number)), (), 50)[7] += 1.0
    assert [mapped.block("model", ("m", str(number)), (), 50)[7] for number in range(20)] == [1.0] * 20
    assert len(list(reader.read())) == 8
    assert len(caplog.records) == 1
    assert "no room for counters" in caplog.text


def test_places_of_what_was_dropped_are_used_again() -> None:
    fd = make_file()
    mapped, reader = MappedMemory(fd), MappedReader(fd)
    os.close(fd)
    mapped.block("model", ("stays", "1"), (), 100)[99] += 5.0
    for version in range(100_000):  # would take more than there is
        mapped.block("model", ("m", str(version)), (), 100)[0] += 1.0
        mapped.drop(("m", str(version)))
    mapped.block("model", ("m", "last"), (), 100)
    assert {key.owner: sum(cells) for key, cells in reader.read()} == {("stays", "1"): 5.0, ("m", "last"): 0.0}


def test_a_reader_sees_whole_blocks_while_places_change_hands() -> None:
    fd = make_file()
    mapped, reader = MappedMemory(fd), MappedReader(fd)
    os.close(fd)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            owner = ("m", str(number % 7))
            cells = mapped.block("model", owner, (), 8)
            for place in range(8):
                cells[place] = float(number % 7)
            if number % 3 == 0:
                mapped.drop(owner)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3000):
            for key, cells in reader.read():
                assert set(cells) <= {0.0, float(key.owner[1])}
    finally:
        stop.set()
        writer.join()
