# SPDX-License-Identifier: Apache-2.0
"""The command `ros-vdd VERB`: every file in offline/ that has a HELP line is a verb, found by its name."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ros_vdd import __version__
from ros_vdd.errors import RosVddError, suggest

OFFLINE = Path(__file__).with_name("offline")
USER_ERROR, INTERRUPTED = 2, 130
LAUNCHED = {
    "record": "record.launch.py robot:=my_arm.yaml task:=my_task",
    "run": "policy.launch.py policy:=FOLDER robot:=my_arm.yaml",
}
"""What is asked for as a verb and is a launch file, for it goes on until it is told to end."""
EXTRAS = "pip install 'ros_vdd[train]' to train, convert and export, 'ros_vdd[ros]' for the nodes, 'ros_vdd[sim]' for simulators"


def verbs() -> dict[str, str]:
    """Return {verb: its HELP line}, read from the source text, so that listing them imports none of them."""
    found = {path.stem: _help_line(path) for path in sorted(OFFLINE.glob("*.py"))}
    return {name: line for name, line in found.items() if line}


def _help_line(path: Path) -> str | None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            if any(isinstance(target, ast.Name) and target.id == "HELP" for target in node.targets):
                return str(node.value.value)
    return None


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command itself; the arguments of a verb are the verb's own."""
    listed = verbs()
    width = max(map(len, listed), default=0) + 2
    lines = [f"  {name:<{width}}{line}" for name, line in listed.items()]
    top = argparse.ArgumentParser(
        prog="ros-vdd",
        usage="ros-vdd VERB [options]",
        description="Diffusion policies distilled to one network evaluation, run on robots under ROS 2.",
        epilog="\n".join(["verbs:", *lines, "", "ros-vdd VERB --help tells the options of a verb."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"ros_vdd {__version__}")
    top.add_argument("verb", metavar="VERB", help="what to do; see below")
    return top


def run(arguments: Sequence[str]) -> int:
    """Import the verb named first and run it with the rest.

    Raises:
        RosVddError: no verb has that name, or what the verb itself raises.
    """
    name = parser().parse_args(arguments[:1] or ["--help"]).verb
    if name in LAUNCHED:
        raise RosVddError(f"'{name}' is no verb but a launch file: ros2 launch ros_vdd {LAUNCHED[name]}")
    if name not in verbs():
        raise RosVddError(f"no verb '{name}'; {suggest(name, verbs())}")
    verb = importlib.import_module(f"ros_vdd.offline.{name}")
    options = argparse.ArgumentParser(prog=f"ros-vdd {name}", description=verb.HELP)
    verb.add_arguments(options)
    return int(verb.run(options.parse_intermixed_args(arguments[1:])) or 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, 2 for a user's mistake (told in one message), 130 when interrupted."""
    try:
        return run(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RosVddError, OSError) as error:  # OSError: no permission, no space, a file where a folder should be
        print(f"ros-vdd: {error}", file=sys.stderr)
        return USER_ERROR
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("", "ros_vdd"):
            raise  # our own mistake
        print(f"ros-vdd: needs the module '{error.name}', which isn't installed; {EXTRAS}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("ros-vdd: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
