"""Runs one converter inside a toolchain's environment; nothing of Salver is installed there.

``python -I harness.py REQUEST RESPONSE``: both JSON, as `salver.builder.toolchains.run` defines them.
"""

from __future__ import annotations

import json
import re
import resource
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Answer one request; the answer is written even where the converter fails."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    limit = int(request["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    response: dict[str, object]
    try:
        convert = runpy.run_path(request["script"])["convert"]
        response = {"versions": convert(request["source"], request["output"])}
    except MemoryError:
        response = {"error": f"it needs more than the {limit >> 20} MiB it may take"}
    except Exception as error:  # noqa: BLE001  # the boundary between a foreign converter and the answer
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        causes = [line for line in lines[1:] if re.match(r"\w+Error: ", line)]
        response = {"error": f"{type(error).__name__}: {' '.join(causes[-1:] or lines[:2])[:500]}"}
    Path(sys.argv[2]).write_text(json.dumps(response), encoding="utf-8")


if __name__ == "__main__":
    main()
