"""``python -m salver.testing.oip``: run the conformance suite against a server, or write the models it asks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from salver.core.errors import SalverError
from salver.testing.oip.case import GROUPS
from salver.testing.oip.drivers import CLIENTS, Target
from salver.testing.oip.models import LAYOUTS, write
from salver.testing.oip.report import show, show_cases
from salver.testing.oip.runner import Outcome, run, to_json
from salver.testing.oip.table import CASES


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 where every case that was run passed, 1 where one failed, 2 where none was run."""
    options = _parser().parse_args(arguments)
    console = Console()
    if options.verb == "models":
        try:
            write(Path(options.folder), options.layout)
        except SalverError as error:
            console.print(f"error: {error}", markup=False)
            return 2
        return 0
    if options.list:
        show_cases(CASES, Console(width=200))
        return 0
    report = run(
        _target(options),
        dict(text.split("=", 1) for text in options.client),
        clients=options.only,
        without=options.without,
        matching=options.matching,
        seen=_say if options.verbose else None,
    )
    if options.json:
        json.dump(to_json(report), sys.stdout, indent=1)
    else:
        show(report, console)
    if not report.outcomes:
        return 2
    return 1 if report.failures else 0


def _say(outcome: Outcome) -> None:
    print(f"{outcome.client} {outcome.case}: {outcome.failure or 'passed'}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m salver.testing.oip", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    models = verbs.add_parser("models", help="write the models that the cases ask")
    models.add_argument("folder")
    models.add_argument("--layout", choices=tuple(LAYOUTS), default="salver")
    runner = verbs.add_parser("run", help="run the cases against a server")
    runner.add_argument("--http", default="", help="URL of the REST endpoint, such as http://127.0.0.1:8080")
    runner.add_argument("--grpc", default="", help="host and port of the gRPC endpoint")
    runner.add_argument("--ca", default="", help="certificate that signed the server's; turns TLS on")
    runner.add_argument("--client-cert", default="", help="the client's certificate")
    runner.add_argument("--client-key", default="", help="the key of the client's certificate")
    runner.add_argument("--api-key", default="", help="sent as 'Authorization: Bearer KEY'")
    runner.add_argument(
        "--client",
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help="interpreter that has a client (tritonclient, kserve, ovmsclient, grpcio); this one where not given",
    )
    names = tuple(client.name for client in CLIENTS)
    runner.add_argument("--only", action="append", default=[], choices=names, help="run this client; may be repeated")
    runner.add_argument(
        "--without", action="append", default=[], choices=tuple(GROUPS), help="leave a group out; may be repeated"
    )
    runner.add_argument("--matching", default="", help="only cases whose id holds this text")
    runner.add_argument("--verbose", action="store_true", help="name each case on standard error as it ends")
    runner.add_argument("--json", action="store_true", help="write one JSON document")
    runner.add_argument("--list", action="store_true", help="print the cases and stop")
    return parser


def _target(options: argparse.Namespace) -> Target:
    return Target(
        http=options.http,
        grpc=options.grpc,
        ca=options.ca,
        cert=options.client_cert,
        key=options.client_key,
        headers={"authorization": f"Bearer {options.api_key}"} if options.api_key else {},
    )


if __name__ == "__main__":
    sys.exit(main())
