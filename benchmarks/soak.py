"""A server under everything at once for half an hour: mixed traffic, rough clients, faults and swaps.

    python benchmarks/soak.py [--minutes 30] [--seed 1] [--workers 2] [--out build/soak] [--write]

Steady traffic over REST (JSON and binary), gRPC and TensorFlow Serving's two interfaces, every answer compared with
what ONNX Runtime gives; clients that stream sequences, send nonsense, vanish or dawdle (`rough_clients.py`); in turn, a
worker killed with -9, a worker stopped for some seconds, contents replaced, and contents that cannot be loaded. Only
the youngest worker is hurt, so that the oldest shows what half an hour does to one. Writes a record of what came of it,
with `--write` into docs/reliability.md; exits with 1 where a criterion does not hold. Linux.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import networks
import numpy as np
import process_tree
import record
import rough_clients
from environments import ROOT
from served import Server, Swapped, fetch, serve

from salver.client.load import LoadPlan, run
from salver.client.load.plan import CUT_OFF, OK, TIMED_OUT, UNREACHABLE, WRONG
from salver.testing.oip.models import MODELS
from salver.testing.oip.models._onnx import write

RATES = {"json": 20, "rest": 60, "grpc": 60, "tfserving-rest": 20, "tfserving-grpc": 20}  # requests/s
SLOW_RATE = 2
CONNECTIONS = 8  # of each, always as many, so that files of the server can be counted
INTERRUPTED = {CUT_OFF, TIMED_OUT, UNREACHABLE, "429", "503", "504"}
INTERRUPTED |= {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
SAMPLE_S, FAULT_S, STOPPED_S, WHOLE_S = 2.0, 10.0, 3.0, 30.0
WARM_UP = 0.2  # share of the run in which memory may rise
GROWTH = 0.03  # of memory in the rest of the run: below that a rise is not told from noise
GROWTH_FILES = 4
ROUGH_PAUSE_S = 0.2


def traffic(plans: dict[str, LoadPlan], stop: Any, answers: Any) -> None:
    """In a process of its own: all steady traffic, until told to stop; outcomes by plan."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    outcomes: dict[str, Any] = {}

    def offer(name: str, plan: LoadPlan) -> None:
        outcomes[name] = run(plan, stop=stop.is_set).outcomes

    threads = [threading.Thread(target=offer, args=each) for each in plans.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.put(outcomes)


def plans_of(server: Server, x: np.ndarray, y: np.ndarray, seed: int) -> dict[str, LoadPlan]:
    """The steady traffic."""
    rest, grpc, same = f"http://{server.http}", f"grpc://{server.grpc}", np.arange(16, dtype=np.float32)[:, None]
    told: dict[str, Any] = {
        "duration_s": 1e6,
        "warmup_s": 0.0,
        "check": True,
        "tolerance": 1e-3,
        "seed": seed,
        "connections": CONNECTIONS,
    }
    swapped = {**told, "model": "swapped", "inputs": {"x": x}, "expected": {"y": y}}
    slow = {**told, "model": "slow", "inputs": {"x": same}, "expected": {"y": same}, "patience_s": 30.0}
    plans = {
        wire: LoadPlan(url=grpc if wire.endswith("grpc") else rest, wire=wire, rate_per_s=rate, **swapped)
        for wire, rate in RATES.items()
    }
    return {**plans, "slow model": LoadPlan(url=grpc, rate_per_s=SLOW_RATE, **slow)}


class Rough:
    """All rough clients, each in a thread."""

    def __init__(self, address: str, seed: int) -> None:
        self.words: dict[str, Counter[str]] = {name: Counter() for name in rough_clients.STEPS}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(name, address, random.Random(f"{seed} {name}")), daemon=True)
            for name in rough_clients.STEPS
        ]
        for thread in self._threads:
            thread.start()

    def _repeat(self, name: str, address: str, rng: random.Random) -> None:
        while not self._stop.is_set():
            try:
                word = rough_clients.STEPS[name](address, rng)
            except ConnectionError:
                word = rough_clients.INTERRUPTED
            except OSError as error:
                word = f"WRONG: {error}"
            self.words[name][word] += 1
            time.sleep(rng.random() * ROUGH_PAUSE_S)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


