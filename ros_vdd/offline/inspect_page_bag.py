# SPDX-License-Identifier: Apache-2.0
"""The page of a bag: what came when, how good it is, and what the cameras and joints show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ros_vdd.data.bag_statistics import TopicStatistics
from ros_vdd.offline import inspect_page as parts
from ros_vdd.offline.inspect_bag import BagView, other_clock
from ros_vdd.offline.inspect_html import Markup, table, tag
from ros_vdd.offline.inspect_numbers import clock, milliseconds, number, share
from ros_vdd.offline.inspect_page_episode import joint_plots, lag_words
from ros_vdd.offline.inspect_pictures import contact_sheet
from ros_vdd.offline.inspect_svg import Line, plot, strip

MOST_JOINTS = 24  # plots of a bag without a robot file


def bag_page(view: BagView, content: dict[str, Any]) -> str:
    """Return the page; `content` as `describe_bag` returns it."""
    shown = [
        _overview(view, content),
        _verdicts(view),
        _timeline(view),
        _topics(view),
        _pictures(view),
        _joints(view),
        _custom(view),
    ]
    return parts.document("bag", view.bag.path.resolve().name, [part for part in shown if part])


def _overview(view: BagView, content: dict[str, Any]) -> list[Markup | None]:
    count = sum(t.count for t in view.topics.values())
    facts = {
        "storage": view.bag.storage,
        "duration": clock(view.duration_s),
        "topics": f"{sum(t.count > 0 for t in view.topics.values())} of {len(view.topics)} with messages",
        "messages": f"{count:,}".replace(",", " "),
        "robot": view.robot.name if view.robot else None,
        "task": content["recorded"].get("task"),
        "path": tag("code", view.bag.path),
    }
    notes = [*view.bag.warnings, *([view.robot_note] if view.robot_note else [])]
    return [parts.facts(facts), tag("ul", [tag("li", note) for note in notes], class_="remarks") if notes else None]


def _verdicts(view: BagView) -> Markup | None:
    cards = []
    recorded = view.recorded
    if view.verdict:
        about = f"by the section quality of robot file {view.robot.name}"
        told = parts.reasons(view.verdict.reasons) or tag("p", "Nothing is wrong with it.", class_="lead")
        cards.append(
            tag(
                "article",
                tag("header", parts.verdict(view.verdict.level), tag("h3", "judged now"), tag("small", about)),
                told,
                class_=f"card {view.verdict.level}",
            )
        )
    if level := recorded.get("verdict"):
        style = level if level in parts.SIGNS else "warn"
        who = " · ".join(f"{k} {recorded[k]}" for k in ("operator", "success", "revision") if recorded.get(k))
        head = tag("header", parts.verdict(style), tag("h3", "as recorded"), tag("small", who or "by the recorder"))
        cards.append(tag("article", head, parts.reasons(recorded.get("reasons", "").splitlines()), class_=f"card {style}"))
    return parts.section("Verdict", "", cards) if cards else None


def _timeline(view: BagView) -> Markup | None:
    rows = []
    for topic, times in view.times.items():
        if not len(times):
            continue
        found = view.gaps.get(topic, [])
        svg = strip(
            [(a, b, "gap") for a, b in found], times, view.duration_s, f"{topic}: {len(times)} messages, {len(found)} gaps"
        )
        worst = max(found, key=lambda gap: gap[1] - gap[0], default=None)
        told = f"{len(found)}: worst {number(worst[1] - worst[0], 's')} at {number(worst[0], 's')}" if worst else "none"
        rows.append((tag("code", topic), tag("td", svg, class_="wide"), tag("td", told, class_="short")))
    if not rows:
        return None
    lead = (
        f"From 0 to {clock(view.duration_s)} by log time. A gap is a silence longer than the robot file allows; of a topic that"
    )
    lead += " none names, longer than three times its usual interval."
    key = parts.line_key(("seen", "messages"), ("gap", "gap"))
    return parts.section("Timeline", lead, key, table(("topic", f"0 to {clock(view.duration_s)}", "gaps"), rows))


def _topics(view: BagView) -> Markup:
    rows = []
    for topic, told in view.topics.items():
        gap = "–" if told.largest_gap_s is None else f"{milliseconds(told.largest_gap_s)} at {number(told.largest_gap_at_s, 's')}"
        numbers = (f"{told.count:,}".replace(",", " "), number(told.rate_hz, digits=4), gap, _offset(told))
        notes = [tag("small", tag("br"), note, class_="warn") for note in _notes(told)]
        type_ = tag("td", told.type, class_="name")
        rows.append(
            (tag("td", tag("code", topic), notes, class_="name"), type_, *(tag("td", text, class_="n") for text in numbers))
        )
    figures = ("messages", "rate [Hz]", "largest gap", "log − header, median (range)")
    lead = "Log minus header is how long a message was on its way, where both clocks are one; else how far they are apart."
    return parts.section("Topics", lead, table(("topic", "type", *(tag("th", f, class_="n") for f in figures)), rows))


def _offset(told: TopicStatistics) -> str:
    """Return median and range of log minus header; of clocks that are far apart the range about the median."""
    if told.log_minus_header_s is None:
        return "–"
    low, middle, high = told.log_minus_header_s
    if other_clock(told):
        return f"{middle:.1f} s (−{middle - low:.1f} to +{high - middle:.1f} s)"
    return f"{milliseconds(middle)} ({milliseconds(low)} to {milliseconds(high)})"


def _notes(told: TopicStatistics) -> list[str]:
    notes = [told.undecodable] if told.undecodable else []
    notes += [f"{told.unstamped} with stamp zero"] if told.unstamped else []
    return notes + (["the header is of another clock than the log"] if other_clock(told) else [])


def _pictures(view: BagView) -> Markup | None:
    shown = []
    for topic, pictures in view.pictures.items():
        if isinstance(pictures, str):
            shown.append(tag("p", tag("code", topic), " ", pictures, class_="lead"))
        elif pictures:
            height, width = pictures[0][1].shape[:2]
            what = tag("small", tag("code", topic), f", {width}×{height} px")
            shown.append(tag("div", what, contact_sheet(pictures, topic)))
    return (
        parts.section("Cameras", "Eight pictures, evenly spread over the messages, with their log time.", shown)
        if shown
        else None
    )


def _joints(view: BagView) -> list[Markup] | Markup | None:
    if view.segments:
        return _converted(view)
    why = (
        f"No episode can be made of it: {view.why_none}. As recorded:"
        if view.why_none
        else "As recorded; without a robot file units and limits aren't known."
    )
    drawn = []
    for topic, joints in view.joints.items():
        for name, (times, values) in joints.items():
            thin = plot([Line(times, values, "state")], "", f"{name} of {topic}")
            drawn.append((name, topic, thin))
    more = f" {len(drawn) - MOST_JOINTS} more are left out." if len(drawn) > MOST_JOINTS else ""
    return parts.section("Joints", why + more, parts.plots(drawn[:MOST_JOINTS])) if drawn or view.why_none else None


def _converted(view: BagView) -> Markup:
    robot = replace(view.robot, cameras={})
    cards = []
    for i, (arrays, figures) in enumerate(view.segments):
        start_s = (int(arrays["stamp_ns"][0]) - int(view.segments[0][0]["stamp_ns"][0])) / 1e9
        facts = parts.facts(
            {
                "frames": f"{figures.frames} ({number(figures.duration_s, 's')})",
                "idle": share(figures.idle_share),
                "jerk": number(figures.jerk_hz, "Hz"),
                "lag": lag_words(figures),
                "at a limit": share(figures.at_limit_share),
                "oldest samples (p95)": ", ".join(f"{s} {milliseconds(a.p95_s)}" for s, a in figures.ages.items()),
            }
        )
        head = tag(
            "header",
            tag("h3", f"episode {i + 1} of {len(view.segments)}"),
            tag("small", f"starts {number(start_s, 's')} after the first tick"),
        )
        cards.append(
            tag("article", head, facts, parts.plots(joint_plots(arrays, robot, figures.idle, view.scales)), class_="card")
        )
    key = parts.line_key(
        ("line state", "state, measured"),
        ("line action", "action, commanded"),
        ("limit", "limits of the robot file"),
        ("idle", "idle"),
    )
    lead = "States and action as ros-vdd convert would align them, cameras left aside: a gap of a camera cuts an episode further."
    return parts.section("Joints", lead, key, cards)


def _custom(view: BagView) -> Markup | None:
    if not view.bag.custom_data:
        return None
    rows = [(tag("code", key), text) for key, text in view.bag.custom_data.items() if "\n" not in text]
    folded = [
        tag("details", tag("summary", tag("code", key)), tag("pre", text))
        for key, text in view.bag.custom_data.items()
        if "\n" in text
    ]
    return parts.section(
        "Inside the bag", "What the recorder left in custom_data.", table(("key", "text"), rows) if rows else None, folded
    )
