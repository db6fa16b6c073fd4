"""`salver tune`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from salver.bundle import Bundle
from salver.cli._load_progress import StatusLine
from salver.cli._output import print_json, print_rich, write_file
from salver.client.load import LoadPlan
from salver.client.load import run as run_load
from salver.client.load.process_tree import tree_pss_bytes
from salver.client.load.search import find_capacity
from salver.client.load.tuning import DEFAULT, Candidate, Choice, Effort, Trial, search
from salver.core.arrays import Array
from salver.core.errors import FailedPrecondition, InvalidArgument, SalverError
from salver.core.host import describe_cpu, usable_cores
from salver.core.tensors import TensorSpec
from salver.server.engine.repository import BUNDLE_SUFFIX, open_model
from salver.server.tuned import SUFFIX, Tuned, TunedSettings, format_tuned, tuned_path

_START_S: Final = 120.0
_STOP_S: Final = 20.0
_READY: Final = re.compile(r"ready on (http://[^\s,]+)")
_DEFAULT_SLO: Final = 8.0
"""Without an objective: so many times the latency of a request alone."""
_LEAST_SLO_S: Final = 0.002
_MIB: Final = 1 << 20


def run(
    bundle: str,
    *,
    slo_s: float = 0.0,
    cores: int = 0,
    budget_s: float = 300.0,
    output: Path | None = None,
    json: bool = False,
) -> None:
    """Measure ways to serve a bundle on this machine, and write the best down; Ctrl-C keeps the best so far."""
    path = Path(bundle).resolve()
    opened = open_model(path, path.stem)
    here = usable_cores()
    if cores > here:
        raise InvalidArgument(f"--cores: got {cores}, this process may use {here}")
    ends_s = time.monotonic() + budget_s

    def is_over() -> bool:
        return asked() or time.monotonic() >= ends_s

    with _stopping() as asked, _Bench(path, opened, slo_s, cores or here, is_over) as bench:
        objective_s = bench.find_objective()
        bench.tell(f"objective: 99 % of requests within {objective_s * 1e3:.3g} ms on {bench.cores} of {here} cores")
        merge = opened.signature.batch_dim is not None
        choice = search(bench.cores, bench.measure, merge=merge, stop=is_over, on_trial=bench.show)
    if choice is None:
        raise KeyboardInterrupt
    if choice.trials[0].failure and not any(trial.best for trial in choice.trials):
        raise FailedPrecondition(f"nothing could be measured: {choice.trials[0].failure}")
    target = output or tuned_path(path)
    tuned = make_tuned(opened.digest, cores or here, slo_s or None, objective_s, choice)
    write_file(target, format_tuned(tuned, f"salver tune {path.name}").encode())
    if json:
        print_json({"file": str(target), "settings": tuned.settings, "slo_s": objective_s, "choice": choice})
    else:
        print_rich(*_render(choice, target))


def make_tuned(digest: str, cores: int, slo_s: float | None, objective_s: float, choice: Choice) -> Tuned:
    """What is written down.

    Args:
        slo_s: the objective that the user gave, which the server then keeps; None where the search took one of its own.
    """
    cpu = describe_cpu()
    chosen = choice.winner.candidate
    settings = TunedSettings(
        workers=chosen.workers or None,
        threads=chosen.threads,
        lanes=chosen.lanes,
        max_batch=chosen.max_batch,
        affinity=True if chosen.affinity else None,
        share_weights=True if chosen.share_weights else None,
        slo_s=slo_s,
    )
    why = (f"objective: 99 % of requests within {objective_s * 1e3:.3g} ms", *choice.why)
    rows = tuple(_row(trial) for trial in choice.trials)
    return Tuned(
        bundle=digest, fingerprint=cpu.fingerprint, cpu=cpu.name, cores=cores, settings=settings, why=why, measured=rows
    )


def _row(trial: Trial) -> dict[str, Any]:
    row: dict[str, Any] = {"name": trial.candidate.name, "rate_per_s": round(trial.capacity_per_s, 1)}
    best = trial.best
    if best is not None and best.latency is not None:
        row |= {"p50_ms": round(best.latency.p50, 3), "p99_ms": round(best.latency.p99, 3)}
        row["memory_mib"] = round(trial.memory_bytes / _MIB, 1)
    if best is not None and best.server_cpu_us is not None:
        row["cpu_us"] = round(best.server_cpu_us, 1)
    return row | ({"failure": trial.failure} if trial.failure else {})


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C ends the search after the run that is under way, the second at once."""
    asked = threading.Event()

    def ask(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


class Server(NamedTuple):
    """A server that was started."""

    process: subprocess.Popen[bytes]
    url: str


@contextmanager
def serving(path: Path, candidate: Candidate, cores: set[int], slo_s: float) -> Iterator[Server]:
    """`salver serve` on a loopback port, on these cores, until the block ends.

    Raises:
        FailedPrecondition: it does not start.
    """
    line = [sys.executable, "-m", "salver", "serve", path.name, "--http", "127.0.0.1:0", "--log-level", "warning"]
    line += ["--threads", str(candidate.threads), "--lanes", str(candidate.lanes)]
    line += ["--max-batch", str(candidate.max_batch), "--workers", str(candidate.workers), "--slo", f"{slo_s}s"]
    line += ["--affinity"] if candidate.affinity else []
    line += ["--share-weights"] if candidate.share_weights else []
    variables = {name: value for name, value in os.environ.items() if not name.startswith("SALVER_")}
    with tempfile.TemporaryDirectory(prefix="salver-tune-") as folder, (Path(folder) / ".said").open("w+b") as said:
        # A session of its own: Ctrl-C is for the search. A folder of its own: no salver.toml or tuned file there.
        for source in [path] if path.suffix == BUNDLE_SUFFIX else path.parent.iterdir():
            if not source.name.endswith(SUFFIX):
                (Path(folder) / source.name).symlink_to(source)
        process = subprocess.Popen(
            line, cwd=folder, env=variables, stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True
        )
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, cores)  # its threads and children, which are still to come, inherit it
        try:
            yield Server(process, _wait_ready(process, Path(folder) / ".said"))
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_ready(process: subprocess.Popen[bytes], said: Path) -> str:
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s:
        found = _READY.search(text := said.read_text(encoding="utf-8", errors="replace"))
        if found:
            return found[1]
        if process.poll() is not None:
            raise FailedPrecondition(
                f"a server with these settings does not start: {text.strip().rpartition(chr(10))[2]}"
            )
        time.sleep(0.02)
    raise FailedPrecondition(f"a server with these settings was not ready within {_START_S:g} s")


