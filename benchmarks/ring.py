# SPDX-License-Identifier: Apache-2.0
"""Train a student on a toy by the package's own loop and methods, and measure it against the true density.

    from ring import train
    train("consistency", seed=0)                                      # the ring, 1, 2 and 4 evaluations
    train("progressive", toy="obstacle", steps=(8, 4, 2, 1))          # a chain: each student teaches the next
    train("progressive", options={"states": {"forward": 0.0, "student": 1.0}}, loop={"steps": 500})
    reference(16)                                                     # the exact teacher itself

    $ python benchmarks/ring.py consistency --seed 1 --steps 1 2 options.target_decay=0.9 loop.steps=500

Distances are in the toy's own unit. Sliced Wasserstein: 1,000 directions, 10,000 points, mean of three draws; its floor, data against
data, is 0.047 on the ring.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (0, 1)]

from toy_metrics import auc, histogram_distance, sliced_wasserstein  # noqa: E402
from toys import SIGMA_MAX, SIGMA_MIN, TOYS, ExactTeacher, Points, Toy, in_units, sizes  # noqa: E402

from ros_vdd import methods, policies  # noqa: E402
from ros_vdd.config import build, override, parse_yaml  # noqa: E402
from ros_vdd.policies.policy import Policy  # noqa: E402
from ros_vdd.streams.spec import load_robot  # noqa: E402
from ros_vdd.training.config import LoopConfig  # noqa: E402
from ros_vdd.training.loop import Loop  # noqa: E402

COUNT, SAMPLINGS, BOX = 10_000, 3, 4.0
NETWORK = {"width": 128, "depth": 3}
SAMPLER = {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX}
LOOP = {"steps": 4000, "batch_size": 256, "learning_rate": 1e-3, "final_learning_rate": 1e-6, "warmup_steps": 100, "weight_decay": 0.0, "ema": 0.99}
QUIET = {"checkpoint_every": 10**9, "log_every": 10**9}


@dataclass(frozen=True)
class Setting:
    """How a method is trained on a toy: changes of the defaults, and the numbers of evaluations that it is measured at.

    `chained`: each number is a training of its own, whose teacher is the one before. `coupled`: the student keeps which noise becomes which
    chunk, so that its distance from the teacher's means something, at one evaluation where it renoises.
    """

    method: str
    policy: Mapping = None
    options: Mapping = None
    loop: Mapping = None
    steps: tuple[int, ...] = (1, 2, 4)
    chained: bool = False
    coupled: bool = True


MIXTURE = {"width": 64, "depth": 2}
SHORT = {"steps": 1500, "learning_rate": 5e-3, "final_learning_rate": 1e-4}
VDD = {"samples": 16, "sigma_min": 0.02, "sigma_max": 0.15, "initialise": "kmeans"}
SETTINGS = {
    "em": Setting("em", MIXTURE, {"initialise": "kmeans", "temperature": 1.0}, SHORT, (1,)),
    "vdd": Setting("vdd", MIXTURE, VDD, {**SHORT, "batch_size": 32}, (1,)),
    "score_matching": Setting("score_matching", steps=(1, 2, 4, 8, 16)),
    "progressive": Setting("progressive", {"walk": "euler"}, loop={"steps": 2000}, steps=(8, 4, 2, 1), chained=True),
    "consistency": Setting("consistency", {"walk": "renoise"}, loop={"steps": 8000}),
    "lcm": Setting("lcm", {"walk": "renoise"}, loop={"steps": 8000}),
    "ctm": Setting("ctm", {"walk": "jump"}, loop={"steps": 8000}),
    "dmd2": Setting("dmd2", {"walk": "renoise"}, coupled=False),
    "dxmi": Setting("dxmi", {"walk": "renoise"}, steps=(2,), coupled=False),
}
"""By name; a method that isn't named here is trained as its own defaults say."""


@dataclass(frozen=True)
class Trained:
    """A student, what trained it, and what that cost."""

    policy: Policy
    method: object
    seconds: float
    cpu_seconds: float


