"""Which cores each worker keeps to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from salver.core.errors import InvalidArgument
from salver.server.launch import launch
from salver.server.processes.affinity import share_of, usable_nodes
from salver.server.settings import ServeSettings


@pytest.mark.parametrize(
    ("workers", "nodes", "shares"),
    [
        (2, [[0, 1, 2, 3]], [{0, 1}, {2, 3}]),
        (3, [[0, 1, 2, 3]], [{0}, {1}, {2, 3}]),
        (2, [[0, 2, 4], [1, 3, 5]], [{0, 2, 4}, {1, 3, 5}]),
        (4, [[0, 2], [1, 3]], [{0}, {2}, {1}, {3}]),
        (4, [[5, 7]], [{5}, {5}, {7}, {7}]),
    ],
)
def test_workers_take_neighbors(workers: int, nodes: list[list[int]], shares: list[set[int]]) -> None:
    assert [share_of(slot, workers, nodes) for slot in range(workers)] == shares


def test_nodes_are_read_and_what_may_not_be_used_left_out(tmp_path: Path) -> None:
    usable = sorted(os.sched_getaffinity(0))
    for number, text in ((10, "1000-1003\n"), (2, f"{usable[0]},2000\n"), (0, ",".join(map(str, usable[1:])) + "\n")):
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}" / "cpulist").write_text(text)
    assert usable_nodes(tmp_path) == [node for node in (usable[1:], usable[:1]) if node]
    (tmp_path / "node2" / "cpulist").write_text("\n")
    assert usable_nodes(tmp_path) == [usable]
    assert sorted(core for node in usable_nodes() for core in node) == usable


def test_it_takes_workers(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="say --workers"):
        launch(ServeSettings.from_data({"sources": [str(tmp_path)], "affinity": True}))


def test_workers_keep_to_their_cores(serve, rogue_bundle) -> None:  # type: ignore[no-untyped-def]
    served = serve(rogue_bundle, "--workers", "2", "--affinity")
    usable = [sorted(os.sched_getaffinity(0))]
    found = sorted(sorted(os.sched_getaffinity(worker)) for worker in served.workers())
    assert found == sorted(sorted(share_of(slot, 2, usable)) for slot in (0, 1))
