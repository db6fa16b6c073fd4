"""`salver stats`, against a server that runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salver.cli import run
from salver.cli._output import print_rich
from salver.cli._stats import render
from salver.client import Client
from salver.core.errors import FailedPrecondition
from salver.server.app import Server
from salver.server.settings import ServeSettings

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
IMAGE = {"image": np.zeros((1, 1, 28, 28), np.float32)}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(ServeSettings(sources=(str(DIGITS),), http="127.0.0.1:0", grpc="127.0.0.1:0")) as server:
        yield server


def test_tells_of_every_model(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(server.url) as client:
        for _ in range(60):
            client.infer("digits", IMAGE)
    assert run(["stats", "--url", server.url]) == 0
    text = capsys.readouterr().out
    for expected in (
        "digits version 1",
        "Where the time goes",
        "compute",
        "Why batches have 1 row ",
        "a lane was free",
    ):
        assert expected in text
    assert run(["stats", "digits", "--url", server.url, "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["model_stats"]
    assert entry["inference_count"] >= 60
    assert entry["batch_stats"][0]["batch_size"] == 1
    told = entry["salver"]
    assert told["requests"]["OK"] >= 60
    assert told["reasons"]["idle_lane"] == told["batches"] == told["sizes"]["1"]
    assert told["costs"][0]["rows"] == 1
    assert told["where"]
    assert told["advice"]


def test_every(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("salver.cli._stats.time.sleep", pause)
    assert run(["stats", "--url", server.url, "--every", "500ms"]) == 130
    assert pauses == [0.5, 0.5, 0.5]
    assert capsys.readouterr().out.count("digits version 1") == 3


def test_what_goes_wrong(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for line, code, message in (
        (["nothing", "--url", server.url], 3, "no model 'nothing'"),
        (["--url", "http://127.0.0.1:1"], 7, "cannot reach 127.0.0.1:1"),
        (["--url", f"grpc://{server.grpc_address}"], 5, "no explanation; ask the HTTP address"),
        (["--url", server.url, "--api-key-file", "missing.txt"], 2, "'missing.txt' holds no API key"),
        (["--url", "ftp://server"], 2, "is not a server's URL"),
    ):
        assert run(["stats", *line]) == code
        assert message in capsys.readouterr().err


def test_shows_an_api_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "--api", "me", "--scopes", "metadata", "-o", "keys.toml"]) == 0
    (tmp_path / "key.txt").write_text(capsys.readouterr().out.split()[-1] + "\n")
    with Server(ServeSettings(sources=(str(DIGITS),), http="127.0.0.1:0", api_keys="keys.toml")) as server:
        assert run(["stats", "--url", server.url]) == 4
        assert run(["stats", "--url", server.url, "--api-key-file", "key.txt"]) == 0
    assert "nothing was asked yet" in capsys.readouterr().out


TOLD: dict[str, Any] = {
    "over_s": 42.0,
    "requests": {"OK": 990, "RESOURCE_EXHAUSTED": 10},
    "requests_per_s": 23.8,
    "rows_per_s": 30.0,
    "time": {
        "request": {"mean_s": 0.004, "p50_s": 0.003, "p99_s": 0.02, "share": 1.0},
        "queue": {"mean_s": 0.003, "p50_s": 0.002, "p99_s": 0.01, "share": 0.75},
        "rest": {"mean_s": 0.001, "p50_s": None, "p99_s": None, "share": 0.25},
    },
    "batches": 400,
    "mean_rows": 2.5,
    "sizes": {"1": 100, "<128": 300},
    "reasons": {"idle_lane": 300, "full": 100},
    "refused": {"queue_full": 10},
    "where": "on lanes: because",
    "lanes": 2,
    "busy_share": 0.5,
    "costs": [{"rows": 1, "mean_s": 0.001, "high_s": 0.002}],
    "merge": False,
    "merge_reason": "batch-mates [change] answers",
    "advice": ["do [this]"],
}
SHOWN = """\
m version 3: 1000 requests in 42 s, 23.8/s, 30 rows/s
failed: RESOURCE_EXHAUSTED 10
refused without a run: queue_full 10
Where the time goes
┏━━━━━━━━━┳━━━━━━┳━━━━━━┳━━━━━━━┳━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓
┃         ┃ mean ┃ p50  ┃ p99   ┃ share ┃                                ┃
┡━━━━━━━━━╇━━━━━━╇━━━━━━╇━━━━━━━╇━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┩
│ request │ 4 ms │ 3 ms │ 20 ms │ 100 % │                                │
│ queue   │ 3 ms │ 2 ms │ 10 ms │ 75 %  │ ██████████████████████████████ │
│ rest    │ 1 ms │      │       │ 25 %  │ ██████████                     │
└─────────┴──────┴──────┴───────┴───────┴────────────────────────────────┘
Why batches have 2.5 rows on average
┏━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┓
┃ reason    ┃                                         ┃ share ┃                                ┃
┡━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┩
│ idle_lane │ a lane was free and nothing more waited │ 75 %  │ ██████████████████████████████ │
│ full      │ no room for the next request            │ 25 %  │ ██████████                     │
└───────────┴─────────────────────────────────────────┴───────┴────────────────────────────────┘
sizes: <128 rows 75 %, 1 row 25 %
batches run on lanes: because
lanes: 2, busy 50 % of the time
learned time of a batch, by rows: 1: 1 ms
requests are not merged: batch-mates [change] answers
→ do [this]
"""


def test_golden(capsys: pytest.CaptureFixture[str]) -> None:
    print_rich(*render([{"name": "m", "version": "3", "salver": TOLD}], "http://server"))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "\n".join(lines).rstrip() == SHOWN.rstrip()


def test_another_server_has_no_explanation() -> None:
    with pytest.raises(FailedPrecondition, match="gives counts and no explanation"):
        render([{"name": "m", "version": "1"}], "http://triton")
    assert render([], "http://empty") == ["no model is served"]
