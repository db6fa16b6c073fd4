"""Which examples calibrate, which steer the search and which certify: disjoint, random, reproducible."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from salver.core.dataset import Dataset, Subset

_CALIBRATE_MAX: Final = 256  # ranges of activations settle long before; more only costs time
_STEER_MAX: Final = 2000


class Splits(msgspec.Struct, frozen=True):
    """Three disjoint parts of the user's data.

    Args:
        calibrate: for passes that observe activations; the user's own ``--calibration`` data where given.
        steer: guides the search; seen many times, so it proves nothing.
        certify: seen once by at most five finalists.
    """

    calibrate: Dataset
    steer: Dataset
    certify: Dataset


def split(data: Dataset, calibration: Dataset | None, seed: int) -> Splits:
    """Deal the examples at random: a twelfth (at most 256) calibrates unless ``calibration`` is given, a quarter (at
    most 2,000) steers, the rest certifies. Every part gets at least one example where there are three."""
    order = np.random.default_rng(seed).permutation(len(data)).astype(np.int64)
    n = len(data)
    calibrate = 0 if calibration is not None else min(_CALIBRATE_MAX, max(n // 12, 1))
    steer = min(_STEER_MAX, max((n - calibrate) // 4, 1))

    def part(start: int, stop: int) -> Dataset:
        return Subset(data, np.sort(order[start:stop]))

    return Splits(
        calibrate=calibration if calibration is not None else part(0, calibrate),
        steer=part(calibrate, calibrate + steer),
        certify=part(calibrate + steer, n),
    )
