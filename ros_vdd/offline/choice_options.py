# SPDX-License-Identifier: Apache-2.0
"""The options of a verb that say how an expert is chosen; see `ros_vdd.runtime.choice`."""

from __future__ import annotations

import argparse
from typing import Any

from ros_vdd.runtime.choice import RULES, SETTINGS, ChoiceConfig


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Declare `--choice` and the settings of the rules."""
    default = ChoiceConfig()
    parser.add_argument(
        "--choice", default=default.rule, choices=RULES, metavar="RULE", help=f"which expert of a mixture acts: {', '.join(RULES)}"
    )
    for name, text in {
        "temperature": "of drawn ones: 1 follows the gate (default)",
        "sticky_margin": "sticky, committed: lead [nats] of another expert (%(default)g)",
        "sticky_steps": "sticky: at how many choices in a row (%(default)s)",
        "tolerance": "coherent: departure, share of half the joint range (%(default)g)",
        "commit_steps": "committed: certain actions of the plan before (%(default)s)",
    }.items():
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, metavar="X", help=text)


def choice_of(args: argparse.Namespace) -> ChoiceConfig:
    """Return what was asked for.

    Raises:
        ConfigError: a setting is outside its range.
    """
    return ChoiceConfig(args.choice, args.temperature, args.sticky_margin, args.sticky_steps, args.tolerance, args.commit_steps)


def described(choice: ChoiceConfig | None) -> dict[str, Any]:
    """Return rule and settings under stable keys, null where they have no meaning; None is a policy without experts."""
    keys = dict.fromkeys(name for names in SETTINGS.values() for name in names)
    if choice is None:
        return {"choice": None, **keys}
    return {"choice": choice.rule, **keys, **choice.settings}
