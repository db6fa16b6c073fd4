"""What ONNX Runtime writes down when it profiles a session (Chrome's trace format, one event for each operator run)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import msgspec

from salver.backends.base import Profile
from salver.core.errors import Internal

_SUFFIX: Final = "_kernel_time"


class _Event(msgspec.Struct, frozen=True):
    cat: str
    name: str
    ts: float
    dur: float = 0.0
    args: dict[str, Any] = {}


def read_profile(profile: bytes) -> Profile:
    """Times and shapes by operator.

    Raises:
        Internal: the profile is not one.
    """
    try:
        events = sorted(msgspec.json.decode(profile, type=list[_Event]), key=lambda event: event.ts)
    except msgspec.DecodeError as error:
        raise Internal(f"ONNX Runtime's profile cannot be read: {error}") from None
    starts = [event.ts for event in events if event.name == "model_run"]
    times: dict[str, list[float]] = defaultdict(lambda: [0.0] * max(len(starts) - 1, 1))
    kinds: dict[str, str] = {}
    run = -1
    for event in events:
        while run + 1 < len(starts) and event.ts >= starts[run + 1]:
            run += 1
        if event.cat != "Node" or not event.name.endswith(_SUFFIX):
            continue
        name = event.name.removesuffix(_SUFFIX)
        counted = run - 1 if len(starts) > 1 else 0
        times[name]  # an operator that only the first run reached took no time since
        if counted >= 0:
            times[name][counted] += event.dur / 1000
        for output in event.args.get("output_type_shape", ())[:1]:
            kinds[name] = ", ".join(f"{kind} {shape}" for kind, shape in output.items())
    return Profile(times_ms=dict(times), outputs=kinds)
