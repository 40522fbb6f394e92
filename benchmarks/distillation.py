# SPDX-License-Identifier: Apache-2.0
"""Compare all ways to distil: `python benchmarks/distillation.py all --out runs/benchmark_distillation`, or one of its tasks.

Tasks: ring, ring_turned and obstacle (`benchmarks/toys.py`: an exact teacher, and figures against the true density), ddil, and
avoiding and pusht_state, where every run is a command that a user could type, printed before it starts. What is finished isn't
done again, so the command can be stopped and started. A method that isn't there is skipped with a line. `--seeds 1` and
`--only consistency vdd` do less of it. `ddil` wants `--seeds 6 --first 1` (seed 0 chose the network): pairs of trainings that differ only in where their noised
chunks come from; `--only K8_0 K8_1` is one of its set-ups. Results: OUT/TASK/results.json, results.md and, but for ddil, results.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import ring  # noqa: E402
from comparison import Run, Task, hardware, main, require_named, teachers  # noqa: E402
from toys import TOYS  # noqa: E402

from ros_vdd import methods  # noqa: E402

TEACHER_STEPS = (1, 2, 4, 8, 16)
COLUMNS = {"sw": "SW", "tv": "TV", "in_support": "in support", "end_point": "end point", "ms": "ms"}


def copied(base: str, method: str) -> tuple[Run, ...]:
    """Return a student that walks by any number of steps: at one, and its copies at 2 and 4."""
    return Run(method, f"{base}_{method}", ("policy.sampler.steps=1",), "teacher"), *teachers(method, (2, 4))


def chain(base: str, counts: tuple[int, ...] = (8, 4, 2, 1)) -> tuple[Run, ...]:
    """Return the stages of progressive distillation: each student is the next one's teacher, on one grid."""
    made, teacher, taught = [], "teacher", ring.GRID
    for count in counts:
        levels = (f"policy.grid={ring.GRID}", f"policy.sampler.steps={count}", f"options.substeps={taught // count}")
        made.append(Run(f"progressive_{count}", f"{base}_progressive", levels, teacher))
        teacher, taught = f"progressive_{count}", count
    return tuple(made)


def family(base: str) -> tuple[Run, ...]:
    """Return every few-step student of a task."""
    return (
        *chain(base),
        *copied(base, "consistency"),
        *copied(base, "lcm"),
        *copied(base, "ctm"),
        *(Run(f"dmd2_{n}", f"{base}_dmd2", (f"policy.sampler.steps={n}",), "teacher") for n in (1, 2, 4)),
        Run("dmd2_adversarial", f"{base}_dmd2", ("options.adversarial=3e-3",), "teacher"),
        Run("dxmi", f"{base}_dxmi", (), "teacher"),
    )


def task(env: str, episodes: int, seed: int, rules: tuple[str, ...]) -> Task:
    """Return the comparison of an environment: teacher, mixtures and students."""
    runs = (
        Run("teacher", f"{env}_teacher"),
        *teachers("teacher", TEACHER_STEPS),
        Run("em", f"{env}_mixture", choices=rules),
        Run("vdd", f"{env}_vdd", teacher="teacher", start="em", choices=rules),
        *family(env),
    )
    return Task(env, episodes, runs, seed)


TASKS = {
    "avoiding": task("avoiding", 480, 500_000, ("coherent",)),
    "pusht_state": task("pusht_state", 50, 100_000, ("sample", "coherent")),  # Diffusion Policy's seed
}


