"""HTTP/1.1 as smugglers write it: requests one after the other, with framing that may contradict itself."""

from __future__ import annotations

import gzip
import zlib
from random import Random

from tests.fuzz.grammar import tree
from tests.fuzz.grammar.raw import BOMB, MAX_BYTES, number, spoil
from tests.fuzz.grammar.requests import http_request

_ODD_LENGTHS = (
    "+{}",
    "-1",
    "{}, {}",
    "0{}",
    "0x{:x}",
    "{} ",
    "{}.0",
    "",
    "99999999999999999999",
    "{}\r\nContent-Length: {}",
)
_ODD_CODINGS = ("chunked", "Chunked", "chunked, identity", "identity", "gzip, chunked", "\x0bchunked", "chunked\r\n\t",
                "xchunked", "chunked, chunked", "")  # fmt: skip
_ODD_LINES = ("X: a\r\n b", "X : a", ": a", "X", "X: \0", "X: \xff", "Connection: close", "Connection: keep-alive",
              "Connection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk", "Upgrade: websocket",
              "Expect: 100-continue", "Expect: 200-ok", "Origin: https://app.example", "Origin: null",
              "Host: evil.example", "Host: 127.0.0.1", "Inference-Header-Content-Length: 0",
              "Inference-Header-Content-Length: 99999999999", "Inference-Header-Content-Length: -1",
              "Content-Encoding: gzip", "Content-Encoding: br", "Content-Type: application/grpc",
              "Content-Type: text/csv; charset=utf-16", "Accept-Encoding: gzip, deflate;q=0", "X-Api-Key: k",
              "Authorization: Bearer x", "Access-Control-Request-Method: POST", "X: " + "a" * 2000)  # fmt: skip
_ODD_TARGETS = ("http://127.0.0.1{}", "HTTPS://u@h:1{}", "{}?a=b&c", "{}/", "//x{}", "{}#f", "*", "{}%2f", "{}%ff",
                "{}/../x", "x", "{}" + "/a" * 100)  # fmt: skip
_ODD_VERSIONS = ("HTTP/1.0", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "HTTP/0.9", "http/1.1", "HTTP/1.1 ", "", "ICE/1.0")


def _odd(random: Random, chance: float) -> bool:
    return random.random() < chance


def _body(body: bytes, random: Random) -> bytes:
    if body[:1] == b"{" and _odd(random, 0.3) and body.rstrip()[-1:] == b"}":
        return tree.make(body, random)
    return spoil(body, random) if body and _odd(random, 0.05) else body


def _chunked(body: bytes, random: Random) -> bytes:
    out = bytearray()
    at = 0
    while at < len(body):
        size = random.randrange(1, len(body) - at + 1)
        shown = f"{size:x}"
        if _odd(random, 0.03):
            large = f"{number(random) % (1 << 64):x}"
            shown = random.choice((f"{size + 1:x}", f"-{size:x}", "", f"0x{size:x}", large, "0" * 20))
        extension = "" if not _odd(random, 0.05) else random.choice((";a=b", ';a="\r\n"', " ", ";" + "a" * 500))
        out += f"{shown}{extension}\r\n".encode() + body[at : at + size]
        out += b"\r\n" if not _odd(random, 0.02) else random.choice((b"\n", b"", b"\r"))
        at += size
    trailers = (
        "" if not _odd(random, 0.1) else random.choice(("Content-Length: 5\r\n", "X: y\r\n", "Host: x\r\n", "X\r\n"))
    )
    return bytes(out) + b"0\r\n" + trailers.encode() + (b"\r\n" if not _odd(random, 0.03) else b"")


def request(random: Random, odd: float) -> bytes:
    """One request.

    Args:
        odd: how likely each part of it is not as it should be.
    """
    method, target, body, fields = http_request(random)
    body = _body(body, random)
    if "inference-header-content-length" in fields and _odd(random, odd):
        fields["inference-header-content-length"] = str(number(random))
    if body and _odd(random, 0.07):
        coding = random.choice(("gzip", "deflate"))
        body = gzip.compress(body, 1, mtime=0) if coding == "gzip" else zlib.compress(body, 1)
        if _odd(random, 0.1):
            body = spoil(body, random) if _odd(random, 0.5) else BOMB
        fields["content-encoding"] = coding
    if _odd(random, odd):
        target = random.choice(_ODD_TARGETS).replace("{}", target)
    if _odd(random, odd):
        method = random.choice(("PUT", "PATCH", "BREW", "get", "CONNECT", "TRACE", "PRI", "P\0ST", "M-SEARCH"))
    version = random.choice(_ODD_VERSIONS) if _odd(random, odd) else "HTTP/1.1"
    lines = [f"{k}: {v}" for k, v in fields.items()]
    if not _odd(random, odd / 2):
        lines.append("Host: localhost:8080")
    if body or method == "POST":
        chunked = _odd(random, 0.2)
        if chunked:
            lines.append("Transfer-Encoding: " + (random.choice(_ODD_CODINGS) if _odd(random, odd) else "chunked"))
        if not chunked or _odd(random, odd):
            lines.append(f"Content-Length: {len(body) + (random.choice((-1, 1, 7)) if _odd(random, odd / 2) else 0)}")
        if _odd(random, odd):
            lines.append(
                "Content-Length: " + random.choice(_ODD_LENGTHS).replace("{:x}", "{}").replace("{}", str(len(body)))
            )
        if chunked:
            body = _chunked(body, random)
    if _odd(random, odd * 2):
        lines.append(random.choice(_ODD_LINES))
    random.shuffle(lines)
    end = "\r\n" if not _odd(random, odd / 3) else random.choice(("\n", "\r", "\r\r\n", "\r\n\r\n"))
    head = f"{method} {target} {version}\r\n" + "".join(line + "\r\n" for line in lines[:-1])
    head += "".join(lines[-1:]) + end + ("\r\n" if not _odd(random, odd / 4) else "")
    return head.encode("latin-1", "replace") + body


def make(random: Random) -> bytes:
    """What comes on one connection."""
    odd = random.choice((0.0, 0.02, 0.08))
    count = random.choice((1, 1, 2, 3, 8)) if not _odd(random, 0.005) else 100
    if count == 100:
        return b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n" * count
    data = b"".join(request(random, odd) for _ in range(count))[:MAX_BYTES]
    return spoil(data, random) if odd and _odd(random, 0.1) else data


def mutate(data: bytes, random: Random) -> bytes:
    """Spoil a connection line by line."""
    kind = random.randrange(6)
    if kind == 0:
        return spoil(data, random)
    if kind == 1:
        return (data + make(random))[:MAX_BYTES]
    lines = data.split(b"\r\n")
    at = random.randrange(len(lines))
    if kind == 2:
        del lines[at]
    elif kind == 3:
        lines.insert(random.randrange(len(lines)), lines[at])
    elif kind == 4:
        lines.insert(at, random.choice(_ODD_LINES).encode("latin-1"))
    else:
        lines[at] = spoil(lines[at], random)
    return b"\r\n".join(lines)[:MAX_BYTES]
