"""A model made of others: each step is an ordinary request to a model, so that steps share batches with other requests;
tensors pass as arrays, without copies."""

from __future__ import annotations

from functools import partial
from time import monotonic, perf_counter
from typing import Any, Final

import numpy as np

from salver.core.arrays import Array
from salver.core.errors import FailedPrecondition, Internal, InvalidArgument, SalverError, Unavailable, format_shape
from salver.core.tensors import Signature
from salver.server.engine.base import InferRequest, ModelState, ServedModel, Timing, is_ragged, merge_key
from salver.server.engine.config import ModelConfig, PipelineConfig
from salver.server.engine.engine import RealTimeEngine
from salver.server.engine.graph import Graph, Route, find_route, infer_signature
from salver.server.engine.response_cache import ResponseCache
from salver.server.engine.servable import Servable
from salver.server.settings import RunSettings

_SETTINGS: Final = RunSettings()
_ROUTES: Final = 64  # sets of outputs whose steps are remembered


_Shapes = list[tuple[tuple[int, ...], "np.dtype[Any]"]]


class _Plan:
    """A graph over models of certain signatures."""

    __slots__ = ("_accepted", "_routes", "batched", "graph", "models", "signature", "signatures")

    def __init__(self, graph: Graph, models: list[Servable]) -> None:
        self.graph = graph
        self.models = models
        """One per step. A model that takes another's place, with the same signature, serves requests under way too."""
        self.signatures = tuple(model.signature for model in models)
        self.signature = infer_signature(graph, self.signatures)
        self.batched = self.signature.batch_dim is not None
        self._accepted: list[tuple[_Shapes, int]] = [([], 0)] * len(models)
        self._routes: dict[tuple[str, ...] | None, Route] = {}

    def route(self, outputs: tuple[str, ...] | None) -> Route:
        route = self._routes.get(outputs)
        if route is None:
            if len(self._routes) >= _ROUTES:
                self._routes.clear()
            route = self._routes[outputs] = find_route(self.graph, self.signatures, outputs)
        return route

    def check(self, index: int, inputs: dict[str, Array]) -> int:
        """Rows of the inputs of a step: as `Signature.check`, and cheaper for those shaped as the last ones were."""
        shapes = [(array.shape, array.dtype) for array in inputs.values()]
        accepted, rows = self._accepted[index]
        if shapes != accepted:
            rows = self.signatures[index].check(inputs)
            self._accepted[index] = (shapes, rows)
        return rows


