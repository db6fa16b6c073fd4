"""HTTP/1.1 as a load generator speaks it: one request at a time on a connection, answers read no further than needed.

Servers repeat the heads of their answers, so a head is read once and looked up from then on.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from salver.client.load.link import Call, Link, Verdict
from salver.client.load.plan import CUT_OFF, OK

_END: Final = b"\r\n\r\n"
_MAX_HEAD_BYTES: Final = 1 << 16
_MAX_HEADS: Final = 4096
_STATUS: Final = re.compile(rb"HTTP/1\.([01]) (\d{3})")
_CUT_OFF: Final = Verdict(CUT_OFF, False, 0, {}, None)
_UNTIL_CLOSED: Final = -1
_CHUNKED: Final = -2


class Head(NamedTuple):
    """What the head of an answer says.

    Args:
        length: of the body; -1 where it ends with the connection, -2 where it comes in chunks.
        stays: whether the connection may be used again.
    """

    verdict: Verdict
    length: int
    stays: bool


_heads: dict[bytes, Head] = {}


def read_head(text: bytes) -> Head | None:
    """The head of an answer, without the empty line at its end; None where it is none."""
    found = _STATUS.match(text)
    if found is None:
        return None
    fields: dict[bytes, bytes] = {}
    for line in text.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        fields[name.strip().lower()] = value.strip()
    status = int(found[2])
    connection = fields.get(b"connection", b"").lower()
    stays = b"close" not in connection if found[1] == b"1" else b"keep-alive" in connection
    length = _UNTIL_CLOSED
    if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
        length = _CHUNKED
    elif fields.get(b"content-length", b"").isdigit():
        length = int(fields[b"content-length"])
    elif status in (204, 304) or status < 200:
        length = 0
    ok = 200 <= status < 300
    after = fields.get(b"retry-after", b"")
    verdict = Verdict(OK if ok else str(status), ok, status, fields, float(after) if after.isdigit() else None)
    return Head(verdict, length, stays and length != _UNTIL_CLOSED)


class Http1Link(Link):
    """A connection of HTTP/1.1."""

    _call: Call | None = None
    _head: Head | None = None
    _rest: bytes = b""
    _left: int = 0
    _parts: list[bytes]

    @property
    def room(self) -> int:
        return int(self._call is None and not self.is_gone)

    @property
    def calls(self) -> int:
        return int(self._call is not None)

    def start(self, call: Call) -> None:
        self._call = call
        if self.is_open and not self._write(call.request.data):
            self._lose(False)

    def flush(self) -> None:
        """Nothing waits: requests are written when they start."""

    def give_up(self, before_s: float) -> list[Call]:
        call = self._call
        if call is None or call.due_s > before_s:
            return []
        self._call = None
        self.close()  # an answer that comes late would be taken for that of the next request
        return [call]

    def _opened(self) -> None:
        self._parts = []
        self._announce()
        if self._call is not None and not self._write(self._call.request.data):
            self._lose(False)

    def _ended(self, sent: bool) -> None:
        call, self._call = self._call, None
        if call is None:
            return
        head = self._head
        if head is not None and head.length == _UNTIL_CLOSED:
            self._owner.on_end(self, call, head.verdict, b"".join(self._parts))
        elif sent:
            self._owner.on_end(self, call, _CUT_OFF, b"")
        else:
            self._owner.on_unsent(call)

    def _take(self, data: bytes) -> None:
        if self._call is None:
            self._lose(True)  # nobody asked for it
            return
        head = self._head
        if head is None:
            if self._rest:
                data = self._rest + data
                self._rest = b""
            end = data.find(_END)
            if end < 0:
                self._rest = data
                if len(data) > _MAX_HEAD_BYTES:
                    self._lose(True)
                return
            text = data[:end]
            head = _heads.get(text)
            if head is None:
                head = self._learn(text)
                if head is None:
                    self._lose(True)
                    return
            end += 4
            if head.verdict.status < 200:  # 100 Continue: the real one follows
                if end < len(data):
                    self._take(data[end:])
                return
            if head.length == len(data) - end:
                self._finish(head, data[end:] if self._owner.keeps_bodies else b"")
                return
            self._head = head
            self._left = head.length
            data = data[end:]
        self._take_body(head, data)

    def _learn(self, text: bytes) -> Head | None:
        head = read_head(text)
        if head is not None:
            if len(_heads) >= _MAX_HEADS:
                _heads.clear()
            _heads[text] = head
        return head

    def _take_body(self, head: Head, data: bytes) -> None:
        if head.length == _CHUNKED:
            self._take_chunks(head, data)
            return
        if self._owner.keeps_bodies and data:
            self._parts.append(data)
        if head.length == _UNTIL_CLOSED:
            return
        self._left -= len(data)
        if self._left < 0:
            self._lose(True)  # more than was announced
        elif not self._left:
            body = b"".join(self._parts)
            self._parts = []
            self._finish(head, body)

    def _take_chunks(self, head: Head, data: bytes) -> None:
        """RFC 9112, 7.1: read again from the start with each piece; only foreign servers, and rarely, send them."""
        data = self._rest + data
        self._rest = data
        at = 0
        parts: list[bytes] = []
        while True:
            line = data.find(b"\r\n", at)
            if line < 0:
                return
            try:
                size = int(data[at:line].partition(b";")[0], 16)
            except ValueError:
                self._lose(True)
                return
            start = line + 2
            if not size:
                end = data.find(_END, line)
                if end < 0:
                    return
                self._rest = b""
                self._finish(head, b"".join(parts))
                return
            if len(data) < start + size + 2:
                return
            parts.append(data[start : start + size])
            at = start + size + 2

    def _finish(self, head: Head, body: bytes) -> None:
        call, self._call, self._head = self._call, None, None
        if call is None:
            return
        if not head.stays:
            self.close()
        self._owner.on_end(self, call, head.verdict, body)
        if not head.stays:
            self._owner.on_gone(self)