def train(
    name: str,
    seed: int = 0,
    toy: str = "ring",
    steps: Sequence[int] = (),
    options: Mapping | None = None,
    policy: Mapping | None = None,
    loop: Mapping | None = None,
) -> dict:
    """Train a method on a toy and return its figures.

    Args:
        name: of a setting or method.
        seed: decides data and training.
        toy: "ring", "ring_turned" or "obstacle".
        steps: numbers of evaluations to measure; chained methods train a stage for each, highest first.
        options, policy, loop: changes of the setting; `policy` without "sampler", which is decided here.

    Returns "rows", one `measure` for each number of evaluations, "auc" of the energy where the method has one, and the cost.
    """
    setting = changed(SETTINGS.get(name) or Setting(name), options, policy, loop)
    world = TOYS[toy]
    rows, cost, teacher, trained = [], np.zeros(2), ExactTeacher(world), None
    for count in steps or setting.steps:
        if trained is None or setting.chained:
            trained = student(setting, seed, world, teacher, count, max(steps or setting.steps))
            cost += (trained.seconds, trained.cpu_seconds)
            teacher = trained.policy if setting.chained else teacher
        rows.append(measure(at(trained.policy, count), world, seed, setting.coupled))
    figures = {"name": name, "toy": toy, "seed": seed, "rows": rows, "seconds": round(cost[0], 1), "cpu_seconds": round(cost[1], 1)}
    energy = getattr(trained.method, "energy", None)
    return {**figures, **({} if energy is None else {"auc": energy_auc(energy, world, seed)})}


def reference(steps: int, toy: str = "ring", seed: int = 0) -> dict:
    """Return the figures of the exact teacher by so many of Euler's steps."""
    world = TOYS[toy]
    return {"name": "teacher", "toy": toy, "seed": seed, "rows": [measure(ExactTeacher(world, steps), world, seed)]}


def changed(setting: Setting, options: Mapping | None, policy: Mapping | None, loop: Mapping | None) -> Setting:
    """Return a setting with some values changed."""
    given = {"options": options, "policy": policy, "loop": loop}
    return replace(setting, **{key: {**(getattr(setting, key) or {}), **(value or {})} for key, value in given.items()})


def student(setting: Setting, seed: int, toy: Toy, teacher: Policy, steps: int, most: int) -> Trained:
    """Train a student of so many evaluations; `most` are those of the first student of a chain."""
    module = methods.find(setting.method)
    make, configuration = policies.KINDS[module.KIND]
    torch.manual_seed(seed)
    fields = {**NETWORK, **setting.policy, **sizes(toy)}
    if module.KIND == "mixture":
        fields.setdefault("experts", len(toy.means))
    else:
        fields["sampler"] = {**SAMPLER, "steps": steps}
    if setting.method == "progressive":
        fields.setdefault("grid", steps * setting.options.get("substeps", 2))
    policy = in_units(make(load_robot("toy2d"), build(configuration, fields)), toy)
    method = module.Method(build(module.Options, setting.options), policy, teacher if module.NEEDS_TEACHER else None)
    with tempfile.TemporaryDirectory() as folder:
        began, spent = time.monotonic(), time.process_time()
        Loop(method, Points(toy, seed), None, build(LoopConfig, {**LOOP, **QUIET, **setting.loop}), seed, Path(folder), "toy").run(progress=False)
        return Trained(policy.eval(), method, time.monotonic() - began, time.process_time() - spent)


def at(policy: Policy, steps: int) -> Policy:
    """Return a policy told to take so many steps; a mixture has one."""
    if policy.kind != "mixture":
        policy.config = replace(policy.config, sampler=replace(policy.config.sampler, steps=steps))
    return policy


@torch.no_grad()
def measure(policy: Policy, toy: Toy, seed: int = 0, coupled: bool = True) -> dict:
    """Return "nfe", "sw", "tv" of the mode histogram, "in_support", "modes" that were hit, "end_point" and "ms" a chunk in PyTorch.

    "end_point" is the mean distance from where the exact probability flow ends from the same noise; None where that says nothing.
    """
    rows = [_sampling(policy, toy, np.random.default_rng([seed, 2, i]), coupled) for i in range(SAMPLINGS)]
    mean = {key: None if rows[0][key] is None else float(np.mean([row[key] for row in rows])) for key in rows[0]}
    return {"nfe": policy.nfe, **mean, "ms": latency(policy)}


