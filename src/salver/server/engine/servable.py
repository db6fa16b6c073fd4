"""What the engine asks of anything it serves: a loaded model, or a pipeline of them."""

from __future__ import annotations

import abc

from salver.core.errors import Unavailable
from salver.server.engine.base import InferRequest, ServedModel


class Servable(ServedModel):
    """One version of a model from discovery to unloading. All methods are called on the event loop."""

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
