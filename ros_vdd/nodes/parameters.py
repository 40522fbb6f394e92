# SPDX-License-Identifier: Apache-2.0
"""Parameters with a description, a range and a clear refusal; read when a node starts, or when it is configured."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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


def declare(node: Node, parameters: Sequence[Parameter], read_only: Collection[str] | None = None) -> None:
    """Declare parameters; of `read_only` nothing can be changed while the node runs, None for all of them.

    Raises:
        ConfigError: a value has the wrong type or lies outside its range.
    """
    for parameter in parameters:
        descriptor = _descriptor(parameter, read_only is None or parameter.name in read_only)
        try:
            node.declare_parameter(parameter.name, parameter.default, descriptor)
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise ConfigError(f"{_whose(node, parameter)} ({_expected(parameter)}): {error}") from error


def without_effect(node: Node, parameters: Sequence[Parameter]) -> list[str]:
    """Return a line for each parameter that was given and that the node doesn't have: ROS passes over it in silence."""
    given = getattr(node, "_parameter_overrides", {})  # rclpy tells them nowhere else
    unknown = [name for name in given if not node.has_parameter(name) and not name.startswith("qos_overrides.")]
    known = [parameter.name for parameter in parameters]
    return [f"parameter '{name}' was given, but {node.get_name()} has none of that name; {suggest(name, known)}" for name in unknown]


def read(node: Node, parameters: Sequence[Parameter]) -> SimpleNamespace:
    """Return the values of declared parameters as attributes.

    Raises:
        ConfigError: a value isn't one of its choices.
    """
    values = {parameter.name: node.get_parameter(parameter.name).value for parameter in parameters}
    for parameter in parameters:
        if wrong := problem(node, parameter, values[parameter.name]):
            raise ConfigError(wrong)
    return SimpleNamespace(**values)


def problem(node: Node, parameter: Parameter, value: bool | int | float | str) -> str | None:
    """Return what is wrong with a value that rclpy, which knows types and ranges but no choices, would take."""
    if parameter.choices and value not in parameter.choices:
        return f"{_whose(node, parameter)} is '{value}'; {suggest(value, parameter.choices)}"
    return None


def _descriptor(parameter: Parameter, read_only: bool) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=parameter.text, read_only=read_only)
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
