"""``python -m tests.onnx_nodes``: run all of the onnx package's backend tests, and write what came of them.

python -m tests.onnx_nodes                   all, in a process per core; rewrites outcomes.json and docs/onnx-nodes.md
python -m tests.onnx_nodes --only softmax    those whose name contains a word; prints what came of each
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.onnx_nodes.cases import load_cases
from tests.onnx_nodes.outcomes import Outcome, run_named
from tests.onnx_nodes.record import Record, explain, versions, write_page, write_record


def main() -> int:
    """Exit status: 1 where a test did not pass and nothing explains why."""
    parser = argparse.ArgumentParser(prog="python -m tests.onnx_nodes", description=__doc__)
    parser.add_argument("--only", default="", help="run tests whose name contains this")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    names = [name for name in load_cases() if args.only in name]
    outcomes: dict[str, Outcome] = {}
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        for name, outcome in pool.map(run_named, names, chunksize=16):
            outcomes[name] = outcome
            if outcome.result in ("differs", "crashed") or args.only:
                print(name, outcome.result, outcome.why)
    print(
        {
            result: sum(o.result == result for o in outcomes.values())
            for result in ("passed", "refused", "differs", "crashed")
        }
    )
    if args.only:
        return 0
    others = {name: outcome for name, outcome in sorted(outcomes.items()) if outcome.result != "passed"}
    unexplained = [name for name, outcome in others.items() if not explain(name, outcome)]
    print("not explained:", *unexplained or ["none"])
    record = Record(versions=versions(), tests=len(outcomes), others=others)
    write_record(record)
    write_page(record)
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
