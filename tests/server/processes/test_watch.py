"""When a worker is to be replaced, and when a new one may be tried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.server.processes.base import Beat
from salver.server.processes.watch import HUNG_S, LOADING_S, MAX_DELAY_S, SETTLE_BEATS, STABLE_S, Backoff, Watch

MIB = 1 << 20


def beat(memory_mib=100, served="models", loading=False, **running_s):
    return Beat(memory_mib * MIB, running_s, loading, served)


class TestSilence:
    def test_who_is_heard_of_does_not_hang(self):
        watch = Watch(0.0, 60.0)
        for now_s in range(100):
            watch.hear(beat(), now_s)
            assert watch.is_silent(now_s + HUNG_S - 0.1) is None
        assert watch.is_silent(99 + HUNG_S).reason == "hang"

    def test_who_starts_or_loads_has_longer(self):
        watch = Watch(0.0, 60.0)
        assert watch.is_silent(LOADING_S - 0.1) is None
        assert watch.is_silent(LOADING_S).reason == "hang"
        watch.hear(beat(loading=True, served=""), 1.0)
        assert watch.is_silent(LOADING_S) is None
        watch.hear(beat(), 2.0)
        assert watch.is_silent(2.0 + HUNG_S) is not None

    def test_who_gets_no_core_does_not_hang(self):
        watch = Watch(0.0, 60.0)
        watch.hear(beat(), 10.0, waited_s=3.0)
        assert watch.is_silent(10.0 + 4 * HUNG_S, waited_s=3.0 + 3.1 * HUNG_S) is None
        complaint = watch.is_silent(10.0 + 4 * HUNG_S, waited_s=3.0 + 3 * HUNG_S)
        assert (complaint.reason, complaint.why) == ("hang", "nothing was heard of it for 20 s")
        watch.excuse(40.0, waited_s=20.0)
        assert watch.is_silent(40.0 + HUNG_S - 0.1, waited_s=20.0) is None


class TestRuns:
    def test_a_batch_over_the_limit(self):
        complaint = Watch(0.0, 2.0).hear(beat(quick=1.9, slow=2.1), 1.0)
        assert complaint.reason == "slow"
        assert "model slow has run for 2 s" in complaint.why

    def test_no_limit(self):
        assert Watch(0.0, 0.0).hear(beat(slow=1e6), 1.0) is None


class TestMemory:
    def settle(self, watch, memory_mib=100, served="models"):
        for _ in range(SETTLE_BEATS + 2):
            assert watch.hear(beat(memory_mib, served), 0.0) is None

    def test_what_grows_far_beyond_what_it_loaded(self):
        watch = Watch(0.0, 60.0)
        self.settle(watch)
        assert watch.hear(beat(700), 0.0) is None
        complaint = watch.hear(beat(713), 0.0)
        assert complaint.reason == "memory"
        assert "713 MiB, and took 100 MiB" in complaint.why

    def test_other_models_have_a_level_of_their_own(self):
        watch = Watch(0.0, 60.0)
        self.settle(watch)
        self.settle(watch, 2000, "more models")
        assert watch.hear(beat(2000, "models"), 0.0) is None  # they have just been unloaded
        for _ in range(SETTLE_BEATS - 1):
            assert watch.hear(beat(2000, "models"), 0.0) is None
        assert watch.hear(beat(2000, "models"), 0.0).reason == "memory"

    def test_nothing_is_judged_while_models_are_loaded(self):
        watch = Watch(0.0, 60.0)
        self.settle(watch)
        assert watch.hear(beat(9000, served="", loading=True), 0.0) is None
        assert watch.hear(beat(9000), 0.0) is None

    def test_nor_soon_after_a_replacement_for_memory(self):
        watch = Watch(0.0, 60.0)
        watch.memory_from_s = 100.0
        self.settle(watch)
        assert watch.hear(beat(9000), 99.0) is None
        assert watch.hear(beat(9000), 100.0).reason == "memory"


class TestBackoff:
    def test_the_first_crash_is_mended_at_once_and_a_loop_is_slowed(self):
        backoff = Backoff()
        delays = []
        for _ in range(9):
            delays.append(backoff.delay_s)
            backoff.failed(0.0)
        assert delays == [0, 0, 1, 2, 4, 8, 16, MAX_DELAY_S, MAX_DELAY_S]

    @given(st.lists(st.floats(0, 2 * STABLE_S)))
    def test_who_lived_long_has_not_crashed_in_a_row(self, lives_s):
        backoff = Backoff()
        for lived_s in lives_s:
            backoff.failed(lived_s)
            assert 0 <= backoff.delay_s <= MAX_DELAY_S
        backoff.failed(STABLE_S)
        assert backoff.delay_s == 0


@pytest.mark.parametrize("age_s", [0.0, 59.9])
def test_beats_without_complaint(age_s):
    assert Watch(0.0, 60.0).hear(beat(model=age_s), 1.0) is None