class PipelineModel(Servable):
    """A pipeline, READY while all its steps are.

    Args:
        name, version: under which it is served.
        config: its steps.
        engine: that serves them.
        settings: its deadline and response cache; queue and batches are those of the steps.

    Raises:
        InvalidArgument: the graph is not sound, see `Graph`; what depends on the models that are there is its state.
    """

    platform = "ensemble"
    depth = 1

    def __init__(
        self,
        name: str,
        version: str,
        config: ModelConfig,
        engine: RealTimeEngine,
        settings: RunSettings = _SETTINGS,
    ) -> None:
        if config.pipeline is None:
            raise InvalidArgument(f"model '{name}' has no steps: it is no pipeline")
        self.name = name
        self.version = version
        self.config = config
        self.engine = engine
        self.signature = Signature(inputs=(), outputs=())
        self.state: ModelState = "LOADING"
        self.reason = "loading"
        self.tested = False
        self.metadata = {}
        self._graph = Graph(config.pipeline)
        self._plan: _Plan | None = None
        self._timeout_s = settings.default_timeout_s
        self._cache_bytes = settings.response_cache_bytes
        self._cache: ResponseCache | None = None
        self._flows: dict[InferRequest, _Flow] = {}
        self._sequences: set[int | str] = set()
        self._draining = False
        self._closed = False
        self.follow()

    def follow(self) -> None:
        if self._closed or self.state == "UNLOADING":
            return
        try:
            self._bind()
        except SalverError as error:
            self._enter("UNAVAILABLE", error.message)
        else:
            self._enter("READY", "")

    def _bind(self) -> None:
        """Take the models that are there now.

        Raises:
            SalverError: one is not, or does not fit.
        """
        self._check_circle()
        models: list[Servable] = []
        for index, step in enumerate(self._graph.steps):
            try:
                models.append(self.engine.find(step.model, step.version or None))
            except SalverError as error:
                raise error.reworded(f"{self._graph.title(index)}: {error.message}") from None
        if self._plan is not None and self._plan.signatures == tuple(model.signature for model in models):
            if self._plan.models == models:
                return
            self._plan.models[:] = models
        else:
            self._plan = _Plan(self._graph, models)
        self.depth = 1 + max(model.depth for model in models)
        self.stateful = any(model.stateful for model in models)
        self.signature = self._plan.signature
        self.ragged = is_ragged(self.signature)
        self.tested = all(model.tested for model in models)
        self.metadata = {"tested": self.tested, "steps": [_describe(model) for model in models]}
        self._cache = None if self.stateful else ResponseCache.of(self._cache_bytes)  # what it held may hold no more

    def _check_circle(self) -> None:
        """Refuse a pipeline that is a step of itself, however far down."""
        pipelines: dict[str, PipelineConfig] = {
            model.name: model.config.pipeline for model in self.engine.models() if model.config.pipeline is not None
        }
        pipelines[self.name] = self._graph.config
        seen: set[str] = set()
        waiting: list[tuple[str, ...]] = [(self.name,)]
        while waiting:
            path = waiting.pop()
            for step in pipelines[path[-1]].steps:
                if step.model == self.name:
                    raise InvalidArgument(f"pipelines go round in a circle: {' -> '.join((*path, step.model))}")
                if step.model in pipelines and step.model not in seen:
                    seen.add(step.model)
                    waiting.append((*path, step.model))

    def _enter(self, state: ModelState, reason: str) -> None:
        if (self.state, self.reason) != (state, reason):
            self.state, self.reason = state, reason
            self.engine.refresh()

    def submit(self, request: InferRequest) -> None:
        if self.state != "READY" or self._plan is None:
            raise self.unavailable()
        if self._draining:
            raise Unavailable(f"pipeline '{self.name}' is draining: it takes no new requests")
        if self._cache is not None and self._cache.answer(request, self.engine.metrics.of(self)):
            return
        if self._timeout_s and request.deadline_s is None:
            request.deadline_s = monotonic() + self._timeout_s
        if self.stateful and request.sequence is not None:
            self._reserve(request.sequence.id)
        flow = self._flows[request] = _Flow(self, self._plan, request)
        try:
            flow.start()
        except SalverError as error:
            flow.abandon()
            self.engine.metrics.record_refused(self, error.code, error.reason or "other")
            raise

    def _reserve(self, sequence: int | str) -> None:
        """One request of a sequence at a time: two could overtake each other before the step that keeps the state."""
        if sequence in self._sequences:
            raise FailedPrecondition(
                f"sequence {sequence!r} has a request under way in pipeline '{self.name}'; send the next one when "
                "it is answered"
            )
        self._sequences.add(sequence)

    def cancel(self, request: InferRequest) -> None:
        flow = self._flows.get(request)
        if flow is not None:
            flow.abandon()

    def ended(self, request: InferRequest) -> None:
        """A request is under way no more."""
        del self._flows[request]
        if self.stateful and request.sequence is not None:
            self._sequences.discard(request.sequence.id)

    def gauges(self) -> dict[str, int]:
        found = {"queued": 0, "queued_rows": 0, "running": len(self._flows)}
        if self._cache is not None:
            found["cache_bytes"] = self._cache.size_bytes
        return found

    def drain(self) -> None:
        self._draining = True

    @property
    def idle(self) -> bool:
        return not self._flows

    def close(self) -> bool:
        self._closed = True
        error = Unavailable(f"pipeline '{self.name}' was unloaded")
        for flow in list(self._flows.values()):
            flow.fail(error)
        self._cache = None
        self._enter("UNAVAILABLE", "unloaded")
        return True


