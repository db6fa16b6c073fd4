"""Codecs: pure functions from bytes, each beside a slower one that must agree with it."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from random import Random
from typing import Any, Final

import hpack
import numpy as np

from salver.core.errors import InvalidArgument, SalverError, TooLarge
from salver.server.engine._pbtxt import read_json as read_config
from salver.server.engine.base import unpack
from salver.server.engine.declared import check_declared
from salver.server.engine.upload import check_names
from salver.server.frontends.access import Peer
from salver.server.frontends.grpc.messages import CODINGS, MessageReader
from salver.server.frontends.http.coding import decompress
from salver.server.frontends.oip.codec import ModelCodec
from salver.server.frontends.oip.grpc_infer import InferMethods
from salver.server.frontends.oip.messages import CodecLimits
from salver.server.frontends.tfserving.predict import PredictCodec
from salver.server.frontends.tfserving.rows import RowCodec
from salver.server.frontends.tfserving.template import Templates
from salver.server.frontends.tfserving.tensors import PROTOS
from salver.server.frontends.tfserving.versions import find_model
from salver.wire import jsonio
from salver.wire.elements import from_bytes, from_json, to_bytes, to_json
from salver.wire.http2._hpack import HeaderDecoder
from salver.wire.http2.frames import ConnectionFault
from salver.wire.protobuf import split_delimited
from tests.fuzz.grammar import fields, http2, tree
from tests.fuzz.grammar.raw import BOMB, MAX_BYTES, number, pieces, spoil
from tests.fuzz.grammar.requests import (
    CONFIGS,
    MODELS,
    generate_json,
    mlflow_json,
    oip_binary,
    oip_json,
    oip_message,
    pick_model,
    predict_message,
    rows_json,
)
from tests.fuzz.targets.base import Said, Target, agree, alike
from tests.fuzz.world import SETTINGS, World, load_models, require

_LIMITS: Final = CodecLimits(max_json_depth=SETTINGS.max_json_depth, max_string_bytes=SETTINGS.max_string_bytes)
_NO_LENGTH: Final = 0xFFFF
_MALFORMED: Final = ("not valid JSON", "not UTF-8", "nested too deeply", "nested more than", "surrogate")


def _is_parsed(said: Said) -> bool:
    return said.error is None or not any(sign in said.error.message for sign in _MALFORMED)


def _model(data: bytes) -> Any:
    return _BY_NAME[MODELS[data[0] % len(MODELS)]]


_BY_NAME: Final = {model.name: model for model in load_models()}


class Jsonio(Target):
    """Every way to read JSON, beside Python's own."""

    name = "jsonio"

    def make(self, random: Random) -> bytes:
        kind = random.randrange(4)
        model = pick_model(random)
        base = random.choice((oip_json, rows_json, mlflow_json, generate_json)[kind](model))
        return tree.make(base, random)

    def mutate(self, data: bytes, random: Random) -> bytes:
        return tree.mutate(data, random)

    def run(self, data: bytes) -> bool:
        ours = Said(jsonio.decode, data, Any).check()
        try:
            theirs = json.loads(data.decode())
            json.dumps(theirs, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            theirs = ours  # no value
        if theirs is ours:
            require(ours.error is not None, "read what is no JSON")
        elif ours.error is None:
            require(_same_json(ours.value, theirs), f"read as {ours.value!r}")
            written = jsonio.encode(ours.value)
            require(_same_json(json.loads(written), theirs), f"written as {written!r}")
        else:
            # Python's reader takes some things that JSON has not: see what ours says of them.
            require(_is_laxly_written(data, ours.error.message), f"refused: {ours.error.message}")
        depth = Said(jsonio.check_depth, data, 5)
        if theirs is not ours:
            require((_depth(theirs) > 5) == (depth.error is not None), "depth is counted otherwise")
        return theirs is not ours


def _same_json(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same_json, one, other))
    if isinstance(one, float) or isinstance(other, float):
        return repr(float(one)) == repr(float(other))  # whole numbers over 64 bits are read as floats
    return type(one) is type(other) and bool(one == other)


