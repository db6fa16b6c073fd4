"""What a server without gRPC never imports."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import asyncio, socket, sys
from salver.server.frontends.http.server import HttpServer
from salver.server.monitoring.metrics import Metrics
from salver.server.settings import ServeSettings
from salver.testing.frontends import InlineEngine

def loaded():
    return [name for name in ("google.protobuf", "hpack") if name in sys.modules]

async def ask(address, *sent):
    reader, writer = await asyncio.open_connection(*address)
    for data in sent:
        writer.write(data)
    answer = await reader.read(9)
    writer.close()
    return answer

async def main():
    server = HttpServer()
    await server.start(InlineEngine([]), Metrics(), ServeSettings(http="127.0.0.1:0"))
    assert await ask(server.address, b"GET /v2 HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n") == b"HTTP/1.1 "
    before = loaded()
    assert await ask(server.address, b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n", bytes(3) + b"\\4" + bytes(5))
    print(before, loaded())
    await server.drain(0.1)

asyncio.run(main())
"""


def test_protobuf_and_header_compression_are_imported_when_they_are_used() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[] ['hpack']\n"