class Run:
    """Faults and swaps, and what was held meanwhile."""

    def __init__(self, server: Server, model: Swapped, workers: int) -> None:
        self.faults: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.samples: list[tuple[float, ...]] = []
        self.slowest_s = 0.0
        self.oldest = process_tree.workers(server.pid)[0]
        self._server, self._model, self._workers = server, model, workers
        self._began_s = time.monotonic()

    def go(self, minutes: float) -> None:
        """Until the time is over."""
        turns = (self.kill, self.swap, self.stop, self.swap, self.refuse, self.swap)
        while time.monotonic() < self._began_s + 60 * minutes:
            self.watch(FAULT_S)
            turn = turns[sum(self.faults.values()) % len(turns)]
            self.faults[turn.__name__] += 1
            turn()
            left_s = self._began_s + 60 * minutes - time.monotonic()
            print(f"{left_s:.0f} s left, {dict(self.faults)}, {self.samples[-1]}", file=sys.stderr)

    def watch(self, seconds: float) -> None:
        """Look at memory and files for a while."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            tree = process_tree.holding(process_tree.descendants(self._server.pid))
            one, top = process_tree.holding([self.oldest]), process_tree.holding([self._server.pid])
            at_s = time.monotonic() - self._began_s
            self.samples.append((at_s, tree.pss, one.pss, top.pss, one.files, top.files, tree.processes))
            time.sleep(SAMPLE_S)

    def kill(self) -> None:
        """A worker, with -9."""
        os.kill(self._youngest(), signal.SIGKILL)
        self._wait_until_whole()

    def stop(self) -> None:
        """A worker stands still for a while."""
        victim = self._youngest()
        os.kill(victim, signal.SIGSTOP)
        time.sleep(STOPPED_S)
        if victim in process_tree.workers(self._server.pid):
            os.kill(victim, signal.SIGCONT)
        self._wait_until_whole()

    def swap(self) -> None:
        """Other contents."""
        self._model.replace()
        status, said = self._server.load("swapped")
        if status != 200:
            self.wrong.append(f"a swap was refused: {said}")
        self._model.tidy()

    def refuse(self) -> None:
        """Contents that cannot be loaded: half a network, or half a bundle."""
        self._model.corrupt(bundle=bool(self.faults["refuse"] % 2))
        status, said = self._server.load("swapped")
        if not 400 <= status < 500:
            self.wrong.append(f"contents that are broken were answered with {status}: {said}")
        self._model.tidy()
        status, said = self._server.load("swapped")
        if status != 200:
            self.wrong.append(f"a load after broken contents were taken away was refused: {said}")

    def _youngest(self) -> int:
        [*_, last] = process_tree.workers(self._server.pid)
        return last

    def _wait_until_whole(self) -> None:
        """Until all workers take requests: as many as there should be have been seen to beat."""
        began_s = time.monotonic()
        while time.monotonic() < began_s + WHOLE_S:
            time.sleep(0.05)
            if len(self._server.ready_workers()) == self._workers:
                self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
                return
        self.wrong.append(f"not all workers were there again after {WHOLE_S:g} s")


def judge(run: Run, outcomes: dict[str, dict[str, int]], words: dict[str, Counter[str]], end: Any) -> dict[str, bool]:
    """The criteria."""
    steady = Counter[str]()
    for each in outcomes.values():
        steady.update(each)
    rough = sum(words.values(), Counter())
    bad = [word for word in rough if word.startswith("WRONG")]
    gathered = sum(words[name][rough_clients.RIGHT] for name in ("raising", "slow"))
    open_ends = sum(words[name][rough_clients.INTERRUPTED] for name in ("raising", "slow"))
    strange = {name: count for name, count in steady.items() if name not in {OK, WRONG, *INTERRUPTED}}
    first = WARM_UP * run.samples[-1][0]
    columns = np.array([each for each in run.samples if each[0] > first]).T
    names = ("", "memory of all", "memory of the oldest worker", "memory of the supervisor")
    names += ("files of the oldest worker", "files of the supervisor")
    slopes = {names[i]: process_tree.slope(columns[i], columns[0]) for i in range(1, len(names))}
    return {
        f"no wrong answer ({steady[OK]} right ones to steady traffic)": not steady[WRONG],
        f"no other outcome than answers and interruptions {strange or ''}": not strange,
        f"each rough client got what it should {bad[:3] or ''}": not bad,
        f"each fault did what it should {run.wrong[:3] or ''}": not run.wrong,
        "the oldest worker lived through all of it": run.oldest in end["workers"],
        f"over all workers the server counted what its clients got ({end['counted']} for {gathered})": gathered
        <= end["counted"]
        <= gathered + open_ends,
        f"no traceback in the log {end['tracebacks'] or ''}": not end["tracebacks"],
        "it ended with exit code 0 when told to": end["code"] == 0,
        **{
            f"{name}: no upward slope ({each})": not each.rises(GROWTH_FILES if "files" in name else GROWTH * each.mean)
            for name, each in slopes.items()
        },
    }


def soak(told: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole run."""
    models = folder / "models"
    model = Swapped(networks.write("mlp", folder), models / "swapped")
    rough_clients.write_models(models)
    write(models, next(each for each in MODELS if each.name == "slow"))
    x, y = model.example(64, 1)
    with ExitStack() as stack:
        server = serve(stack, folder, models, ["--workers", str(told.workers)])
        spawn = multiprocessing.get_context("spawn")
        stop, answers = spawn.Event(), spawn.Queue()
        plans = plans_of(server, x, y, told.seed)
        steady = spawn.Process(target=traffic, args=(plans, stop, answers), daemon=True)
        steady.start()
        rough, done = Rough(server.http, told.seed), Run(server, model, told.workers)
        done.go(told.minutes)
        stop.set()
        outcomes = answers.get(timeout=120)
        rough.end()
        [counted] = re.findall(
            r'^salver_request_total{code="OK",model="gather".* (\d+)', fetch(server.http, "/metrics"), re.M
        )
        end: dict[str, Any] = {"workers": process_tree.workers(server.pid), "counted": int(counted)}
        server.process.popen.send_signal(signal.SIGTERM)
        end["code"] = server.process.popen.wait(60)
        end["tracebacks"] = server.said().count("Traceback")
        (told.out / "log").write_text(server.said(), encoding="utf-8")
    criteria = judge(done, outcomes, rough.words, end)
    return {
        "headline": record.headline(seed=told.seed, minutes=told.minutes, workers=told.workers),
        "faults": dict(done.faults),
        "slowest recovery, s": round(done.slowest_s, 2),
        "steady traffic": outcomes,
        "rough clients": {name: dict(each) for name, each in rough.words.items()},
        "criteria": criteria,
        "samples": done.samples,
    }


def table(found: dict[str, Any]) -> str:
    """In Markdown."""
    rows = [found["headline"], "", "| | |", "|---|---|", f"| faults and swaps | {record.counts(found['faults'])} |"]
    rows += [f"| slowest recovery | {found['slowest recovery, s']} s |"]
    for kind in ("steady traffic", "rough clients"):
        rows += [f"| {kind}: {name} | {record.counts(each)} |" for name, each in found[kind].items()]
    return "\n".join([*rows, *record.verdicts(found["criteria"])])


def main() -> None:
    """Run, record, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "soak", help="folder of the record and the log")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    told = parser.parse_args()
    told.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found = soak(told, Path(folder))
    (told.out / "record.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table(found))
    if told.write:
        record.write("soak", table(found))
    sys.exit(not all(found["criteria"].values()))


if __name__ == "__main__":
    main()
