"""Every target: its corpus, then examples that Hypothesis makes by the same grammars, and shortens where they fail."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import corpus
from tests.fuzz.driver import BLOCK, Runner, bounded, run_one
from tests.fuzz.targets import TARGETS

RANDOMS = st.randoms(use_true_random=False)
SEED = 20_261_122


@pytest.fixture(scope="module", params=sorted(TARGETS))
def target(request):
    return TARGETS[request.param]()


def test_corpus(target):
    target.renew()
    inputs = corpus.read(target.name)
    assert inputs
    with bounded():
        assert sum(run_one(target, data) for data in inputs) > len(inputs) // 4


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(random=RANDOMS, near=st.booleans())
def test_inputs_of_the_grammar(target, random, near):
    target.renew()
    data = target.make(random)
    target.run(target.mutate(data, random) if near else data)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.binary(max_size=200))
def test_any_bytes(target, data):
    target.run(data)


def test_half_of_the_inputs_pass_the_first_parse_and_are_the_same_again(target):
    first = Runner(target.name, SEED).run(0, 1)
    assert not first.found, first.found[0].trace
    assert first.past * 2 >= first.inputs == BLOCK
    again = Runner(target.name, SEED).run(0, 1)
    assert (again.inputs, again.past) == (first.inputs, first.past)
