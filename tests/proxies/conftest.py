"""Two servers of small models, without TLS and with it, for proxies to stand in front of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from salver.testing.certificates import Authority
from salver.testing.oip.models import MODELS
from salver.testing.oip.models._onnx import write
from tests.proxies.proxies import Front, Proxy, running
from tests.proxies.servers import Served, serving

Through = Callable[[Proxy], Front]


def write_gather(folder: Path) -> None:
    """``y = table[x]`` of a table of three: an index past its end is found out while the model runs."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        "gather",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ("batch",))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch",))],
        [helper.make_tensor("table", TensorProto.FLOAT, [3], [0.5, 1.5, 2.5])],
    )
    (folder / "gather" / "1").mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "gather" / "1" / "model.onnx")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``identity_fp32``, ``identity_bytes``, ``slow`` and ``gather``."""
    folder = tmp_path_factory.mktemp("models")
    for model in MODELS:
        if model.name in ("identity_fp32", "identity_bytes", "slow"):
            write(folder, model)
    write_gather(folder)
    return folder


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("certificates")
    folder.chmod(0o755)
    return Authority(folder)


@pytest.fixture(scope="session")
def pair(models: Path) -> Iterator[tuple[Served, Served]]:
    with serving(models) as one, serving(models) as other:
        yield one, other


@pytest.fixture(scope="session")
def tls_pair(models: Path, authority: Authority) -> Iterator[tuple[Served, Served]]:
    certificate, key = authority.issue("server")
    own = ("--tls-cert", certificate, "--tls-key", key)
    with serving(models, *own, ca=authority.path) as one, serving(models, *own, ca=authority.path) as other:
        yield one, other


@pytest.fixture(scope="session")
def through(tmp_path_factory: pytest.TempPathFactory, pair: tuple[Served, Served]) -> Iterator[Through]:
    """Each proxy once, in front of `pair`."""
    with contextlib.ExitStack() as stack:
        yield _starter(stack, tmp_path_factory.mktemp("proxies"), pair, None)


@pytest.fixture(scope="session")
def through_tls(
    tmp_path_factory: pytest.TempPathFactory, tls_pair: tuple[Served, Served], authority: Authority
) -> Iterator[Through]:
    """Each proxy once, in front of `tls_pair`, which it speaks TLS with."""
    with contextlib.ExitStack() as stack:
        yield _starter(stack, tmp_path_factory.mktemp("proxies"), tls_pair, authority.path)


def _starter(stack: contextlib.ExitStack, folder: Path, servers: tuple[Served, Served], ca: Path | None) -> Through:
    started: dict[str, Front] = {}

    def start(proxy: Proxy) -> Front:
        if proxy.name not in started:
            addresses = [server.address for server in servers]
            started[proxy.name] = stack.enter_context(running(proxy, folder / proxy.name, addresses, ca))
        return started[proxy.name]

    return start
