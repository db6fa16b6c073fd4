"""Runs the conformance suite of the Open Inference Protocol against Salver and its peers, and fills the page.

    python benchmarks/conformance.py clients            # an environment for each real client, in build/clients
    python benchmarks/conformance.py run                # Salver, with TLS off and on, Triton and MLServer
    python benchmarks/conformance.py run --only salver --write

`--write` puts the tables between the marks of docs/conformance.md. Peers come from PyPI, each in an environment of its
own under build/peers. Triton is the one inside nvidia-pytriton, which brings the Python backend alone; MLServer runs a
runtime of a few lines. Both serve the same models as Salver: `python -m salver.testing.oip models`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import environments
from environments import ROOT, Command, Process, environment, free_port, running

from salver import __version__
from salver.testing.certificates import Authority
from salver.testing.oip import CASES, CLIENTS, GROUPS, Outcome, Report, Target, run, write_models

CLIENT_FOLDER = ROOT / "build" / "clients"
PAGE = ROOT / "docs" / "conformance.md"
ENVIRONMENTS = {client.name.partition(".")[0]: client.needs for client in CLIENTS if client.needs}
# Other protocols than the inference protocol: these peers do not speak them.
ELSEWHERE = ("tf-serving", "kserve-v1", "mlflow")
_ALIKE = 24  # characters of a failure that make it the same failure
MARKS = ("<!-- results -->", "<!-- end of results -->")


def clients() -> dict[str, str]:
    """The interpreter of each client."""
    return {name: str(environment(CLIENT_FOLDER / name, packages)) for name, packages in ENVIRONMENTS.items()}


def wait_for(url: str, server: Process, limit_s: float = 120) -> None:
    """Until the URL answers 200."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    sys.exit(f"no answer from {url}:\n{server.last_words()}")


@contextmanager
def salver(folder: Path, *flags: str) -> Iterator[Target]:
    """`salver serve` over the models, on free ports."""
    write_models(folder / "models", "salver")
    command = [sys.executable, "-m", "salver", "serve", str(folder / "models"), *flags]
    command += ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    with running(Command(command, {}), folder) as server:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            ready = re.search(r"^ready on (https?://[^\s,]+), grpc (\S+)", server.said.read_text(), re.MULTILINE)
            if ready:
                yield Target(http=ready[1], grpc=ready[2])
                return
            time.sleep(0.2)
        sys.exit(f"Salver did not start:\n{server.last_words()}")


@contextmanager
def salver_tls(folder: Path) -> Iterator[Target]:
    """The same over TLS."""
    authority = Authority(folder)
    certificate, key = authority.issue("server")
    with salver(folder, "--tls-cert", str(certificate), "--tls-key", str(key)) as target:
        yield Target(http=target.http, grpc=target.grpc, ca=str(authority.path))


@contextmanager
def triton(folder: Path) -> Iterator[Target]:
    """Triton over the models."""
    write_models(folder / "models", "triton")
    with _peer(environments.triton, folder) as target:
        yield target


@contextmanager
def mlserver(folder: Path) -> Iterator[Target]:
    """MLServer over the models."""
    write_models(folder, "mlserver")
    with _peer(environments.mlserver, folder) as target:
        yield target


@contextmanager
def _peer(command: Callable[[Path, int, int], Command], folder: Path) -> Iterator[Target]:
    http, grpc = free_port(), free_port()
    with running(command(folder, http, grpc), folder) as server:
        wait_for(f"http://127.0.0.1:{http}/v2/health/ready", server)
        yield Target(http=f"http://127.0.0.1:{http}", grpc=f"127.0.0.1:{grpc}")


SERVERS = {"salver": salver, "salver-tls": salver_tls, "triton": triton, "mlserver": mlserver}


def version_of(name: str, target: Target) -> str:
    """What is measured, with its version."""
    if name.startswith("salver"):
        return f"Salver {__version__}" + (" over TLS" if target.ca else "")
    with urllib.request.urlopen(target.http + "/v2", timeout=10) as answer:
        said = json.load(answer)
    return f"{ {'triton': 'Triton', 'mlserver': 'MLServer'}[name] } {said['version']}"


