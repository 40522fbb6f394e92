# SPDX-License-Identifier: Apache-2.0
"""The page of a policy: what goes in and out, when it acts, how good it was, what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ros_vdd.bundle import SUMS
from ros_vdd.config import dump_yaml
from ros_vdd.offline import inspect_page as parts
from ros_vdd.offline.inspect_html import Markup, table, tag
from ros_vdd.offline.inspect_numbers import number, share, size
from ros_vdd.offline.inspect_page_shapes import parameter_count, range_bar, shapes_section, timing_section
from ros_vdd.offline.inspect_policy import PolicyView, state_names
from ros_vdd.streams.spec import RobotSpec

_SHARES = ("success_rate", "mode_entropy")


def policy_page(view: PolicyView, content: dict[str, Any]) -> str:
    """Return the page; `content` as `describe_policy` returns it."""
    shown = [
        _overview(content),
        shapes_section(content),
        timing_section(content),
        _scores(content),
        _normalisers(view, content),
        _network(content),
    ]
    sections = [
        _section("Provenance", "What it was made from.", content["provenance"]),
        _section("Calibration", "Bounds of the monitor, taken from recorded data.", content["calibration"]),
        _section("Export", "How far the graph is from PyTorch.", content["export"]),
        _files(content),
    ]
    shown += [tag("div", sections, class_="columns"), _engines(content), _more(view, content)]
    return parts.document("policy", content["name"], [part for part in shown if part])


def _overview(content: dict[str, Any]) -> Markup:
    kind = content["policy_kind"] + (f" of {content['experts']} experts" if content["experts"] else "")
    return parts.facts(
        {
            "kind": kind,
            "robot": content["robot"],
            "rate": number(content["rate_hz"], "Hz", 4),
            "evaluations a chunk": str(content["nfe"]),
            "parameters": f"{parameter_count(content):,}".replace(",", " ") if content["parameters"] else None,
            "method": content["training"].get("method"),
            "sha256": tag("code", content["sha256"][:16], title=content["sha256"]),
            "path": tag("code", content["path"]),
            "warning": "; ".join(content["warnings"]) or None,
        }
    )


def _scores(content: dict[str, Any]) -> Markup | None:
    scores = {name: s for name, s in content["scores"].items() if isinstance(s, Mapping)}
    plain = {name: s for name, s in content["scores"].items() if not isinstance(s, Mapping)}
    if not content["scores"]:
        return parts.section("Scores", "None yet: ros-vdd evaluate writes them with --save.")
    keys = list(dict.fromkeys(key for s in scores.values() for key, value in s.items() if value is not None))
    rows = [(tag("code", key), *(tag("td", _score(key, s.get(key)), class_="n") for s in scores.values())) for key in keys]
    shown = [table(("figure", *(tag("th", name, class_="n") for name in scores)), rows)] if scores else []
    return parts.section(
        "Scores",
        "As ros-vdd evaluate measured them.",
        *shown,
        parts.facts({k: str(v) for k, v in plain.items()}) if plain else None,
    )


def _score(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_score(k, v)}" for k, v in value.items())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else str(value)
    return number(100 * value, "%", 4) if key in _SHARES else number(value, digits=6 if isinstance(value, int) else 4)


def _normalisers(view: PolicyView, content: dict[str, Any]) -> Markup | None:
    robot, ranges = view.bundle.robot, content["normalisers"]
    if not ranges:
        return None
    rows = []
    for what, columns in ranges.items():
        limits = _limits(robot) if what == "action" else {}
        units = _units(robot, what)
        for name, (low, high) in columns.items():
            room = limits.get(name)
            unit = units.get(name, "")
            bar = range_bar(low, high, room, what) if room else None
            told = f"{number(room[0])} to {number(room[1])}" if room else "–"
            ends = [tag("td", number(end, digits=4), class_="n") for end in (low, high)]
            cells = (what, tag("code", name), unit, *ends, tag("td", told, class_="short"), tag("td", bar, class_="wide"))
            rows.append(cells)
    lead = "What the network sees as −1 and 1, from the training data. Bar: that range within the limits of the robot file;"
    lead += " a part outside means that the demonstrations went beyond the limits."
    return parts.section(
        "Normaliser ranges", lead, table(("array", "column", "unit", "−1 is", "1 is", "limits", "share of the limits"), rows)
    )


def _limits(robot: RobotSpec) -> dict[str, tuple[float, float]]:
    return dict(zip(robot.action.joints, zip(robot.action.lower, robot.action.upper)))


def _units(robot: RobotSpec, what: str) -> dict[str, str]:
    if what == "action":
        return dict.fromkeys(robot.action.joints, robot.action.unit)
    units = [s.unit if f == "position" else "" for s in robot.states.values() for _, f in s.features]
    return dict(zip(state_names(robot), units))


def _network(content: dict[str, Any]) -> Markup | None:
    counts = content["parameters"]
    if not counts:
        return None
    most = max(counts.values())
    total = sum(counts.values())
    rows = []
    for name, count in counts.items():
        bar = tag(
            "svg",
            tag("rect", x=0, y=3, width=f"{400 * count / (most or 1):.1f}", height=8, class_="span"),
            viewBox="0 0 400 14",
            preserveAspectRatio="none",
            class_="strip",
        )
        rows.append(
            (
                tag("code", name),
                tag("td", f"{count:,}".replace(",", " "), class_="n"),
                tag("td", share(count / (total or 1)), class_="n"),
                tag("td", bar, class_="wide"),
            )
        )
    return parts.section("Network", "Numbers in weights.safetensors by part.", table(("part", "numbers", "share", ""), rows))


def _section(title: str, lead: str, values: Mapping[str, Any]) -> Markup | None:
    if not values:
        return None
    rows = [(tag("code", key), _value(value)) for key, value in values.items()]
    return parts.section(title, lead, table(("key", "value"), rows))


def _value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(str(_value(v)) for v in value)
    return number(value, digits=6) if isinstance(value, float) else str(value)


def _engines(content: dict[str, Any]) -> Markup:
    rows = [
        (tag("code", e["engine"]), size(e["size"]), e["made"], _value(e["identity"]), _value(e["parity"]) or "–")
        for e in content["engines"]
    ]
    shown = table(("engine", "size", "made", "only valid with", "parity"), rows) if rows else None
    lead = (
        "Built ahead from this graph, in the cache of this machine."
        if rows
        else "None was built ahead on this machine; ONNX Runtime loads policy.onnx as it is. ros-vdd compile builds one."
    )
    return parts.section("Engines", lead, shown)


def _files(content: dict[str, Any]) -> Markup:
    rows = [
        (tag("code", name), tag("td", size(count), class_="n"), "checksum verified" if name != SUMS else "the checksums")
        for name, count in content["files"].items()
    ]
    return parts.section("Files", "", table(("file", tag("th", "size", class_="n"), ""), rows))


def _more(view: PolicyView, content: dict[str, Any]) -> Markup:
    head, *rows = parts.robot_table(view.bundle.robot)
    folded = [
        tag("details", tag("summary", title), tag("pre", dump_yaml(values)))
        for title, values in (
            ("network", content["network"]),
            ("training", content["training"]),
            ("robot file", view.bundle.manifest.robot),
        )
        if values
    ]
    return parts.section("Robot and configuration", "", table(head, rows), folded)
