# SPDX-License-Identifier: Apache-2.0
"""Train a student on a toy by the package's own loop and methods, and measure it against the true density.

    from ring import reference, train
    train("consistency", seed=0)                                      # the ring, at 1, 2 and 4 evaluations
    train("progressive", toy="obstacle", steps=(8, 4, 2, 1))          # a chain: each student teaches the next
    train("progressive", options={"states": {"forward": 0.0, "student": 1.0}}, loop={"steps": 500})
    reference(16)                                                     # the exact teacher itself

    $ python benchmarks/ring.py consistency options.target_decay=0.9 loop.steps=500 --seed 1 --steps 1 2

Distances are in the toy's own unit. Sliced Wasserstein: 1,000 directions, 10,000 points, the mean of three draws; its floor, data
against data, is 0.047 on the ring. Set OMP_NUM_THREADS=1: networks this small are slower on several cores.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
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
GRID = 32  # levels of a chain, and steps of its first teacher
NETWORK = {"width": 128, "depth": 3}
SAMPLER = {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX}
LOOP = {
    "steps": 4000, "batch_size": 256, "learning_rate": 1e-3, "final_learning_rate": 1e-6, "warmup_steps": 100,
    "weight_decay": 0.0, "ema": 0.99, "checkpoint_every": 10**9, "log_every": 10**9,
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """How a method is trained on a toy: changes of the defaults, and the numbers of evaluations that it is measured at.

    `apart`: each number is a training of its own; `chained`: and its teacher is the student before. `learned`: the teacher is a
    network that was trained on the toy instead of the exact one, and the student begins as it; what it begins as is measured too.
    `coupled`: the student keeps which noise becomes which chunk, so that its distance from the teacher's means something. `raw`: its
    network is told the level as it is, a number, instead of by Fourier features. `chunks`: options of a toy whose chunks are longer
    than a point.
    """

    method: str
    policy: Mapping = field(default_factory=dict)
    options: Mapping = field(default_factory=dict)
    loop: Mapping = field(default_factory=dict)
    steps: tuple[int, ...] = (1, 2, 4)
    apart: bool = False
    chained: bool = False
    learned: bool = False
    coupled: bool = True
    raw: bool = False
    chunks: Mapping = field(default_factory=dict)


MIXTURE = {"width": 64, "depth": 2}
SHORT = {"steps": 1500, "learning_rate": 5e-3, "final_learning_rate": 1e-4}
KMEANS = {"initialise": "kmeans"}
MATCHED = {**KMEANS, "samples": 16, "sigma_min": 0.02, "sigma_max": 0.15}
EIGHT = {"steps": 8000}
NEAR = {"walk": "renoise", "boundary": False, "sampler": {"sigma_max": 2.5}}
GENTLE = {"steps": 2000, "learning_rate": 2e-4, "ema": 0.998}
POSTERIOR = {"walk": "posterior", "critic": NETWORK, "sampler": {"sigma_max": 2.5}}
WIDE = {"tau_entropy": 0.2, "tau_velocity": 0.2}
NARROW = {"tau_entropy": 0.01, "tau_velocity": 0.01}
FLAT = {"tau_entropy": 0.0, "tau_velocity": 0.0}
SLOW = {"steps": 2500, "learning_rate": 1e-4, "ema": 0.998}
SETTINGS = {
    "em": Setting("em", MIXTURE, {**KMEANS, "temperature": 1.0}, SHORT, (1,)),
    "vdd": Setting("vdd", MIXTURE, MATCHED, {**SHORT, "batch_size": 32}, (1,)),
    "progressive": Setting("progressive", {"walk": "euler"}, loop={"steps": 2000}, steps=(8, 4, 2, 1), chained=True),
    "consistency": Setting("consistency", {"walk": "renoise"}, loop=EIGHT),
    "lcm": Setting("lcm", {"walk": "renoise", "grid": 80}, {"skip": 2}, EIGHT),  # a student gets no better than 40 steps of Euler
    "ctm": Setting("ctm", {"walk": "jump"}, loop=EIGHT),
    "dmd2": Setting("dmd2", NEAR, {}, GENTLE, apart=True, learned=True, coupled=False),
    "dmd2_adversarial": Setting("dmd2", NEAR, {"adversarial": 3e-3}, GENTLE, (1,), apart=True, learned=True, coupled=False),
    "dxmi": Setting("dxmi", POSTERIOR, WIDE, SLOW, (2,), learned=True, coupled=False, chunks=NARROW),
    "dxmi_no_entropy": Setting("dxmi", POSTERIOR, FLAT, SLOW, (2,), learned=True, coupled=False),
    "dxmi_5": Setting("dxmi", POSTERIOR, WIDE, SLOW, (5,), learned=True, coupled=False, chunks=NARROW),
    "dxmi_5_no_entropy": Setting("dxmi", POSTERIOR, FLAT, SLOW, (5,), learned=True, coupled=False),
}
"""By name; a method that isn't named here is trained as its own defaults say."""
TEACHER = Setting("score_matching", loop=EIGHT)


