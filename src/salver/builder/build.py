"""The main job: a trained model in, candidates tried and certified, the chosen one sealed with its proof."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import onnx

from salver import __version__
from salver.backends import BACKENDS, find_backend
from salver.builder.events import BuildEvent, OnEvent
from salver.builder.given import name_of, read_inputs, read_labels
from salver.builder.importers import load_model
from salver.builder.importers.base import Imported, ParityCertificate
from salver.builder.passes import change_numbers
from salver.builder.search.cache import TrialCache
from salver.builder.search.choose import Objective
from salver.builder.search.recipes import FRAMEWORKS, MOVES
from salver.builder.search.search import Search, SearchResult, SearchSettings
from salver.builder.search.splits import split
from salver.builder.search.spool import SpooledDataset, spool
from salver.bundle import Bundle, Contents, make_golden, seal
from salver.bundle.archive import translate
from salver.core.cache import default_cache_dir
from salver.core.dataset import Dataset
from salver.core.errors import InvalidArgument, MissingExtra, NotFound, UnknownName
from salver.core.model import Model, Processing, Step
from salver.core.tensors import TensorSpec
from salver.datasets import bind, open_dataset
from salver.evaluation.host import describe_host
from salver.evaluation.metrics import make_metric
from salver.evaluation.noninferiority import check_margin, default_margin, parse_margin
from salver.evaluation.types import BuildRecord
from salver.processing import pipeline_of, runs_code
from salver.processing.dataset import ProcessedDataset, open_examples, process
from salver.processing.declared import attach, read_steps, takes_files

_HOME: Final = "onnxruntime"
_GOLDEN_ROWS: Final = 16
_LEAST_EXAMPLES: Final = 3
_PARITY_ROWS: Final = 1024
_DEFAULT_BUDGET_S: Final = 300.0


@contextmanager
def _foreign_errors() -> Iterator[None]:
    """Say what the operating system refused: a full disk, a folder that may not be written."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever was listening to progress has gone; that is for the caller to judge
    except OSError as error:
        raise translate(error, Path(error.filename or tempfile.gettempdir())) from error


