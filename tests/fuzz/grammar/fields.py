"""Protobuf messages as lists of fields of which a few are spoiled; no descriptor is needed."""

from __future__ import annotations

from random import Random

from tests.fuzz.grammar.raw import number, spoil, text

Field = tuple[int, int, bytes]
"""Number, wire type, and payload without its length."""


def varint(value: int, pad: int = 0) -> bytes:
    """A number; ``pad`` more bytes than it needs."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(pad):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise IndexError


def split(data: bytes) -> list[Field] | None:
    """The fields of a message; None where it is none."""
    fields: list[Field] = []
    at = 0
    try:
        while at < len(data):
            tag, at = _read(data, at)
            number, wire = tag >> 3, tag & 7
            if wire == 0:
                start = at
                _, at = _read(data, at)
                payload = data[start:at]
            elif wire == 2:
                size, at = _read(data, at)
                payload = data[at : at + size]
                at += size
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
                payload = data[at : at + size]
                at += size
            else:
                return None
            if at > len(data) or not number:
                return None
            fields.append((number, wire, payload))
    except IndexError:
        return None
    return fields


def join(fields: list[Field]) -> bytes:
    """The message of some fields."""
    return b"".join(
        varint(number << 3 | wire) + (varint(len(payload)) if wire == 2 else b"") + payload
        for number, wire, payload in fields
    )


def _any_field(random: Random) -> bytes:
    tag = random.choice((*range(1, 10), 15, 16, 100, 2047, 19000, (1 << 29) - 1)) << 3
    kind = random.randrange(6)
    if kind == 0:
        return varint(tag) + varint(abs(number(random)) % (1 << 64), random.choice((0, 0, 1, 3)))
    if kind == 1:
        return varint(tag | 5) + random.randbytes(4)
    if kind == 2:
        return varint(tag | 1) + random.randbytes(8)
    if kind == 3:
        body = varint(abs(number(random)) % (1 << 64)) * random.randrange(5)
        return varint(tag | 2) + varint(len(body)) + body
    if kind == 4:  # a group, which proto3 has not, but readers skip
        return varint(tag | 3) + (varint(tag | 4) if random.random() < 0.7 else b"")
    raw = text(random).encode()
    return varint(tag | 2) + varint(len(raw), random.choice((0, 0, 0, 1))) + raw


def change(data: bytes, random: Random, depth: int = 0) -> bytes:
    """Spoil one field, here or in a message within."""
    fields = split(data)
    if not fields:
        return spoil(data, random) if data and random.random() < 0.5 else data + _any_field(random)
    at = random.randrange(len(fields))
    number_, wire, payload = fields[at]
    if wire == 2 and depth < 6 and payload and random.random() < 0.6:
        fields[at] = (number_, wire, change(payload, random, depth + 1))
        return join(fields)
    kind = random.randrange(10)
    if kind == 0:
        del fields[at]
    elif kind == 1:
        fields.insert(random.randrange(len(fields) + 1), fields[at])
    elif kind == 2:
        random.shuffle(fields)
    elif kind == 3:
        fields[at] = (random.choice((number_ + 1, max(1, number_ - 1), random.randrange(1, 20))), wire, payload)
    elif kind == 4 and wire == 0:
        fields[at] = (number_, 0, varint(abs(number(random)) % (1 << 64), random.choice((0, 0, 1))))
    elif kind == 5 and wire == 0:
        fields[at] = (number_, 2, payload * random.randrange(1, 4))
    elif kind == 5 and wire == 2:
        fields[at] = (number_, 0, varint(len(payload)))
    elif kind == 6 and wire == 2:
        fields[at] = (number_, 2, random.choice((b"", payload + payload, payload[:-1], payload + b"\0")))
    elif kind == 7:
        cut = join(fields[:at])
        return cut + _any_field(random) + join(fields[at:])
    elif kind == 8 and wire == 2:  # a length that lies
        cut = join(fields[:at])
        lie = max(0, len(payload) + random.choice((-1, 1, 5, 1 << 20, 1 << 31)))
        return cut + varint(number_ << 3 | 2) + varint(lie) + payload + join(fields[at + 1 :])
    else:
        fields[at] = (number_, wire, spoil(payload, random) if wire == 2 else payload)
    return join(fields)


def make(base: bytes, random: Random) -> bytes:
    """A message that is `base` but for some fields."""
    if random.random() < 0.2:
        return base
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        base = change(base, random)
    return base


def mutate(data: bytes, random: Random) -> bytes:
    """Spoil a message."""
    return change(data, random) if random.random() < 0.8 else spoil(data, random)
