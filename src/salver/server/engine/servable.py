"""What the engine asks of anything it serves: a loaded model, or a pipeline of them."""

from __future__ import annotations

import abc

from salver.core.errors import Unavailable
from salver.server.engine.base import InferRequest, ServedModel


class Servable(ServedModel):
    """One version of a model from discovery to unloading. All methods are called on the event loop."""

    required: bool = True
    """Whether the server is ready only when it is: so it is with the models named at start."""

    depth: int = 0
    """0 for a model; for a pipeline, one more than the deepest of its steps."""
    stateful: bool = False
    """Whether its requests belong to sequences."""

    def follow(self) -> None:
        """Other models, their states or labels have changed."""

    @abc.abstractmethod
    def submit(self, request: InferRequest) -> None:
        """As `Engine.submit`."""

    @abc.abstractmethod
    def cancel(self, request: InferRequest) -> None:
        """As `Engine.cancel`."""

    @abc.abstractmethod
    def drain(self) -> None:
        """Take no new requests; what waits is run."""

    @property
    @abc.abstractmethod
    def idle(self) -> bool:
        """Whether nothing waits or runs."""

    @abc.abstractmethod
    def close(self) -> bool:
        """Refuse what waits and free everything.

        Returns:
            False when a run still goes on, which cannot be interrupted.
        """

    def unavailable(self) -> Unavailable:
        """The error for a request to a model that is not ready."""
        return Unavailable(f"model '{self.name}' version {self.version} is {self.state}: {self.reason}")
