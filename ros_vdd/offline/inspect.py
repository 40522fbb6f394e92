# SPDX-License-Identifier: Apache-2.0
"""`ros-vdd inspect`: what a bag, an episode store or a policy holds and how good it is: as text, as JSON, as one HTML page."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from ros_vdd import resources
from ros_vdd.bundle import MANIFEST, SUMS
from ros_vdd.errors import ConfigError, DataError
from ros_vdd.offline.inspect_bag import describe_bag, look_at_bag
from ros_vdd.offline.inspect_policy import describe_policy, look_at_policy
from ros_vdd.offline.inspect_store import describe_store, look_at_store
from ros_vdd.offline.inspect_tables import show_bag, show_policy, show_store
from ros_vdd.streams.spec import load_robot

HELP = "say what a bag, an episode store or a policy holds, and which demonstrations to keep"
FULL = 48  # episodes with pictures and plots on a page


class Told(NamedTuple):
    """What was found: as plain values, as text, and as a page."""

    content: dict[str, Any]
    text: str
    page: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("path", metavar="PATH", help="a bag (folder, .mcap, .db3), an episode store, a policy")
    parser.add_argument("--json", action="store_true", help="print JSON with stable keys instead of a table")
    parser.add_argument("--html", metavar="FILE", help="also write one page with pictures and plots, complete in itself")
    parser.add_argument("--robot", metavar="ROBOT", help="robot file or shipped name: judge by it; default: the one inside")
    parser.add_argument(
        "--episodes", metavar="A:B", help="stores: episodes that the page shows in full, counted from 0, B left out"
    )
    parser.add_argument(
        "--full", type=int, default=FULL, metavar="N", help="stores: at most so many in full (default %(default)s)"
    )
    parser.add_argument(
        "--no-images", action="store_true", help="stores: don't look through the images; large stores take less time"
    )
    parser.add_argument("--recover", action="store_true", help="bags: read what is left of a damaged MCAP")


def run(args: argparse.Namespace) -> int:
    """Find out what the path is and describe it; a policy may be named as shipped."""
    path = resources.find("models", args.path)
    if args.html:
        resources.require_file_place(args.html)
    if args.full < 0:
        raise ConfigError(f"--full {args.full}: expected 0 or more")
    if (path / MANIFEST).is_file() or (path / SUMS).is_file():
        told = _policy(path, args)
    elif (path / "store.yaml").is_file():
        told = _store(path, args)
    elif (path / "meta" / "info.json").is_file():
        raise DataError(f"'{path}' is a LeRobotDataset; turn it into an episode store with ros-vdd convert, then inspect that")
    elif path.suffix == ".zarr":
        raise DataError(f"'{path}' is a zarr; turn it into an episode store with ros-vdd convert, then inspect that")
    else:
        told = _bag(path, args)
    if told.page is not None:
        Path(args.html).write_text(told.page, encoding="utf-8")
    print(json.dumps(told.content, indent=2, allow_nan=False, default=str) if args.json else told.text)
    return 0


def parse_range(text: str, count: int) -> list[int]:
    """Return the numbers below `count` that "A:B", "A:", ":B" or "A" names.

    Raises:
        ConfigError: it is none of these, or names nothing.
    """
    found = re.fullmatch(r"(\d*)(:?)(\d*)", text)
    if not found or not text.strip(":"):
        raise ConfigError(f"--episodes is '{text}'; expected A:B, A:, :B or one number")
    first, colon, end = found.groups()
    begin = int(first or 0)
    chosen = list(range(count))[begin : int(end) if end else None] if colon else [begin] if begin < count else []
    if not chosen:
        raise ConfigError(f"--episodes {text} names none of the {count} episodes, 0 to {count - 1}")
    return chosen


def _policy(path: Path, args: argparse.Namespace) -> Told:
    from ros_vdd.offline.inspect_page_policy import policy_page

    view = look_at_policy(path)
    content = describe_policy(view)
    return Told(content, show_policy(content), policy_page(view, content) if args.html else None)


def _store(path: Path, args: argparse.Namespace) -> Told:
    from ros_vdd.offline.inspect_page_store import choose_full, store_page

    robot = load_robot(args.robot) if args.robot else None
    view = look_at_store(path, robot, not args.no_images, progress=not args.json)
    content = describe_store(view)
    if not args.html:
        return Told(content, show_store(content), None)
    full = parse_range(args.episodes, len(view.reviews)) if args.episodes else choose_full(view.reviews, args.full)
    return Told(content, show_store(content), store_page(view, content, full))


def _bag(path: Path, args: argparse.Namespace) -> Told:
    from ros_vdd.offline.inspect_page_bag import bag_page

    robot = load_robot(args.robot) if args.robot else None
    view = look_at_bag(path, robot, args.recover, progress=not args.json)
    content = describe_bag(view)
    return Told(content, show_bag(content), bag_page(view, content) if args.html else None)
