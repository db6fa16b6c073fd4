"""What the search says of a candidate."""

from __future__ import annotations

from salver.builder.search.recipes import Proposal, step
from salver.builder.search.search import _with_expectation
from salver.evaluation.types import Verdict


def test_a_pass_that_gives_no_speed_says_why() -> None:
    pruned = Proposal(name="pruned", recipe=(step("prune-magnitude"),), origin="preset")
    slow = Verdict(outcome="rejected", gate="speed", reason="not measurably faster")
    assert "dense kernels do not skip zeros" in _with_expectation(slow, pruned).reason
    worse = Verdict(outcome="rejected", gate="quality", reason="worse")
    assert _with_expectation(worse, pruned) == worse
