# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd evaluate`: a policy in closed loop in a simulator, over seeded episodes."""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ros_vdd import backends, envs
from ros_vdd.bundle import Bundle, amend
from ros_vdd.errors import ConfigError, PolicyError
from ros_vdd.offline.choice_options import add_choice, choice_of, described
from ros_vdd.offline.playback import Continuity, Playback
from ros_vdd.offline.words import counted
from ros_vdd.resources import find, require_file_place
from ros_vdd.runtime.choice import ChoiceConfig
from ros_vdd.runtime.history import stacked
from ros_vdd.runtime.inference import PolicyRunner, Prediction
from ros_vdd.runtime.modes import mode_entropy
from ros_vdd.streams.spec import load_robot

HELP = "run a policy in a simulator and score it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("policy", help="policy folder, or a shipped name such as pusht_vdd")
    parser.add_argument("--env", required=True, help="environment: " + ", ".join(envs.names()))
    parser.add_argument("--episodes", type=int, default=50, help="number of episodes (default 50)")
    parser.add_argument("--seed", type=int, default=100_000, help="seed of the first episode; the next has one more")
    parser.add_argument("--backend", default="onnxruntime", help="engine, NAME[:PRECISION] (default onnxruntime); docs/engines.md")
    add_choice(parser)
    parser.add_argument(
        "--replan-steps", type=int, default=0, help="actions executed of a chunk (default: the policy's n_action_steps)"
    )
    parser.add_argument("--delay-steps", type=int, default=0, metavar="X", help="ticks from an observation to its chunk's first action")
    parser.add_argument("--ensemble", type=float, metavar="X", help="execute the mean of all chunks, weights exp(-X i), i = 0 the oldest")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    parser.add_argument("--video", metavar="FILE", help="write the first episode as .gif, with the predicted chunks")
    parser.add_argument("--record-scores", metavar="NAME", help="add the scores to policy.yaml under this name")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


@dataclass(frozen=True)
class EpisodeResult:
    """Outcome of one episode."""

    seed: int
    score: float
    success: bool
    steps: int
    latencies_ns: tuple[int, ...]
    mode: int | None = None
    task: str | None = None
    jumps: tuple[float, ...] = ()
    switches: int = 0


def run(args: argparse.Namespace) -> int:
    """Evaluate, print a line an episode set, and write what was asked for."""
    from tqdm import tqdm

    if args.episodes < 1 or args.seed < 0:
        raise ConfigError(f"'episodes' is {args.episodes}, 'seed' {args.seed}; expected at least 1 and at least 0")
    for file in filter(None, (args.json, args.video)):  # told now, not after an hour of episodes
        require_file_place(file)
    if args.video and Path(args.video).suffix.lower() != ".gif":
        raise ConfigError(f"'{args.video}': videos are written as .gif; give a name that ends so")
    choice = choice_of(args)
    bundle = Bundle.open(find("models", args.policy))
    replan_steps = args.replan_steps or bundle.n_action_steps
    if not 1 <= replan_steps <= bundle.horizon:
        raise ConfigError(f"'replan-steps' is {replan_steps}; a chunk of this policy has 1 to {bundle.horizon} actions")
    Playback(bundle.horizon, replan_steps, args.delay_steps)  # told before anything is loaded
    env = envs.make(args.env)
    runner = make_runner(bundle, env.robot, args.backend, choice, args.seed)
    recorder = _recorder(args.video)
    results = []
    for index in tqdm(range(args.episodes), unit="episode", disable=args.no_progress):
        chosen = recorder if index == 0 else None
        results.append(episode(env, runner, args.seed + index, replan_steps, chosen, args.delay_steps, args.ensemble))
    if recorder is not None:
        recorder.write(Path(args.video))
    summary = summarise(results, env, bundle, args)
    print(report(summary))
    if args.json:
        Path(args.json).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if args.record_scores:
        kept = {k: v for k, v in summary.items() if k != "per_episode"}
        amend(bundle, scores={**bundle.manifest.scores, args.record_scores: kept})
    return 0


def make_runner(bundle: Bundle, robot: str, backend: str, choice: str | ChoiceConfig, seed: int) -> PolicyRunner:
    """Load a policy for an environment's robot.

    Raises:
        PolicyError: the policy was trained for another robot.
    """
    require_robot(bundle, robot)
    return PolicyRunner.load(bundle, backend, choice, seed)


def require_robot(bundle: Bundle, robot: str) -> None:
    """Refuse a policy that was trained for another robot than an environment's.

    Raises:
        PolicyError: it was; the differences are listed.
    """
    differences = bundle.robot.difference(load_robot(robot))
    if differences:
        raise PolicyError(f"policy '{bundle.path}' doesn't fit robot '{robot}': {'; '.join(differences)}")


