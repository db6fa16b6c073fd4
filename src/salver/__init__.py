"""A trained model in; a tasted, sealed and served endpoint out.

    bundle = salver.build("model.onnx", "val.npz", max_drop="0.5pp")
    salver.serve(bundle.path)

The names below are the whole public interface. They resolve on first use: importing the package loads no third party.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from salver.builder.build import build as build
    from salver.builder.build import load as load
    from salver.builder.convert import convert as convert
    from salver.bundle import Bundle as Bundle
    from salver.core.errors import SalverError as SalverError
    from salver.core.model import Model as Model
    from salver.core.tensors import Signature as Signature
    from salver.core.tensors import TensorSpec as TensorSpec
    from salver.server import serve as serve

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "Model",
    "SalverError",
    "Signature",
    "TensorSpec",
    "__version__",
    "build",
    "convert",
    "load",
    "serve",
]

_TARGETS: Final = {
    "Bundle": "salver.bundle:Bundle",
    "Model": "salver.core.model:Model",
    "SalverError": "salver.core.errors:SalverError",
    "Signature": "salver.core.tensors:Signature",
    "TensorSpec": "salver.core.tensors:TensorSpec",
    "build": "salver.builder.build:build",
    "convert": "salver.builder.convert:convert",
    "load": "salver.builder.build:load",
    "serve": "salver.server:serve",
}


def __getattr__(name: str) -> Any:
    if name not in _TARGETS:
        raise AttributeError(f"module 'salver' has no attribute '{name}'")
    from salver.core import registry

    value = registry.load(_TARGETS[name])
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
