"""Kill tokenise, train, pack, report and sweep at random moments; each must then end as if it had not been killed.

python tests/fuzz/kill.py --kills 100 --seed 0
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.fuzzing.jobs import JOBS
from helpers.fuzzing.kills import trial, uninterrupted


def main() -> int:
    """0 where every job ended right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="trials of each job, with one to three kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", choices=JOBS, action="append", help="only this one; may be given again")
    parser.add_argument("--index", type=int, help="only this trial")
    options = parser.parse_args()
    faults = 0
    for name in options.job or JOBS:
        begun, job = time.monotonic(), JOBS[name]
        with tempfile.TemporaryDirectory() as base:
            folder = Path(base)
            (folder / "inputs").mkdir()
            job.prepare(folder / "inputs")
            wanted, changes = uninterrupted(job, folder / "inputs", folder / "alone")
            chosen = range(options.kills) if options.index is None else [options.index]
            found = [fault for index in chosen if (fault := trial(job, folder, wanted, changes, options.seed, index))]
        print(f"{name}: {len(chosen)} trials, {changes} moments, {len(found)} faults, {time.monotonic() - begun:.0f} s")
        print(*(f"  {fault}" for fault in found), sep="\n", end="", flush=True)
        faults += len(found)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
