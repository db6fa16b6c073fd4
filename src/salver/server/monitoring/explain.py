"""Why a model does as it does: where the time goes, why batches have their size, and what would help.

Pure functions of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from salver.server.engine.base import BatchCost, ModelFacts
from salver.server.monitoring.record import Histogram, ModelRecord

MIN_REQUESTS: Final = 50
"""Of fewer requests nothing is concluded."""

_BUSY: Final = 0.9  # of the lanes' time: the model is what limits
_IDLE: Final = 0.5  # of the lanes' time: it is not
_MUCH: Final = 0.5  # of the requests' time
_GAIN: Final = 1.1  # a smaller prediction is not worth a change


class Part(msgspec.Struct, frozen=True):
    """A part of the requests' time, in seconds.

    Args:
        mean_s: per request.
        p50_s, p99_s: estimates from a histogram; None where none is kept.
        share: of the time of all requests.
    """

    mean_s: float
    p50_s: float | None
    p99_s: float | None
    share: float


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What the numbers of one model say.

    Args:
        over_s: the seconds that all the rest is about.
        requests: that ended, by code.
        requests_per_s, rows_per_s: how many ended, and ran.
        time: where the time of a request goes: ``request`` is the whole of it, ``queue``, ``compute``, ``encode`` are
            parts, ``rest`` is what is left: decoding, and waiting for the event loop.
        batches: that ran well.
        mean_rows: of one batch; 0 where none ran.
        sizes: batches by rows; ``<128`` for a group of sizes up to that.
        reasons: batches by why they took no more requests.
        refused: requests refused without a run, by reason.
        inline_share: of the batches, those that ran on the event loop.
        where: why batches run there, or on lanes.
        lanes, busy_share: how many there are, in all processes, and the share of their time in which a batch ran.
        settings: what it is told: ``lanes``, ``threads``, ``max_batch``, per process, and ``processes``.
        costs: what batches of 1, 2, 4, ... rows are expected to cost by what was learned, the mean over the processes.
        doubling: throughput with batches of twice the size, over what it is, by what was learned; 0 where nothing was.
        merge, merge_reason: whether requests may share a batch, and why.
        slo_s: the objective for the time of a request; 0 for none.
        advice: what would raise throughput or lower latency, one sentence each.
    """

    over_s: float
    requests: dict[str, int]
    requests_per_s: float
    rows_per_s: float
    time: dict[str, Part]
    batches: int
    mean_rows: float
    sizes: dict[str, int]
    reasons: dict[str, int]
    refused: dict[str, int]
    inline_share: float
    where: str
    lanes: int
    busy_share: float
    settings: dict[str, int]
    costs: list[BatchCost]
    doubling: float
    merge: bool
    merge_reason: str
    slo_s: float
    advice: list[str]


def explain(record: ModelRecord, over_s: float, facts: Sequence[ModelFacts], recent_s: float) -> Explanation:
    """Explain one model.

    Args:
        record: what was counted of it in a time.
        over_s: how long that was.
        facts: what each process says of it; at least one.
        recent_s: the last seconds, of which advice is given; where ``over_s`` is longer, nothing was asked in them.
    """
    first = facts[0]
    sizes = record.sizes
    batches = sum(size.batches for size in sizes)
    rows = sum(size.rows for size in sizes)
    lanes = sum(model.lanes for model in facts)
    refused: dict[str, int] = {}
    for (_, reason), count in record.refusals.items():
        refused[reason] = refused.get(reason, 0) + count
    requests = record.codes
    told = Explanation(
        over_s=over_s,
        requests=requests,
        requests_per_s=sum(requests.values()) / over_s,
        rows_per_s=rows / over_s,
        time=_split(record),
        batches=batches,
        mean_rows=rows / batches if batches else 0.0,
        sizes={("<" if size.is_group else "") + str(size.upto): size.batches for size in sizes},
        reasons=dict(sorted(record.closed.items(), key=lambda item: -item[1])),
        refused=refused,
        inline_share=record.inline_batches / batches if batches else 0.0,
        where=_where(first),
        lanes=lanes,
        busy_share=min(max(record.run_s - record.inline_s, 0.0) / (lanes * over_s), 1.0) if lanes else 0.0,
        doubling=_mean([model.doubling for model in facts]),
        settings={
            "lanes": first.lanes,
            "threads": first.threads,
            "max_batch": first.max_batch,
            "processes": len(facts),
        },
        costs=_mean_costs(facts),
        merge=first.merge,
        merge_reason=first.merge_reason,
        slo_s=first.slo_s,
        advice=[],
    )
    return msgspec.structs.replace(told, advice=advise(told, recent_s))


