"""What is measured of a real model on this machine; nothing here depends on how fast that is."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from salver.core.errors import SalverError
from salver.server.engine.repository import open_model
from salver.server.planning.measure import machine_bytes, machine_cores, measure

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"


def test_a_model_is_timed_by_batch_size_and_threads() -> None:
    found = measure(open_model(DIGITS, "digits"), [1, 2], max_batch=12, budget_s=0.05)
    assert list(found.latencies) == [1, 2]
    assert found.merge
    assert found.max_batch == 12
    assert found.row_bytes == 28 * 28 * 4
    assert found.memory_bytes > 20 << 20
    for latency in found.latencies.values():
        assert [rows for rows, _ in latency.table] == [1, 2, 4, 8, 12]
        assert latency.table[-1][1] > latency.table[0][1]
        assert latency.ratios == tuple(sorted(latency.ratios))
        assert 0 < latency.ratios[0] <= 1 <= latency.ratios[-1]
        assert 0 < latency.cpu_share <= 1
    overheads = msgspec.structs.asdict(found.overheads)
    wake = overheads.pop("wake")
    assert all(0 <= seconds < 0.1 for seconds in overheads.values())
    assert [point.slept_s for point in wake] == sorted({point.slept_s for point in wake})
    assert all(0 <= point.loop_s < 0.1 and 0 <= point.lane_s < 0.1 for point in wake)
    assert min(overheads["turn_s"], overheads["decode_s"], overheads["encode_s"], overheads["handoff_s"]) > 0


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(SalverError):
        measure(open_model(path, "broken"), [1])


def test_the_machine() -> None:
    assert machine_cores() >= 1
    assert machine_bytes() > 1 << 28