def measure(name: str, pythons: Mapping[str, str]) -> tuple[str, Report]:
    """Start a server, run the suite, stop it."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder, SERVERS[name](Path(folder)) as target:
        print(f"running against {name}", file=sys.stderr)
        without = () if name.startswith("salver") else ELSEWHERE
        return version_of(name, target), run(target, pythons, without=without)


def tables(found: Mapping[str, Report]) -> str:
    """The results as Markdown."""
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    lines = [f"Run on {when} with Python {sysconfig.get_python_version()} by `make peers`; cases passed / run.", ""]
    lines += _by_client(found)
    lines += ["", "The same by part of the protocol, over all clients:", ""]
    lines += _by_group(found)
    for name, report in found.items():
        lines += ["", f"### {name}: what fails", "", *_failures(report)]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _head(found: Mapping[str, Report], first: list[str]) -> list[str]:
    columns = [*first, *found]
    return [_row(columns), "|" + "---|" * len(columns)]


def _cell(passed: int, run_: int) -> str:
    return f"**{passed}/{run_}**" if passed == run_ else f"{passed}/{run_}"


def _by_client(found: Mapping[str, Report]) -> list[str]:
    versions: dict[str, str] = {}
    for report in found.values():
        versions |= report.clients
    lines = _head(found, ["client", "protocol"])
    for client, version in versions.items():
        protocol = "gRPC" if "grpc" in client else "REST"
        cells = []
        for report in found.values():
            passed = [not o.failure for o in report.outcomes if o.client == client]
            cells.append(_cell(sum(passed), len(passed)) if passed else report.absent.get(client, "not run"))
        lines.append(_row([f"{client} ({version})", protocol, *cells]))
    totals = [_cell(len(r.outcomes) - len(r.failures), len(r.outcomes)) for r in found.values()]
    return [*lines, _row(["all", "", *totals])]


def _by_group(found: Mapping[str, Report]) -> list[str]:
    lines = _head(found, ["part", "what"])
    for group, what in GROUPS.items():
        cells = []
        for report in found.values():
            passed = [not o.failure for o in report.outcomes if o.group == group]
            cells.append(_cell(sum(passed), len(passed)) if passed else "not run")
        lines.append(_row([group, what, *cells]))
    return lines


def _failures(report: Report) -> list[str]:
    """One line for cases of one kind that failed alike: their names, the first demands, what was seen first."""
    by_case: dict[str, list[Outcome]] = {}
    for outcome in report.failures:
        by_case.setdefault(outcome.case, []).append(outcome)
    if not by_case:
        return ["Nothing."]
    demands = {case.id: case.says for case in CASES}
    alike: dict[tuple[str, str, str], list[str]] = {}
    for case, outcomes in by_case.items():
        who = ", ".join(o.client for o in outcomes)
        alike.setdefault((case.rpartition("/")[0], who, outcomes[0].failure[:_ALIKE]), []).append(case)
    lines = ["| case | demand | client | what the server did |", "|---|---|---|---|"]
    for (kind, who, _), cases in alike.items():
        named = f"`{cases[0]}`" if len(cases) == 1 else f"`{kind}/`: " + ", ".join(c.rpartition("/")[2] for c in cases)
        says = [_plain(demands[case]) for case in cases[:2]] + ["…"] * (len(cases) > 2)
        lines.append(_row([named, "; ".join(says), who, _plain(by_case[cases[0]][0].failure)]))
    return lines


def _plain(text: str) -> str:
    one = re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")
    one = re.sub(r"\b[0-9a-f]{8}-[0-9a-f-]{27}\b", "…", one)
    one = re.sub(r"127\.0\.0\.1:\d+", "HOST", one)
    return one if len(one) <= 140 else one[:137] + "…"


def main() -> None:
    """Make the environments, or run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("clients", "run"))
    parser.add_argument("--only", action="append", choices=tuple(SERVERS))
    parser.add_argument("--write", action="store_true", help="write docs/conformance.md")
    options = parser.parse_args()
    pythons = clients()
    if options.verb == "clients":
        return
    found = dict(measure(name, pythons) for name in options.only or SERVERS)
    text = tables(found)
    if not options.write:
        print(text)
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")
    print({name: Counter(bool(o.failure) for o in report.outcomes) for name, report in found.items()})


if __name__ == "__main__":
    main()
