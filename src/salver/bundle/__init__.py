"""The sealed artifact: write, read, verify, sign; holds the golden requests."""

from salver.bundle.bundle import Bundle, VerifyReport
from salver.bundle.calibrate import make_golden
from salver.bundle.dsse import generate_keys
from salver.bundle.golden import GoldenRequest, ReplayReport, Tolerance, replay
from salver.bundle.seal import Contents, seal

__all__ = [
    "Bundle",
    "Contents",
    "GoldenRequest",
    "ReplayReport",
    "Tolerance",
    "VerifyReport",
    "generate_keys",
    "make_golden",
    "replay",
    "seal",
]