def _is_laxly_written(data: bytes, message: str) -> bool:
    return b"e" in data.lower() or "out of range" in message.lower() or "surrogate" in message or "too deep" in message


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


class OipRest(Target):
    """OIP REST's codec: the quick way and the long way agree, and what was read can be answered.

    Input: model, size of the JSON (2 bytes; 65535 for no such field), body.
    """

    name = "oip-rest"

    def __init__(self) -> None:
        self._codecs: dict[str, ModelCodec] = {}

    def renew(self) -> None:
        self._codecs.clear()

    def make(self, random: Random) -> bytes:
        model = pick_model(random)
        start = bytes((MODELS.index(model),))
        if random.random() < 0.5:
            return start + b"\xff\xff" + tree.make(random.choice(oip_json(model)), random)
        head, blobs = random.choice(oip_binary(model))
        head = tree.make(head, random)
        if random.random() < 0.2:
            blobs = spoil(blobs, random)
        length = len(head)
        if random.random() < 0.05:
            length = random.choice((0, length - 1, length + 1, length + len(blobs), length + len(blobs) + 1))
        return start + (length & 0xFFFF).to_bytes(2) + head + blobs

    def mutate(self, data: bytes, random: Random) -> bytes:
        if len(data) < 3 or random.random() < 0.1:
            return spoil(data, random)[:MAX_BYTES]
        length = int.from_bytes(data[1:3])
        if length == _NO_LENGTH:
            return data[:3] + tree.mutate(data[3:], random)
        head, blobs = data[3 : 3 + length], data[3 + length :]
        if random.random() < 0.4:
            return data[:3] + head + spoil(blobs, random)
        head = tree.mutate(head, random)
        return data[:1] + (len(head) & 0xFFFF).to_bytes(2) + head + blobs

    def run(self, data: bytes) -> bool:
        if len(data) < 3:
            return False
        model = _model(data)
        codec = self._codecs.get(model.name)
        if codec is None:
            codec = self._codecs[model.name] = ModelCodec(model.name, "1", model.signature, None, _LIMITS)
        length: int | None = int.from_bytes(data[1:3])
        body = data[3:]
        if length == _NO_LENGTH:
            length = None
        quick = Said(codec.decode, body, length).check()
        if length != 0 and (length is None or length <= len(body)):
            slow = Said(codec._decode_slowly, body, len(body) if length is None else length, Peer()).check()
            if quick.error is None and slow.error is None:
                agree(quick, slow, "the quick way and the long way")
            else:
                agree(quick, slow, "the errors of the quick way and the long way")
        if quick.error is None:
            self._answer(codec, quick.value)
        return _is_parsed(quick)

    def _answer(self, codec: ModelCodec, decoded: Any) -> None:
        signature = codec.signature
        inputs = unpack(decoded.inputs)
        require(signature.check(inputs) == decoded.rows, "rows were counted otherwise")
        if sum(array.nbytes for array in inputs.values()) > 1 << 20:
            return
        outputs = _any_outputs(signature, inputs)
        said = Said(codec.encode, decoded, outputs).check()
        if said.error is None:
            body, length = said.value
            whole = body if isinstance(body, bytes) else b"".join(body)
            answer = json.loads(whole[:length])
            sizes = [o.get("parameters", {}).get("binary_data_size", 0) for o in answer["outputs"]]
            require(len(whole) == (length or len(whole)) + sum(sizes), "sizes of the answer lie")


