# SPDX-License-Identifier: Apache-2.0
"""Parameters with a description, a range and a clear refusal; read once, when a node starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node

from ros_vdd.errors import ConfigError, suggest


@dataclass(frozen=True)
class Parameter:
    """One parameter of a node.

    Args:
        name: lower_snake_case, with the SI unit as suffix
        default: its type is the parameter's type
        text: what it means, for `ros2 param describe`
        lowest, highest: inclusive range of a number
        choices: the words a text may be; empty for any
    """

    name: str
    default: bool | int | float | str
    text: str
    lowest: float | None = None
    highest: float | None = None
    choices: tuple[str, ...] = ()


def declare(node: Node, parameters: Sequence[Parameter]) -> SimpleNamespace:
    """Declare parameters read-only and return their values as attributes.

    Raises:
        ConfigError: a value has the wrong type, lies outside its range, or isn't one of its choices.
    """
    return SimpleNamespace(**{parameter.name: _declare(node, parameter) for parameter in parameters})


def _declare(node: Node, parameter: Parameter) -> bool | int | float | str:
    try:
        value = node.declare_parameter(parameter.name, parameter.default, _descriptor(parameter)).value
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        raise ConfigError(f"{_whose(node, parameter)} ({_expected(parameter)}): {error}") from error
    if parameter.choices and value not in parameter.choices:
        raise ConfigError(f"{_whose(node, parameter)} is '{value}'; {suggest(value, parameter.choices)}")
    return value


def _descriptor(parameter: Parameter) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=parameter.text, read_only=True)
    if parameter.choices:
        descriptor.additional_constraints = f"one of: {', '.join(parameter.choices)}"
    if parameter.lowest is not None:
        number = type(parameter.default)
        kind = FloatingPointRange if number is float else IntegerRange
        limits = kind(from_value=number(parameter.lowest), to_value=number(parameter.highest))
        setattr(descriptor, "floating_point_range" if number is float else "integer_range", [limits])
    return descriptor


def _whose(node: Node, parameter: Parameter) -> str:
    return f"{node.get_name()}: parameter '{parameter.name}'"


def _expected(parameter: Parameter) -> str:
    kind = type(parameter.default).__name__
    return kind if parameter.lowest is None else f"{kind} from {parameter.lowest:g} to {parameter.highest:g}"
