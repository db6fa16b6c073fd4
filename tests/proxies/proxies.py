"""The proxies that are tried: how each is found and started, with the configuration that the documentation shows."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "server" / "proxies.md"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PORT = re.compile(r"(?<![\d.])(8000|8001|8081|8082|8083)(?!\d)")
_SECOND = re.compile(r"^.*127\.0\.0\.1(?::|, port_value: )8082.*\n", re.MULTILINE)
_START_S = 10


@dataclass(frozen=True)
class Proxy:
    """One proxy.

    Args:
        name: its heading on the page, in lower case, and that of its program.
        arguments: of its program, which runs in the folder of its files.
        checks_health: whether it asks servers for their health by itself.
        fails: what the page says that it cannot do: ``duplex``, ``drain``.
        repeats: whether it asks another server what one that died has not answered: ``all``, ``some``, or ``none``.
        adjust: what a run without installation changes in its files.
    """

    name: str
    arguments: Sequence[str]
    checks_health: bool = True
    fails: frozenset[str] = frozenset()
    repeats: Literal["all", "some", "none"] = "none"
    adjust: Callable[[str], str] = field(default=lambda text: text)


def _nginx_without_installation(text: str) -> str:
    """Its files stand in the folder it runs in."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return text.replace("http {\n", "http {\n  access_log off;\n" + "".join(f"  {k}_temp_path {k};\n" for k in kinds))


PROXIES = (
    Proxy(
        "nginx",
        ("-p", ".", "-c", "nginx.conf", "-e", "stderr", "-g", "daemon off; pid nginx.pid; error_log stderr;"),
        checks_health=False,
        repeats="some",
        adjust=_nginx_without_installation,
    ),
    Proxy("haproxy", ("-db", "-f", "haproxy.cfg"), fails=frozenset({"duplex"}), repeats="some"),
    Proxy(
        "envoy",
        ("-c", "envoy.yaml", "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"),
        repeats="all",
    ),
    Proxy("traefik", ("--configFile=traefik.yml",), fails=frozenset({"drain"})),
    Proxy("caddy", ("run", "--config", "Caddyfile", "--adapter", "caddyfile")),
)
EACH = pytest.mark.parametrize("proxy", PROXIES, ids=[proxy.name for proxy in PROXIES])


def path_of(program: str) -> str | None:
    """Where a program is: in the environment of the tests, or on the path."""
    return shutil.which(str(Path(sys.executable).parent / program)) or shutil.which(program)


def find(program: str) -> str:
    """The path of a program; a test that needs one that is not here is skipped."""
    found = path_of(program)
    if found is None:
        pytest.skip(f"{program} is not here; `make proxies` installs it")
    return found


def configuration(proxy: Proxy, ports: dict[str, int], ca: Path | None) -> dict[str, str]:
    """The files of a proxy as the page has them, with other ports, and with one more line for a third server.

    Args:
        ports: by the ports on the page, and 8083.
        ca: the certificate of the servers, where they speak TLS.
    """
    [section] = re.findall(rf"(?ims)^## {proxy.name}$(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"))
    blocks: list[tuple[str, str]] = _BLOCK.findall(section)
    files = {text.split("\n", 1)[0].removeprefix("# "): text for kind, text in blocks if kind != "diff"}
    for kind, text in blocks:
        if kind == "diff" and ca is not None:
            files = {name: patched(old, text) for name, old in files.items()}
    for name, text in files.items():
        if "8083" in ports:
            text = _SECOND.sub(lambda line: line[0] + line[0].replace("8082", "8083").replace(" b ", " c "), text)
        moved = _PORT.sub(lambda match: str(ports[match.group()]), text)
        files[name] = proxy.adjust(moved.replace("/etc/salver/ca.pem", str(ca)))
    assert ca is None or str(ca) in "".join(files.values()), "the page does not say how to reach servers with TLS"
    return files


def patched(text: str, diff: str) -> str:
    """Lines with a minus replaced by the lines with a plus that follow them, where the text has them."""
    for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", diff, re.MULTILINE):
        before = re.sub(r"^-", "", old, flags=re.MULTILINE)
        text = text.replace(before, re.sub(r"^\+", "", new, flags=re.MULTILINE))
    return text


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


@dataclass(frozen=True)
class Front:
    """Where a running proxy listens."""

    http1: str
    http2: str
    folder: Path

    @property
    def url(self) -> str:
        """For REST over HTTP/1.1."""
        return f"http://{self.http1}"


@contextlib.contextmanager
def running(proxy: Proxy, folder: Path, upstreams: Sequence[str], ca: Path | None = None) -> Iterator[Front]:
    """The proxy in front of two servers or three, until the block ends.

    Args:
        upstreams: their addresses, ``127.0.0.1:8081``.
    """
    program = find(proxy.name)
    http1, http2 = free_ports(2)
    there = [int(address.rpartition(":")[2]) for address in upstreams]
    on_page = dict(zip(("8081", "8082", "8083"), there, strict=False))
    files = configuration(proxy, {"8000": http1, "8001": http2} | on_page, ca)
    if not any(str(http2) in text for text in files.values()):
        http2 = http1
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    environment = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *proxy.arguments], cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait(process, http1, folder / "log")
        yield Front(f"127.0.0.1:{http1}", f"127.0.0.1:{http2}", folder)
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until both servers are known to the proxy: several answers in a row are good."""
    end_s = time.monotonic() + _START_S
    good = 0
    while good < 4:
        if process.poll() is not None or time.monotonic() > end_s:
            pytest.fail("the proxy did not start: " + log.read_text(encoding="utf-8", errors="replace")[-3000:])
        good = good + 1 if _answers(port) else 0
        if not good:
            time.sleep(0.05)


def _answers(port: int) -> bool:
    ask = f"GET /v2/health/ready HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
            sock.sendall(ask)
            return sock.recv(12) == b"HTTP/1.1 200"
    except OSError:
        return False
