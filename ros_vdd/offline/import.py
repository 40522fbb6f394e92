# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd import`: a policy folder from a released MoDE checkpoint."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ros_vdd import __version__
from ros_vdd.bundle import WEIGHTS, Bundle, file_sha256, require_place, write
from ros_vdd.streams.spec import RobotSpec, load_robot

HELP = "make a policy folder from a released MoDE checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="safetensors file, or the folder of a hub download")
    parser.add_argument("--robot", required=True, help="robot file: a path, or a shipped name such as calvin")
    parser.add_argument("--out", required=True, help="policy folder to write")
    parser.add_argument("--steps", type=int, default=10, help="sampler steps (default 10)")
    parser.add_argument("--sigma-min", type=float, default=0.001, help="lowest noise level (default 0.001)")


def run(args: argparse.Namespace) -> int:
    """Read, check, write, and say what the policy takes from which stream."""
    out = Path(args.out)
    require_place(out)
    robot = load_robot(args.robot)
    print(f"reading, checking and writing {args.checkpoint} (gigabytes take a minute or more)", flush=True)
    bundle = adopt(Path(args.checkpoint), robot, out, args.steps, args.sigma_min)
    print(_described(bundle))
    return 0


def adopt(checkpoint: Path, robot: RobotSpec, out: Path, steps: int = 10, sigma_min: float = 0.001) -> Bundle:
    """Write a policy folder from a released checkpoint.

    Raises:
        PolicyError: the checkpoint can't be read, isn't complete, or doesn't fit the robot file; nothing is written.
        ConfigError: no sampler has such steps or such a level.
    """
    import torch
    from safetensors.torch import save_file

    from ros_vdd import policies
    from ros_vdd.policies.mode_checkpoint import read_checkpoint
    from ros_vdd.policies.mode_release import released_policy, released_sampler

    sampler = released_sampler(steps, sigma_min)
    found = read_checkpoint(checkpoint)
    policy = released_policy(found, robot, sampler)
    provenance = {
        "imported": found.path.name,
        "checkpoint_sha256": file_sha256(found.path),
        "skipped_keys": len(found.skipped),
        "parameters": sum(p.numel() for p in policy.parameters()),
        "ros_vdd": __version__,
        "torch": str(torch.__version__),
    }
    manifest = policies.manifest(policy, out.name, provenance=provenance)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".import") as folder:  # memory needn't hold gigabytes twice
        weights = Path(folder) / WEIGHTS
        save_file({name: value.contiguous() for name, value in policy.state_dict().items()}, weights)
        return write(out, manifest, {WEIGHTS: weights})


def _described(bundle: Bundle) -> str:
    network, told, robot = bundle.manifest.network, bundle.manifest.provenance, bundle.robot
    sampler, encoder = network["sampler"], network["vision"]["encoder"]
    still, wrist = (f"'{name}' {c.output_shape[1]}x{c.output_shape[0]}" for name, c in robot.cameras.items())
    size = (bundle.path / WEIGHTS).stat().st_size / 1e6
    return "\n".join(
        [
            f"{told['imported']}: {network['depth']} layers, {network['experts']} experts, width {network['width']}, "
            f"two {encoder}s, {told['parameters']:,} parameters; {told['skipped_keys']} keys of the text encoder skipped",
            f"camera that stands still: {still}, on the wrist: {wrist} (trained on 224x224; in LIBERO 112x112 on the wrist)",
            f"goal: {robot.goal_size} numbers on '{robot.goal.topic}'",
            f"action: -1 and 1 are the limits in the robot file of {', '.join(robot.action.joints)}",
            f"sampler: {sampler['steps']} steps, sigma {sampler['sigma_max']:g} to {sampler['sigma_min']:g}",
            f"wrote {bundle.path} ({size:.1f} MB); next: ros-vdd benchmark {bundle.path} --backend eager",
        ]
    )