@_foreign_errors()
def build(
    source: Any,
    data: Any,
    *,
    metric: str | None = None,
    max_drop: str | None = None,
    objective: Objective = "latency",
    threads: int = 1,
    batch: int = 1,
    backends: Sequence[str] | None = None,
    calibration: Any = None,
    budget_s: float = _DEFAULT_BUDGET_S,
    labels: Sequence[str] | Path | str | None = None,
    label: str | None = None,
    golden: Literal["real", "synthetic"] = "real",
    output: Path | str | None = None,
    name: str | None = None,
    card: str = "",
    licence: str = "",
    inputs: Sequence[TensorSpec] | str = (),
    weights: Path | str | None = None,
    processing: Path | str | None = None,
    tolerance: float | None = None,
    trust_pickle: bool = False,
    cache: Path | str | None = None,
    seed: int = 0,
    sign_key: Path | str | None = None,
    on_event: OnEvent | None = None,
) -> Bundle:
    """Import a model, look for a better one, certify it on the user's data and seal it.

    Args:
        source: a model file, or an estimator in memory.
        data: validation examples: a file, a folder, ``module:function``, a dict of arrays, or a `Dataset`.
        metric: a metric's name or ``module:function``; without it ``accuracy`` where there are labels, else
            ``agreement``.
        max_drop: how much worse is still not worse: ``0.5pp`` (percentage points) or ``1%`` (relative); without it
            ``0.5pp`` where the metric is a share (accuracy, top-5, auc, agreement), else ``1%``.
        objective: what has to get better.
        threads, batch: at which latency is measured.
        backends: what may come to run the model: ``onnxruntime``, which always may, ``openvino``, or the framework that
            made it (``torch``, ``tensorflow``); without it the former two, as far as they are installed.
        calibration: examples for calibration; without it a part of ``data`` that is used for nothing else.
        budget_s: wall time for search and certification, in seconds.
        labels: class names, or a text file with one name per line.
        label: name of the label column in ``data``.
        golden: whether the requests stored in the bundle are taken from ``data`` or made up.
        output: where the bundle is written; without it ``<name>.salver`` in the current folder.
        name: the model's name; without it the source's file name.
        card, licence: texts that travel with the model.
        inputs: inputs of a source that does not say them: specs, or text such as ``x:float32[batch,3,224,224]``.
        weights: file of weights, for a source that is code.
        processing: a TOML file of steps before and after the model, which travel with it; ``data`` are then examples of
            what clients send: texts, image files, rows.
        tolerance: of the parity check; None takes what follows from datatype and depth.
        trust_pickle: run code from a pickled source.
        cache: folder that keeps trials; a second build of the same inputs resumes from it.
        seed: of the random split.
        sign_key: Ed25519 private key (PEM) to sign the bundle with.
        on_event: told of progress.

    Returns:
        The sealed bundle, open.

    Raises:
        SalverError: with what was given, what was expected and what to do.
        KeyboardInterrupt: interrupted before there was anything to seal.
    """
    began = time.monotonic()
    tell = on_event or _ignore
    _check_numbers(threads, batch, budget_s)
    if backends is not None:
        _check_backends(backends)
    if max_drop is not None:
        parse_margin(max_drop)  # refuses what is no margin before anything long begins
    cache_dir = Path(cache) if cache is not None else default_cache_dir()
    steps = read_steps(Path(processing)) if processing is not None else None
    files = steps is not None and takes_files(steps)
    examples = open_examples(data, files=files, label=label)
    tell(BuildEvent(stage="import", message="importing and checking parity", left_s=budget_s))
    imported = _import_behind(
        steps,
        source,
        examples,
        cache_dir / "imports",
        tolerance=tolerance,
        trust_pickle=trust_pickle,
        labels=read_labels(labels),
        inputs=read_inputs(inputs),
        weights=str(weights or ""),
    )
    if len(examples) < _LEAST_EXAMPLES:
        raise InvalidArgument(
            f"'{examples.source}' has {len(examples)} example{'s' if len(examples) > 1 else ''}; expected at least "
            f"{_LEAST_EXAMPLES}, one each to calibrate, to steer and to certify (hundreds, to certify anything)"
        )
    wanted = metric or ("accuracy" if examples.label_spec is not None else "agreement")
    judge = make_metric(wanted, imported.model.served)  # refuses a wrong name before anything long begins
    if judge.needs_labels and examples.label_spec is None:
        judge.require_labels(None)
    allowed = max_drop or default_margin(judge)
    check_margin(judge, allowed)
    chosen_name = name or name_of(source)
    target = Path(output) if output is not None else Path(f"{chosen_name}.salver")
    if not target.absolute().parent.is_dir():
        raise NotFound(f"no such folder for the bundle: '{target.parent}'; make it, or name another with -o")
    others = _backends(backends, imported)
    with tempfile.TemporaryDirectory(prefix="salver-build-") as scratch:
        own = open_examples(calibration, files=files) if calibration is not None else None
        parts = _deal(examples, own, imported.model, seed, Path(scratch))
        settings = SearchSettings(
            metric=wanted,
            margin=parse_margin(allowed),
            objective=objective,
            threads=threads,
            batch=batch,
            backends=others,
            budget_s=budget_s,
        )
        host = describe_host()
        tools = _tools(imported.model.format, *others)
        result = Search(
            imported.model,
            native=imported.native if set(others) - set(MOVES) else None,
            tolerance=imported.parity.tolerance,
            splits={role: part.folder for role, part in parts.items()},
            rows={role: len(part) for role, part in parts.items()},
            digests={
                **{role: part.digest for role, part in parts.items()},
                **({} if imported.model.processing is None else {"processing": imported.model.processing.digest}),
                "seed": str(seed),
                "rows": _rows(parts),
            },
            settings=settings,
            cache=TrialCache(cache_dir),
            host=host,
            tools=tools,
            on_event=tell,
        ).run()
        tell(BuildEvent(stage="seal", message=f"sealing {result.chosen}", elapsed_s=time.monotonic() - began))
        record = BuildRecord(
            settings={**msgspec.to_builtins(settings), "max_drop": allowed, "golden": golden, "seed": seed},
            splits={role: len(part) for role, part in parts.items()},
            candidates=result.candidates,
            chosen=result.chosen,
            why=result.why,
            hints=_hints(result, threads),
            host=host,
            tools=tools,
            seconds=round(time.monotonic() - began, 1),
        )
        contents = Contents(
            name=chosen_name,
            model=msgspec.structs.replace(result.model, lineage=(*result.model.lineage, *_data_steps(parts))),
            record=record,
            parity=_sealed_parity(imported.parity, record, golden),
            golden=make_golden(
                result.model,
                _golden_rows(parts["steer"]) if golden == "real" else None,
                count=_GOLDEN_ROWS,
                seed=seed,
            ),
            card=card or _card(chosen_name, imported, record),
            licence=licence,
        )
        bundle = seal(target, contents)
    return bundle.sign(Path(sign_key)) if sign_key is not None else bundle