def advise(told: Explanation, recent_s: float) -> list[str]:
    """What would raise throughput or lower latency."""
    asked = sum(told.requests.values())
    if not asked:
        return ["nothing was asked yet"]
    if told.over_s > recent_s:
        return [f"nothing was asked in the last {recent_s:.0f} s; the numbers are of all the time since the start"]
    if asked < MIN_REQUESTS:
        return [f"only {asked} requests in the last {told.over_s:.0f} s: too few to conclude from"]
    found = [sentence for rule in _RULES if (sentence := rule(told))]
    return found or ["nothing stands out: no part of the server is at its limit"]


def _split(record: ModelRecord) -> dict[str, Part]:
    total = record.total
    parts = {"queue": record.queue, "compute": record.compute, "encode": record.encode}
    count, whole_s = total.count, total.total
    rest_s = max(whole_s - sum(part.total for part in parts.values()), 0.0)
    found = {"request": _part(total, count, whole_s)}
    found |= {name: _part(part, count, whole_s) for name, part in parts.items()}
    found["rest"] = Part(rest_s / count if count else 0.0, None, None, rest_s / whole_s if whole_s else 0.0)
    return found


def _part(histogram: Histogram, count: int, whole_s: float) -> Part:
    share = min(histogram.total / whole_s, 1.0) if whole_s else 0.0
    mean_s = histogram.total / count if count else 0.0
    return Part(mean_s, histogram.quantile(0.5), histogram.quantile(0.99), share)


def _where(facts: ModelFacts) -> str:
    if not facts.lanes:
        return "its steps run where their own models do"
    if not facts.may_inline:
        return "on lanes: its runtime hands work to threads of its own, so a run's cost for the event loop is not known"
    if not facts.cpu_s:
        return "on lanes until its cost is known"
    place = "on the event loop" if facts.inline else "on lanes"
    return f"{place}: a batch of one row takes {_seconds(facts.cpu_s)} of CPU time"


def _mean_costs(facts: Sequence[ModelFacts]) -> list[BatchCost]:
    found: dict[int, list[BatchCost]] = {}
    for cost in (cost for model in facts for cost in model.costs):
        found.setdefault(cost.rows, []).append(cost)
    return [
        BatchCost(rows, _mean([cost.mean_s for cost in costs]), _mean([cost.high_s for cost in costs]))
        for rows, costs in sorted(found.items())
    ]


# Rules: each looks at one thing and says at most one sentence.


def _bound_by_model(told: Explanation) -> str:
    if told.busy_share < _BUSY:
        return ""
    busy = f"lanes are busy {_percent(told.busy_share)} of the time"
    if not told.merge:
        return f"{busy} and requests are not merged ({told.merge_reason}): add --lanes or --workers where CPUs are free"
    most = told.settings["max_batch"]
    if _share(told.reasons, "full") < _MUCH:
        return f"{busy} with batches of {_rows(told.mean_rows)}: the model is the limit; a faster one helps most"
    if told.doubling >= _GAIN:
        return (
            f"{busy} and batches are full at {most}: try --max-batch {2 * most}, which by the learned costs gives "
            f"{_percent(told.doubling - 1)} more throughput, or add --lanes or --workers where CPUs are free"
        )
    return (
        f"{busy} and batches are full at {most}; larger ones would gain little: add --lanes or --workers where CPUs "
        "are free"
    )