def _any_outputs(signature: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs of the right types: what an identity gives, zeros elsewhere."""
    outputs = {}
    first = next(iter(inputs.values()))
    for spec in signature.outputs:
        if spec.datatype == signature.inputs[0].datatype:
            outputs[spec.name] = first
        else:
            outputs[spec.name] = np.zeros(first.shape, spec.dtype)
    return outputs


class OipGrpc(Target):
    """``ModelInferRequest``: templates agree with protobuf, and what was read can be answered."""

    name = "oip-grpc"

    def renew(self) -> None:
        self._world = World()
        self._methods = InferMethods(self._world.services)
        self._plain = InferMethods(self._world.services)
        self._call: Any = None

    def make(self, random: Random) -> bytes:
        return fields.make(random.choice(oip_message(pick_model(random))), random)

    def mutate(self, data: bytes, random: Random) -> bytes:
        return fields.mutate(data, random)

    def run(self, data: bytes) -> bool:
        if not hasattr(self, "_methods"):
            self.renew()
        call: Any = _NoCall()
        quick = Said(self._methods._read, data, call, 0.0).check()
        slow = Said(self._plain._read_slowly, data, call, 0.0).check()
        if quick.error is None and slow.error is None:
            model, codec, inputs, plan, id = quick.value
            agree(
                _said((model.name, inputs, plan, id)),
                _said((slow.value[0].name, *slow.value[2:])),
                "template and protobuf",
            )
            outputs = _any_outputs(model.signature, unpack(inputs))
            answer = Said(codec.encode, plan, id, outputs, Peer()).check()
            if answer.error is None:
                require(split_delimited(answer.value), "the answer is no message")
        else:
            agree(quick, slow, "the errors of template and protobuf")
        return quick.error is None or "not a valid ModelInferRequest" not in quick.error.message


class _NoCall:
    peer = Peer()


def _said(value: Any) -> Said:
    return Said(lambda: value)


class TfservingRest(Target):
    """TensorFlow Serving's rows and columns: the quick way and the long way agree. Input: model, body."""

    name = "tfserving-rest"

    def __init__(self) -> None:
        self._codecs = {model.name: RowCodec(model.signature, _LIMITS) for model in load_models()}

    def make(self, random: Random) -> bytes:
        model = pick_model(random)
        return bytes((MODELS.index(model),)) + tree.make(random.choice(rows_json(model)), random)

    def mutate(self, data: bytes, random: Random) -> bytes:
        return data[:1] + tree.mutate(data[1:], random)

    def run(self, data: bytes) -> bool:
        if not data:
            return False
        model = _model(data)
        codec = self._codecs[model.name]
        quick = Said(codec.decode, data[1:]).check()
        agree(quick, Said(codec._decode_slowly, data[1:]).check(), "the quick way and the long way")
        if quick.error is None:
            decoded = quick.value
            require(model.signature.check(decoded.inputs) == decoded.rows, "rows were counted otherwise")
            said = Said(codec.encode, decoded, _any_outputs(model.signature, decoded.inputs)).check()
            if said.error is None:
                json.loads(said.value)
        return _is_parsed(quick)


class TfservingGrpc(Target):
    """``PredictRequest``: templates agree with protobuf."""

    name = "tfserving-grpc"

    def renew(self) -> None:
        self._engine = World().engine
        self._templates = Templates()
        self._codecs: dict[Any, PredictCodec] = {}

    def make(self, random: Random) -> bytes:
        return fields.make(random.choice(predict_message(pick_model(random))), random)

    def mutate(self, data: bytes, random: Random) -> bytes:
        return fields.mutate(data, random)

    def run(self, data: bytes) -> bool:
        if not hasattr(self, "_engine"):
            self.renew()
        slow = Said(self._read, data).check()
        template = self._templates.match(data)
        if template is not None:
            require(template.model() is not None, "a template without its model")
            quick = Said(template.fill, data)
            require(slow.error is None, f"a template takes what protobuf refuses: {slow.error}")
            require(template.model() is slow.value[0], "a template means another model")
            require(alike(quick.value, slow.value[1]), "template and protobuf differ")
        elif slow.error is None:
            model, decoded, named, codec = slow.value
            self._templates.learn(data, named, decoded, codec, model)
            codec.encode(_any_outputs(model.signature, decoded.inputs), decoded.wanted)
        return slow.error is None or slow.error.message != _NO_MESSAGE

    def _read(self, data: bytes) -> Any:
        try:
            request = _PREDICT.FromString(data)
        except Exception:  # noqa: BLE001  # protobuf's own, and a defect of a reader is not looked for here
            raise InvalidArgument(_NO_MESSAGE) from None
        spec = request.model_spec
        version = str(spec.version.value) if spec.HasField("version") else None
        named = (spec.name, version, spec.version_label or None)
        model = find_model(self._engine, *named)
        codec = self._codecs.get(model)
        if codec is None:
            codec = self._codecs[model] = PredictCodec(
                model.name, model.version, model.signature, SETTINGS.max_decompressed_bytes, SETTINGS.max_string_bytes
            )
        return model, codec.decode(request), named, codec


_PREDICT: Final = PROTOS.message("tensorflow.serving.PredictRequest")
_NO_MESSAGE: Final = "no PredictRequest"


class Elements(Target):
    """Tensors as bytes and as JSON, and back. Input: datatype, rank, sizes of 2 bytes, elements."""

    name = "elements"

    _TYPES: Final = tuple(model.signature.inputs[0].datatype for model in load_models() if model.name.startswith("id-"))

    def make(self, random: Random) -> bytes:
        kind = random.randrange(len(self._TYPES))
        model = f"id-{self._TYPES[kind].lower()}"
        shape = [random.choice((1, 1, 2, 3)), 3]
        blob = random.choice(oip_binary(model))[1]
        if random.random() < 0.2:
            shape = [random.choice((0, 1, 2, 3, 6, 0x7FFF, 0xFFFF)) for _ in range(random.randrange(5))]
        elif random.random() < 0.7:
            shape = [len(blob) // _ITEM_BYTES.get(self._TYPES[kind], len(blob) or 1)]
        if random.random() < 0.2:
            blob = spoil(blob, random)
        return bytes((kind, len(shape))) + b"".join(size.to_bytes(2) for size in shape) + blob

    def mutate(self, data: bytes, random: Random) -> bytes:
        if random.random() < 0.5 and len(data) > 8:  # other elements, as many as before
            cut = random.randrange(4, len(data))
            return data[:cut] + spoil(data[cut:], random)[: len(data) - cut].ljust(len(data) - cut, b"\0")
        return data[:1] + spoil(data[1:], random)

    def run(self, data: bytes) -> bool:
        if len(data) < 2:
            return False
        datatype = self._TYPES[data[0] % len(self._TYPES)]
        end = min(2 + 2 * (data[1] % 8), len(data) & ~1)
        # The sizes of a request may be anything that 64 bits hold: 0x7FFF and more stand for those.
        shape = [_grow(int.from_bytes(data[at : at + 2])) for at in range(2, end, 2)]
        said = Said(from_bytes, data, end, len(data) - end, datatype, shape, "x").check()
        if said.error is None:
            array = said.value
            require(list(array.shape) == shape, "another shape")
            require(bytes(to_bytes(array, datatype)) == data[end:], "other bytes")
            text = to_json(array, datatype)
            plain = json.loads(text)
            if array.size and datatype != "BF16":
                back = from_json(plain, datatype, [array.size], "x")
                require(alike(_canonical(back), _canonical(array.reshape(-1))), "other elements after JSON")
        return said.error is None or "shape" not in said.error.message


_ITEM_BYTES: Final = {
    spec.datatype: spec.dtype.itemsize
    for spec in (model.signature.inputs[0] for model in load_models())
    if spec.datatype != "BYTES"
}


def _grow(size: int) -> int:
    return size if size < 0x7FFF else (size - 0x7FFF << 48) - 1


def _canonical(array: Any) -> Any:
    """NaN has many patterns, and JSON one."""
    return np.where(np.isnan(array), np.nan, array).astype(array.dtype) if array.dtype.kind == "f" else array


class Coding(Target):
    """Content codings, beside the standard library. Input: which coding, body."""

    name = "coding"

    _CODINGS: Final = (b"gzip", b"deflate", b"x-gzip", b" GZIP ", b"identity", b"br", b"gzip, gzip")
    _MAX_BYTES: Final = 10_000

    def make(self, random: Random) -> bytes:
        plain = random.randbytes(random.choice((0, 1, 10, 100))) * random.choice((1, 3, 100, 100_000))
        plain = plain[: random.choice((100, 9999, 10_000, 10_001, 1 << 20))]
        kind = random.randrange(len(self._CODINGS)) if random.random() < 0.2 else random.randrange(2)
        if kind == 1:
            window = random.choice((15, -15, 9))
            worker = zlib.compressobj(random.choice((0, 1, 9)), zlib.DEFLATED, window)
            data = worker.compress(plain) + worker.flush()
        else:
            data = gzip.compress(plain, 1, mtime=0)
            if random.random() < 0.2:
                data *= random.choice((2, 3, 50))
        if random.random() < 0.3:
            data = spoil(data[:MAX_BYTES], random)
        return bytes((kind,)) + data

    def mutate(self, data: bytes, random: Random) -> bytes:
        return data[:1] + spoil(data[1:], random)

    def run(self, data: bytes) -> bool:
        if not data:
            return False
        coding = self._CODINGS[data[0] % len(self._CODINGS)]
        body = data[1:]
        said = Said(decompress, body, coding, self._MAX_BYTES).check()
        if said.error is None:
            require(len(said.value) <= self._MAX_BYTES or said.value is body, "larger than may be")
            if b"gzip" in coding.lower() and body:
                require(said.value == gzip.decompress(body), "gzip reads it otherwise")
        elif isinstance(said.error, TooLarge):
            worker = zlib.decompressobj(47 if b"deflate" not in coding else 15 if body[0] & 15 == 8 else -15)
            if b"deflate" in coding:
                try:
                    size = len(worker.decompress(body, self._MAX_BYTES + 1))
                except zlib.error:  # the other of the two forms
                    size = len(zlib.decompressobj(-15).decompress(body, self._MAX_BYTES + 1))
                require(size > self._MAX_BYTES, "refused as too large, which it is not")
        return said.error is None or isinstance(said.error, TooLarge)


class Hpack(Target):
    """Header blocks on one connection: the cache agrees with a decoder that has none. Input: blocks with 2-byte
    lengths."""

    name = "hpack"

    def make(self, random: Random) -> bytes:
        out = b""
        odd = random.choice((0.0, 0.0, 0.03, 0.1))
        blocks: list[bytes] = []
        for _ in range(random.randrange(1, 6)):
            if blocks and random.random() < 0.5:
                made = random.choice(blocks)
            else:
                made = http2.block(http2.request_pairs(random, odd)[0], random, odd)[:4000]
                if random.random() < odd:
                    made = spoil(made, random)
            blocks.append(made)
            out += len(made).to_bytes(2) + made
        return out

    def mutate(self, data: bytes, random: Random) -> bytes:
        blocks = _cut(data)
        if not blocks:
            return spoil(data, random)
        at = random.randrange(len(blocks))
        kind = random.randrange(4)
        if kind == 0:
            blocks.insert(random.randrange(len(blocks)), blocks[at])
        elif kind == 1:
            del blocks[at]
        else:
            blocks[at] = spoil(blocks[at], random)[:4000]
        return b"".join(len(block).to_bytes(2) + block for block in blocks)

    def run(self, data: bytes) -> bool:
        ours = HeaderDecoder(8192)
        theirs = hpack.Decoder(max_header_list_size=8192)
        decoded = False
        for block in _cut(data):
            try:
                head = ours.decode(block)
            except ConnectionFault:
                head = None
            try:
                expected = [(bytes(n), bytes(v)) for n, v in theirs.decode(block, raw=True)]
            except (hpack.HPACKError, IndexError):
                expected = None
            require((head is None) == (expected is None), f"decoded as {head and head.fields}, not {expected}")
            if head is None or expected is None:
                break
            require(list(head.fields) == expected, f"decoded as {head.fields}, not {expected}")
            decoded = True
        return decoded


def _cut(data: bytes) -> list[bytes]:
    blocks = []
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2])
        blocks.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return blocks


