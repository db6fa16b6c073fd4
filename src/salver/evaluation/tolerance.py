"""How far a converted model's outputs may be from the original's: what rounding alone can do.

A sum of n rounded terms is off by about the square root of n units, not by n of them: with high probability its
relative error is at most lambda * sqrt(n) * u, u being the unit roundoff (Higham and Mary, "A new approach to
probabilistic rounding error analysis", SIAM Journal on Scientific Computing 41(5), 2019, theorem 2.4; the worst case,
n * u, is lemma 3.1 of Higham, "Accuracy and Stability of Numerical Algorithms", 2002). A graph is a chain of `depth`
operators, each of which sums up to `_TERMS` products in the precision it accumulates in and rounds the result once to
the type it stores.
"""

from __future__ import annotations

import math
from typing import Final

_LAMBDA: Final = 4.0  # fails for one sum in some thousands
_TERMS: Final = 4096
_LEAST: Final = 1e-4  # what elementary functions and fused kernels of two runtimes may differ by
_MOST: Final = 2.0**-4
_STORED: Final = {"FP64": 2.0**-53, "FP32": 2.0**-24, "FP16": 2.0**-11, "BF16": 2.0**-8}
_ACCUMULATED: Final = 2.0**-24


def tolerance_for(datatype: str, depth: int) -> tuple[float, str]:
    """The largest ``|a-b| / (1 + |a|)`` to allow, and a sentence that says why.

    Args:
        datatype: the coarsest float type in which the graph computes; anything else counts as FP32.
        depth: operators on the longest path through the graph that compute; at least 1.
    """
    stored = _STORED.get(datatype, _STORED["FP32"])
    found = _LAMBDA * math.sqrt(max(depth, 1)) * (stored + math.sqrt(_TERMS) * _ACCUMULATED)
    tolerance = float(f"{min(max(found, _LEAST), _MOST):.2g}")
    return tolerance, f"rounding of {datatype or 'FP32'} over {max(depth, 1)} operators"
