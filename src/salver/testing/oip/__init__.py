"""The conformance suite of the Open Inference Protocol, for any server, by URL, through real clients.

``python -m salver.testing.oip run --http URL --grpc HOST:PORT`` runs it; ``models`` writes the models it asks. In a
test, `pytest_cases` gives parameters and `Drivers` keeps the clients' processes.
"""

from __future__ import annotations

from salver.testing.oip.case import GROUPS, Answer, Call, Case, Failed, Tensor
from salver.testing.oip.drivers import CLIENTS, Client, Driver, Target, Unavailable
from salver.testing.oip.models import write as write_models
from salver.testing.oip.runner import Outcome, Report, run
from salver.testing.oip.table import CASES

__all__ = [
    "CASES",
    "CLIENTS",
    "GROUPS",
    "Answer",
    "Call",
    "Case",
    "Client",
    "Driver",
    "Failed",
    "Outcome",
    "Report",
    "Target",
    "Tensor",
    "Unavailable",
    "run",
    "write_models",
]