def _small_batches(told: Explanation) -> str:
    if not told.merge or told.batches < MIN_REQUESTS or told.busy_share >= _BUSY:
        return ""
    most = told.settings["max_batch"]
    if most > 1 and told.mean_rows < most / 2 and _share(told.reasons, "idle_lane") >= _MUCH:
        return (
            f"batches have {_rows(told.mean_rows)} on average because a lane was free when they came: the model is "
            "not the limit, and waiting for larger batches would only add latency"
        )
    return ""


def _kept_apart(told: Explanation) -> str:
    if _share(told.reasons, "key") < _MUCH:
        return ""
    return (
        "most batches closed because the next request had another row shape, parameters or outputs: requests of equal "
        "shape share batches; pad them or ask for the same outputs"
    )


def _not_merged(told: Explanation) -> str:
    alone = told.merge or not told.batches or told.settings["max_batch"] > 1 or not told.lanes
    if alone or told.time["queue"].share < 0.2 or told.busy_share >= _BUSY:
        return ""
    return f"requests run one by one because merging is off ({told.merge_reason}), and wait for each other"


def _queue(told: Explanation) -> str:
    share = told.time["queue"].share
    if share < _MUCH or told.busy_share >= _BUSY:
        return ""
    if told.inline_share > _MUCH:
        return (
            f"requests spend {_percent(share)} of their time waiting while batches run on the event loop: one process "
            "is the limit; add --workers where CPUs are free"
        )
    return (
        f"requests spend {_percent(share)} of their time waiting though lanes are busy only "
        f"{_percent(told.busy_share)}: they come in bursts, or the event loop is the limit; add --workers or --lanes"
    )


def _rest(told: Explanation) -> str:
    rest, encode = told.time["rest"].share, told.time["encode"].share
    if rest + encode < _MUCH or told.busy_share >= _BUSY:
        return ""
    if encode > rest:
        return f"encoding answers takes {_percent(encode)} of the time: ask for fewer outputs, in binary or over gRPC"
    return (
        f"reading requests and waiting for the event loop takes {_percent(rest)} of the time: send tensors in binary "
        "or over gRPC; where CPUs are free, add --workers"
    )


def _held_small(told: Explanation) -> str:
    if _share(told.reasons, "slo") < _MUCH:
        return ""
    return (
        f"batches are held at {_rows(told.mean_rows)} because larger ones would miss the objective of "
        f"{_seconds(told.slo_s)}: a higher --slo gives more throughput"
    )


def _refusals(told: Explanation) -> str:
    count = sum(told.refused.values())
    asked = sum(told.requests.values())
    if count < 0.01 * asked:
        return ""
    reason = max(told.refused, key=lambda name: told.refused[name])
    what = {
        "queue_full": "the queue was full: more is asked than can be answered",
        "deadline": "their deadline could not be met: allow more time, or add capacity",
        "slo": "the objective could not be met for them: more is asked than can be answered in time",
        "priority": "more urgent requests took their place in a full queue",
        "client_share": "their client already had more than its share of a full queue",
        "draining": "the model was being taken out of service",
    }.get(reason, "of what they asked")
    return f"{count} of {asked} requests were refused, most because {what}"


_RULES: Final[tuple[Callable[[Explanation], str], ...]] = (
    _bound_by_model,
    _held_small,
    _small_batches,
    _kept_apart,
    _not_merged,
    _queue,
    _rest,
    _refusals,
)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _share(counts: dict[str, int], name: str) -> float:
    total = sum(counts.values())
    return counts.get(name, 0) / total if total else 0.0


def _rows(count: float) -> str:
    return f"{count:.3g} row" if count == 1 else f"{count:.3g} rows"


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def _seconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