def _sampling(policy: Policy, toy: Toy, rng: np.random.Generator, coupled: bool) -> dict:
    observation = toy.observations(COUNT, rng)
    noise = torch.from_numpy(rng.standard_normal((COUNT, *getattr(policy, "noise_shape", (1,))))).float()
    points = chunks(policy, toy, observation, noise, rng)
    # turned back, so that a student that ignores the observation is far from the data
    own, data = toy.withdraw(points, observation), toy.withdraw(toy.sample(observation, rng), observation)
    modes, inside = toy.modes(points, observation)
    renoised = policy.kind == "few_step" and policy.config.walk == "renoise" and policy.nfe > 1
    end = None
    if coupled and not renoised and policy.kind != "mixture":
        exact = toy.scale * ExactTeacher(toy, 64, "heun").sample(observation, noise[:, :1].flatten(1) if noise.ndim == 4 else noise.flatten(1))
        end = (points - exact).norm(dim=1).mean().item()
    return {
        "sw": sliced_wasserstein(own.numpy(), data.numpy(), rng),
        "tv": histogram_distance(modes, len(toy.means)),
        "in_support": inside,
        "modes": len(np.unique(modes)),
        "end_point": end,
    }


def chunks(policy: Policy, toy: Toy, observation: Tensor, noise: Tensor, rng: np.random.Generator) -> Tensor:
    """Return a chunk `(N, D)` of a policy for each observation `(N, 1)`, in the toy's unit; a mixture's is drawn from its density."""
    seen = {"state": observation[:, None]}
    if policy.kind != "mixture":
        return policy(seen, noise).flatten(1)
    mixture = policy.mixture(policy.condition(seen))
    uniform = torch.from_numpy(rng.random((len(observation), 1))).float()
    expert = (mixture.log_gate.exp().cumsum(dim=1) < uniform).sum(dim=1).clamp(max=mixture.log_gate.shape[1] - 1)
    drawn = mixture.experts.sample(torch.from_numpy(rng.standard_normal((*mixture.means.shape[:2], 1, mixture.experts.noise_size))).float())
    return toy.scale * drawn[torch.arange(len(expert)), expert, 0]


def latency(policy: Policy, runs: int = 100) -> float:
    """Return the median time of one chunk in PyTorch [ms]."""
    seen, noise = {"state": torch.zeros(1, 1, 1)}, torch.zeros(1, *getattr(policy, "noise_shape", (1,)))
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        policy(seen, noise)
        taken.append(time.perf_counter() - began)
    return round(1e3 * float(np.median(taken)), 3)


@torch.no_grad()
def energy_auc(energy: Callable[[Tensor, Tensor], Tensor], toy: Toy, seed: int = 0) -> float:
    """Return the chance that a point of the data has a lower energy than one drawn evenly from [-4, 4]^D.

    Args:
        energy: of normalised chunks `(N, D)` under observations `(N, 1)`, `(N,)`.
    """
    rng = np.random.default_rng([seed, 3])
    observation = toy.observations(COUNT, rng)
    data = toy.sample(observation, rng)
    anywhere = torch.from_numpy(rng.uniform(-BOX, BOX, data.shape)).float()
    low, high = (energy(x / toy.scale, observation).double().numpy() for x in (anywhere, data))
    return auc(low, high)


def floor(toy: Toy, count: int = COUNT, repeats: int = 10) -> tuple[float, float]:
    """Return the sliced Wasserstein distance of the data from other data, mean and standard deviation."""
    found = []
    for repeat in range(repeats):
        rng = np.random.default_rng([repeat, 4])
        observation = torch.zeros(count, 1)
        found.append(sliced_wasserstein(*(toy.sample(observation, rng).numpy() for _ in range(2)), rng))
    return float(np.mean(found)), float(np.std(found))


def main() -> int:
    """Train once and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"one of {', '.join(SETTINGS)}, or a method")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="fields of options, policy or loop")
    parser.add_argument("--toy", choices=TOYS, default="ring")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs="+", default=[])
    args = parser.parse_args()
    fields = override(parse_yaml("{options: {}, policy: {}, loop: {}}"), args.changes)
    print(json.dumps(train(args.name, args.seed, args.toy, args.steps, **fields), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
