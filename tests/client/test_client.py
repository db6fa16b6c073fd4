"""Both clients over both protocols against a real server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.client import AsyncClient, Client, Retry, Tensor
from salver.core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from salver.core.tensors import NUMPY_DTYPES
from salver.server.app import Server
from salver.server.frontends.keyring import add_key
from salver.server.settings import ServeSettings
from salver.testing.certificates import Authority
from salver.wire.elements import to_bf16


def values_of(datatype: str) -> Any:
    """Two rows that reach the ends of a datatype."""
    dtype = NUMPY_DTYPES[datatype]
    if datatype == "BYTES":
        return np.array([["", "a"], ["Grüße", "日本"]], dtype=object)
    if datatype == "BOOL":
        return np.array([[True, False], [False, True]])
    if datatype == "BF16":
        return Tensor(to_bf16(np.array([[1.5, -0.0], [np.nan, 3e38]], np.float32)), "BF16")
    if dtype.kind == "f":
        info = np.finfo(dtype)
        return np.array([[info.max, info.smallest_subnormal], [np.nan, -np.inf]], dtype)
    ends = np.iinfo(dtype)
    return np.array([[ends.min, ends.max], [0, 1]], dtype)


def as_bits(array: Any) -> list[Any]:
    if array.dtype == object:
        return [v.encode() if isinstance(v, str) else v for v in array.reshape(-1)]
    return [array.tobytes(), array.dtype, array.shape]


class Blocking:
    """Calls an `AsyncClient` as if it were a `Client`."""

    def __init__(self, url: str, **settings: Any) -> None:
        self._client = AsyncClient(url, **settings)
        self._loop = asyncio.new_event_loop()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *args, **named: self._loop.run_until_complete(method(*args, **named))

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


def url_of(server: Server, protocol: str) -> str:
    return server.url if protocol == "http" else f"grpc://{server.grpc_address}"


@pytest.fixture(params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[Client, Blocking], ids=["blocking", "asyncio"])
def client(request: pytest.FixtureRequest, server: Server, protocol: str) -> Any:
    with request.param(url_of(server, protocol), timeout_s=20) as made:
        yield made


@pytest.mark.parametrize("datatype", NUMPY_DTYPES)
def test_every_datatype_comes_back_bit_for_bit(client: Any, datatype: str) -> None:
    given = values_of(datatype)
    answer = client.infer(f"identity_{datatype.lower()}", {"x": given})
    array = given.array if isinstance(given, Tensor) else given
    assert as_bits(answer["y"]) == as_bits(array)
    assert answer.datatypes == {"y": datatype}
    assert (answer.model, answer.version) == (f"identity_{datatype.lower()}", "1")


def test_what_a_server_says_of_itself(client: Any) -> None:
    assert client.live()
    assert client.ready()
    assert client.model_ready("identity_fp32")
    assert not client.model_ready("nothing")
    assert client.server()["name"] == "salver"
    described = client.model("identity_fp32")
    assert described["inputs"][0]["datatype"] == "FP32"
    assert described["inputs"][0]["shape"] == [-1, -1]
    config = client.config("identity_fp32")
    assert (config["name"], config["input"][0]["dims"]) == ("identity_fp32", [-1])
    assert (config["input"][0]["data_type"], config["instance_group"][0]["kind"]) == ("TYPE_FP32", "KIND_CPU")
    assert config["parameters"]["tested"] == {"string_value": "False"}
    assert {"identity_fp32", "identity_bytes"} <= {entry["name"] for entry in client.index()}
    client.infer("identity_fp32", {"x": np.zeros((1, 1), np.float32)})
    assert client.statistics("identity_fp32")[0]["inference_count"] >= 1


def test_id_outputs_and_parameters_travel(client: Any) -> None:
    answer = client.infer(
        "identity_fp32", {"x": np.ones((1, 3), np.float32)}, outputs=["y"], id="7", parameters={"priority": 1}
    )
    assert answer.id == "7"
    assert answer["y"].tolist() == [[1, 1, 1]]


def test_errors_are_typed_and_say_what_the_server_said(client: Any) -> None:
    with pytest.raises(NotFound, match="no model 'nothing'"):
        client.infer("nothing", {"x": np.zeros((1, 1), np.float32)})
    with pytest.raises(InvalidArgument, match="got datatype INT32, expected FP32"):
        client.infer("identity_fp32", {"x": np.zeros((1, 1), np.int32)})
    with pytest.raises(InvalidArgument, match="no inputs"):
        client.infer("identity_fp32", {})
    with pytest.raises(InvalidArgument, match="complex128"):
        client.infer("identity_fp32", {"x": np.zeros((1, 1), complex)})


def test_a_large_tensor_goes_there_and_back(client: Any) -> None:
    array = np.arange(3 << 20, dtype=np.float32).reshape(1, -1)
    assert np.array_equal(client.infer("identity_fp32", {"x": array})["y"], array)


def test_a_model_is_unloaded_and_loaded(client: Any) -> None:
    client.unload("identity_int8")
    assert not client.model_ready("identity_int8")
    client.load("identity_int8")
    assert client.model_ready("identity_int8")
    with pytest.raises(NotFound):
        client.load("nothing")


def test_threads_share_a_client(server: Server, protocol: str) -> None:
    wrong: list[int] = []
    with Client(url_of(server, protocol)) as client:

        def ask(number: int) -> None:
            for i in range(20):
                array = np.full((1, 4), number * 100 + i, np.int64)
                if not np.array_equal(client.infer("identity_int64", {"x": array})["y"], array):
                    wrong.append(number)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_many_coroutines_share_a_client(server: Server, protocol: str) -> None:
    async def run() -> None:
        async with AsyncClient(url_of(server, protocol)) as client:

            async def ask(number: int) -> bool:
                array = np.full((1, 4), number, np.int64)
                return np.array_equal((await client.infer("identity_int64", {"x": array}))["y"], array)

            assert all(await asyncio.gather(*(ask(number) for number in range(200))))

    asyncio.run(run())


@pytest.mark.parametrize("make", [Client, Blocking], ids=["blocking", "asyncio"])
class TestTheWay:
    """What a client does when the server, or the way to it, fails."""

    def infer(self, client: Any, **named: Any) -> Any:
        return client.infer("m", {"x": np.zeros((1, 2), np.float32)}, **named)

    def answer(self, path: str) -> dict[str, Any]:
        if path == "/v2":
            return {"name": "other", "version": "1", "extensions": []}
        return {"model_name": "m", "outputs": [{"name": "y", "shape": [1], "datatype": "FP32", "data": [0.5]}]}

    def test_a_server_without_binary_tensors_is_spoken_to_in_json(self, make: Any, scripted: Any) -> None:
        with scripted(lambda path, _: (200, {}, self.answer(path))) as server, make(server.url) as client:
            assert self.infer(client)["y"].tolist() == [0.5]
            assert self.infer(client)["y"].tolist() == [0.5]
            assert server.requests == ["/v2", "/v2/models/m/infer", "/v2/models/m/infer"]

    def test_retry_after_is_honored(self, make: Any, scripted: Any) -> None:
        def script(path: str, number: int) -> Any:
            return (503, {"retry-after": "1"}, {"error": "busy"}) if number == 2 else (200, {}, self.answer(path))

        with scripted(script) as server, make(server.url) as client:
            began = time.monotonic()
            self.infer(client)
            assert time.monotonic() - began >= 1
            assert len(server.requests) == 3

    def test_a_wait_longer_than_allowed_is_the_callers(self, make: Any, scripted: Any) -> None:
        def script(path: str, number: int) -> Any:
            return (429, {"retry-after": "60"}, {"error": "full"}) if number > 1 else (200, {}, self.answer(path))

        with scripted(script) as server, make(server.url) as client:
            with pytest.raises(ResourceExhausted, match="full") as caught:
                self.infer(client)
            assert caught.value.retry_after_s == 60
            assert len(server.requests) == 2

    def test_attempts_end(self, make: Any, scripted: Any) -> None:
        with (
            scripted(lambda path, n: (503, {}, {"error": "no"}) if n > 1 else (200, {}, self.answer(path))) as server,
            make(server.url, retry=Retry(attempts=4, first_wait_s=0.001)) as client,
        ):
            with pytest.raises(Unavailable, match="no"):
                self.infer(client)
            assert len(server.requests) == 1 + 4

    @pytest.mark.parametrize("status", [400, 404, 413, 500])
    def test_what_cannot_succeed_is_not_tried_again(self, make: Any, scripted: Any, status: int) -> None:
        with (
            scripted(
                lambda path, n: (status, {}, {"error": "no"}) if n > 1 else (200, {}, self.answer(path))
            ) as server,
            make(server.url) as client,
        ):
            with pytest.raises(Exception, match="no"):
                self.infer(client)
            assert len(server.requests) == 2

    def test_a_request_of_a_sequence_is_sent_once(self, make: Any, scripted: Any) -> None:
        with (
            scripted(lambda path, n: (503, {}, {"error": "no"}) if n > 1 else (200, {}, self.answer(path))) as server,
            make(server.url) as client,
        ):
            with pytest.raises(Unavailable):
                self.infer(client, parameters={"sequence_id": 3})
            assert len(server.requests) == 2

    def test_a_deadline_ends_the_wait(self, make: Any, scripted: Any) -> None:
        with (
            scripted(lambda path, n: (200, {}, None if n > 1 else self.answer(path))) as server,
            make(server.url) as client,
            pytest.raises(DeadlineExceeded),
        ):
            self.infer(client, timeout_s=0.2)

    def test_a_connection_that_the_server_ended_meanwhile_costs_nothing(self, make: Any, scripted: Any) -> None:
        with (
            scripted(lambda path, _: (200, {"x-hang-up": "1"}, self.answer(path))) as server,
            make(server.url) as client,
        ):
            for _ in range(3):
                assert self.infer(client)["y"].tolist() == [0.5]
                time.sleep(0.05)

    def test_nobody_there(self, make: Any) -> None:
        with (
            make("http://127.0.0.1:1", retry=Retry(attempts=2, first_wait_s=0.001)) as client,
            pytest.raises(Unavailable, match=r"cannot reach 127\.0\.0\.1:1"),
        ):
            self.infer(client)

    @pytest.mark.parametrize(
        "url", ["127.0.0.1:8080", "ftp://a", "http://a:99999", "http://a/b", "grpc+unix://a/b", "https+unix:///a"]
    )
    def test_an_address_of_another_form(self, make: Any, url: str) -> None:
        with pytest.raises(InvalidArgument, match=r"expected|port"):
            make(url)


@pytest.mark.parametrize("parameters", [{"a": np.int64(1)}, {"a": 1 << 64}, {"a": [1]}, {"a": None}])
def test_a_parameter_that_no_protocol_carries_is_refused_here(client: Any, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=r"parameter 'a' is .*, expected a bool, a text or a number"):
        client.infer("identity_fp32", {"x": np.zeros((1, 2), np.float32)}, parameters=parameters)


def test_a_parameter_of_64_bits_travels(client: Any) -> None:
    parameters = {"sequence_id": (1 << 64) - 1, "sequence_start": True, "sequence_end": True}
    answer = client.infer("identity_fp32", {"x": np.zeros((1, 2), np.float32)}, parameters=parameters)
    assert answer.parameters == parameters


@pytest.mark.parametrize("key", ["a b", "a\r\nx-evil: 1", "\u00e9"])
def test_a_key_that_is_no_header_is_refused(key: str) -> None:
    with pytest.raises(InvalidArgument, match="printable ASCII"):
        Client("http://127.0.0.1:1", api_key=key)


@pytest.mark.parametrize("megabytes", [2, 40])
@pytest.mark.parametrize("make", [Client, Blocking])
def test_a_body_over_the_servers_limit_is_told_as_that(identities: Path, make: Any, megabytes: int) -> None:
    settings = ServeSettings(sources=(str(identities),), http="127.0.0.1:0", max_body_bytes=1 << 20)
    with Server(settings) as server, make(server.url) as client, pytest.raises(TooLarge, match="max_body_bytes"):
        client.infer("identity_fp32", {"x": np.zeros((1, megabytes << 18), np.float32)})


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("make", [Client, Blocking])
@pytest.mark.parametrize("scheme", ["https", "grpcs", "http+unix", "grpc+unix"])
def test_with_tls_keys_and_unix_sockets(
    identities: Path, tmp_path: Path, authority: Authority, make: Any, scheme: str
) -> None:
    x = np.ones((1, 2), np.float32)
    certificate, private = authority.issue("server")
    key = add_key(tmp_path / "keys.toml", "me", ("infer",))
    is_tls = scheme.endswith("s")
    settings = ServeSettings(
        sources=(str(identities),),
        http="127.0.0.1:0" if is_tls else f"unix:{tmp_path}/http",
        grpc="127.0.0.1:0" if is_tls else f"unix:{tmp_path}/grpc",
        tls_cert=str(certificate) if is_tls else "",
        tls_key=str(private) if is_tls else "",
        api_keys=str(tmp_path / "keys.toml"),
    )
    with Server(settings) as server:
        address = server.grpc_address if "grpc" in scheme else server.url.removeprefix("https://")
        url = f"{scheme}://" + address.removeprefix("unix:").replace("127.0.0.1", "localhost")
        trusted = {"ca": str(authority.path)} if is_tls else {}
        with make(url, api_key=key, **trusted) as client:
            assert client.infer("identity_fp32", {"x": x})["y"].tolist() == x.tolist()
            with pytest.raises(PermissionDenied, match="'admin'"):
                client.unload("identity_fp32")
        with make(url, api_key="salver_wrong", **trusted) as client, pytest.raises(Unauthenticated):
            client.infer("identity_fp32", {"x": x})
        if is_tls:
            with make(url, api_key=key) as client, pytest.raises(FailedPrecondition, match="is not trusted"):
                client.live()


def test_the_client_comes_alone() -> None:
    code = (
        "import sys, salver.client\n"
        "heavy = ('onnxruntime', 'onnx', 'google.protobuf', 'hpack', 'salver.server', 'salver.bundle', 'rich')\n"
        "found = [m for m in heavy if m in sys.modules]\n"
        "sys.exit(', '.join(found) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
