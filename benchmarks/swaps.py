"""What clients notice when a model is replaced, two hundred times under load, and when a worker is killed.

    python benchmarks/swaps.py [--swaps 200] [--kill 5] [--network minilm] [--workers 2] [--load 0.6] [--json FILE]
        [--write]

A server with workers, one model, and Poisson arrivals at a share of the throughput that it was measured to have, half
over REST (binary) and half over gRPC, from processes of their own. A swap writes other contents, every other time as
the next version, and asks the server to load them; once it has said yes, many fresh connections and some old ones ask
for the mark of the contents. The window of a swap is from the call to half a second after its end. Memory, open files
and shared memory are those of all processes of the server together, half a second after each swap. Then workers are
killed under the same load (`kill -9`). Exits with 1 where a criterion does not hold. Linux.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import networks
import numpy as np
import process_tree
import record
from served import MARK, Server, Swapped, serve

from salver.client.load import LoadPlan, measure, run
from salver.client.load.plan import CUT_OFF, percentiles

MODEL = "network"
ROWS = 64  # different requests
TOKENS_MAX = 30_000
CAPACITY_S, WARM_UP_S, SETTLE_S, PAUSE_S = 8.0, 3.0, 0.5, 2.0
CONNECTIONS = 16  # of each wire, always as many, so that files of the server can be counted
FRESH, KEPT = 12, 8  # connections that ask for the mark after a swap
FIRST = 20  # swaps before which memory may rise
GROWTH = 0.01  # of all memory over all swaps: below that a rise is not told from noise
GROWTH_FILES = 2
RECOVERY_S = 2.0
MAX_BATCH = 4  # which warm-up reaches: ONNX Runtime keeps what its largest batch took, and chance would choose that
STABLE_S = 66.0  # a worker that lived for a minute does not crash in a row
NOTICE_S = 0.1  # until clients know that a connection is closed, on a machine that is busy
INTERRUPTED = (CUT_OFF, "503", "UNAVAILABLE")


def offer(plan: LoadPlan, stop: Any, answers: Any) -> None:
    """In a process of its own: put load on until told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers.put(measure(plan, stop=stop.is_set))


