"""The extensions of the Open Inference Protocol that this server has, as its metadata names them."""

from __future__ import annotations

from typing import Final

_ALWAYS: Final = (
    "binary_tensor_data",
    "classification",
    "sequence",
    "sequence(string_id)",
    "model_repository",
    "model_repository_extension",  # Triton's documents use both names
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "statistics",
    "logging",
    "parameters",
    "generate",
)


def list_extensions(shared_memory: str) -> tuple[str, ...]:
    """Names of the extensions.

    Args:
        shared_memory: the server's setting; empty where it is off.
    """
    return (*_ALWAYS, "system_shared_memory") if shared_memory else _ALWAYS
