"""Health, metadata, repository, statistics and configuration through real clients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from salver.testing.oip.case import Answer, Call, Case, Failed
from salver.testing.oip.checks import is_true, need, value
from salver.testing.oip.samples import tensor
from salver.testing.oip.table.infer import identity, infer


def cases() -> Iterator[Case]:
    """All of this module."""
    yield from _health()
    yield from _metadata()
    yield from _repository()
    yield from _statistics()


def _health() -> Iterator[Case]:
    for op, says in (("live", "the server is live"), ("ready", "the server is ready")):
        yield Case(
            f"health/{op}",
            f"{says}, in the eyes of the client",
            "OIP health; tritonclient reads the status only, kserve reads .live and .ready of a JSON body",
            "core",
            frozenset({"health"}),
            (Call(op),),
            is_true,
        )
    yield Case(
        "health/model-ready",
        "a model that is loaded is ready",
        "OIP model health",
        "core",
        frozenset({"health"}),
        (Call("model_ready", {"model": "classifier"}),),
        is_true,
    )
    yield Case(
        "health/model-version-ready",
        "a version of a model that is loaded is ready",
        "OIP model health",
        "core",
        frozenset({"health", "version"}),
        (Call("model_ready", {"model": "classifier", "version": "1"}),),
        is_true,
    )
    yield Case(
        "health/unknown-model",
        "a model that is not there is not ready: no, or an error",
        "OIP model health; tritonclient returns False, kserve.grpc raises",
        "core",
        frozenset({"health"}),
        (Call("model_ready", {"model": "no_such_model"}),),
        _is_not_ready,
    )


def _is_not_ready(answers: Sequence[Answer]) -> None:
    answer = answers[-1]
    need(bool(answer.error) or not answer.value, f"got {answer.value!r}, expected False or an error")


def _metadata() -> Iterator[Case]:
    yield Case(
        "metadata/server",
        "name, version and a list of extensions",
        "OIP server metadata",
        "core",
        frozenset({"metadata"}),
        (Call("server_metadata"),),
        value(_check_server),
    )
    for version in ("", "1"):
        yield Case(
            "metadata/model" + ("-version" if version else ""),
            "the model's name, versions, platform, inputs and outputs" + (", of one version" if version else ""),
            "OIP model metadata",
            "core",
            frozenset({"metadata"}),
            (Call("model_metadata", {"model": "sum_difference", "version": version}),),
            value(_check_model),
        )


def _check_server(got: Any) -> None:
    for field in ("name", "version"):
        need(isinstance(got.get(field), str) and bool(got[field]), f"{field} is {got.get(field)!r}, expected a text")
    extensions = got.get("extensions", [])
    need(all(isinstance(e, str) for e in extensions), f"extensions {extensions!r}, expected texts")


def _check_model(got: Any) -> None:
    need(got.get("name") == "sum_difference", f"name {got.get('name')!r}")
    need("1" in (got.get("versions") or ["1"]), f"versions {got.get('versions')!r}, expected '1' among them")
    need(isinstance(got.get("platform"), str), f"platform {got.get('platform')!r}, expected a text")
    for side, expected in (("inputs", {"a", "b"}), ("outputs", {"sum", "difference"})):
        tensors = got.get(side, [])
        need({t["name"] for t in tensors} == expected, f"{side} {tensors!r}, expected {sorted(expected)}")
        for spec in tensors:
            need(spec["datatype"] == "INT32", f"{spec['name']}: datatype {spec['datatype']!r}, expected INT32")
            shape = [int(n) for n in spec["shape"]]
            need(shape == [-1, -1], f"{spec['name']}: shape {shape}, expected [-1, -1]")


def _repository() -> Iterator[Case]:
    can = frozenset({"repository"})
    yield Case(
        "repository/index",
        "the index lists the models with their states",
        "Triton extension_model_repository.md, index; tritonclient.http sends an empty body",
        "repository",
        can,
        (Call("index"),),
        value(_check_index),
    )
    unload, load = Call("unload", {"model": "reloadable"}), Call("load", {"model": "reloadable"})
    ask = Call("model_ready", {"model": "reloadable"})
    yield Case(
        "repository/unload",
        "a model that was unloaded is not ready",
        "Triton extension_model_repository.md, unload",
        "repository",
        can,
        (load, unload, ask),
        _check_unloaded,
    )
    yield Case(
        "repository/load",
        "a model that was loaded again is ready",
        "Triton extension_model_repository.md, load",
        "repository",
        can,
        (load, unload, load, ask),
        is_true,
    )
    yield Case(
        "repository/load-unknown",
        "loading what is not in the repository is refused",
        "Triton extension_model_repository.md, load",
        "repository",
        can,
        (Call("load", {"model": "no_such_model"}),),
        lambda answers: need(bool(answers[-1].error), "the call succeeded, expected a failure"),
    )


def _check_index(got: Any) -> None:
    states = {entry.get("name"): entry.get("state") for entry in got}
    need(states.get("classifier") == "READY", f"classifier is {states.get('classifier')!r}, expected READY")


def _check_unloaded(answers: Sequence[Answer]) -> None:
    for answer in answers[:-1]:
        answer.result()
    _is_not_ready(answers)


def _statistics() -> Iterator[Case]:
    ask = Call("statistics", {"model": identity("UINT16")})
    yield Case(
        "statistics/count",
        "the count of successful requests grows by one with one request",
        "Triton extension_statistics.md",
        "statistics",
        frozenset({"statistics"}),
        (ask, infer(identity("UINT16"), tensor("x", "UINT16", [1, 2]), encoding="native"), ask),
        _check_grows,
    )
    yield Case(
        "statistics/all",
        "without a model's name all models are listed",
        "Triton extension_statistics.md",
        "statistics",
        frozenset({"statistics"}),
        (Call("statistics"),),
        value(lambda got: need(len(got["model_stats"]) > 1, f"{len(got['model_stats'])} models, expected several")),
    )
    yield Case(
        "configuration/model",
        "the configuration names the model and its inputs",
        "Triton extension_model_configuration.md",
        "configuration",
        frozenset({"configuration"}),
        (Call("model_config", {"model": "classifier"}),),
        value(_check_config),
    )


def _count(answer: Answer) -> int:
    try:
        return int(answer.result()["model_stats"][0]["inference_stats"]["success"].get("count", 0))
    except (KeyError, IndexError) as error:
        raise Failed(f"statistics without {error}: {str(answer.value)[:160]}") from None


def _check_grows(answers: Sequence[Answer]) -> None:
    before, after = _count(answers[0]), _count(answers[-1])
    answers[1].result()
    need(after == before + 1, f"{before} before and {after} after one request")


def _check_config(got: Any) -> None:
    need(got.get("name") == "classifier", f"name {got.get('name')!r}, expected 'classifier'")
    inputs = [spec.get("name") for spec in got.get("input", [])]
    need(inputs == ["x"], f"input {inputs}, expected ['x']")
