"""What `make run` does: a trained digits network becomes a tasted, sealed and served endpoint.

Each step is a command that you can type yourself. `--check` stops after the answer and says by its exit code whether it
was right; without it the server stays up until Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = Path(__file__).parent / "digits"
START_TIMEOUT_S = 60.0
SHADES = " .:-=+*#%@"


def main() -> int:
    """Build, verify, report, serve, ask; the exit code says whether the answer was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="stop after the answer; exit with 0 if it was right")
    parser.add_argument("--http", default="127.0.0.1:8080", help="where to serve (default: %(default)s)")
    parser.add_argument("--budget", default="2m", help="time for the search (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/digits"), help="where to write (default: %(default)s)"
    )
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    bundle = options.folder / "digits.salver"
    build = ["build", DIGITS / "digits.onnx", "--data", DIGITS / "val.npz", "--labels", DIGITS / "labels.txt"]
    salver(*build, "--max-drop", "1pp", "--budget", options.budget, "-o", bundle)
    salver("verify", bundle)
    salver("report", bundle, "-o", options.folder / "report.html")
    server = start("serve", bundle, "--name", "digits", "--http", options.http)
    right = False
    try:
        wait_until_ready(server, f"http://{options.http}/v2/health/ready")
        right = ask(f"http://{options.http}/v2/models/digits/infer")
        if not options.check:
            print(
                f"\nserving on http://{options.http} (try it: http://{options.http}/docs); Ctrl-C stops it", flush=True
            )
            server.wait()
    except KeyboardInterrupt:
        print()
    finally:
        server.terminate()
        server.wait()
    return 0 if right else 1


def salver(*words: str | Path) -> None:
    """Run one command and show it.

    Raises:
        SystemExit: it failed; it has said why.
    """
    code = start(*words).wait()
    if code:
        raise SystemExit(code)


def start(*words: str | Path) -> subprocess.Popen[bytes]:
    """Show a command and start it."""
    arguments = [str(word) for word in words]
    print(f"\n$ salver {shlex.join(arguments)}", flush=True)
    return subprocess.Popen([sys.executable, "-m", "salver", *arguments])


def wait_until_ready(server: subprocess.Popen[bytes], url: str) -> None:
    """Return when the golden requests have given the stored answers.

    Raises:
        SystemExit: the server ended, or took too long.
    """
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if server.poll() is not None:
            raise SystemExit(server.returncode or 1)
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise SystemExit(f"error: the server was not ready after {START_TIMEOUT_S:g} s")


def ask(url: str) -> bool:
    """Send the first validation image, show it with the answer, and say whether that was right."""
    data = np.load(DIGITS / "val.npz")
    image, label = data["image"][:1], int(data["label"][0])
    labels = (DIGITS / "labels.txt").read_text(encoding="utf-8").split()
    tensor = {"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": image.ravel().tolist()}
    print("\n" + draw(image[0, 0]))
    answer = post(url, {"inputs": [tensor]})
    scores = answer["outputs"][0]["data"]
    said = labels[int(np.argmax(scores))]
    print(f"POST {url}\nanswer: {said}   label: {labels[label]}   {'right' if said == labels[label] else 'WRONG'}")
    return said == labels[label]


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send JSON, get JSON."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def draw(image: np.ndarray) -> str:
    """An image of grey levels in 0..1 as text."""
    shades = (image * (len(SHADES) - 1)).round().astype(int)
    return "\n".join("".join(SHADES[s] * 2 for s in row).rstrip() for row in shades if row.any())


if __name__ == "__main__":
    sys.exit(main())