class Messages(Target):
    """gRPC's framing: however the bytes are cut, the same messages come out. Input: coding, body."""

    name = "grpc-messages"

    def make(self, random: Random) -> bytes:
        kind = random.randrange(3)
        body = b""
        for _ in range(random.randrange(1, 6)):
            message = random.randbytes(random.choice((0, 1, 30, 500, 2000)))
            flag = 0
            if random.random() < 0.3:
                packed = gzip.compress(message, 1, mtime=0) if kind == 1 else zlib.compress(message, 1)
                if random.random() < 0.1:
                    packed = BOMB
                message, flag = packed, random.choice((1, 1, 2))
            length = len(message) if random.random() > 0.05 else number(random) % (1 << 32)
            body += bytes((flag,)) + length.to_bytes(4) + message
        if random.random() < 0.1:
            body = spoil(body, random)
        return bytes((kind,)) + body

    def mutate(self, data: bytes, random: Random) -> bytes:
        return spoil(data, random)

    def run(self, data: bytes) -> bool:
        if not data:
            return False
        coding = (b"identity", *sorted(CODINGS))[data[0] % 3]
        whole = self._read(coding, [data[1:]])
        cut = self._read(coding, pieces(data[1:], Random(zlib.crc32(data))))
        require(whole == cut, f"read as {whole} and, in pieces, as {cut}")
        return bool(whole[0])

    def _read(self, coding: bytes, parts: list[bytes]) -> tuple[list[bytes], str]:
        reader = MessageReader(coding, 4000, 10_000)
        found: list[bytes] = []
        try:
            for part in parts:
                reader.feed(part)
                while (message := reader.read()) is not None:
                    require(len(message) <= 10_000, "larger than may be")
                    found.append(message)
        except SalverError as error:
            return found, f"{type(error).__name__}: {error}"
        return found, f"{reader.size} left"


