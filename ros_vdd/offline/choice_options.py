# SPDX-License-Identifier: Apache-2.0
"""The options of a verb that say how an expert is chosen; see `ros_vdd.runtime.choice`."""

from __future__ import annotations

import argparse
from typing import Any

from ros_vdd.bundle import Bundle
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
        "draws": "coherent: chunks that a policy without experts draws (%(default)s)",
    }.items():
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, metavar="X", help=text)


def choice_of(args: argparse.Namespace) -> ChoiceConfig:
    """Return what was asked for.

    Raises:
        ConfigError: a setting is outside its range.
    """
    names = ("temperature", "sticky_margin", "sticky_steps", "tolerance", "commit_steps", "draws")
    return ChoiceConfig(args.choice, *(getattr(args, name) for name in names))


def described(choice: ChoiceConfig, bundle: Bundle) -> dict[str, Any]:
    """Return rule and settings under stable keys, null where they change nothing: a policy that denoises has no experts."""
    keys = dict.fromkeys(name for names in SETTINGS.values() for name in names)
    serves = bundle.kind == "mixture" or choice.rule == "coherent" or choice.rule == "committed" and bundle.inpaints
    return {"choice": None, **keys} if not serves else {"choice": choice.rule, **keys, **choice.settings}
