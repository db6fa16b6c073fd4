"""What a server shows of itself: the counts of all its processes, and how each of them does now."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from time import time
from typing import Any, Final

import msgspec

from salver.core.registry import load
from salver.server.engine.base import ModelFacts, ServedModel
from salver.server.monitoring.explain import explain
from salver.server.monitoring.memory import Memory
from salver.server.monitoring.record import MODEL, ModelRecord

# Loaded at the first scrape: prometheus_client costs 60 ms of cold start.
_RENDER: Final = "salver.server.monitoring._prometheus:render"


class ProcessView(msgspec.Struct, frozen=True):
    """How one process that serves does now.

    Args:
        pid: its number.
        connections: open ones.
        models: those that it knows.
    """

    pid: int
    connections: int
    models: list[ModelFacts]

    @classmethod
    def of(cls, connections: int, models: Iterable[ServedModel]) -> ProcessView:
        """This process."""
        return cls(os.getpid(), connections, [model.facts() for model in models])


class Observed:
    """A server at one moment.

    Args:
        totals: counts since the server started.
        recent: those of the last ``recent_s`` seconds.
        processes: all that serve, as far as they answered.
        started_s: when the server started, as `time.time` says it.
        pids: its processes, those included that serve nothing.
        gone_cpu_s: CPU time of processes that are gone.
    """

    def __init__(
        self,
        totals: Memory,
        recent: Memory,
        recent_s: float,
        processes: Sequence[ProcessView],
        started_s: float,
        pids: Sequence[int],
        gone_cpu_s: float = 0.0,
    ) -> None:
        self.totals = totals
        self.recent = recent
        self.recent_s = recent_s
        self.processes = processes
        self.started_s = started_s
        self.pids = pids
        self.gone_cpu_s = gone_cpu_s

    def facts(self, name: str, version: str) -> list[ModelFacts]:
        """What the processes say of a model."""
        owner = name, version
        return [model for view in self.processes for model in view.models if (model.name, model.version) == owner]

    def render(self) -> bytes:
        """Everything, in the Prometheus text format 0.0.4."""
        text: bytes = load(_RENDER)(self)
        return text

    def statistics(self, model: ServedModel) -> dict[str, Any]:
        """One entry of ``model_stats``, as Triton's statistics extension names things (times in nanoseconds), and what
        is told beyond that under ``salver``."""
        record = ModelRecord(self.totals, model.name, model.version)
        recent, over_s = self._interval(model)
        told = explain(recent, over_s, self.facts(model.name, model.version) or [model.facts()], self.recent_s)
        return {
            "name": model.name,
            "version": model.version,
            "last_inference": record.last_ms,
            "inference_count": record.inferences,
            "execution_count": sum(size.batches for size in record.sizes),
            "inference_stats": _inference(record),
            "batch_stats": [_batch(size.upto, size.batches, size.seconds) for size in record.sizes],
            "memory_usage": _memory(model, len(self.facts(model.name, model.version)) or 1),
            "salver": msgspec.to_builtins(told),
        }

    def _interval(self, model: ServedModel) -> tuple[ModelRecord, float]:
        """The last minute, or all since the start where nothing was asked in it."""
        recent = ModelRecord(self.recent, model.name, model.version)
        if recent.total.count:
            return recent, self.recent_s
        return ModelRecord(self.totals, model.name, model.version), max(time() - self.started_s, self.recent_s)


def records(observed: Observed) -> list[ModelRecord]:
    """Counts of all models that are known now, by name and version."""
    known = dict.fromkeys((model.name, model.version) for view in observed.processes for model in view.models)
    return [ModelRecord(observed.totals, *owner) for owner in known if observed.totals.details(MODEL, owner)]


def _inference(record: ModelRecord) -> dict[str, Any]:
    codes, queue = record.codes, record.queue
    ok = codes.get("OK", 0)
    total_s, failed_s = record.total.total, record.failed_s
    return {
        "success": _duration(ok, total_s - failed_s),
        "fail": _duration(sum(codes.values()) - ok, failed_s),
        "queue": _duration(queue.count, queue.total),
        "compute_input": _duration(0, 0.0),
        "compute_infer": _duration(record.compute.count, record.compute.total),
        "compute_output": _duration(record.encode.count, record.encode.total),
        "cache_hit": _duration(record.cache_hit.count, record.cache_hit.total),
        "cache_miss": _duration(record.cache_miss.count, record.cache_miss.total),
    }


def _batch(rows: int, batches: int, seconds: float) -> dict[str, Any]:
    """As Triton has it: inputs are gathered and outputs split within the time of the run."""
    nothing = _duration(0, 0.0)
    run = _duration(batches, seconds)
    return {"batch_size": rows, "compute_input": nothing, "compute_infer": run, "compute_output": nothing}


def _memory(model: ServedModel, processes: int) -> list[dict[str, Any]]:
    """Bytes of weights, of all processes together: those that are shared are there once."""
    facts = model.metadata
    if "weights_bytes" not in facts or not facts.get("in_memory", True):
        return []
    copies = 1 if facts["weights"] == "shared" else processes
    return [{"type": "CPU", "id": 0, "byte_size": facts["weights_bytes"] * copies}]


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": max(int(seconds * 1e9), 0)}
