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
        "--choice", default=default.rule, choices=RULES, help="how an expert of a mixture is chosen (default %(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=default.temperature,
        help="sample, gumbel, coherent: 1 follows the gate (default), less favours likely experts",
    )
    parser.add_argument(
        "--sticky-margin",
        type=float,
        default=default.sticky_margin,
        help="sticky: lead [nats] that another expert needs (default %(default)g)",
    )
    parser.add_argument(
        "--sticky-steps",
        type=int,
        default=default.sticky_steps,
        help="sticky: at how many choices in a row (default %(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=default.tolerance,
        help="coherent: departure from the plan before, share of half the joint range (default %(default)g)",
    )
    parser.add_argument(
        "--commit-steps",
        type=int,
        default=default.commit_steps,
        help="committed: actions of the plan before that are executed whatever is decided now (default %(default)s)",
    )


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