class _Flow:
    """One request on its way through the steps."""

    __slots__ = (
        "_compute_s",
        "_left",
        "_open",
        "_pending",
        "_pipeline",
        "_plan",
        "_queue_s",
        "_request",
        "_route",
        "_tensors",
    )

    def __init__(self, pipeline: PipelineModel, plan: _Plan, request: InferRequest) -> None:
        self._pipeline = pipeline
        self._plan = plan
        self._request = request
        self._route = plan.route(request.outputs)
        self._tensors = dict(request.arrays())
        self._left = [step.needs for step in self._route.steps]
        self._pending = len(self._left)
        self._open: dict[int, tuple[Servable, InferRequest, float]] = {}
        self._queue_s = self._compute_s = 0.0

    def start(self) -> None:
        """Submit the steps that need nothing but the client's inputs.

        Raises:
            SalverError: one was refused; nothing has been answered.
        """
        for place, step in enumerate(self._route.steps):
            if not step.needs and self._pending > 0:
                self._submit(place)

    def fail(self, error: SalverError) -> None:
        """Answer with an error; what is under way is cancelled."""
        if self.abandon():
            self._request.done(error, None)

    def abandon(self) -> bool:
        """Cancel what is under way; False when the request has ended already."""
        if self._pending <= 0:
            return False
        self._pending = 0
        for model, request, _ in self._open.values():
            model.cancel(request)
        self._open.clear()
        self._pipeline.ended(self._request)
        return True

    def _submit(self, place: int) -> None:
        step = self._route.steps[place]
        model = self._plan.models[step.index]
        tensors = self._tensors
        inputs = {name: tensors[tensor] for name, tensor in step.inputs}
        own = self._request
        started_s = perf_counter()
        try:
            request = InferRequest(inputs, self._plan.check(step.index, inputs), partial(self._done, place))
            request.outputs = step.outputs
            request.deadline_s = own.deadline_s
            request.priority = own.priority
            request.sequence = own.sequence
            if step.outputs is not None or model.ragged:
                request.key = merge_key(inputs, step.outputs, model.signature)
            self._open[place] = (model, request, started_s)
            model.submit(request)
        except SalverError as error:
            self._open.pop(place, None)
            self._pipeline.engine.metrics.record(model, error.code.value, None, perf_counter() - started_s)
            raise self._named(step.index, error) from None

    def _done(self, place: int, result: dict[str, Array] | SalverError, timing: Timing | None) -> None:
        model, _, started_s = self._open.pop(place)
        total_s = perf_counter() - started_s
        metrics = self._pipeline.engine.metrics
        step = self._route.steps[place]
        if isinstance(result, SalverError):
            metrics.record(model, result.code.value, timing, total_s)
            self.fail(self._named(step.index, result))
            return
        metrics.record(model, "OK", timing, total_s)
        if timing is not None:
            self._queue_s += timing.queue_s
            self._compute_s += timing.compute_s
        for name, tensor in step.tensors.items():
            self._tensors[tensor] = result[name]
        if self._pending == 1:
            self._finish()
            return
        self._pending -= 1
        try:
            for follower in step.followers:
                self._left[follower] -= 1
                if not self._left[follower] and self._pending > 0:
                    self._submit(follower)
        except SalverError as error:
            self.fail(error)

    def _finish(self) -> None:
        request, pipeline = self._request, self._pipeline
        outputs = {tensor: self._tensors[tensor] for tensor in self._route.outputs}
        if self._plan.batched:
            for tensor, array in outputs.items():
                if array.shape[:1] != (request.rows,):
                    shape = format_shape(array.shape)
                    self.fail(Internal(f"tensor '{tensor}' has shape {shape} for {request.rows} input rows"))
                    return
        self._pending = 0
        pipeline.ended(request)
        metrics = pipeline.engine.metrics
        metrics.record_batch(pipeline, request.rows, False, self._compute_s, (self._queue_s,), "alone")
        request.done(outputs, Timing(self._queue_s, self._compute_s, request.rows))

    def _named(self, index: int, error: SalverError) -> SalverError:
        return error.reworded(f"{self._plan.graph.title(index)}: {error.message}")


def _describe(model: ServedModel) -> dict[str, str]:
    return {"model": model.name, "version": model.version}