def load(
    source: Any,
    *,
    data: Any = None,
    workdir: Path | str | None = None,
    tolerance: float | None = None,
    trust_pickle: bool = False,
    labels: Sequence[str] | Path | str | None = None,
    inputs: Sequence[TensorSpec] | str = (),
    weights: Path | str | None = None,
) -> Model:
    """Import a model and prove that the import changed nothing.

    Args:
        source: a model file, or an estimator in memory.
        data: real inputs for the parity check; without them inputs are made up.
        workdir: where the converted model is written; without it the cache folder.
        tolerance, trust_pickle, labels, inputs, weights: as in `build`.

    Raises:
        ParityFailed: the converted model gives other answers, naming the worst output and input.
        SalverError: otherwise, with what was given, what was expected and what to do.
    """
    folder = Path(workdir) if workdir is not None else default_cache_dir() / "imports"
    examples = open_dataset(data) if data is not None else None
    return _import(
        source,
        examples,
        folder,
        tolerance=tolerance,
        trust_pickle=trust_pickle,
        labels=read_labels(labels),
        inputs=read_inputs(inputs),
        weights=str(weights or ""),
    ).model


def _import(source: Any, examples: Dataset | None, folder: Path, **given: Any) -> Imported:
    """Import below ``folder``, each model in a folder named by its digest: the same import lies in the same place,
    so that trials of it are found again, and different models never overwrite each other."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="new-") as scratch:
        imported = load_model(source, data=examples, workdir=Path(scratch), **given)
        kept = _keep(imported.model, folder)
        native = None if imported.native is None else _keep(imported.native, folder)
    return msgspec.structs.replace(imported, model=kept, native=native)


def _import_behind(steps: Processing | None, source: Any, examples: Dataset, folder: Path, **given: Any) -> Imported:
    """Import a model that stands behind steps: once to know what it takes, and again to prove parity on what the steps
    make of the examples."""
    if steps is None:
        return _import(source, examples, folder, **given)
    model = _attach(_import(source, None, folder, **given).model, steps)
    inner = process(examples, pipeline_of(model), model.signature, _PARITY_ROWS)
    imported = _import(source, inner, folder, **given)
    return msgspec.structs.replace(imported, model=_attach(imported.model, steps))


def _attach(model: Model, steps: Processing) -> Model:
    """Put steps around a model; code among them is the user's own."""
    return attach(msgspec.structs.replace(model, trusted=True) if runs_code(steps) else model, steps)


def _keep(model: Model, folder: Path) -> Model:
    home = folder / model.digest.removeprefix("sha256:")[:32]
    blobs = []
    for blob in model.blobs:
        target = home / blob.name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        shutil.copyfile(blob.path, partial)
        partial.replace(target)
        blobs.append(msgspec.structs.replace(blob, path=target))
    return msgspec.structs.replace(model, blobs=tuple(blobs))


def _ignore(event: BuildEvent) -> None:
    del event


def _check_numbers(threads: int, batch: int, budget_s: float) -> None:
    for what, value in (("threads", threads), ("batch", batch), ("budget", budget_s)):
        if value <= 0:
            raise InvalidArgument(f"{what}: got {value}, expected a number above 0")


def _deal(
    examples: Dataset, calibration: Dataset | None, model: Model, seed: int, folder: Path
) -> dict[str, SpooledDataset]:
    bound = bind(examples, model.served)
    dealt = split(bound, bind(calibration, model.served) if calibration is not None else None, seed)
    calibrate = dealt.calibrate
    if model.processing is not None:  # passes change the graph, and see what it sees
        calibrate = ProcessedDataset(calibrate, pipeline_of(model), model.signature)
    return {
        "calibrate": spool(calibrate, folder / "calibrate"),
        "steer": spool(dealt.steer, folder / "steer"),
        "certify": spool(dealt.certify, folder / "certify"),
    }


