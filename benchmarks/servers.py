"""How Salver and each of its peers are made to serve one network, which all of them run from the same file.

Peers run it in ONNX Runtime with one thread that does not spin (`peer_session.py`), their metrics and access logs off.
All but `grpc.aio` answer `POST /v2/models/NAME/infer` with JSON of the Open Inference Protocol: Triton and MLServer as
they come, FastAPI and BentoML by a route of that shape.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import environments
import numpy as np
import onnx
import onnxruntime as ort
from environments import Command, Process

from salver import __version__
from salver.client import Client
from salver.core.errors import SalverError

HERE = Path(__file__).resolve().parent
ROWS = 8  # different ones
START_LIMIT_S = 120.0
TOKENS_MAX = 30_000  # ids that MiniLM knows
_DATATYPES = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.INT64: "INT64"}
_PLAIN_MAX_BATCH = 32  # rows that one request may have where requests are not batched


class Tensor(NamedTuple):
    """What an ONNX file says of an input or output; the shape is without the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Place(NamedTuple):
    """Where a server is set up, and what it serves."""

    folder: Path
    model: Path
    name: str
    http: int
    grpc: int


class Batching(NamedTuple):
    """What a peer that batches is told.

    Args:
        max_rows: of a batch.
        objective_s: the latency that it may aim at, where it has such a setting.
        wait_s: time for which a batch may wait for more, where it has such a setting.
        refuse_after_s: time after which a request that still waits is refused, where it has such a setting; 0: never.
        lanes: batches that run at the same time.
    """

    max_rows: int
    objective_s: float
    wait_s: float = 0.0
    refuse_after_s: float = 0.0
    lanes: int = 1


def signature(model: Path) -> tuple[Tensor, Tensor]:
    """The one input and the one output."""
    graph = onnx.load(model, load_external_data=False).graph
    (given,), (gives,) = graph.input, graph.output
    return _tensor(given), _tensor(gives)


def _tensor(info: Any) -> Tensor:
    kind = info.type.tensor_type
    return Tensor(info.name, _DATATYPES[kind.elem_type], tuple(size.dim_value for size in kind.shape.dim[1:]))


def examples(model: Path) -> dict[str, np.ndarray]:
    """Rows to ask about."""
    given, _ = signature(model)
    rng, shape = np.random.default_rng(0), (ROWS, *given.shape)
    whole = given.datatype == "INT64"
    return {given.name: rng.integers(0, TOKENS_MAX, shape) if whole else rng.standard_normal(shape).astype(np.float32)}


def salver(place: Place, *more: str) -> Command:
    """As `salver serve` does: batching, checks and metrics are on."""
    line = [sys.executable, "-m", "salver", "serve", str(place.model), "--name", place.name]
    return Command(
        [*line, "--http", f"127.0.0.1:{place.http}", "--grpc", f"127.0.0.1:{place.grpc}", *more],
        {},
    )


def triton(place: Place, batching: Batching | None = None) -> Command:
    """Triton with its Python backend; with batching, requests that come while it runs make the next batch."""
    given, gives = signature(place.model)
    config = [
        f'name: "{place.name}" backend: "python" max_batch_size: {batching.max_rows if batching else _PLAIN_MAX_BATCH}',
        f"input [{_triton_tensor(given)}]",
        f"output [{_triton_tensor(gives)}]",
        f"instance_group [{{ count: {batching.lanes if batching else 1} kind: KIND_CPU }}]",
    ]
    if batching:
        policy = f"timeout_action: REJECT default_timeout_microseconds: {batching.refuse_after_s * 1e6:.0f}"
        queue = f"default_queue_policy {{ {policy} }}" if batching.refuse_after_s else ""
        delay = f"max_queue_delay_microseconds: {batching.wait_s * 1e6:.0f}"
        config.append(f"dynamic_batching {{ {delay} {queue} }}")
    folder = place.folder / "models" / place.name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text("\n".join(config) + "\n", encoding="utf-8")
    shutil.copy(HERE / "triton_peer.py", folder / "1" / "model.py")
    return environments.triton(place.folder, place.http, place.grpc)


def _triton_tensor(tensor: Tensor) -> str:
    return f'{{ name: "{tensor.name}" data_type: TYPE_{tensor.datatype} dims: {list(tensor.shape)} }}'


