# SPDX-License-Identifier: Apache-2.0
"""All of VDD's comparisons: `python benchmarks/vdd.py toy|probe|avoiding|pusht|pusht_state --out runs/benchmark` trains, scores, times and draws.

Each run is a command that a user could type; it is printed before it starts. What is finished isn't done again, so the command can be
stopped and started. `--seeds 1` and `--only vdd em` do less of it. Results: OUT/TASK/results.json, results.md and results.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from comparison import Run, Task, hardware, main, teachers  # noqa: E402


def ablation(name: str, *changes: str) -> Run:
    """Return a short training from k-means, so that nothing but the changes differs; one seed."""
    budget = ("start=null", "options.initialise=kmeans", "loop.steps=2000")
    return Run(name, "pusht_state_vdd", (*budget, *changes), "teacher", seeds=1, choices=("argmax", "sample"))


DRAWN = ("sample", "coherent")
OFFICIAL = (
    "start=null", "options.noise=clean", "options.levels=uniform", "options.gate_floor=0.0", "options.likelihood_weight=0.0",
    "options.samples=2", "policy.covariance=full", "policy.spread=1.0", "policy.initial_std=1.0",
)  # fmt: skip
"""The official code's choices; its levels 0.2 to 0.5 are of standardised actions, 0.08 to 0.2 of those normalised here."""
AVOIDING = Task(
    "avoiding",
    480,
    (
        Run("teacher", "avoiding_teacher"),
        *teachers("teacher", (1, 2, 4, 8)),
        Run("teacher_vp", "avoiding_teacher_vp"),
        *teachers("teacher_vp", (1,)),
        Run("em", "avoiding_mixture", choices=DRAWN),
        Run("imc", "avoiding_imc", choices=DRAWN),
        Run("vdd", "avoiding_vdd", teacher="teacher", start="em", choices=DRAWN),
        Run("vdd_vp", "avoiding_vdd_vp", teacher="teacher_vp", start="em", choices=DRAWN),
        Run("vdd_official", "avoiding_vdd", (*OFFICIAL, "options.sigma_min=0.08", "options.sigma_max=0.2"), "teacher", choices=DRAWN),
    ),
)
RULES = ("argmax", "sample", "sticky", "gumbel", "coherent")
PUSHT_STATE = Task(
    "pusht_state",
    50,
    (
        Run("teacher", "pusht_state_teacher"),
        *teachers("teacher", (1, 2, 4, 8, 16)),
        Run("em", "pusht_state_mixture", choices=RULES),
        Run("vdd", "pusht_state_vdd", teacher="teacher", start="em", choices=RULES),
        *(ablation(f"k{k}", f"policy.experts={k}") for k in (1, 4, 8, 16)),
        ablation("k4_low_rank", "policy.covariance=low_rank"),
        ablation("k4_clean", "options.noise=clean"),
        ablation("k4_uniform_levels", "options.levels=uniform"),
    ),
    seed=100_000,  # Diffusion Policy's
)
PUSHT = Task(
    "pusht",
    50,
    (
        Run("teacher", "pusht_fast_teacher"),
        *teachers("teacher", (1, 2, 4, 8)),
        Run("em", "pusht_fast_mixture", choices=("argmax", *DRAWN)),
        Run("vdd", "pusht_fast_vdd", teacher="teacher", start="em", choices=("argmax", *DRAWN)),
    ),
    seed=100_000,
)
"""Over one image encoder, `runs/pusht_fast_encoder` of `ros-vdd train pusht_fast_encoder`."""
TASKS = {"avoiding": AVOIDING, "pusht": PUSHT, "pusht_state": PUSHT_STATE}


def toy(folder: Path, args: argparse.Namespace) -> str:
    """Train the toy's students, print their figures and draw them."""
    import vdd_toy

    results = {name: [vdd_toy.train(name, seed) for seed in range(args.seeds)] for name in vdd_toy.SETTINGS}
    lines = ["| setting | seed | KL(q‖p) | KL(p‖q) | modes | std | CPU s |", "|---|---|---|---|---|---|---|"]
    for name, trained in results.items():
        for seed, r in enumerate(trained):
            lines.append(f"| {name} | {seed} | {r['kl_q_p']:.4f} | {r['kl_p_q']:.4f} | {r['modes']} of 8 | {r['stds'].mean():.3f} | {r['cpu_seconds']:.1f} |")
    vdd_toy.draw({name: trained[0] for name, trained in results.items()}, folder / "results.png")
    return "\n".join([*lines, "", f"{hardware()}.", ""])


def probe(folder: Path, args: argparse.Namespace) -> str:
    """Train two experts from an exact DDPM teacher by each rule, and print where they rest."""
    import vdd_probe

    return f"{vdd_probe.table()}\n\n{hardware()}.\n"


if __name__ == "__main__":
    sys.exit(main(TASKS, __doc__, {"toy": toy, "probe": probe}))