def _data_steps(parts: dict[str, SpooledDataset]) -> list[Step]:
    """Which examples took part, and as what; the file's name without its folder, which is nobody's business."""
    return [
        Step(
            action="data",
            name=f"{role}: {Path(part.source).name}",
            output_digest=part.digest,
            config={"rows": len(part)},
        )
        for role, part in parts.items()
    ]


def _rows(parts: dict[str, SpooledDataset]) -> str:
    return ",".join(f"{role}={len(part)}" for role, part in sorted(parts.items()))


def _sealed_parity(parity: ParityCertificate, record: BuildRecord, golden: str) -> ParityCertificate:
    """The certificate as it is sealed: with the passes that changed numbers on purpose, and without the user's
    examples where those must not travel."""
    changed = change_numbers(str(step["pass"]) for step in record.sealed.recipe)
    keep = golden == "real" or parity.inputs == "synthetic"
    return msgspec.structs.replace(parity, changed_by=changed, recorded=parity.recorded if keep else ())


def _golden_rows(part: SpooledDataset) -> dict[str, Any]:
    return next(iter(part.batches(_GOLDEN_ROWS))).inputs


def _check_backends(asked: Sequence[str]) -> None:
    for name in asked:
        if name not in (_HOME, *MOVES, *FRAMEWORKS):
            raise UnknownName("backend for the search", name, (_HOME, *MOVES, *FRAMEWORKS))
        BACKENDS.get(name)  # says what to install


def _backends(asked: Sequence[str] | None, imported: Imported) -> tuple[str, ...]:
    """Those that the search may move a model to."""
    if asked is None:
        return tuple(name for name in MOVES if _is_installed(name))
    forms = (imported.model, imported.native or imported.model)
    home, maker = (find_backend(form.format).name for form in forms)
    for name in asked:
        if name in FRAMEWORKS and name != maker:
            made_by = f"; '{maker}' can" if maker in FRAMEWORKS else ""
            raise InvalidArgument(f"backends: '{name}' cannot run this model, which was not made by it{made_by}")
    return tuple(dict.fromkeys(name for name in asked if name not in (_HOME, home)))


def _is_installed(backend: str) -> bool:
    try:
        BACKENDS.get(backend)
    except MissingExtra:
        return False
    return True


def _tools(format: str, *backends: str) -> dict[str, str]:
    found = {"salver": __version__, "onnx": onnx.__version__, "numpy": np.__version__}
    for backend in (find_backend(format), *(BACKENDS.get(name)() for name in backends)):
        found |= backend.versions()
    return found


def _hints(result: SearchResult, threads: int) -> dict[str, Any]:
    """What a server should do where nothing better is known."""
    sealed = next(c for c in result.candidates if c.name == result.chosen)
    measured = sealed.evaluation
    invariance = measured.invariance if measured else None
    batchable = result.model.served.batch_dim is not None
    merge = batchable and invariance is not None and invariance.invariant
    batch = measured.latency[-1].batch if measured and measured.latency and merge else 1
    why = "" if merge else invariance.reason if invariance and invariance.reason else "the model has no batch dimension"
    return {"threads": threads, "batch": batch, "merge": merge, "why": why}


def _card(name: str, imported: Imported, record: BuildRecord) -> str:
    """A model card in Markdown, from what is known."""
    sealed = record.sealed
    quality = sealed.evaluation.quality if sealed.evaluation else None
    lines = [f"# {name}", "", *(f"- {line}" for line in record.why), ""]
    if quality is not None:
        lines += [
            f"{quality.metric}: {quality.value:.4f} (original {quality.baseline:.4f}) on {quality.examples} examples, "
            f"{quality.role}. Drop at most {quality.drop_upper:.4f} (one-sided 95 %).",
            "",
        ]
    lines += ["## Inputs and outputs", ""]
    signature = imported.model.served
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        lines += [f"- {kind} `{s.name}`: {s.datatype} {list(s.shape)}" for s in specs]
    notes = [f"- {note}" for note in imported.model.notes]
    return "\n".join([*lines, *(["", "## Notes", "", *notes] if notes else []), ""])