class Load:
    """The load of a run: half over REST, half over gRPC."""

    def __init__(self, plans: list[LoadPlan]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._stop, self._answers = spawn.Event(), spawn.Queue()
        self._all = [spawn.Process(target=offer, args=(plan, self._stop, self._answers), daemon=True) for plan in plans]
        for each in self._all:
            each.start()

    def end(self) -> dict[str, np.ndarray]:
        """Every request: when it was due (`time.perf_counter`), how long it took, what came of it."""
        self._stop.set()
        found = [self._answers.get(timeout=60) for _ in self._all]
        for result, _ in found:
            if result.generator.is_bottleneck:
                print(f"the load generator ({result.wire}) was late: {result.generator.why}", file=sys.stderr)
        taken = [samples for _, samples in found]
        return {
            "due": np.concatenate([each.began_s + each.due_s for each in taken]),
            "latency": np.concatenate([each.latency_s for each in taken]),
            "outcome": np.concatenate([np.array(each.names)[each.outcome] for each in taken]),
        }


class Asker:
    """Asks which contents answer: over fresh connections, and over some that are kept while the server lets them."""

    def __init__(self, server: Server, x: np.ndarray) -> None:
        self._kept = [http.client.HTTPConnection(server.http, timeout=30) for _ in range(KEPT)]
        self._server = server
        kind = "INT64" if x.dtype.kind == "i" else "FP32"
        tensor = {"name": "x", "datatype": kind, "shape": [1, *x.shape[1:]], "data": x[:1].ravel().tolist()}
        self._body = json.dumps({"inputs": [tensor], "outputs": [{"name": MARK}]})

    def strangers(self, mark: int) -> int:
        """How many of the answers do not come from these contents."""
        fresh = [http.client.HTTPConnection(self._server.http, timeout=30) for _ in range(FRESH)]
        for each in fresh:
            each.connect()
        found = [self._mark(each) for each in (*fresh, *self._kept)]
        for each in fresh:
            each.close()
        return sum(each != mark for each in found)

    def _mark(self, connection: http.client.HTTPConnection) -> float:
        connection.request("POST", f"/v2/models/{MODEL}/infer", self._body)
        answer = connection.getresponse()
        said = json.loads(answer.read())
        return said["outputs"][0]["data"][0] if answer.status == 200 else -1


def swap(server: Server, model: Swapped, asker: Asker, count: int) -> dict[str, Any]:
    """All swaps: their windows, what was held after each, and what went wrong."""
    windows, held, strangers, refused = [], [], 0, []
    for number in range(count):
        model.replace()
        began = time.perf_counter()
        status, said = server.load(MODEL)
        ended = time.perf_counter()
        if status != 200:
            refused.append(said)
        strangers += asker.strangers(model.mark)
        time.sleep(max(0.0, ended + SETTLE_S - time.perf_counter()))
        windows.append((began, ended + SETTLE_S))
        model.tidy()
        held.append(process_tree.holding(process_tree.descendants(server.pid)))
        time.sleep(max(0.0, ended + PAUSE_S - time.perf_counter()))
        print(f"swap {number + 1}: {ended - began:.2f} s, {held[-1].pss >> 20} MiB", file=sys.stderr)
    return {"windows": windows, "held": held, "strangers": strangers, "refused": refused}


def kill(server: Server, count: int) -> list[dict[str, float]]:
    """Kill the oldest worker so many times: when, and after how long another had taken its place. One that dies again
    soon after its start would be taken for one that crashes in a row, which is given less and less often a next try."""
    found: list[dict[str, float]] = []
    for _ in range(count):
        time.sleep(PAUSE_S + RECOVERY_S)
        before = server.ready_workers()
        victim = process_tree.workers(server.pid)[0]
        if len(found) >= len(before):
            time.sleep(max(0.0, found[-len(before)]["at"] + STABLE_S - time.perf_counter()))
        at = time.perf_counter()
        os.kill(victim, signal.SIGKILL)
        while process_tree.lives(victim):
            time.sleep(0.001)
        ended = time.perf_counter()
        while len(server.ready_workers() - {victim}) < len(before):
            if time.perf_counter() > at + 60:
                sys.exit(f"no worker took the place of process {victim}: {server.process.last_words()}")
            time.sleep(0.005)
        found.append({"at": at, "ended": ended, "full_after_s": time.perf_counter() - at})
        print(f"killed {victim}: {found[-1]['full_after_s']:.2f} s", file=sys.stderr)
    time.sleep(PAUSE_S)
    return found


def judge_swaps(done: dict[str, Any], sent: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, bool]]:
    """Figures and criteria of the swaps."""
    due, end, ok = sent["due"], sent["due"] + sent["latency"], sent["outcome"] == "OK"
    inside = np.zeros(len(due), bool)
    for began, ended in done["windows"]:
        inside |= (due <= ended) & (end >= began)
    first = done["windows"][0][0]
    steady, swapping = sent["latency"][ok & ~inside & (due > first - WARM_UP_S)], sent["latency"][ok & inside]
    p99 = [float(percentiles(each, (0.99,))[0]) * 1e3 for each in (steady, swapping)]
    held = done["held"][min(FIRST, len(done["held"]) // 3) :]
    slopes = {name: process_tree.slope([getattr(each, name) for each in held]) for name in ("pss", "shared", "files")}
    allowed = dict.fromkeys(("pss", "shared"), GROWTH * slopes["pss"].mean) | {"files": GROWTH_FILES}
    figures = {
        "swaps": len(done["windows"]),
        "seconds of a load call": [round(ended - SETTLE_S - began, 3) for began, ended in done["windows"]],
        "requests": len(due),
        "failed": _counts(sent["outcome"][~ok]),
        "old answers after a load call": done["strangers"],
        "refused": done["refused"],
        "p99 steady, ms": p99[0],
        "p99 in swap windows, ms": p99[1],
        **{f"{name}, slope": each._asdict() for name, each in slopes.items()},
    }
    criteria = {
        "no request failed": bool(ok.all()),
        "no load call was refused": not done["refused"],
        "once a load call has returned, nobody answers with the old contents": not done["strangers"],
        "p99 in the windows of swaps is at most twice the steady one": p99[1] <= 2 * p99[0],
        **{f"{name}: no upward slope ({each})": not each.rises(allowed[name]) for name, each in slopes.items()},
    }
    return figures, criteria


def judge_kills(kills: list[dict[str, float]], sent: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, bool]]:
    """Figures and criteria of the killed workers."""
    failed = sent["outcome"] != "OK"
    due, end = sent["due"][failed], (sent["due"] + sent["latency"])[failed]
    in_flight, after = np.zeros(len(due), bool), np.full(len(due), np.inf)
    for each in kills:
        after = np.where(due > each["ended"], due - each["ended"], after)
        in_flight |= (due <= each["ended"] + NOTICE_S) & (end >= each["at"])
    in_flight &= np.isin(sent["outcome"][failed], INTERRUPTED)
    slowest = max((each["full_after_s"] for each in kills), default=0.0)
    figures = {
        "seconds to full capacity": [round(each["full_after_s"], 2) for each in kills],
        "failed, in flight": int(in_flight.sum()),
        "failed, others": [
            f"{name}, due {1e3 * late:.0f} ms after a kill"
            for name, late in zip(sent["outcome"][failed][~in_flight], after[~in_flight], strict=True)
        ],
    }
    criteria = {
        f"full capacity within {RECOVERY_S:g} s of a kill -9 ({slowest:.2f} s)": slowest <= RECOVERY_S,
        "only requests in flight in a killed worker failed": bool(in_flight.all()),
    }
    return figures, criteria


def _counts(names: np.ndarray) -> dict[str, int]:
    return {str(name): int(count) for name, count in zip(*np.unique(names, return_counts=True), strict=True)}


def measure_all(told: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], dict[str, bool]]:
    """Serve, swap, kill."""
    model = Swapped(networks.write(told.network, folder), folder / "models" / MODEL)
    x, y = model.example(ROWS, TOKENS_MAX)
    given = {"model": MODEL, "inputs": {"x": x}, "expected": {"y": y}, "tolerance": 1e-3, "check": True}
    with ExitStack() as stack:
        line = ["--workers", str(told.workers), "--max-batch", str(MAX_BATCH)]
        server = serve(stack, folder, folder / "models", line)
        urls = [f"http://{server.http}", f"grpc://{server.grpc}"]
        full = run(LoadPlan(url=urls[0], concurrency=told.concurrency, duration_s=CAPACITY_S, warmup_s=2.0, **given))
        rate = told.load * full.throughput_per_s
        print(f"capacity {full.throughput_per_s:.0f}/s, {full.outcomes}; offered {rate:.0f}/s", file=sys.stderr)
        seeds = enumerate(urls)
        load = [
            LoadPlan(url=url, rate_per_s=rate / 2, duration_s=1e6, seed=seed, connections=CONNECTIONS, **given)
            for seed, url in seeds
        ]
        figures: dict[str, Any] = {"network": told.network, "capacity, 1/s": full.throughput_per_s, "load": told.load}
        criteria: dict[str, bool] = {}
        for count, act, judge in (
            (told.swaps, lambda: swap(server, model, Asker(server, x), told.swaps), judge_swaps),
            (told.kill, lambda: kill(server, told.kill), judge_kills),
        ):
            if count:
                running = Load(load)
                time.sleep(WARM_UP_S + 2)  # and for the processes to begin
                done = act()
                found, held = judge(done, running.end())
                figures |= found
                criteria |= held
    return figures, criteria


def table(figures: dict[str, Any], criteria: dict[str, bool]) -> str:
    """In Markdown."""
    rows = [record.headline(), "", "| | |", "|---|---|"]
    for name, value in figures.items():
        told: object = value
        if isinstance(value, list) and len(value) > 8:
            is_text = isinstance(value[0], str)
            told = f"{len(value)}: {value[0]} ..." if is_text else f"{np.median(value):.3g} (median)"
        rows.append(f"| {name} | {told} |")
    return "\n".join([*rows, *record.verdicts(criteria)])


def main() -> None:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--kill", type=int, default=5, help="workers to kill")
    parser.add_argument("--network", default="minilm", help="see networks.py")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--load", type=float, default=0.6, help="share of the measured capacity that is offered")
    parser.add_argument("--concurrency", type=int, default=32, help="with which the capacity is measured")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swaps-") as folder:
        figures, criteria = measure_all(told, Path(folder))
    if told.json:
        told.json.write_text(json.dumps({**figures, "criteria": criteria}, indent=1), encoding="utf-8")
    shown = table(figures, criteria)
    print(shown)
    if told.write:
        record.write("swaps", shown)
    sys.exit(not all(criteria.values()))


if __name__ == "__main__":
    main()
