"""Weights that are mapped and not copied, as an administrator sees them; and memory that reloads give back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from salver.server.engine.memory import heap_bytes
from tests.server.engine.bench import Bench, adds

MIB = 1 << 20
Scenario = Callable[[Bench], Awaitable[None]]
Play = Callable[..., None]


def large(path: Path, value: float) -> Path:
    """Write a model of 4 MiB that gives a number for zeros."""
    shapes = {"w0": (2, 1024), "w1": (1024, 1024), "w2": (1024, 2)}
    names = ["x", "h0", "h1", "h2"]  # all zeros, for a row of zeros
    graph = helper.make_graph(
        [
            *(helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(3)),
            helper.make_node("Add", ["h2", "c"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [
            *(
                numpy_helper.from_array(np.full(shape, value / 4096, np.float32), name)
                for name, shape in shapes.items()
            ),
            numpy_helper.from_array(np.array(value, np.float32), "c"),
        ],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), new)
    return new.replace(path)


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Run a scenario on a large model ``m`` and a small one, ``s``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    large(tmp_path / "models" / "m" / "1" / "model.onnx", 1)
    adds(tmp_path / "models" / "s" / "1" / "model.onnx", 2)

    async def run(scenario: Scenario, settings: dict[str, Any]) -> None:
        bench = Bench(tmp_path / "models", **settings)
        try:
            assert await bench.manager.start() == []
            await asyncio.wait_for(scenario(bench), 60)
        finally:
            await bench.manager.stop()
            bench.engine.close()

    return lambda scenario, **settings: asyncio.run(run(scenario, settings))


def usage(bench: Bench, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = bench.engine.metrics.statistics(bench.engine.find(name))["memory_usage"]
    return found


def test_metadata_and_statistics_say_what_is_shared(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def scenario(bench: Bench) -> None:
        facts = bench.engine.find("m").metadata
        assert facts["weights"] == "shared"
        assert 4 * MIB < facts["weights_bytes"] < 5 * MIB
        assert usage(bench, "m") == [{"type": "CPU", "id": 0, "byte_size": facts["weights_bytes"]}]
        assert bench.engine.find("s").metadata["weights"] == "private"
        assert "weights of 's' are not shared between workers" in caplog.text
        assert (await bench.ask("m"), await bench.ask("s")) == (1.0, 2.0)

    play(scenario, share_weights=True)


def test_one_model_may_differ_from_the_server(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        assert bench.engine.find("m").metadata["weights"] == "private"
        assert await bench.ask("m") == 1.0

    play(scenario, share_weights=True, models={"m": {"share_weights": False}})


def test_shared_weights_count_in_the_budget(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.load("m")
        model = bench.engine.find("m")
        assert model.gauges()["memory_bytes"] > 4 * MIB
        assert await bench.ask("s") == 2.0
        assert model.metadata["in_memory"] is False
        assert usage(bench, "m") == []
        assert await bench.ask("m") == 1.0
        assert model.metadata["weights"] == "shared"

    play(scenario, share_weights=True, memory_budget_bytes=6 * MIB)


@pytest.mark.parametrize("share_weights", [False, True])
def test_reloads_leave_nothing_behind(play: Play, tmp_path: Path, share_weights: bool) -> None:
    async def scenario(bench: Bench) -> None:
        sizes = []
        for value in range(12):
            large(tmp_path / "models" / "m" / "1" / "model.onnx", value)
            await bench.load("m")
            assert await bench.ask("m") == value
            while bench.engine._retiring:
                await asyncio.sleep(0.005)
            sizes.append(heap_bytes())
        assert max(sizes[4:]) - min(sizes[4:]) < 2 * MIB

    play(scenario, share_weights=share_weights)