def toy(name: str) -> Callable[[Path, argparse.Namespace], str]:
    """Return the comparison on a toy: (folder, arguments) -> its table."""

    def compare(folder: Path, args: argparse.Namespace) -> str:
        jobs = {f"teacher_{n}": lambda seed, n=n: ring.reference(n, name, seed) for n in TEACHER_STEPS}
        for setting, how in ring.SETTINGS.items():
            if how.method in methods.names():
                jobs[setting] = lambda seed, setting=setting: ring.train(setting, seed, name)
        rows = flattened(finished(jobs, folder, args))
        (folder / "results.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        bottom = ring.floor(TOYS[name])
        draw(rows, bottom[0], f"{name}: teacher black, dashed: data against data", folder / "results.png")
        return table(rows) + f"\nSW of data against data {bottom[0]:.3f} ± {bottom[1]:.3f}. {hardware()}.\n"

    return compare


def finished(jobs: dict[str, Callable[[int], dict]], folder: Path, args: argparse.Namespace) -> dict[str, list[dict]]:
    """Do the jobs that aren't done, one file NAME_SEED.json for each, and return what all seeds found by name."""
    if args.task != "all":  # of which they may mean another comparison
        if given := [f"--{name}" for name in ("set", "data", "teacher") if getattr(args, name)]:
            raise SystemExit(f"{given[0]} has no meaning on a toy; try a change by python benchmarks/ring.py METHOD KEY=VALUE")
        require_named(args.only, list(jobs))
    found: dict[str, list[dict]] = {}
    for seed in range(args.first, args.first + args.seeds):
        for name, job in jobs.items():
            file = folder / f"{name}_{seed}.json"
            if not file.exists() and (not args.only or name in args.only):
                print(f"{name}, seed {seed}", flush=True)
                file.write_text(json.dumps(job(seed)) + "\n", encoding="utf-8")
            if file.exists():
                found.setdefault(name, []).append({"seed": seed, **json.loads(file.read_text(encoding="utf-8"))})
    if not found:
        raise SystemExit(f"nothing is finished in {folder}")
    return {name: found[name] for name in jobs if name in found}


def flattened(found: dict[str, list[dict]]) -> list[dict]:
    """Return a row for each name and number of evaluations: [mean, standard deviation] over the seeds."""
    rows = []
    for name, seeds in found.items():
        for each in zip(*(one["rows"] for one in seeds)):
            row = {"name": name, "seeds": len(seeds), "nfe": each[0]["nfe"], "modes": min(one["modes"] for one in each)}
            row |= {key: spread([one[key] for one in each]) for key in COLUMNS if key in each[0]}
            row |= {key: spread([one[key] for one in seeds]) for key in ("auc", "cpu_seconds") if key in seeds[0]}
            if "begun" in seeds[0] and seeds[0]["begun"]["nfe"] == row["nfe"]:
                row["begun_sw"] = spread([one["begun"]["sw"] for one in seeds])
            rows.append(row)
    return rows


def spread(values: list[float]) -> list[float]:
    """Return mean and standard deviation."""
    return [round(float(np.mean(values)), 4), round(float(np.std(values)), 4)]


def table(rows: list[dict]) -> str:
    """Return the rows as a Markdown table."""
    names = [*COLUMNS.values(), "SW before", "energy AUC", "training [CPU s]"]
    lines = [f"| method | NFE | {' | '.join(names)} | modes | seeds |", "|" + "---|" * (len(names) + 4)]
    for row in rows:
        cells = [f"{row[k][0]:.3f} ± {row[k][1]:.3f}" if k in row else "-" for k in (*COLUMNS, "begun_sw", "auc")]
        cells += [f"{row['cpu_seconds'][0]:.0f}" if "cpu_seconds" in row else "-"]
        lines.append(f"| {row['name']} | {row['nfe']} | {' | '.join(cells)} | {row['modes']} | {row['seeds']} |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], bottom: float, title: str, file: Path) -> None:
    """Draw distance and in-support rate against the number of evaluations, one line a method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list[dict]] = {}
    for row in rows:
        lines.setdefault("teacher" if row["name"].startswith("teacher_") else row["name"], []).append(row)
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.4))
    for axis, key, label in ((axes[0], "sw", "sliced Wasserstein"), (axes[1], "in_support", "in-support rate")):
        for name, points in lines.items():
            points = sorted(points, key=lambda row: row["nfe"])
            means, stds = zip(*(row[key] for row in points))
            style = {"color": "black"} if name == "teacher" else {}
            counts = [row["nfe"] for row in points]
            axis.errorbar(counts, means, yerr=stds, marker="o", markersize=4, capsize=2, label=name, **style)
        axis.set_xscale("log", base=2)
        axis.set(xlabel="network evaluations", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].axhline(bottom, color="0.5", linestyle="--")
    axes[0].set_yscale("log")
    axes[1].legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=100)


WEAK = ring.Setting(
    "progressive",
    {"walk": "euler", "width": 32, "depth": 1},
    {"substeps": 16},
    {"steps": 3000, "final_learning_rate": 1e-3, "ema": 0.995},
)
"""Where a student's own errors add up: many steps of a narrow network, whose weights are averaged."""
DDIL = {
    "K8": (8, {}, {}),
    "K16": (16, {}, {}),
    "K4": (4, {}, {}),
    "K4_wide": (4, {"width": 128}, {}),
    "K8_last": (8, {}, {"ema": 0.0}),
    "K8_raw": (8, {}, {}),  # told the level as a bare number
}
"""Steps, and changes of network and loop: two where a gain is expected, four where none was found before."""


def pair(name: str, share: float, seed: int, **budget) -> dict:
    """Train one student of a pair, a share of it on its own states, the rest on noised recorded chunks; return its figures.

    Args:
        name: of `DDIL`.
        budget: changes of the loop.
    """
    count, policy, loop = DDIL[name]
    states = {"forward": 1 - share, "student": share}
    setting = ring.changed(WEAK, {"states": states}, {**policy, "grid": 16 * count}, {**loop, **budget})
    setting = replace(setting, raw=name.endswith("_raw"))
    world = TOYS["ring"]
    trained = ring.student(setting, seed, world, ring.ExactTeacher(world), count)
    return {"rows": [ring.measure(trained.policy, world, seed)], "cpu_seconds": trained.cpu_seconds}


def ddil(folder: Path, args: argparse.Namespace) -> str:
    """Train the pairs and return the table of differences: mean ± standard error, and in how many the student's states won."""
    jobs = {f"{name}_{share}": lambda seed, name=name, share=share: pair(name, share, seed) for name in DDIL for share in (0, 1)}
    found = finished(jobs, folder, args)
    better = {"sw": -1, "end_point": -1, "in_support": 1, "tv": -1}
    heads = [f"{key} without | difference | better" for key in better]
    lines = [f"| set-up | pairs | {' | '.join(heads)} |", "|" + "---|" * (2 + 3 * len(better))]
    for name in DDIL:
        without, having = ({one["seed"]: one for one in found.get(f"{name}_{share}", [])} for share in (0, 1))
        pairs, cells = [(without[seed], having[seed]) for seed in without if seed in having], []
        if not pairs:
            continue
        for key, sign in better.items():
            without, having = (np.array([one[i]["rows"][0][key] for one in pairs]) for i in (0, 1))
            error = (having - without).std(ddof=1) / len(pairs) ** 0.5 if len(pairs) > 1 else float("nan")
            wins = int((sign * (having - without) > 0).sum())
            change = f"{(having - without).mean():+.3f} ± {error:.3f}"
            cells.append(f"{without.mean():.3f} | {change} | {wins}/{len(pairs)}")
        lines.append(f"| {name} | {len(pairs)} | {' | '.join(cells)} |")
    (folder / "results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return "\n".join(lines) + f"\n\n{hardware()}.\n"


OTHERS = {**{name: toy(name) for name in TOYS}, "ddil": ddil}

if __name__ == "__main__":
    for absent in sorted({how.method for how in ring.SETTINGS.values()} - set(methods.names())):
        print(f"skipped: there is no method '{absent}'")
    sys.exit(main(TASKS, __doc__, OTHERS))
