"""Which worker has more than its share of the traffic, and who takes connections from it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salver.server.processes.balance import BUSY, PAUSE_S, RELIEF_S, Balance, Load, Shift, find_shift

LOADS = st.dictionaries(st.integers(0, 15), st.builds(Load, st.floats(0.0, 8.0), st.integers(0, 100)), max_size=8)


@given(LOADS)
def test_a_shift_makes_the_two_more_alike(loads):
    shift = find_shift(loads)
    if shift is not None:
        giver, taker = loads[shift.giver], loads[shift.taker]
        moved = int(shift.share * giver.connections) * giver.cpu / giver.connections
        assert moved > 0.0
        assert taker.cpu + moved <= giver.cpu - moved + 1e-9
        assert giver.cpu == max(load.cpu for load in loads.values())
        assert taker.cpu == min(load.cpu for load in loads.values())


@pytest.mark.parametrize(
    ("first", "second", "share"),
    [
        (Load(1.0, 16), Load(0.0, 0), 0.5),
        (Load(1.0, 2), Load(0.0, 0), 0.5),
        (Load(1.0, 1), Load(0.0, 0), None),  # one cannot be divided
        (Load(0.9, 3), Load(0.6, 2), None),  # moving one would only turn it round
        (Load(1.0, 16), Load(0.8, 16), None),
        (Load(BUSY / 2, 16), Load(0.0, 0), None),
    ],
)
def test_what_is_worth_it(first, second, share):
    assert find_shift({3: first, 5: second}) == (None if share is None else Shift(3, 5, share))


def test_a_single_worker_has_nobody_to_give_to():
    assert find_shift({}) is None
    assert find_shift({0: Load(4.0, 100)}) is None


UNEVEN = {0: Load(1.0, 8), 1: Load(0.2, 2)}


def test_what_shows_twice_in_a_row_is_believed():
    balance = Balance()
    assert balance.look(UNEVEN, 0.0) is None
    assert balance.look({0: Load(1.0, 8), 1: Load(1.0, 8)}, 1.0) is None
    assert balance.look(UNEVEN, 2.0) is None
    assert balance.look(UNEVEN, 3.0) == Shift(0, 1, 0.4)


def test_one_that_is_sure_is_believed_at_once_and_relieved_for_a_while():
    balance = Balance()
    assert balance.relieved(0.0) == {}
    assert balance.look(UNEVEN, 0.0, sure=True) is not None
    assert balance.relieved(RELIEF_S - 0.1) == {1: (0,)}
    assert balance.relieved(RELIEF_S) == {}


def test_what_was_done_must_show_first():
    balance = Balance()
    balance.look(UNEVEN, 0.0, sure=True)
    assert balance.look(UNEVEN, PAUSE_S - 0.1) is None
    assert balance.look(UNEVEN, PAUSE_S) is None
    assert balance.look(UNEVEN, PAUSE_S + 1.0) is not None


def serve_for(dice, traffic, workers, seconds, held):
    """Workers, connections with their traffic, and a kernel that throws dice for those that come again; the seconds in
    which some did."""
    balance, shifts = Balance(), []
    for second in range(seconds):
        loads = {}
        for worker in range(workers):
            own = [place for place, holder in enumerate(held) if holder == worker]
            loads[worker] = Load(sum(traffic[place] for place in own) * dice.uniform(0.97, 1.03), len(own))
        shift = balance.look(loads, float(second))
        if shift is None:
            continue
        shifts.append(second)
        moving = [place for place, worker in enumerate(held) if worker == shift.giver]
        for place in dice.sample(moving, int(shift.share * len(moving))):
            slot = dice.randrange(workers)
            held[place] = dice.choice((shift.giver, shift.taker)) if slot == shift.giver else slot
    return shifts


@pytest.mark.parametrize("seed", range(10))
def test_one_connection_with_most_of_the_traffic_does_not_keep_the_others_moving(seed):
    dice = random.Random(seed)
    shifts = serve_for(dice, [0.8] + [0.01] * 40, 2, 3600, [0] * 41)
    assert len(shifts) < 20
    assert sum(second >= 1800 for second in shifts) <= 4


@pytest.mark.parametrize("seed", range(10))
def test_any_spread_of_connections_becomes_even_and_stays_so(seed):
    dice = random.Random(seed)
    workers = dice.choice((2, 3, 4, 8))
    count = dice.randrange(2 * workers, 40 * workers)
    held = [dice.randrange(dice.choice((1, workers))) for _ in range(count)]
    shifts = serve_for(dice, [2.0 / count] * count, workers, 300, held)
    assert max(map(held.count, range(workers))) <= 1.4 * count / workers + 1.0
    assert sum(second >= 200 for second in shifts) <= 2  # noise at the border
