# SPDX-License-Identifier: Apache-2.0
"""Cold start: from the start of a process to its first chunk, in a process of its own that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ros_vdd.errors import EngineError

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class ColdStart:
    """Starts of one policy on one engine; medians."""

    starts: int
    seconds: float
    """From the start of the process to the first chunk, by the wall clock."""
    cpu_s: float
    """Processor time of the same, which other work on the machine changes least."""
    import_s: float
    load_s: float
    """Checking the folder and opening the engine."""
    first_ms: float
    """The first evaluation."""
    memory_mb: float
    """Largest resident memory; the GPU's isn't in it."""


def cold_start(folder: Path, backend: str, starts: int = 3) -> ColdStart:
    """Start a process for a policy a number of times.

    Raises:
        EngineError: the process failed; its last line is told.
    """
    rows = [_start(folder, backend) for _ in range(starts)]
    return ColdStart(starts, **{key: round(median(row[key] for row in rows), 4) for key in rows[0]})


def _start(folder: Path, backend: str) -> dict[str, float]:
    began = time.monotonic()
    command = [sys.executable, "-m", "ros_vdd.offline.cold_start", str(folder), backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise EngineError(f"the cold start of '{folder}' on {backend} failed: {said[-1]}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return {"seconds": told.pop("at") - began, **told}


def main(folder: str, backend: str) -> None:
    """Load a policy, ask it once and print the figures: what a process on the robot does before its first chunk."""
    began = time.monotonic()
    import resource

    import numpy as np

    import ros_vdd
    from ros_vdd.backends import random_inputs

    load = ros_vdd.load
    imported = time.monotonic()
    policy = load(folder, backend=backend)
    loaded = time.monotonic()
    inputs = random_inputs(policy.bundle, np.random.default_rng(0))
    observation = {name: inputs[name][0] for name in policy.bundle.input_shapes}
    drawn = time.monotonic()
    policy.act(observation)
    answered = time.monotonic()
    figures = {
        "at": answered,  # the clock is the machine's, so the process that started this one reads it as well
        "cpu_s": sum(resource.getrusage(resource.RUSAGE_SELF)[:2]),
        "import_s": imported - began,
        "load_s": loaded - imported,
        "first_ms": (answered - drawn) * 1e3,
        "memory_mb": _peak_mb(),
    }
    print(json.dumps(figures))


def _peak_mb() -> float:
    """Return the largest resident memory of this program; `ru_maxrss` would count the one that started it, too."""
    status = Path("/proc/self/status")
    if status.exists():
        kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    else:
        import resource

        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(kilobytes) / 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
