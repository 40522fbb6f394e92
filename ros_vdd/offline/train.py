# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd train`: a training configuration into a policy folder."""

from __future__ import annotations

import argparse
import json

HELP = "train a teacher, a mixture or an image encoder from an episode store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("config", help="training configuration: a path, or a shipped name such as pusht_teacher")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="fields to set, for example loop.steps=1000 seed=1"
    )
    parser.add_argument("--data", help="episode store to use instead of the configuration's")
    parser.add_argument("--out", help="policy folder to write (default: runs/NAME)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Train and write the folder."""
    from ros_vdd.offline.training_run import TrainingRun, read_config

    overrides = [*args.overrides, *([f"data={json.dumps(args.data)}"] if args.data else [])]  # quoted: a path isn't YAML
    TrainingRun(read_config(args.config, overrides), args.out, progress=not args.no_progress).run()
    return 0
