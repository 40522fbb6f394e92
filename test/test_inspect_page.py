# SPDX-License-Identifier: Apache-2.0
"""The page of ros-vdd inspect is complete in itself, bounded in size, and lets no text of a file become markup."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import shlex
import subprocess
import xml.etree.ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from make_bags import SECOND, image, joint_state, trajectory, write_bag

from ros_vdd.bundle import Manifest, write
from ros_vdd.config import dump_yaml, to_plain
from ros_vdd.data.episode_quality_columns import Columns, Scales
from ros_vdd.data.episodes import LEFT_OUT, EpisodeWriter
from ros_vdd.errors import ConfigError, DataError
from ros_vdd.offline import inspect
from ros_vdd.offline.inspect_bag import gaps
from ros_vdd.offline.inspect_html import EMPTY, Markup, page, table, tag
from ros_vdd.offline.inspect_numbers import clock, milliseconds, number, share, size, ticks
from ros_vdd.offline.inspect_page_episode import joint_plots
from ros_vdd.offline.inspect_page_store import choose_full, leave_out_command
from ros_vdd.offline.inspect_pictures import spread, thumbnail
from ros_vdd.offline.inspect_policy import read_tensor, tensor_heads
from ros_vdd.offline.inspect_style import SCRIPT
from ros_vdd.offline.inspect_svg import Line, histogram, plot, thinned
from ros_vdd.streams.spec import load_robot

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Reader(HTMLParser):
    """Reads a page: its tags with attributes, its text, and whether every tag is closed in order."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.words, self._open = [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def read(path) -> Reader:
    text = path.read_text(encoding="utf-8")
    reader = Reader(text)
    loaded = [
        a[key] for _, a in reader.tags for key in ("src", "href", "srcset", "action", "poster", "data", "xlink:href") if key in a
    ]
    assert all(url.startswith(("data:image/jpeg;base64,", "#")) for url in loaded), "it asks for something outside"
    style = re.search("<style>(.*?)</style>", text, re.S).group(1)
    assert "url(" not in style and "@import" not in style
    assert not any(key.startswith("on") for _, a in reader.tags for key in a), "an event handler in an attribute"
    assert len(reader.all("script")) == 1
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = next(a["content"] for a in reader.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and f"script-src 'sha256-{allowed}'" in policy
    for svg in re.findall("<svg.*?</svg>", text, re.S):
        xml.etree.ElementTree.fromstring(svg)
    return reader


def inspected(path, tmp_path, *options):
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    out = tmp_path / "page.html"
    assert inspect.run(parser.parse_args([str(path), "--html", str(out), *options])) == 0
    return read(out)


def demonstration(seed, count=40):
    rng = np.random.default_rng(seed)
    way = np.stack(
        [np.interp(np.arange(count), np.linspace(0, count - 1, 6), rng.uniform(100, 400, 6)) for _ in range(2)], axis=1
    )
    images = np.full((count, 96, 96, 3), 255, np.uint8)
    for frame, (x, y) in zip(images, way / 512 * 96):
        cv2.circle(frame, (int(x), int(y)), 4, (0, 90, 200), -1)
    stamps = np.arange(count, dtype=np.int64) * 100_000_000
    return {"images.top": images, "state": way.astype(np.float32), "action": way.astype(np.float32), "stamp_ns": stamps}


@pytest.fixture
def store(tmp_path):
    writer = EpisodeWriter(tmp_path / "a <b> store", load_robot("pusht"))
    for i in range(12):
        writer.add(demonstration(i), {"source": EVIL, "task": EVIL, "left_out_around": EVIL if i == 3 else ""})
    writer.add(demonstration(12, count=4), {"source": "x"})
    return writer.root


# ---- html, numbers, drawings


def test_text_is_escaped_and_markup_is_not():
    assert tag("p", EVIL) == "<p>&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(2)&gt;\"'&amp;</p>"
    assert tag("p", "a", tag("b", "<"), [None, ["c"]], id='x"y') == '<p id="x&quot;y">a<b>&lt;</b>c</p>'
    assert isinstance(tag("br"), Markup) and tag("br") == "<br>"
    assert "<script>" not in table((EVIL,), [(EVIL,)]) and "<script>alert" not in page(EVIL, [EVIL], "", "")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "–"),
        (0, "0"),
        (-0.5, "−0.5 m"),
        (12345.6, "12346 m"),
        (1.23456, "1.23 m"),
        (1e-9, "1e−09 m"),
        (0.00012, "0.00012 m"),
    ],
)
def test_numbers_carry_their_unit(value, told):
    assert number(value, "m") == (told if value else told if value is None else "0 m")