class RawLevel(torch.nn.Module):
    """A level as 64 times the same number, in place of its Fourier features."""

    def forward(self, c_noise: Tensor) -> Tensor:
        """Map c_noise `(B,)` to `(B, 64)`."""
        return c_noise[:, None].expand(-1, 64)


@dataclass(frozen=True)
class Trained:
    """A student, and what its training cost; `begun` measures what it began as."""

    policy: Policy
    seconds: float
    cpu_seconds: float
    begun: dict | None = None


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
        options, policy, loop: changes of the setting; the steps of the sampler are those of `steps`.

    Returns "rows", one `measure` for each number of evaluations, "auc" of the energy where there is one, "begun", a `measure` of
    what the student begins as, where that is a learned teacher, and the cost without the teacher's.
    """
    world, setting = TOYS[toy], SETTINGS.get(name) or Setting(name)
    if world.horizon > 1:
        setting = changed(setting, setting.chunks, None, None)
    setting = changed(setting, options, policy, loop)
    counts = tuple(steps) or setting.steps
    teacher = learned_teacher(toy, seed) if setting.learned else ExactTeacher(world)
    rows, made, taught = [], [], GRID
    for count in counts:
        if setting.chained:  # one step for as many as its teacher takes, on one grid
            stage = changed(setting, {"substeps": taught // count}, {"grid": GRID}, None)
            made.append(student(stage, seed, world, teacher, count))
            teacher, taught = made[-1].policy, count
        elif setting.apart or not made:
            made.append(student(setting, seed, world, teacher, count))
        rows.append(measure(at(made[-1].policy, count), world, seed, setting.coupled))
    cost = {key: round(sum(getattr(one, key) for one in made), 1) for key in ("seconds", "cpu_seconds")}
    figures = {"name": name, "toy": toy, "seed": seed, "rows": rows, **cost}
    if made[0].begun:
        figures["begun"] = made[0].begun
    if critic := getattr(made[-1].policy, "critic", None):
        figures["auc"] = energy_auc(lambda x, o: critic.energy(x, o, torch.ones_like(x)), world, seed)
    return figures


def reference(steps: int, toy: str = "ring", seed: int = 0) -> dict:
    """Return the figures of the exact teacher by so many of Euler's steps."""
    world = TOYS[toy]
    return {"name": "teacher", "toy": toy, "seed": seed, "rows": [measure(ExactTeacher(world, steps), world, seed)]}


@lru_cache
def learned_teacher(toy: str, seed: int) -> Policy:
    """Return a diffusion policy that was trained on a toy's points."""
    return student(TEACHER, seed, TOYS[toy], None, 40).policy.requires_grad_(False)


def changed(setting: Setting, options: Mapping | None, policy: Mapping | None, loop: Mapping | None) -> Setting:
    """Return a setting with some values changed."""
    given = {"options": options, "policy": policy, "loop": loop}
    return replace(setting, **{key: {**getattr(setting, key), **(value or {})} for key, value in given.items()})


