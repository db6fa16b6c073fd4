"""Start a server: in this process, or as a supervisor with workers. Loads nothing that a supervisor does not need."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from salver.core.errors import InvalidArgument
from salver.core.registry import load
from salver.server._files import allow_connections
from salver.server.monitoring.logs import configure_logging
from salver.server.settings import ServeSettings
from salver.server.tuned import read_tuned

_LOG = logging.getLogger(__name__)
_ALONE: Final = "salver.server.app:serve_alone"
_NEEDS_PROCESS: Final = "salver.server.engine.repository:any_needs_process"
_SUPERVISED: Final = "salver.server.processes.supervise:supervise"


def serve(
    *sources: str | os.PathLike[str], models: Mapping[str, Mapping[str, Any]] | None = None, **settings: Any
) -> None:
    """Serve models until SIGTERM or SIGINT, then answer what is open and return; where a run outlives the drain, the
    process ends with exit code 1 instead.

        salver.serve("digits.salver", http="127.0.0.1:8080")

    Args:
        sources: bundles, ONNX files (served as untested), or folders ``<name>/<version>/model.onnx``.
        models: settings of single models by name; ``source`` names a further source.
        settings: fields of `ServeSettings`.

    Raises:
        SalverError: a setting is wrong, the address is taken, or no model can be served.
    """
    launch(settings_of(sources, models or {}, settings))


def settings_of(
    sources: Sequence[str | os.PathLike[str]],
    models: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    origins: Mapping[str, str] = {},
) -> ServeSettings:
    """The settings of a server, from what `serve` takes.

    Args:
        origins: name of a setting -> where its value came from.

    Raises:
        SalverError: a setting is wrong.
    """
    texts = [str(Path(source)) for source in sources]
    return ServeSettings.from_data({**settings, "sources": texts, "models": dict(models), "origins": dict(origins)})


def _take_workers(settings: ServeSettings) -> ServeSettings:
    """Where nobody says how many workers, as many as the tuned file of the only bundle does: it is a setting of the
    server, and several bundles may disagree. One where a model needs a process of its own."""
    if settings.workers or "workers" in settings.origins:
        return settings
    tuned = read_tuned(Path(settings.sources[0])) if len(settings.sources) == 1 and not settings.models else None
    if tuned is not None and tuned.settings.workers:
        _LOG.info("workers=%d (%s)", tuned.settings.workers, tuned.origin)
        affinity = settings.affinity or (bool(tuned.settings.affinity) and "affinity" not in settings.origins)
        return msgspec.structs.replace(settings, workers=tuned.settings.workers, affinity=affinity)
    if load(_NEEDS_PROCESS)(settings):
        _LOG.info("workers=1: a model is run by its own framework, and gets a process of its own")
        return msgspec.structs.replace(settings, workers=1)
    return settings


def launch(settings: ServeSettings, reread: Callable[[], ServeSettings] | None = None) -> None:
    """As `serve`.

    Args:
        reread: resolves the settings again at SIGHUP; None where they cannot change.
    """
    configure_logging(settings.log_level)
    settings = _take_workers(settings)
    if settings.affinity and (not settings.workers or not hasattr(os, "sched_setaffinity")):
        raise InvalidArgument("--affinity: workers keep to their own cores; say --workers, on Linux")
    if settings.workers:
        load(_SUPERVISED)(settings, lambda: settings if reread is None else _take_workers(reread()))
    else:
        allow_connections(settings.max_connections)
        load(_ALONE)(settings)


class Terminal:
    """The terminal that the process was started from, if any."""

    def __init__(self) -> None:
        self._had = os.isatty(2)

    @property
    def gone(self) -> bool:
        """Whether it has been closed: then SIGHUP means the end, as it does for any program."""
        return self._had and not os.isatty(2)


def announce(url: str, grpc_address: str, missing: Sequence[str]) -> None:
    """Say on standard error that requests are answered, and where; and to systemd, where that started the server."""
    state = "ready" if not missing else "NOT ready (" + "; ".join(missing) + "), serving the others"
    where = f"{url}, grpc {grpc_address}" if grpc_address else url
    sys.stderr.write(f"{state} on {where}\n")  # at once: workers write there too
    sys.stderr.flush()
    _notify(f"READY=1\nSTATUS={state} on {where}")


def _notify(state: str) -> None:
    """Tell the service manager (sd_notify(3)); nothing where there is none, or it does not listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