class _Bench:
    """Measures candidates of one bundle, and says so on standard error."""

    def __init__(self, path: Path, bundle: Bundle, slo_s: float, cores: int, stop: Callable[[], bool]) -> None:
        self._stop = stop
        self._path = path
        self._given_slo_s = slo_s
        self._objective_s = slo_s
        self._inputs = _golden_rows(bundle)
        self._rows = 1 if bundle.signature.batch_dim is not None or not self._inputs else 0
        self._line = StatusLine()
        self.cores = cores
        usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(cores))
        self._all = set(usable)
        self._of_server = set(usable[:cores])
        self._of_generator = set(usable[cores:]) or self._all

    def __enter__(self) -> Self:
        if self._of_generator != self._all:
            os.sched_setaffinity(0, self._of_generator)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.show("")
        if self._of_generator != self._all:
            os.sched_setaffinity(0, self._all)

    def find_objective(self) -> float:
        """The objective given, or eight times the latency of a request alone."""
        if not self._objective_s:
            with serving(self._path, DEFAULT, self._of_server, 0.0) as server:
                alone = run_load(self._plan(server, concurrency=1, duration_s=1.0, warmup_s=0.3))
            if alone.latency is None:
                raise FailedPrecondition(f"the model does not answer: {alone.outcomes}")
            self._objective_s = max(_LEAST_SLO_S, _DEFAULT_SLO * alone.latency.p50 / 1e3)
        return self._objective_s

    def measure(self, candidate: Candidate, effort: Effort, rung: int, before: Trial | None) -> Trial:
        """One trial."""
        self._line.show(f"  {candidate.name}, runs of {effort.run_s:g} s ...")
        try:
            with serving(self._path, candidate, self._of_server, self._given_slo_s) as server:
                plan = self._plan(
                    server, rate_per_s=1.0, duration_s=effort.run_s, warmup_s=effort.run_s / 5, slo_s=self._objective_s
                )
                best, _ = find_capacity(
                    plan,
                    precision=effort.precision,
                    probe_s=effort.run_s,
                    min_requests=effort.min_requests,
                    attempts=effort.attempts,
                    stop=self._stop,
                )
                return Trial(
                    candidate=candidate,
                    rung=rung,
                    best=best,
                    memory_bytes=tree_pss_bytes(server.process.pid),
                    failure="the search ended before a rate held" if best is None and self._stop() else "",
                )
        except SalverError as error:
            return Trial(candidate=candidate, rung=rung, best=None, failure=error.message)

    def _plan(self, server: Server, **load: Any) -> LoadPlan:
        patience_s = max(2.0, 4 * self._objective_s)
        return LoadPlan(
            url=server.url, rows=self._rows, inputs=self._inputs, patience_s=patience_s, pid=server.process.pid, **load
        )

    def show(self, trial: Trial) -> None:
        """A line for a trial."""
        best = trial.best
        if best is None or best.latency is None:
            found = trial.failure or "the objective is not kept at any rate"
        else:
            found = (
                f"{best.offered_per_s:10,.0f}/s   p99 {best.latency.p99:.3g} ms   {trial.memory_bytes / _MIB:.0f} MiB"
            )
        self._line.keep(f"  {trial.candidate.name:45} {found}")

    def tell(self, text: str) -> None:
        """A line."""
        self._line.keep(text)


