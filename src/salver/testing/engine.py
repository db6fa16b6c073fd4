"""Sessions and models for tests of whatever talks to an engine: real runs of plain Python, and failures on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from salver.backends.base import Session
from salver.core.arrays import Array
from salver.core.errors import FailedPrecondition
from salver.core.tensors import Signature
from salver.server.engine.config import ModelConfig
from salver.server.engine.cost import CostModel
from salver.server.engine.engine import RealTimeEngine
from salver.server.engine.served import LoadedModel
from salver.server.settings import RunSettings

_PLAIN = ModelConfig()


class FunctionSession(Session):
    """A session whose model is a Python function of its inputs, which may raise, be slow, or return what it should not.

    Args:
        signature: what it claims to take and give.
        function: inputs -> all outputs.
    """

    def __init__(self, signature: Signature, function: Callable[[Mapping[str, Array]], dict[str, Array]]) -> None:
        self._signature = signature
        self._function = function
        self.batches: list[int] = []
        """Rows of each run so far."""
        self.closed = False

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        if self.closed:
            raise FailedPrecondition("the session is closed")
        self.batches.append(len(next(iter(inputs.values()))))
        found = self._function(inputs)
        return found if outputs is None else {name: found[name] for name in outputs}

    def close(self) -> None:
        self.closed = True


def add_model(
    engine: RealTimeEngine,
    session: Session,
    *,
    name: str = "m",
    version: str = "1",
    settings: RunSettings | None = None,
    merge: bool = True,
    inline: bool = False,
    config: ModelConfig = _PLAIN,
) -> LoadedModel:
    """Serve a session on an engine; call it on the event loop.

    Args:
        inline: run batches on the event loop from the first on; otherwise on lanes, always.
        config: what its folder would say.
    """
    cost = CostModel()
    if inline:
        cost.learn(1, 1e-6, 1e-6)
    model = engine.add(name, version)
    model.open(session, settings or RunSettings(), merge=merge, cost=cost, inline=inline, config=config)
    return model