def fastapi(place: Place) -> Command:
    """FastAPI tuned by hand; it batches nothing."""
    line = [str(environments.peer("fastapi")), "-m", "uvicorn", "fastapi_peer:app", "--port", str(place.http)]
    line += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    return Command(line, {})


def grpc_aio(place: Place) -> Command:
    """A handler on grpcio's asyncio server; it batches nothing."""
    return Command([sys.executable, str(HERE / "grpc_peer.py"), str(place.grpc)], {})


def mlserver(place: Place, batching: Batching | None = None) -> Command:
    """MLServer, which runs the model in one process of its own for each lane, where there are several."""
    settings: dict[str, Any] = {"name": place.name, "implementation": "mlserver_peer.Model"}
    if batching:
        settings |= {"max_batch_size": batching.max_rows, "max_batch_time": batching.wait_s}
    (place.folder / "model-settings.json").write_text(json.dumps(settings), encoding="utf-8")
    workers = batching.lanes if batching and batching.lanes > 1 else 0
    return environments.mlserver(place.folder, place.http, place.grpc, workers)


def bentoml(place: Place, batching: Batching | None = None) -> Command:
    """BentoML with a worker for each lane; it batches adaptively towards the objective, and refuses what it expects to
    miss it."""
    variables = {"BENCH_NAME": place.name, "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(place.folder / "home")}
    if batching:
        limits = {"max_batch_size": batching.max_rows, "max_latency_ms": max(round(batching.objective_s * 1e3), 1)}
        variables |= {"BENCH_BATCHING": json.dumps(limits), "BENCH_WORKERS": str(batching.lanes)}
    line = [str(environments.peer("bentoml").with_name("bentoml")), "serve", "bentoml_peer:Network"]
    line += ["--working-dir", str(HERE), "--host", "127.0.0.1", "--port", str(place.http)]
    return Command(line, variables)


@contextmanager
def running(command: Command, place: Place, *cores: int) -> Iterator[Process]:
    """The server until the block ends; on these cores, if any are named."""
    paths = [path for path in (str(HERE), command.variables.get("PYTHONPATH")) if path]
    variables = command.variables | {"BENCH_MODEL": str(place.model), "PYTHONPATH": ":".join(paths)}
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    with environments.running(Command(pinned + command.line, variables), place.folder) as process:
        yield process


def wait_until_right(place: Place, process: Process, *, grpc: bool = False) -> None:
    """Ask until the server answers, as JSON or over gRPC; the answer must be what ONNX Runtime's is."""
    [(name, rows)] = examples(place.model).items()
    [expected] = ort.InferenceSession(place.model).run(None, {name: rows[:1]})
    ask, end = _ask_grpc if grpc else _ask_json, time.monotonic() + START_LIMIT_S
    while True:
        try:
            found = ask(place, rows[:1])
            break
        except (OSError, SalverError) as error:
            if process.popen.poll() is not None or time.monotonic() > end:
                said = error.read().decode() if isinstance(error, HTTPError) else ""
                sys.exit(f"{process.popen.args}: {error} {said}\n{process.last_words()}")
            time.sleep(0.05)
    np.testing.assert_allclose(np.ravel(found), expected.ravel(), rtol=1e-3, atol=1e-4)


def _ask_json(place: Place, x: np.ndarray) -> np.ndarray:
    given, _ = signature(place.model)
    tensor = {"name": given.name, "shape": list(x.shape), "datatype": given.datatype, "data": x.ravel().tolist()}
    request = Request(
        f"http://127.0.0.1:{place.http}/v2/models/{place.name}/infer", json.dumps({"inputs": [tensor]}).encode()
    )
    request.add_header("Content-Type", "application/json")
    with urlopen(request, timeout=START_LIMIT_S) as answer:
        found = json.load(answer)
    [output] = found["outputs"] if isinstance(found, dict) else found  # BentoML can only split lists
    return np.array(output["data"])


def _ask_grpc(place: Place, x: np.ndarray) -> np.ndarray:
    given, gives = signature(place.model)
    with Client(f"grpc://127.0.0.1:{place.grpc}") as client:
        return client.infer(place.name, {given.name: x})[gives.name]


def versions(names: Iterable[str]) -> str:
    """Of Salver, of ONNX Runtime and of these peers."""
    here = f"salver {__version__}, onnxruntime {ort.__version__}"
    return "; ".join([here, *(environments.version(name) for name in sorted(names))])
