"""A signature as TensorFlow's ``SignatureDef`` says it."""

from __future__ import annotations

from typing import Any, Final

from salver.core.errors import InvalidArgument
from salver.core.tensors import Signature, TensorSpec
from salver.wire.tensorflow import DATA_TYPES

SIGNATURE_NAME: Final = "serving_default"
"""The one signature of every model."""
PREDICT_METHOD: Final = "tensorflow/serving/predict"
CLASSIFY_METHOD: Final = "tensorflow/serving/classify"
REGRESS_METHOD: Final = "tensorflow/serving/regress"


def check_signature_name(name: str | None) -> None:
    """Refuse any signature but the only one.

    Raises:
        InvalidArgument: it is neither empty nor ``serving_default``.
    """
    if name and name != SIGNATURE_NAME:
        raise InvalidArgument(
            f"Serving signature name: \"{name}\" not found in signature def; the only one is '{SIGNATURE_NAME}'"
        )


def signature_def(signature: Signature) -> dict[str, Any]:
    """A ``SignatureDef`` as protobuf's JSON writes it."""
    return {
        "inputs": {spec.name: _tensor_info(spec) for spec in signature.inputs},
        "outputs": {spec.name: _tensor_info(spec) for spec in signature.outputs},
        "method_name": PREDICT_METHOD,
    }


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    dims = [{"size": str(size), "name": ""} for size in spec.wire_shape] if spec.rank_known else []
    return {
        "dtype": DATA_TYPES[spec.datatype][0],
        "tensor_shape": {"dim": dims, "unknown_rank": not spec.rank_known},
        "name": f"{spec.name}:0",
    }
