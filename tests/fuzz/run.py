"""Read mutated inputs of every format that questlm reads, and report what came of them.

python tests/fuzz/run.py --inputs 50000 --seed 0 --out docs/results/fuzz.json
python tests/fuzz/run.py --format artifact --seed 0 --index 17     # one input again, with its traceback
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.fuzzing.driver import Tally, build_samples, fuzz, replay
from helpers.fuzzing.formats import FORMATS
from questlm.json_files import write_json


def main() -> int:
    """0 where no input was at fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2_000, help="of all formats together, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=FORMATS, action="append", help="only this one; may be given again")
    parser.add_argument("--index", type=int, help="only this input")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    options = parser.parse_args()
    names = options.format or list(FORMATS)
    with tempfile.TemporaryDirectory() as folder:
        if options.index is not None:
            outcome, *rest = replay(names[0], build_samples(names[0], Path(folder)), options.seed, options.index)
            print(outcome, *rest, sep="\n    ")
            return int(outcome == "fault")
        each = -(-options.inputs // len(names))
        tallies = [_run(name, Path(folder), options.seed, each) for name in names]
    if options.out:
        write_json(options.out, _table(options.seed, tallies))
    return int(any(tally.faults for tally in tallies))


def _run(name: str, folder: Path, seed: int, inputs: int) -> Tally:
    tally = fuzz(name, build_samples(name, folder), seed, range(inputs))
    row = tally.row()
    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    kinds = Counter(fault.kind for fault in tally.faults)
    for kind, count in kinds.most_common():
        print(f"  {count} x {next(fault for fault in tally.faults if fault.kind == kind)}", flush=True)
    return tally


def _table(seed: int, tallies: list[Tally]) -> dict[str, object]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "seed": seed,
        "python": platform.python_version(),
        "formats": [tally.row() for tally in tallies],
        "inputs": sum(tally.inputs for tally in tallies),
        "faults": [str(fault) for tally in tallies for fault in tally.faults],
    }


if __name__ == "__main__":
    sys.exit(main())
