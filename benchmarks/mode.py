# SPDX-License-Identifier: Apache-2.0
"""MoDE's comparisons: `python benchmarks/mode.py pusht|avoiding|metaworld --out runs/benchmark_mode` trains, scores, times and draws.

Success against the number of steps, routers, and a dense transformer of the same active size. What caching saves, in multiply-adds and
time, is measured by `benchmarks/mode_cost.py`. As with `benchmarks/vdd.py`, what is finished isn't done again.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from comparison import Run, Task, main, teachers  # noqa: E402

DENSE = ("policy.experts=1", "policy.top_k=1", "policy.expert_ratio=4.0")
"""One expert as wide as the two that act of four."""
TASKS = {
    "pusht": Task("pusht", 50, (Run("mode", "pusht_mode"), *teachers("mode", (1, 2, 5))), seed=100_000),
    "avoiding": Task(
        "avoiding",
        480,
        (
            Run("mode", "avoiding_mode"),
            *teachers("mode", (1, 2, 5)),
            Run("em", "avoiding_mixture", choices=("coherent",)),
            Run("vdd", "avoiding_vdd", teacher="mode", start="em", choices=("coherent",)),
        ),
    ),
    "metaworld": Task(
        "metaworld",
        200,
        (
            Run("mode", "metaworld_mode"),
            *teachers("mode", (1, 2, 5)),
            Run("token_router", "metaworld_mode", ("policy.router=token",)),
            Run("dense", "metaworld_mode", DENSE),
        ),
    ),
}

if __name__ == "__main__":
    sys.exit(main(TASKS, __doc__))