def _golden_rows(bundle: Bundle) -> Mapping[str, Array]:
    """Inputs that the model is known to take; none where the bundle has none, or BF16 ones, whose arrays say UINT16."""
    golden = bundle.golden
    if not golden or any(spec.datatype == "BF16" for spec in bundle.signature.inputs):
        return {}
    return {spec.name: _as_sent(golden[0].inputs[spec.name], spec) for spec in bundle.signature.inputs}


def _as_sent(array: Array, spec: TensorSpec) -> Array:
    """An input as clients give it: bytes of any kind as `bytes`."""
    if not spec.binary:
        return array
    sent = np.empty(array.shape, object)
    sent.reshape(-1)[:] = [element.encode("latin-1") for element in array.reshape(-1).tolist()]
    return sent


def _render(choice: Choice, target: Path) -> list[Any]:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("processes", "lanes", "threads", "batch", "rate", "p50", "p99", "CPU", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for trial in choice.trials:
        candidate, best = trial.candidate, trial.best
        cells = [str(n) for n in (candidate.processes, candidate.lanes, candidate.threads, candidate.max_batch)]
        if best is not None and best.latency is not None:
            cells += [f"{best.offered_per_s:,.0f}/s", f"{best.latency.p50:.3g} ms", f"{best.latency.p99:.3g} ms"]
            cells += [f"{best.server_cpu_us or 0:,.0f} µs", f"{trial.memory_bytes / _MIB:,.0f} MiB"]
        else:
            cells += ["failed" if trial.failure else "none", "", "", "", ""]
        table.add_row(*cells, style="bold green" if trial is choice.winner else "" if trial.rung == 2 else "dim")
    return [table, *(f"  {escape(sentence)}" for sentence in choice.why), f"wrote {escape(str(target))}"]
