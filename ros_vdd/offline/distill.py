# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd distill`: a teacher and a configuration into a student's policy folder."""

from __future__ import annotations

import argparse
import json

from ros_vdd.errors import ConfigError

HELP = "distil a teacher into a fast student"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("config", nargs="?", help="training configuration: a path, or a shipped name such as pusht_vdd")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="fields to set, for example options.samples=4"
    )
    parser.add_argument("--teacher", help="policy folder of the teacher, instead of the configuration's")
    parser.add_argument("--data", help="episode store to use instead of the configuration's")
    parser.add_argument("--out", help="policy folder to write (default: runs/NAME)")
    parser.add_argument("--list", action="store_true", help="name the methods that distil with one line each, and stop")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Distil and write the folder, or list the methods."""
    from ros_vdd import methods
    from ros_vdd.offline.training_run import TrainingRun, read_config

    if args.list:
        for name, module in ((name, methods.find(name)) for name in methods.names()):
            if module.NEEDS_TEACHER:
                print(f"{name:16} {(module.__doc__ or '').strip().splitlines()[0]}")
        return 0
    if not args.config:
        raise ConfigError("no configuration given; expected ros-vdd distill CONFIG --teacher FOLDER (or --list)")
    given = {"teacher": args.teacher, "data": args.data}
    overrides = [*args.overrides, *(f"{k}={json.dumps(v)}" for k, v in given.items() if v)]  # quoted: a path isn't YAML
    config = read_config(args.config, overrides)
    if not methods.find(config.method).NEEDS_TEACHER:
        raise ConfigError(f"method '{config.method}' needs no teacher; use ros-vdd train {args.config}")
    TrainingRun(config, args.out, progress=not args.no_progress).run()
    return 0
