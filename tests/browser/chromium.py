"""A real browser without a driver: Chromium, headless, over the pipe of its DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/; messages are JSON, each ended by a zero byte.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_PATIENCE_S: Final = 60.0
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_KEYS: Final = {"Enter": (13, "\r"), "Escape": (27, ""), "ArrowUp": (38, ""), "ArrowDown": (40, "")}
_FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--window-size=1200,900",
    "--remote-debugging-pipe",
)


def path_of_browser() -> str | None:
    """Where a Chromium is, if there is one."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab. Clicks and keys go the way of a user's: through the window, to whatever lies there."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.faults: list[str] = []
        """Exceptions of scripts, and what the console calls an error, such as what the page's policy forbids."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Load a page."""
        self._call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def ask(self, expression: str) -> Any:
        """The value of an expression of JavaScript, in the page."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """The value of an expression once it is true."""
        until_s = time.monotonic() + _PATIENCE_S
        while not (value := self.ask(expression)):
            assert time.monotonic() < until_s, f"not true in {_PATIENCE_S:g} s: {expression}"
            time.sleep(0.02)
        return value

    def click(self, selector: str) -> None:
        """Scroll to an element and click where its middle is."""
        x, y = self.ask(f"""(() => {{
            const found = document.querySelector({json.dumps(selector)});
            found.scrollIntoView({{ block: "center", inline: "center" }});
            const edge = found.getBoundingClientRect();
            return [edge.x + edge.width / 2, edge.y + edge.height / 2];
        }})()""")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            pressed = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)

    def write(self, text: str) -> None:
        """Write into what has the focus."""
        self._call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        code, text = _KEYS[key]
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def choose(self, selector: str, label: str) -> None:
        """Take the option of a menu that begins so; headless menus have no window to click on."""
        taken = self.ask(f"""(() => {{
            const menu = document.querySelector({json.dumps(selector)});
            const at = [...menu.options].findIndex(option => option.text.startsWith({json.dumps(label)}));
            menu.selectedIndex = at;
            menu.dispatchEvent(new Event("change", {{ bubbles: true }}));
            return at;
        }})()""")
        assert taken >= 0, f"no option begins with '{label}'"

    def text(self, selector: str) -> str:
        """What is to be read in an element."""
        return str(self.ask(f"document.querySelector({json.dumps(selector)}).innerText"))

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _note(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.faults.append(str(told["exceptionDetails"].get("exception", told)))
        elif event.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.faults.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], _PATIENCE_S)
            part = os.read(self._read, 1 << 16) if ready else b""
            assert part, "the browser is gone, or says nothing"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


@contextmanager
def browsing(program: str, folder: Path) -> Iterator[Page]:
    """A tab of a fresh browser, until the block ends.

    Args:
        folder: for its profile.
    """
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    # It reads commands from descriptor 3 and writes to 4; the shell puts them there.
    command = f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}'
    process = subprocess.Popen(
        ["/bin/bash", "-c", command, program, *_FLAGS, f"--user-data-dir={folder}"],
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},
    )
    os.close(to_read)
    os.close(from_write)
    try:
        yield Page(from_read, to_write)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(from_read)
        os.close(to_write)
