"""The CPU of this machine: its name, its instruction sets, and a fingerprint of both."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from salver.core.model import digest_bytes

_CPUINFO: Final = Path("/proc/cpuinfo")
# Instruction sets that decide how fast, and how exactly, kernels compute. Others would only make fingerprints differ.
_RELEVANT: Final = (
    *("sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2"),
)


class Cpu(NamedTuple):
    """A CPU. ``fingerprint`` is a digest of its name and instruction sets: what was timed on one holds for its like."""

    name: str
    features: tuple[str, ...]
    fingerprint: str


def describe_cpu() -> Cpu:
    """Of this machine."""
    name, flags = _linux_cpu() if _CPUINFO.exists() else _mac_cpu()
    name = name or platform.processor() or platform.machine()
    features = tuple(f for f in _RELEVANT if f in flags)
    return Cpu(name, features, digest_bytes("\n".join((name, platform.machine(), *features)).encode()))


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
