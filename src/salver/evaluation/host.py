"""The machine on which something is measured."""

from __future__ import annotations

import os
import platform

from salver.core.host import describe_cpu, usable_cores
from salver.evaluation.types import Host


def describe_host() -> Host:
    """CPU, instruction sets, cores this process may use, memory, system and Python."""
    cpu = describe_cpu()
    return Host(
        cpu=cpu.name,
        features=cpu.features,
        cores=usable_cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        fingerprint=cpu.fingerprint,
    )
