"""An engine with a repository on a real disk, and a model that adds a number."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from salver.core.errors import SalverError
from salver.server.engine.base import InferRequest, Timing
from salver.server.engine.engine import RealTimeEngine
from salver.server.engine.manager import ModelManager
from salver.server.engine.repository import Sources
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import ServeSettings
from salver.testing.repository import load, unload


def adds(path: Path, value: float, rows: str | int = "batch", inputs: int = 2) -> Path:
    """Write a model that adds a number."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, inputs])],
        [numpy_helper.from_array(np.float32(value), "c")],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), new)
    return new.replace(path)


class Bench:
    """An engine with a repository, on the running loop."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.settings = ServeSettings.from_data({"sources": [str(root)], "drain_s": 5.0, **settings})
        self.engine = RealTimeEngine(Metrics())
        self.manager = ModelManager(self.engine, Sources(self.settings.sources), self.settings)
        self.engine.repository = self.manager

    async def load(self, name: str, **more: Any) -> None:
        await load(self.manager, name, **more)

    async def unload(self, name: str, **more: Any) -> None:
        await unload(self.manager, name, **more)

    async def ask(self, name: str = "m", version: str | None = None) -> float:
        """What a model adds to 0."""
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        model = self.engine.find(name, version)
        inputs = {"x": np.zeros((1, 2), np.float32)}

        def done(result: Any, timing: Timing | None) -> None:
            answered.set_result(result)

        self.engine.submit(model, InferRequest(inputs, 1, done))
        result = await answered
        if isinstance(result, SalverError):
            raise result
        return float(result["y"][0, 0])

    async def poll(self, looks: int = 2) -> None:
        """Look as often, and wait for what that began."""
        for _ in range(looks):
            if begun := await self.manager.poll():
                await asyncio.wait(begun)

    def served(self) -> dict[str, str]:
        return {f"{e.name}:{e.version}": e.state for e in self.manager.index()}

    def reason(self, name: str = "m", version: str = "1") -> str:
        return next(e.reason for e in self.manager.index() if (e.name, e.version) == (name, version))