class Uploads(Target):
    """What an administrator sends with a load request: Triton's configuration, and names of files. Input: JSON."""

    name = "uploads"

    def make(self, random: Random) -> bytes:
        base = dict(random.choice(CONFIGS))
        for name in random.sample(sorted(base), random.randrange(len(base))):
            del base[name]
        files = random.choice((["1/model.onnx"], ["../x"], ["1/.."], ["01/x"], ["1/a/b"], ["/1/x"], []))
        return tree.make(json.dumps({"config": base, "files": files}).encode(), random)

    def mutate(self, data: bytes, random: Random) -> bytes:
        return tree.mutate(data, random)

    def run(self, data: bytes) -> bool:
        said = Said(jsonio.decode, data, dict[str, Any]).check()
        if said.error is not None:
            return False
        config, files = said.value.get("config"), said.value.get("files")
        if isinstance(config, dict):
            read = Said(read_config, config, "linear").check()
            if read.error is None:
                Said(check_declared, read.value, _BY_NAME["linear"].signature).check()
        if isinstance(files, list) and all(isinstance(name, str) for name in files):
            checked = Said(check_names, dict.fromkeys(files, b"")).check()
            if checked.error is None:
                require(all(re.fullmatch(r"[0-9]+/[A-Za-z0-9_][A-Za-z0-9._-]*", name) for name in files), "a path")
        return True
