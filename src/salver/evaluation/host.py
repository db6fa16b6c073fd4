"""The machine on which something is measured."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Final

from salver.core.model import digest_bytes
from salver.evaluation.types import Host

_CPUINFO: Final = Path("/proc/cpuinfo")
# Instruction sets that decide how fast, and how exactly, kernels compute. Others would only make fingerprints differ.
_RELEVANT: Final = (
    *("sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2"),
)


def describe_host() -> Host:
    """CPU, instruction sets, cores this process may use, memory, system and Python."""
    cpu, flags = _linux_cpu() if _CPUINFO.exists() else _mac_cpu()
    cpu = cpu or platform.processor() or platform.machine()
    features = tuple(f for f in _RELEVANT if f in flags)
    return Host(
        cpu=cpu,
        features=features,
        cores=usable_cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        fingerprint=digest_bytes("\n".join((cpu, platform.machine(), *features)).encode()),
    )


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _linux_cpu() -> tuple[str, set[str]]:
    fields: dict[str, str] = {}
    for line in _CPUINFO.read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags") or fields.get("Features") or ""
    return fields.get("model name") or fields.get("CPU part", ""), set(flags.split())


def _mac_cpu() -> tuple[str, set[str]]:
    try:
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        brand = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        brand = ""
    return brand, {"asimd", "asimddp", "asimdhp"} if platform.machine() == "arm64" else set()