def test_shares_times_and_sizes():
    assert [share(v) for v in (0, 0.0004, 0.053, 0.5, 1, None)] == ["0 %", "<0.1 %", "5.3 %", "50 %", "100 %", "–"]
    assert [milliseconds(v) for v in (0.0123, 0.0012, -0.2, 1700.0, None)] == [
        "12 ms",
        "1.2 ms",
        "−200 ms",
        "1700.0 s",
        "–",
    ]
    assert [clock(v) for v in (3.21, 65, 3725)] == ["3.2 s", "1 min 05 s", "1 h 02 min"]
    assert [size(v) for v in (12, 1500, 2.5e6, 3e9)] == ["12 B", "1.5 kB", "2.5 MB", "3 GB"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 3), (0.001, 0.0013), (250, 251), (-1e6, 5e6)])
def test_ticks_are_round_inside_and_few(low, high):
    found = ticks(low, high, 4)
    assert 2 <= len(found) <= 5 and low <= found[0] and found[-1] <= high + 1e-9 * abs(high)


def test_a_thinned_line_keeps_its_peaks_and_ends():
    values = np.zeros(5000)
    values[[777, 3333]] = 9, -9
    times, kept = thinned(np.arange(5000.0), values)
    assert len(kept) <= 242 and kept.max() == 9 and kept.min() == -9 and times[0] == 0 and times[-1] == 4999


def test_limits_are_drawn_where_they_do_not_squash_the_line():
    wide, narrow = Line(np.arange(3.0), np.array([0.0, 5, 9]), "state"), Line(np.arange(3.0), np.array([4.0, 5, 5.5]), "state")
    assert plot([wide], "rad", "", (0, 10)).count('class="limit"') == 2
    squashed = plot([narrow], "rad", "", (0, 10))
    assert 'class="limit"' not in squashed and "limits 0 to 10 rad lie outside" in squashed


def test_the_bars_of_a_histogram_stand_on_each_other_and_hold_every_value_once():
    values = np.random.default_rng(0).normal(size=100)
    drawn = histogram(values, ["keep"] * 60 + ["drop"] * 40, "s", "")
    bars = [(bar["class"], float(bar["x"]), float(bar["y"]), float(bar["height"])) for bar in Reader(drawn).all("rect")]
    total = {name: sum(height for style, _, _, height in bars if style == name) for name in ("bar keep", "bar drop")}
    assert total["bar keep"] / total["bar drop"] == pytest.approx(60 / 40, rel=0.02)
    for x in {x for _, x, _, _ in bars}:
        column = sorted((y, y + height) for _, other, y, height in bars if other == x)
        assert all(above[1] == pytest.approx(below[0], abs=0.2) for above, below in zip(column, column[1:]))
    assert "bar keep" in histogram([0.0] * 5, ["keep"] * 5, "", "", percent=True)


