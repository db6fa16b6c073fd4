"""Something that a voice detector takes for speech: vowels made of harmonics under formants, with pauses and noise."""

from __future__ import annotations

from typing import Final

import numpy as np

from salver.core.arrays import Array

RATE: Final = 16_000
_FORMANTS: Final = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (660, 1720, 2410), (490, 1350, 1690))
_PITCH: Final = 120.0


def make_speech(seed: int, seconds: float) -> Array:
    """Samples at 16 kHz, float32."""
    rng = np.random.default_rng(seed)
    count = int(RATE * seconds)
    time = np.arange(count) / RATE
    phase = 2 * np.pi * np.cumsum(_PITCH * (1 + 0.2 * np.sin(4.4 * time + seed))) / RATE
    voice = np.zeros(count)
    start = 0
    while start < count:
        part = slice(start, min(start + int(RATE * rng.uniform(0.08, 0.22)), count))
        formants = _FORMANTS[rng.integers(len(_FORMANTS))]
        for harmonic in range(1, 30):
            hertz = harmonic * _PITCH
            gain = sum(np.exp(-(((hertz - center) / (80 + 0.06 * center)) ** 2)) for center in formants)
            voice[part] += gain * np.sin(harmonic * phase[part]) / harmonic**0.3
        voice[part] *= np.hanning(part.stop - part.start)
        start = part.stop
    spoken = np.sin(np.pi * time + seed) > -0.3
    return np.asarray(0.15 * voice * spoken + 0.001 * rng.standard_normal(count), np.float32)
