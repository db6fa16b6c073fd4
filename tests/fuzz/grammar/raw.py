"""Bytes without structure."""

from __future__ import annotations

import zlib
from random import Random

MAX_BYTES = 8192
BOMB = zlib.compress(bytes(1 << 20), 9)
"""A megabyte in a kilobyte."""
_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000,
            0xFFFFFFFF, 0x100000000, (1 << 62) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64)  # fmt: skip


def number(random: Random) -> int:
    """A number near a border."""
    value = random.choice(_NUMBERS)
    return value + random.randrange(-1, 2) if random.random() < 0.3 else value


def text(random: Random) -> str:
    """A text that somebody may stumble over."""
    return random.choice(_TEXTS)


_TEXTS = ("", "x", "é", "\0", "\ud7ff", "😀", "a" * 300, "%00", "../..", "\r\n", '"', "\\", "1e999", "NaN", " ", "{}")


def spoil(data: bytes, random: Random) -> bytes:
    """Change some bytes."""
    out = bytearray(data)
    for _ in range(random.randrange(1, 4)):
        kind = random.randrange(7)
        at = random.randrange(len(out) + 1)
        if kind == 0 and out:
            at = min(at, len(out) - 1)
            out[at] ^= 1 << random.randrange(8)
        elif kind == 1 and out:
            out[min(at, len(out) - 1)] = random.randrange(256)
        elif kind == 2:
            del out[at : at + random.randrange(1, 9)]
        elif kind == 3:
            out[at:at] = out[at : at + random.randrange(1, 33)]
        elif kind == 4:
            out[at:at] = bytes(random.randrange(256) for _ in range(random.randrange(1, 5)))
        elif kind == 5:
            size = random.choice((1, 2, 3, 4, 8))
            order = random.choice(("big", "little"))
            out[at : at + size] = (number(random) % (1 << 8 * size)).to_bytes(size, order)
        else:
            del out[at:]
    return bytes(out[:MAX_BYTES])


def pieces(data: bytes, random: Random) -> list[bytes]:
    """The bytes in reads of a socket: mostly few, sometimes one by one."""
    kind = random.random()
    if kind < 0.4 or len(data) < 2:
        return [data] if data else []
    if kind < 0.42 and len(data) < 1000:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted({random.randrange(1, len(data)) for _ in range(random.randrange(1, 6))})
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