def episode(
    env: envs.Env,
    runner: PolicyRunner,
    seed: int,
    replan_steps: int,
    recorder=None,
    delay: int = 0,
    ensemble: float | None = None,
) -> EpisodeResult:
    """Play one episode: infer, execute `replan_steps` actions, and again; the history starts with the first frame repeated.

    `delay` and `ensemble` are those of `Playback`.
    """
    runner.reset(seed)
    playback, continuity = Playback(runner.bundle.horizon, replan_steps, delay, ensemble), Continuity(runner.bundle, replan_steps, delay)
    latencies, steps = [], 0
    for history, prediction in _decisions(env, runner, seed, replan_steps):
        latencies.append(prediction.latency_ns)
        playback.add(steps, prediction.actions)
        continuity.add(prediction)
        for _ in range(replan_steps):
            if recorder is not None:
                recorder.add(env, prediction, steps)
            history.append(env.step(playback.at(steps)))
            steps += 1
            if env.done:
                break
    mode, task = None if modes_of(env) is None else env.mode, getattr(env, "task", None)
    return EpisodeResult(seed, env.score, env.success, steps, tuple(latencies), mode, task, tuple(continuity.jumps), continuity.switches)


def _decisions(env: envs.Env, runner: PolicyRunner, seed: int, replan_steps: int) -> Iterator[tuple[deque, Prediction]]:
    first = env.reset(seed)
    history = deque([first] * runner.bundle.n_obs_steps, maxlen=runner.bundle.n_obs_steps)
    while not env.done:
        yield history, runner.act(stacked(history), replan_steps)


def modes_of(env: envs.Env) -> int | None:
    """Return how many ways of success an environment defines; None also for one of another package that doesn't say."""
    return getattr(env, "modes", None)


def summarise(results: list[EpisodeResult], env: envs.Env, bundle: Bundle, args: argparse.Namespace) -> dict:
    """Return the figures under their stable keys."""
    scores = np.array([r.score for r in results])
    latencies = np.concatenate([r.latencies_ns for r in results]) / 1e6
    return {
        "env": args.env,
        "episodes": len(results),
        "seed": args.seed,
        "backend": args.backend,
        **described(choice_of(args), bundle),
        "replan_steps": args.replan_steps or bundle.n_action_steps,
        "delay_steps": args.delay_steps,
        "ensemble": args.ensemble,
        "seam_jump": _mean([jump for r in results for jump in r.jumps]),
        "switches_per_episode": _mean([r.switches for r in results]) if bundle.kind == "mixture" else None,
        "success_rate": round(float(np.mean([r.success for r in results])), 4),
        "score_mean": round(float(scores.mean()), 4),
        "score_std": round(float(scores.std()), 4),
        **_spread(results, modes_of(env)),
        "tasks": _tasks(results),
        "nfe": bundle.manifest.nfe,
        "latency_ms": {
            "p50": round(float(np.percentile(latencies, 50)), 3),
            "p99": round(float(np.percentile(latencies, 99)), 3),
            "mean": round(float(latencies.mean()), 3),
        },
        "per_episode": [
            {"seed": r.seed, "score": round(r.score, 4), "success": r.success, "steps": r.steps, "mode": r.mode, "task": r.task}
            for r in results
        ],
    }


def _mean(values: list[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def _spread(results: list[EpisodeResult], modes: int | None) -> dict:
    """Return how the successes spread over the environment's ways; null where it defines none."""
    if modes is None:
        return {"mode_entropy": None, "modes_found": None, "modes": None}
    taken = [r.mode for r in results if r.mode is not None]
    return {"mode_entropy": round(mode_entropy(taken, modes), 4), "modes_found": len(set(taken)), "modes": modes}


def _tasks(results: list[EpisodeResult]) -> dict[str, float] | None:
    """Return the success rate of each task played, in the order of first episodes; None where the environment names none."""
    names = list(dict.fromkeys(r.task for r in results if r.task is not None))
    return {name: round(float(np.mean([r.success for r in results if r.task == name])), 4) for name in names} or None


def report(summary: dict) -> str:
    """Return the results as a few lines for people."""
    latency = summary["latency_ms"]
    return (
        f"{summary['env']}: score {summary['score_mean']:.3f} (std {summary['score_std']:.3f}), "
        f"success {summary['success_rate']:.2f} over {counted(summary['episodes'], 'episode')}, "
        f"seeds {summary['seed']}-{summary['seed'] + summary['episodes'] - 1}\n"
        f"{_ways(summary)}{_of_tasks(summary)}"
        f"{summary['backend']}: {summary['nfe']} network evaluation(s) a chunk, "
        f"p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms a chunk"
    )


def _ways(summary: dict) -> str:
    if summary["modes"] is None:
        return ""
    return f"mode entropy {summary['mode_entropy']:.2f} ({summary['modes_found']} of {summary['modes']} ways)\n"


def _of_tasks(summary: dict) -> str:
    tasks = summary["tasks"] or {}
    return "".join(f"  {name:<{max(map(len, tasks))}}  success {rate:.2f}\n" for name, rate in tasks.items())


def _recorder(video: str | None):
    if video is None:
        return None
    from ros_vdd.offline.video import EpisodeVideo

    return EpisodeVideo()
