# SPDX-License-Identifier: Apache-2.0
"""What `ros-vdd inspect` found, as text for a terminal."""

from __future__ import annotations

from typing import Any

from ros_vdd.bundle import SUMS


def show_bag(content: dict[str, Any]) -> str:
    """Return the table of a bag."""
    rows = [("topic", "type", "messages", "rate [Hz]", "largest gap [s]", "log - header [s]", "")]
    for name, topic in content["topics"].items():
        offset = topic["log_minus_header_s"]
        spread = f"{offset[1]:.3f} ({offset[0]:.3f} to {offset[2]:.3f})" if offset else "-"
        widest = topic["largest_gap_s"]
        gap = "-" if widest is None else f"{widest:.3f} at {topic['largest_gap_at_s']:.1f}"
        rate = "-" if topic["rate_hz"] is None else f"{topic['rate_hz']:.2f}"
        note = f"{topic['unstamped']} with stamp zero" if topic["unstamped"] else ""
        note = "not decodable" if topic["undecodable"] else note
        rows.append((name, topic["type"], str(topic["count"]), rate, gap, spread, note))
    head = [f"bag {content['path']} ({content['storage']})", *(f"warning: {w}" for w in content["warnings"])]
    head += [f"{key}: {_first_line(text)}" for key, text in content["custom_data"].items()]
    return "\n".join([*head, "", _table(rows), *_bag_verdict(content)])


def _bag_verdict(content: dict[str, Any]) -> list[str]:
    lines = []
    if content["verdict"]:
        reasons = content["verdict"]["reasons"]
        lines = [
            "",
            f"verdict by robot {content['robot']}: {content['verdict']['level']}",
            *(f"  {reason}" for reason in reasons),
        ]
    for number, episode in enumerate(content["episodes"], start=1):
        lines.append(f"episode {number}: {_figures(episode)}")
    return lines + ([f"no episode: {content['why_no_episode']}"] if content["why_no_episode"] else [])


def _figures(figures: dict[str, Any]) -> str:
    lag, jerk = figures["lag_s"], figures["jerk_hz"]
    told = [f"{figures['frames']} frames ({figures['duration_s']:.1f} s)", f"idle {figures['idle_share']:.0%}"]
    told += [f"lag {lag * 1e3:.0f} ms (correlation {figures['lag_correlation']:.2f})"] if lag is not None else []
    return ", ".join(told + ([f"jerk {jerk:.2f} Hz"] if jerk is not None else []))


def show_store(content: dict[str, Any]) -> str:
    """Return the table of an episode store."""
    head = [
        f"episode store {content['path']}",
        f"robot {content['robot']} at {content['rate_hz']:g} Hz",
        f"{content['episodes']} episodes of {content['shortest']} to {content['longest']} frames, "
        f"{content['frames']} frames ({content['duration_s']:.1f} s)",
    ]
    rows = [("array", "type", "per frame", "smallest", "largest")]
    for name, array in content["arrays"].items():
        low, high = (_numbers(array[key]) for key in ("min", "max"))
        rows.append((name, array["dtype"], str(tuple(array["shape"])), low, high))
    counts = ", ".join(f"{level} {count}" for level, count in content["verdicts"].items())
    return "\n".join(
        [*head, "", _table(rows), "", _table(_review_rows(content)), "", counts, *(f"note: {r}" for r in content["remarks"])]
    )


def _review_rows(content: dict[str, Any]) -> list[tuple[str, ...]]:
    goals = any(review["goal"] for review in content["reviews"])
    rows = [
        (
            "episode",
            "verdict",
            *(["goal"] if goals else []),
            "duration [s]",
            "idle [%]",
            "jerk [Hz]",
            "lag [s]",
            "path",
            "at limit [%]",
            "reasons",
        )
    ]
    for review in content["reviews"]:
        own = [review["name"].removeprefix("episode_"), review["verdict"], *([review["goal"]] if goals else [])]
        rows.append((*own, *_review_figures(review), "; ".join(review["reasons"])))
    return rows


def _review_figures(review: dict[str, Any]) -> list[str]:
    figures = review["figures"]
    if figures is None:
        return ["-"] * 6
    jerk, lag = figures["jerk_hz"], review["comparison"]["values"]["lag"]
    told = [f"{figures['duration_s']:.2f}", f"{100 * figures['idle_share']:.1f}", "-" if jerk is None else f"{jerk:.2f}"]
    return [
        *told,
        "-" if lag is None else f"{lag:.3f}",
        f"{figures['path_length']:.2f}",
        f"{100 * figures['at_limit_share']:.1f}",
    ]


def show_policy(content: dict[str, Any]) -> str:
    """Return the description of a policy."""
    kind = f"{content['policy_kind']}" + (f" of {content['experts']} experts" if content["experts"] else "")
    evaluations = f"{content['nfe']} network evaluation{'s' * (content['nfe'] != 1)}"
    lines = [
        f"policy {content['path']}: {content['name']}, {kind}, {evaluations} a chunk",
        f"robot {content['robot']} at {content['rate_hz']:g} Hz",
        *(f"warning: {warning}" for warning in content["warnings"]),
        *(f"input {name} {tuple(shape)}" for name, shape in content["inputs"].items()),
        *([f"remembers its last {content['past_actions'][0]} actions"] if content["past_actions"] else []),
        f"action {', '.join(content['actions'])}: {content['horizon']} ahead, {content['n_action_steps']} executed",
        *(f"file {name}, {size} bytes, checksum verified" for name, size in content["files"].items() if name != SUMS),
    ]
    for what, columns in content["normalisers"].items():
        lines += [f"normaliser of {what}: {name} from {low:.5g} to {high:.5g}" for name, (low, high) in columns.items()]
    lines += [f"engine {engine['engine']}, {engine['size']} bytes, made {engine['made']}" for engine in content["engines"]]
    for section in ("scores", "calibration", "export", "provenance"):
        lines += [f"{section}.{key}: {_value(value)}" for key, value in content[section].items()]
    return "\n".join(lines)


def _numbers(values: list[float] | None) -> str:
    return "-" if values is None else " ".join(f"{v:.5g}" if isinstance(v, float) else str(v) for v in values)


def _value(value: Any) -> str:
    """Return one line: of a section its keys and values, of a list its numbers."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(inner)}" for key, inner in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else _first_line(value)


def _first_line(value: Any) -> str:
    text = str(value).strip()
    first, newline, _ = text.partition("\n")
    return f"{first} ... ({text.count(newline) + 1} lines)" if newline else first


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
