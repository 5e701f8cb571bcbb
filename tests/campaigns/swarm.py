"""A stretch of seeds of the simulation: the worlds of `tests/simulation`, one after the other.

python -m tests.campaigns.swarm FIRST COUNT REPORT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.simulation.test_swarm import WAYS, run_seed
from tests.support.world import Violation


def main() -> int:
    """0 when every world kept its promises; else the seed is the last thing said."""
    first, count, report = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    worlds = 0
    for seed in range(first, first + count):
        for way in WAYS:
            try:
                run_seed(seed, way)
            except Violation as violation:
                headline, _, story = str(violation).partition("\n")
                print(story, headline, f"failed: seed {seed}, {way}", sep="\n")
                return 1
            worlds += 1
    report.write_text(json.dumps({"seeds": count, "worlds": worlds}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