def student(setting: Setting, seed: int, toy: Toy, teacher: Policy | None, steps: int) -> Trained:
    """Train a student of so many evaluations."""
    module = methods.find(setting.method)
    make, configuration = policies.KINDS[module.KIND]
    fields = {**NETWORK, **setting.policy, **sizes(toy)}
    if module.KIND == "mixture":
        fields.setdefault("experts", len(toy.means))
    else:
        fields["sampler"] = {**SAMPLER, **fields.get("sampler", {}), "steps": steps}
    torch.manual_seed(seed)
    policy = in_units(make(load_robot("toy2d"), build(configuration, fields)), toy)
    if setting.raw:
        policy.denoiser.network.level = RawLevel()
    method = module.Method(build(module.Options, setting.options), policy, teacher if module.NEEDS_TEACHER else None)
    begun = None
    if setting.learned and policy.warm_start(teacher):
        begun = measure(policy.eval(), toy, seed, setting.coupled)
    with tempfile.TemporaryDirectory() as folder:
        began, spent = time.monotonic(), time.process_time()
        loop = Loop(method, Points(toy, seed), None, build(LoopConfig, {**LOOP, **setting.loop}), seed, Path(folder), "toy")
        loop.run(progress=False)
    return Trained(policy.eval(), time.monotonic() - began, time.process_time() - spent, begun)


def at(policy: Policy, steps: int) -> Policy:
    """Return a policy told to take so many steps; a mixture has one."""
    if policy.kind != "mixture":
        policy.config = replace(policy.config, sampler=replace(policy.config.sampler, steps=steps))
    return policy


@torch.no_grad()
def measure(policy: Policy, toy: Toy, seed: int = 0, coupled: bool = True) -> dict:
    """Return "nfe", "sw", "tv" of the mode histogram, the "in_support" rate, the least "modes" that were hit, and "ms".

    "ms" is the median time of one chunk in PyTorch. Where it means something there is also "end_point", the mean distance from
    where the exact probability flow ends from the same noise.
    """
    coupled = coupled and policy.kind != "mixture" and math.prod(policy.noise_shape) == policy.chunk_size  # no noise on the way
    found = [_sampling(policy, toy, np.random.default_rng([seed, 2, i]), coupled) for i in range(SAMPLINGS)]
    mean = {key: round(float(np.mean([one[key] for one in found])), 4) for key in found[0]}
    return {"nfe": policy.nfe, **mean, "modes": min(one["modes"] for one in found), "ms": latency(policy)}


def _sampling(policy: Policy, toy: Toy, rng: np.random.Generator, coupled: bool) -> dict:
    observation = toy.observations(COUNT, rng)
    noise = torch.from_numpy(rng.standard_normal((COUNT, *getattr(policy, "noise_shape", (1,))))).float()
    points = chunks(policy, toy, observation, noise, rng)
    # turned back, so that a student that ignores the observation is far from the data
    own, data = toy.withdraw(points, observation), toy.withdraw(toy.sample(observation, rng), observation)
    modes, inside = toy.modes(points, observation)
    made = {
        "sw": sliced_wasserstein(own.numpy(), data.numpy(), rng),
        "tv": histogram_distance(modes, len(toy.means)),
        "in_support": inside,
        "modes": len(np.unique(modes)),
    }
    if coupled:
        exact = toy.scale * ExactTeacher(toy, 64, "heun").sample(observation, noise.flatten(1))
        made["end_point"] = (points - exact).norm(dim=1).mean().item()
    return made


def chunks(policy: Policy, toy: Toy, observation: Tensor, noise: Tensor, rng: np.random.Generator) -> Tensor:
    """Return a policy's chunks `(N, D)` for observations `(N, 1)`, in the toy's unit; a mixture's are drawn from its density."""
    seen = {"state": observation[:, None]}
    if policy.kind != "mixture":
        return policy(seen, noise).flatten(1)
    mixture = policy.mixture(policy.condition(seen))
    uniform = torch.from_numpy(rng.random((len(observation), 1))).float()
    expert = (mixture.log_gate.exp().cumsum(dim=1) < uniform).sum(dim=1).clamp(max=mixture.log_gate.shape[1] - 1)
    unit = rng.standard_normal((*mixture.means.shape[:2], 1, mixture.experts.noise_size))
    drawn = mixture.experts.sample(torch.from_numpy(unit).float())
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
