"""``python -m tests.fuzz.branches coverage.json``: branch coverage of every codec, as the table of ``docs/fuzzing.md``.

Exit status 1 where one is under `LEAST`. ``make coverage`` makes the report.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

LEAST = 90.0
_CODECS = re.compile(
    r".*\bsalver/((wire/(elements|jsonio|protobuf|http2/\w+)|server/frontends/(http|http2|grpc|oip|tfserving)/\w+"
    r"|server/frontends/(instances|frames|_\w+)|client/(rest|grpc|http1|http2|messages|protocol))\.py)"
)
_NOT_CODECS = re.compile(r".*/(server|listener|shared|addresses|peers|openapi|_docs|_metrics|server_settings)\.py")


def main(report: Path) -> int:
    """Print the table."""
    status = 0
    print("| module | lines | branches | covered |\n|---|---|---|---|")
    for name, found in sorted(json.loads(report.read_text())["files"].items()):
        counts = found["summary"]
        codec = _CODECS.fullmatch(name)
        if codec is None or _NOT_CODECS.fullmatch(name) or not counts["num_branches"]:
            continue
        share = 100 * counts["covered_branches"] / counts["num_branches"]
        status |= share < LEAST
        print(f"| `{codec[1]}` | {counts['percent_covered']:.0f} % | {counts['num_branches']} | {share:.0f} % |")
    return int(status)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
