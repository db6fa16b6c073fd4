"""What a worker says of itself, once a second."""

from __future__ import annotations

import re
from pathlib import Path
from time import monotonic
from typing import Final

from salver.server.engine.engine import RealTimeEngine
from salver.server.processes.balance import IDLE, Load
from salver.server.processes.base import Beat

BEAT_S: Final = 1.0
"""Time between two."""

_ANONYMOUS: Final = re.compile(rb"^RssAnon:\s*(\d+) kB", re.MULTILINE)
_STATUS: Final = Path("/proc/self/status")


def beat_of(engine: RealTimeEngine, load: Load = IDLE) -> Beat:
    """How an engine does now.

    Args:
        load: what its process had to do since the last beat.
    """
    now_s = monotonic()
    models = engine.models()
    running_s = {f"{model.name}/{model.version}": model.oldest_run_s(now_s) for model in models}
    loading = engine.loading or any(model.state in ("LOADING", "UNLOADING") for model in models)
    served = " ".join(sorted(f"{model.name}={model.state}" for model in models))
    return Beat(
        memory_bytes=private_bytes(),
        running_s={name: age_s for name, age_s in running_s.items() if age_s},
        loading=loading,
        served="" if loading else f"{hash(served):x}",
        load=load,
    )


def private_bytes() -> int:
    """Resident memory without what files back: heaps and stacks, not mapped weights and code; 0 where the system does
    not tell."""
    try:
        found = _ANONYMOUS.search(_STATUS.read_bytes())
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0
