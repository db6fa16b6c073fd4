"""What each model is, apart from how a server runs it."""

from __future__ import annotations

from typing import Final

import msgspec

from salver.testing.oip.samples import DATATYPES


class Spec(msgspec.Struct, frozen=True):
    """A tensor of a model; -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Model(msgspec.Struct, frozen=True):
    """A model of the suite.

    Args:
        kind: ``identity`` gives its input back; ``slow`` does so after a tenth of a second or more; ``sum`` gives the
            sum and the difference of two inputs.
        labels: of the classes of its output.
    """

    name: str
    kind: str
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    labels: tuple[str, ...] = ()


ANY: Final = (-1, -1)


def _identity(name: str, datatype: str) -> Model:
    return Model(name, "identity", (Spec("x", datatype, ANY),), (Spec("y", datatype, ANY),))


MODELS: Final = (
    *(_identity(f"identity_{datatype.lower()}", datatype) for datatype in DATATYPES),
    _identity("reloadable", "FP32"),
    Model(
        "classifier",
        "identity",
        (Spec("x", "FP32", (-1, 4)),),
        (Spec("scores", "FP32", (-1, 4)),),
        ("cat", "dog", "bird", "fish"),
    ),
    Model(
        "sum_difference",
        "sum",
        (Spec("a", "INT32", ANY), Spec("b", "INT32", ANY)),
        (Spec("sum", "INT32", ANY), Spec("difference", "INT32", ANY)),
    ),
    Model("slow", "slow", (Spec("x", "FP32", (-1, 1)),), (Spec("y", "FP32", (-1, 1)),)),
)
