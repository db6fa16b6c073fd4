"""A loaded model with its steps: clients' tensors in, clients' tensors out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from salver.backends.base import Session
from salver.core.arrays import Array
from salver.core.tensors import Signature
from salver.processing.pipeline import Pipeline


class ProcessedSession(Session):
    """A session behind steps; everything that takes a session takes this one.

    Args:
        session: of the graph; closed with this one.
        pipeline: bound to its signature.
    """

    def __init__(self, session: Session, pipeline: Pipeline) -> None:
        self._session = session
        self._pipeline = pipeline
        self.shares_weights = session.shares_weights
        self.not_shared = session.not_shared
        self.is_even = session.is_even and pipeline.is_even

    @property
    def signature(self) -> Signature:
        return self._pipeline.signature

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        pipeline = self._pipeline
        feed, kept = pipeline.run_before(inputs)
        kept.update(self._session.run(feed, pipeline.inner_outputs))
        self.elsewhere_ns = self._session.elsewhere_ns
        return pipeline.run_after(kept, pipeline.signature.output_names if outputs is None else outputs)

    def close(self) -> None:
        self._session.close()
