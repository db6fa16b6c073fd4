"""How many files, sockets among them, the process may hold."""

from __future__ import annotations

import logging
import resource
from typing import Final

_LOG: Final = logging.getLogger(__name__)
_OTHERS: Final = 256
"""Files besides connections: models, listeners, logs, shared memory."""


def allow_connections(count: int) -> None:
    """Raise the process's soft limit of open files, as far as the hard one goes, so that ``count`` connections fit.

    Shells give 1024 by default, at which a server would refuse connections long before ``max_connections``.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHERS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        _LOG.warning(
            "the system lets this process open %d files, too few for max_connections=%d; raise it (ulimit -Hn, "
            "LimitNOFILE) or lower --max-connections",
            allowed,
            count,
        )
