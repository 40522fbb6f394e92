# SPDX-License-Identifier: Apache-2.0
"""Drawings of a policy: its inputs and outputs, when it looks and acts, its ranges within the limits."""

from __future__ import annotations

from typing import Any

from ros_vdd.offline import inspect_page as parts
from ros_vdd.offline.inspect_html import Markup, tag
from ros_vdd.offline.inspect_numbers import number


def shapes_section(content: dict[str, Any]) -> Markup:
    """Boxes: inputs on the left, the network, the chunk on the right."""
    inputs = [(name, "×".join(map(str, shape))) for name, shape in content["inputs"].items()]
    if content["past_actions"]:
        inputs.append(("past actions", "×".join(map(str, content["past_actions"]))))
    if content["policy_kind"] in ("diffusion", "window", "mode", "few_step"):
        inputs.append(("noise", "random, an input"))
    actions, experts = len(content["actions"]), content["experts"]
    outputs = [("action chunk", f"{content['horizon']}×{actions}")]
    if experts:
        outputs = [("chunk of each expert", f"{experts}×{content['horizon']}×{actions}"), ("log gate", f"{experts}")]
    rows = max(len(inputs), len(outputs))
    height = 20 + rows * 58
    marks = _boxes(inputs, 10, height, "in") + _boxes(outputs, 590, height, "out")
    middle = height / 2
    marks.append(tag("rect", x=310, y=f"{middle - 36:.1f}", width=170, height=72, rx=8, class_="box net"))
    marks.append(tag("text", content["policy_kind"], x=395, y=f"{middle - 8:.1f}", class_="label strong"))
    marks.append(
        tag("text", f"{content['nfe']} evaluation{'s' * (content['nfe'] != 1)}", x=395, y=f"{middle + 10:.1f}", class_="label")
    )
    if content["parameters"]:
        count = f"{parameter_count(content):,} parameters".replace(",", " ")
        marks.append(
            tag(
                "text",
                count,
                x=395,
                y=f"{middle + 26:.1f}",
                class_="sub",
            )
        )
    marks += [_arrow(210, y, 310, middle) for y in _places(len(inputs), height)] + [
        _arrow(480, middle, 590, y) for y in _places(len(outputs), height)
    ]
    drawing = tag("svg", tag("title", "inputs, network and outputs"), marks, viewBox=f"0 0 800 {height}", role="img")
    lead = (
        "Units and scaling lie inside: images go in as uint8, states in the units of the robot file, and so do actions come out: "
    )
    lead += f"{', '.join(content['actions'])}."
    return parts.section("Shapes", lead, tag("div", drawing, class_="card drawing"))


def timing_section(content: dict[str, Any]) -> Markup:
    """One row of cells: ticks that are looked at, then actions, those executed before the next plan filled."""
    seen, ahead, run, rate = content["n_obs_steps"], content["horizon"], content["n_action_steps"], content["rate_hz"]
    cell = 760 / (seen + ahead)
    marks = []
    for i in range(seen + ahead):
        style = "step seen" if i < seen else "step run" if i < seen + run else "step"
        what = f"observation {i - seen + 1}" if i < seen else f"action {i - seen}"
        at = tag("title", f"{what} at {number((i - seen + 1 if i < seen else i - seen) / rate, 's')}")
        marks.append(
            tag("rect", at, x=f"{20 + i * cell:.1f}", y=10, width=f"{max(cell - 2, 1):.1f}", height=26, rx=2, class_=style)
        )
    marks.append(tag("text", "now", x=f"{20 + seen * cell - 1:.1f}", y=52, class_="label"))
    marks.append(tag("text", f"+{number(run / rate, 's')}", x=f"{20 + (seen + run) * cell - 1:.1f}", y=52, class_="label"))
    marks.append(tag("text", f"+{number(ahead / rate, 's')}", x=780, y=52, class_="end"))
    drawing = tag("svg", tag("title", "observations and actions over time"), marks, viewBox="0 0 800 60", role="img")
    lead = (
        f"It looks at {seen} tick{'s' * (seen != 1)} (blue) and plans {ahead} actions ({number(ahead / rate, 's')}); "
        f"{run} of them (filled, {number(run / rate, 's')}) are executed before the next plan."
    )
    return parts.section("In time", lead, tag("div", drawing, class_="card drawing"))


def parameter_count(content: dict[str, Any]) -> int:
    """Return how many parameters were trained; without a word of it in the provenance, all numbers in the weights."""
    return content["provenance"].get("parameters") or sum(content["parameters"].values())


def range_bar(low: float, high: float, room: tuple[float, float], what: str) -> Markup:
    """Return a bar: a normaliser's range within the limits of its joint, `what` is "state" or "action"."""
    begin, end = min(low, room[0]), max(high, room[1])
    scale = 400 / ((end - begin) or 1)
    marks = [
        tag(
            "rect",
            x=f"{(room[0] - begin) * scale:.1f}",
            y=0,
            width=f"{(room[1] - room[0]) * scale:.1f}",
            height=14,
            class_="room",
        ),
        tag(
            "rect",
            x=f"{(low - begin) * scale:.1f}",
            y=3,
            width=f"{max((high - low) * scale, 1):.1f}",
            height=8,
            class_=f"span {what}",
        ),
    ]
    return tag(
        "svg",
        tag("title", f"{number(low)} to {number(high)} of {number(room[0])} to {number(room[1])}"),
        marks,
        viewBox="0 0 400 14",
        preserveAspectRatio="none",
        class_="strip",
    )


def _boxes(entries: list[tuple[str, str]], x: int, height: float, style: str) -> list[Markup]:
    marks = []
    for (name, shape), y in zip(entries, _places(len(entries), height)):
        marks.append(tag("rect", x=x, y=f"{y - 23:.1f}", width=200, height=46, rx=8, class_=f"box {style}"))
        marks.append(tag("text", name, x=x + 100, y=f"{y - 3:.1f}", class_="label strong"))
        marks.append(tag("text", shape, x=x + 100, y=f"{y + 14:.1f}", class_="label"))
    return marks


def _places(count: int, height: float) -> list[float]:
    return [height * (i + 0.5) / count for i in range(count)]


def _arrow(x0: float, y0: float, x1: float, y1: float) -> Markup:
    middle = (x0 + x1) / 2
    return tag("path", d=f"M{x0} {y0:.1f}C{middle} {y0:.1f} {middle} {y1:.1f} {x1 - 2} {y1:.1f}m-6 -4l6 4l-6 4", class_="arrow")