def test_a_contact_sheet_shows_both_ends_and_a_thumbnail_is_small():
    assert spread(100) == [0, 14, 28, 42, 57, 71, 85, 99] and spread(3) == [0, 1, 2] and spread(1) == [0]
    big = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    shown = Reader(thumbnail(big, EVIL)).all("img")[0]
    data = cv2.imdecode(np.frombuffer(base64.b64decode(shown["src"].partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
    assert data.shape == (108, 144, 3) and shown["alt"] == EVIL


def test_a_thumbnail_keeps_red_red():
    red = np.zeros((20, 20, 3), np.uint8)
    red[..., 0] = 255
    source = Reader(thumbnail(red, "")).all("img")[0]["src"]
    blue, green, found = cv2.imdecode(np.frombuffer(base64.b64decode(source.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)[
        10, 10
    ]
    assert found > 240 and max(blue, green) < 15


# ---- stores


def test_a_store_s_page_runs_nothing_of_a_file_and_shows_every_verdict(store, tmp_path, capsys):
    reader = inspected(store, tmp_path)
    assert EVIL in reader.text.replace("( ", "(") and "a <b> store" in reader.text
    assert "cut beside a gap" in reader.text and "lasts 0.40 s" in reader.text
    rows = [a for a in reader.all("tr") if "data-verdict" in a]
    assert [r["data-verdict"] for r in rows] == ["keep"] * 3 + ["look"] + ["keep"] * 8 + ["drop"]
    assert len([a for a in reader.all("article")]) == 13
    assert "mv " in reader.text and "episode_000012" in reader.text
    assert "verdict" in capsys.readouterr().out


def test_a_joint_that_turns_without_end_is_drawn_without_limits_and_beside_its_state():
    robot, place, way = load_robot("example_arm"), 3, np.linspace(3.1, 3.3, 40)
    lower, upper = list(robot.action.lower), list(robot.action.upper)
    lower[place], upper[place] = -np.pi, np.pi
    action = replace(robot.action, continuous=(robot.action.joints[place],), lower=tuple(lower), upper=tuple(upper))
    robot = replace(robot, action=action)
    arrays = {"state": np.zeros((40, robot.state_size)), "action": np.zeros((40, robot.action_size))}
    column = Columns.of(robot).state[dict(Columns.of(robot).pairs)[place]]
    arrays["state"][:, column], arrays["action"][:, place] = way, way + 0.1 - 2 * np.pi
    drawn = joint_plots(arrays, robot, np.zeros(40, bool), Scales.of([arrays], robot))
    assert "limit" not in drawn[place][2]
    arrays["action"][:, place] += 2 * np.pi
    assert drawn[place][2] == joint_plots(arrays, robot, np.zeros(40, bool), Scales.of([arrays], robot))[place][2]


def test_the_command_that_leaves_out_works_twice_in_one_shell_with_a_relative_root(tmp_path):
    root = shlex.quote("a <b> store")
    for name in ("episode_000000", "episode_000001", "episode_000002"):
        (tmp_path / "a <b> store" / name).mkdir(parents=True)
    first, second = leave_out_command(root, ["episode_000000"]), leave_out_command(root, ["episode_000001", "episode_000002"])
    subprocess.run(["sh", "-e", "-c", f"{first}\n{second}"], cwd=tmp_path, check=True)
    assert sorted(p.name for p in (tmp_path / "a <b> store").iterdir()) == [LEFT_OUT]
    assert len(list((tmp_path / "a <b> store" / LEFT_OUT).iterdir())) == 3
    assert leave_out_command(root, []).startswith("#")


def test_the_script_writes_the_command_that_the_page_begins_with(store, tmp_path):
    (command,) = (a for a in inspected(store, tmp_path).all("pre") if a.get("id") == "command")
    written = command["data-before"] + "episode_000012" + command["data-after"]
    assert written == leave_out_command(shlex.quote(str(store)), ["episode_000012"])
    assert 'command.dataset.before+names.join(" ")+command.dataset.after' in SCRIPT


def test_the_size_of_a_page_is_bounded_and_the_rest_is_shown_on_request(store, tmp_path):
    few = inspected(store, tmp_path, "--full", "3")
    shown = [a["id"] for a in few.all("article")]
    assert shown == ["episode_000012", "episode_000003", "episode_000000"]  # drop, look, then of the rest
    assert len([a for a in few.all("tr") if "data-verdict" in a]) == 13
    asked = inspected(store, tmp_path, "--episodes", "4:6")
    assert [a["id"] for a in asked.all("article")] == ["episode_000004", "episode_000005"]
    assert {a["href"] for a in asked.all("a")} == {"#episode_000004", "#episode_000005"}


def test_the_choice_in_full_puts_drop_before_look_before_keep():
    class R:
        def __init__(self, verdict):
            self.verdict = verdict

    reviews = [R(v) for v in ["keep"] * 6 + ["look"] * 3 + ["drop"] * 2]
    assert choose_full(reviews, 1) == [9] and choose_full(reviews, 4) == [6, 7, 9, 10]
    assert choose_full(reviews, 7) == [0, 5, 6, 7, 8, 9, 10] and choose_full(reviews, 99) == list(range(11))


@pytest.mark.parametrize(("text", "chosen"), [("2:5", [2, 3, 4]), ("7:", [7, 8, 9]), (":2", [0, 1]), ("3", [3])])
def test_episodes_are_named_as_slices(text, chosen):
    assert inspect.parse_range(text, 10) == chosen


@pytest.mark.parametrize("text", ["", ":", "a:b", "-1:", "10", "12:14", "5:5"])
def test_a_slice_that_names_nothing_is_refused(text):
    with pytest.raises(ConfigError, match="--episodes"):
        inspect.parse_range(text, 10)


def test_the_json_of_a_store_has_the_numbers_of_the_page_under_stable_keys(store, capsys):
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    inspect.run(parser.parse_args([str(store), "--json"]))
    told = json.loads(capsys.readouterr().out)
    assert told["verdicts"] == {"keep": 11, "look": 1, "drop": 1} and len(told["reviews"]) == 13
    review = told["reviews"][0]
    assert set(review) == {"name", "verdict", "goal", "meta", "reasons", "figures", "comparison"}
    assert {"idle_share", "jerk_hz", "lag_s", "lag_correlation", "path_length", "at_limit_share", "cameras", "ages"} <= set(
        review["figures"]
    )
    assert set(review["comparison"]["z"]) == {"duration", "path", "jerk", "idle", "lag", "start", "end"}


def test_without_images_a_store_is_judged_faster_and_says_nothing_of_them(store, capsys):
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    inspect.run(parser.parse_args([str(store), "--json", "--no-images"]))
    assert json.loads(capsys.readouterr().out)["reviews"][0]["figures"]["cameras"] == {}


def test_a_store_is_judged_by_another_quality_but_not_by_another_robot(store, tmp_path, capsys):
    robot = to_plain(load_robot("pusht"))
    (tmp_path / "strict.yaml").write_text(dump_yaml(robot | {"quality": {"min_duration_s": 10.0}}))
    assert inspected(store, tmp_path, "--robot", str(tmp_path / "strict.yaml")).text.count("asks for 10 s") >= 13
    with pytest.raises(DataError, match="another robot file"):
        inspected(store, tmp_path, "--robot", "avoiding")


def test_a_page_that_can_not_be_written_is_refused_before_the_work(store, tmp_path):
    with pytest.raises(ConfigError, match="no folder"):
        inspect.run(argparse.Namespace(path=str(store), html=str(tmp_path / "no" / "x.html")))


# ---- bags


def recorded(tmp_path, custom_data=None, missing=(), name="bag"):
    """PushT for five seconds: camera and joints at 10 Hz, commands at 50 Hz."""
    arrays, events = demonstration(0, 50), []
    for i in range(50):
        stamp = SECOND + i * SECOND // 10
        if i not in missing:
            events.append(("/camera/image_raw", stamp + 4_000_000, image(stamp, arrays["images.top"][i])))
        events.append(("/joint_states", stamp + 2_000_000, joint_state(stamp, position=arrays["state"][i].astype(float))))
        for k in range(5):
            at = stamp + k * 20_000_000
            events.append(
                (
                    "/joint_trajectory_controller/joint_trajectory",
                    at + 1_000_000,
                    trajectory(at, positions=arrays["action"][i].astype(float)),
                )
            )
    events.sort(key=lambda event: event[1])
    return write_bag(tmp_path / name, events, custom_data=custom_data or {})


def test_a_bag_with_its_robot_file_inside_is_judged_and_drawn(tmp_path, capsys):
    data = {
        "ros_vdd.robot": dump_yaml(to_plain(load_robot("pusht"))),
        "ros_vdd.task": EVIL,
        "ros_vdd.verdict": "warn",
        "ros_vdd.reasons": EVIL,
    }
    path = recorded(tmp_path, data, missing=range(20, 26))
    reader = inspected(path, tmp_path)
    assert EVIL in reader.text and "silent for 0.70 s" in reader.text and "as recorded" in reader.text
    assert len(reader.all("img")) == 8 and "episode 1 of 1" in reader.text
    text = capsys.readouterr().out
    assert "verdict by robot pusht: reject" in text and "episode 1: 50 frames (5.0 s)" in text


def test_a_bag_without_a_robot_file_shows_topics_pictures_and_joints(tmp_path, capsys):
    path = recorded(tmp_path)
    reader = inspected(path, tmp_path)
    assert "no robot file inside" in reader.text and len(reader.all("img")) == 8 and "x /joint_states" in reader.text
    told = inspected(path, tmp_path, "--robot", "pusht", "--json")
    content = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert content["verdict"] == {"level": "accept", "reasons": []} and len(content["episodes"]) == 1
    assert "lag" in told.text


def test_a_bag_that_gives_no_episode_says_why(tmp_path, capsys):
    path = write_bag(tmp_path / "bag", [("/joint_states", SECOND + i, joint_state(SECOND + i)) for i in range(5)])
    reader = inspected(path, tmp_path, "--robot", "pusht")
    assert "No episode can be made of it" in reader.text and "no messages" in reader.text
    assert "verdict by robot pusht: reject" in capsys.readouterr().out


def test_lost_messages_that_the_recorder_counted_enter_the_verdict(tmp_path, capsys):
    path = recorded(tmp_path, {"ros_vdd.lost": "/camera/image_raw: 25"})
    inspected(path, tmp_path, "--robot", "pusht")
    assert "/camera/image_raw: 25 of 75 messages lost" in capsys.readouterr().out


def test_a_picture_of_an_unknown_encoding_is_told_and_not_drawn(tmp_path):
    events = [("/depth", SECOND + i * SECOND, image(SECOND, np.zeros((4, 4, 2), np.uint8), "16UC1")) for i in range(3)]
    reader = inspected(write_bag(tmp_path / "bag", events), tmp_path)
    assert "16UC1" in reader.text and not reader.all("img")


def test_gaps_are_silences_beyond_a_limit_or_beyond_three_usual_intervals():
    even = np.concatenate([np.arange(0, 2, 0.1), np.arange(3, 5, 0.1)])
    assert gaps(even, None, 5.0) == [pytest.approx((1.9, 3.0))]
    assert gaps(even, 0.5, 6.0) == [pytest.approx((1.9, 3.0)), pytest.approx((4.9, 6.0))]
    rare = np.array([0.0, 0.1, 5, 5.1, 9, 20, 20.5, 31, 40, 40.1, 60, 61])
    assert gaps(rare, None, 70.0) == [] and gaps(np.zeros(0), 0.5, 3.0) == [(0.0, 3.0)]


# ---- policies


def test_a_policy_s_page_shows_shapes_scores_ranges_and_files(tmp_path):
    values = {
        "state_normalizer.low": [1.5, 2],
        "state_normalizer.high": [3, 4],
        "action_normalizer.low": [-9, 0],
        "action_normalizer.high": [512, 400],
    }
    heads, data = {}, b""
    for key, numbers in values.items():
        piece = np.array(numbers, "<f4").tobytes()
        heads[key] = {"dtype": "F32", "shape": [2], "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    head = json.dumps(heads).encode()
    manifest = Manifest(
        name=f"tiny {EVIL}",
        kind="mixture",
        robot=to_plain(load_robot("pusht")),
        network={"a": EVIL},
        n_obs_steps=2,
        horizon=16,
        n_action_steps=8,
        experts=4,
        scores={EVIL: {"success_rate": 0.25, "env": EVIL}},
        provenance={"method": EVIL},
        calibration={"bound": 3.25},
    )
    path = write(tmp_path / "tiny", manifest, {"weights.safetensors": len(head).to_bytes(8, "little") + head + data}).path
    assert read_tensor(
        path / "weights.safetensors", tensor_heads(path / "weights.safetensors")["state_normalizer.low"]
    ).tolist() == [1.5, 2]
    reader = inspected(path, tmp_path)
    assert EVIL in reader.text and "4×16×2" in reader.text and "2×96×96×3" in reader.text
    assert "25 %" in reader.text and "−9" in reader.text and "weights.safetensors" in reader.text and "3.25" in reader.text


def test_an_empty_store_and_a_bag_of_one_message_have_a_page(tmp_path):
    EpisodeWriter(tmp_path / "store", load_robot("pusht"))
    assert "0 of 0 episodes" in inspected(tmp_path / "store", tmp_path).text
    reader = inspected(write_bag(tmp_path / "bag", [("/joint_states", SECOND, joint_state(SECOND))]), tmp_path)
    assert "/joint_states" in reader.text


def test_damaged_custom_data_is_told_and_not_fatal(tmp_path, capsys):
    events = [("/joint_states", SECOND + i, joint_state(SECOND + i)) for i in range(3)]
    data = {"ros_vdd.robot": "name: [", "ros_vdd.lost": "[", "ros_vdd.verdict": EVIL}
    reader = inspected(write_bag(tmp_path / "bag", events, custom_data=data), tmp_path)
    assert "the robot file inside can't be read" in reader.text


def test_weights_that_are_none_are_told_and_the_rest_shown(tmp_path, capsys):
    manifest = Manifest(
        name="tiny", kind="diffusion", robot=to_plain(load_robot("pusht")), network={}, n_obs_steps=1, horizon=8, n_action_steps=4
    )
    for i, data in enumerate((b"12345", b"\xff" * 20, (2).to_bytes(8, "little") + b"[]", (4).to_bytes(8, "little") + b'{"a"')):
        path = write(tmp_path / f"tiny{i}", manifest, {"weights.safetensors": data}).path
        assert "is no safetensors file" in inspected(path, tmp_path).text


def test_what_is_no_bag_store_or_policy_is_named(tmp_path):
    (tmp_path / "set" / "meta").mkdir(parents=True)
    (tmp_path / "set" / "meta" / "info.json").write_text("{}")
    with pytest.raises(DataError, match="LeRobotDataset.*ros-vdd convert"):
        inspected(tmp_path / "set", tmp_path)


def test_headers_of_another_clock_have_no_age_and_are_told(tmp_path, capsys):
    far = 1_700_000_000 * SECOND
    path = write_bag(tmp_path / "bag", [("/joint_states", far + i * SECOND // 10, joint_state(SECOND + i)) for i in range(30)])
    reader = inspected(path, tmp_path, "--robot", "pusht")
    assert "the header is of another clock than the log" in reader.text
    assert "old when they come" not in capsys.readouterr().out
