# SPDX-License-Identifier: Apache-2.0
"""The recorder measured: `python benchmarks/recorder.py throughput|kill|corrupt|disk --out runs/benchmark_recorder`.

throughput: three cameras of 640x480 rgb8 at 30 Hz and joint states at 100 Hz, each published by a process of its own with
numbers in the headers: published = recorded + reported lost, by topic and run. `--seconds 60 --runs 10`, on an idle machine.
kill: the recorder, fed with a camera and joint states, is killed with SIGKILL at random times: what is missing of each topic
[ms], and whether the next start makes a bag that an independent reader opens.
corrupt: a recorded file, cut at random bytes and with random bits flipped: crashes, hangs, messages that aren't as they were
written, and intact chunks that weren't recovered.
disk: recording onto a small tmpfs until it is full, without and with a floor of free space: how long until the reason was told,
the longest time that a message was held up, and whether the bag is valid. It mounts the tmpfs, so it needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (0, 1)]

from comparison import hardware  # noqa: E402
from recorder_robot import CAMERA_HZ, JOINT_HZ, image_bytes, joint_bytes, number, number_of, robot  # noqa: E402
from recorder_throughput import lost_of, throughput  # noqa: E402
from rosbags.highlevel import AnyReader  # noqa: E402

from ros_vdd.data.bag import Bag  # noqa: E402
from ros_vdd.data.bag_recovery import NothingLeft, recover  # noqa: E402
from ros_vdd.data.mcap_chunks import Damage, inside, message, scan  # noqa: E402
from ros_vdd.errors import DataError  # noqa: E402
from ros_vdd.runtime.recording import EpisodeRecorder  # noqa: E402
from ros_vdd.runtime.recording_options import RecordingOptions  # noqa: E402

JOINTS, LIMIT_S = "/joint_states", 20
SMALL = (96, 96)  # [px] of the images in files that are damaged


def main(argv: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("what", choices=("throughput", "kill", "corrupt", "disk"))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_recorder"))
    parser.add_argument("--folder", type=Path, default=None, help="disk that is recorded on; default: the one of /tmp")
    parser.add_argument("--seconds", type=float, default=60.0, help="throughput: of an episode; kill: the latest time")
    parser.add_argument("--runs", type=int, default=1, help="throughput: episodes")
    parser.add_argument("--times", type=int, default=200, help="kill: how often; corrupt: how many cuts and how many bits")
    parser.add_argument("--cameras", type=int, default=3)
    parser.add_argument("--queue-mb", type=float, default=512.0, help="memory for messages that wait for the disk")
    parser.add_argument("--size-mb", type=int, default=64, help="disk: of the tmpfs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    result = {"what": args.what, **globals()[args.what](args), "hardware": hardware()}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{args.what}.json").write_text(json.dumps(result, indent=1) + "\n")
    text = _TABLES[args.what](result)
    (args.out / f"{args.what}.md").write_text(text)
    print(text, end="")
    return 0


class Feed:
    """Numbered messages of every topic, each when its time has come."""

    def __init__(self, recorder: EpisodeRecorder, cameras: int, *size: int):
        self._recorder, self.longest_s = recorder, 0.0
        periods = {f"/camera_{i}": 1 / CAMERA_HZ for i in range(cameras)} | {JOINTS: 1 / JOINT_HZ}
        self._data = {topic: joint_bytes() if topic == JOINTS else image_bytes(*size) for topic in periods}
        self._periods, self.counts = periods, dict.fromkeys(periods, 0)
        self._due = dict.fromkeys(periods, time.monotonic())

    def step(self) -> tuple[str, int]:
        """Wait for the next message, hand it to the recorder, and return its topic and when that was [ns]."""
        topic = min(self._due, key=self._due.get)
        time.sleep(max(0.0, self._due[topic] - time.monotonic()))
        now_ns, data = time.time_ns(), self._data[topic]
        number(data, self.counts[topic], now_ns)
        begun = time.monotonic()
        self._recorder.receive(topic, now_ns, bytes(data), self.counts[topic] + 1, b"feed")
        self.longest_s = max(self.longest_s, time.monotonic() - begun)
        self.counts[topic] += 1
        self._due[topic] += self._periods[topic]
        return topic, now_ns


def _recorder(root: Path, cameras: int, **options: Any) -> EpisodeRecorder:
    spec = robot(cameras)
    topics = {f"/{topic}": type_name for topic, type_name in spec.topics().items()}
    return EpisodeRecorder(root, "bench", spec, topics, (), time.monotonic_ns, options=RecordingOptions(**options))


def kill(args: argparse.Namespace) -> dict[str, Any]:
    """Return what each kill cost."""
    draw, runs = random.Random(args.seed), []
    for _ in range(args.times):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            runs.append(_kill_one(Path(folder), args.cameras, draw.uniform(0.15, min(args.seconds, 2.0))))
    topics = sorted({topic for run in runs for topic in run["lost_ms"]})
    lost = {t: [run["lost_ms"][t] for run in runs if t in run["lost_ms"]] for t in topics}
    quantiles = {"median_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
    figures = {topic: {name: float(np.quantile(v, q)) for name, q in quantiles.items()} for topic, v in lost.items()}
    opened, whole = (sum(run[key] for run in runs) for key in ("opened", "whole"))
    return {"times": len(runs), "opened": opened, "without_gap": whole, "topics": figures}


def _kill_one(folder: Path, cameras: int, after_s: float) -> dict[str, Any]:
    log = folder / "handed.bin"
    log.write_bytes(bytes(16 * (cameras + 1)))
    child = os.fork()
    if not child:
        _record_until_killed(folder, cameras, log)
    while not (folder / "started").exists():
        time.sleep(0.005)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    handed = np.fromfile(log, dtype=np.int64).reshape(-1, 2)  # per topic: when the last one was handed over, how many
    notes = _recorder(folder, cameras)
    notes.close()
    names = [*(f"/camera_{i}" for i in range(cameras)), JOINTS]
    last, whole, opened = dict.fromkeys(names, 0), True, False
    with contextlib.suppress(Exception), AnyReader([folder / "bench" / "episode_000000"]) as reader:
        seen: dict[str, list[int]] = {name: [] for name in names}
        for connection, log_time_ns, data in reader.messages():
            seen[connection.topic].append(number_of(data))
            last[connection.topic] = log_time_ns
        whole = all(numbers == list(range(len(numbers))) for numbers in seen.values())
        opened = True
    begin_ns = int((folder / "started").read_text())
    lost = {n: (t - (last[n] or begin_ns)) / 1e6 for n, (t, count) in zip(names, handed.tolist()) if count}
    return {"lost_ms": lost, "opened": opened, "whole": whole}


def _record_until_killed(folder: Path, cameras: int, log: Path) -> None:
    try:
        handed = np.memmap(log, dtype=np.int64, mode="r+", shape=(cameras + 1, 2))
        recorder = _recorder(folder, cameras)
        feed = Feed(recorder, cameras)
        places = {topic: place for place, topic in enumerate(feed.counts)}
        recorder.start().result()
        (folder / "new").write_text(str(time.time_ns()))
        (folder / "new").rename(folder / "started")
        while True:
            topic, now_ns = feed.step()
            handed[places[topic]] = now_ns, feed.counts[topic]
    finally:
        os._exit(1)


def corrupt(args: argparse.Namespace) -> dict[str, Any]:
    """Return what each reader made of damaged files."""
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        recorder = _recorder(folder, 1)
        feed = Feed(recorder, 1, *SMALL)  # so that thousands of files are read in minutes
        recorder.start().result()
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            feed.step()
        recorder.close()
        whole = (folder / "bench" / "episode_000000" / "episode_000000_0.mcap").read_bytes()
        (folder / "whole.mcap").write_bytes(whole)
        chunks = _chunks(folder / "whole.mcap")
        draw = random.Random(args.seed)
        cuts = [("cut", draw.randrange(len(whole))) for _ in range(args.times)]
        bits = [("bit", _bit(draw, len(whole), chunks)) for _ in range(args.times)]
        results = [_damage(folder / "case", whole, chunks, *case) for case in cuts + bits]
    summary = {kind: _sum([r for (k, _), r in zip(cuts + bits, results) if k == kind]) for kind in ("cut", "bit")}
    held = {"bytes": len(whole), "chunks": len(chunks), "messages": sum(len(c[2]) for c in chunks)}
    return {**held, "times": args.times, **summary}


def _bit(draw: random.Random, size: int, chunks: list) -> int:
    """Return a random bit of the file; every second one lies in the few bytes between the messages, where lengths are."""
    if draw.random() < 0.5:
        return draw.randrange(8 * size)
    start, end, _ = draw.choice(chunks)
    return 8 * draw.choice([draw.randrange(start, start + 60), draw.randrange(end, min(end + 400, size))]) + draw.randrange(8)


def _chunks(path: Path) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """Return (start, end, messages) of each chunk; a message is known by its log time and the hash of its bytes."""
    found = []
    for record in scan(path):
        if not isinstance(record, Damage) and record.opcode == 6:
            messages = [message(content, offset) for opcode, content, offset in inside(record) if opcode == 5]
            found.append((record.start, record.end, [(m.log_time_ns, hash(bytes(m.data))) for m in messages]))
    return found


def _damage(folder: Path, whole: bytes, chunks: list, kind: str, place: int) -> Counter[str]:
    """Damage the file in one place and read it in three ways; count what goes wrong."""
    broken = bytearray(whole[:place] if kind == "cut" else whole)
    if kind == "bit":
        broken[place // 8] ^= 1 << place % 8
        # The two times in a chunk's head are told by its messages as well.
        intact = [c for c in chunks if not c[0] <= place // 8 < c[1] or 9 <= place // 8 - c[0] < 25]
    else:
        intact = [c for c in chunks if c[1] <= place]
    truth, kept = Counter(m for c in chunks for m in c[2]), Counter(m for c in intact for m in c[2])
    result: Counter[str] = Counter()
    for name in ("strict", "reader", "recovered"):
        shutil.rmtree(folder.with_name("case.partial"), ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name("case.partial").mkdir()
        path = folder.with_name("case.partial") / "case_0.mcap"
        path.write_bytes(broken)
        got: Counter = Counter()
        refused = False
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(LIMIT_S)
        try:
            where = recover(path.parent, "damaged").folder if name == "recovered" else path
            bag = Bag.open(where, recover=name == "reader")
            for raw in bag.raw_messages(list(bag.topics)):
                got[raw.log_time_ns, hash(bytes(raw.data))] += 1
        except (NothingLeft, DataError):
            refused = True
        except TimeoutError:
            result[f"{name}: hung"] += 1
        except Exception as error:
            result[f"{name}: crashed ({type(error).__name__})"] += 1
        finally:
            signal.alarm(0)
        result[f"{name}: corrupt messages"] += (got - truth).total()
        result[f"{name}: refused"] += refused
        if name != "strict":
            result[f"{name}: intact messages missed"] += (kept - got).total()
    return result


def _too_long(*_: Any) -> None:
    raise TimeoutError


def _sum(results: list[Counter[str]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for result in results:
        for key, value in result.items():
            total[key] += value
    return dict(sorted(total.items()))


def disk(args: argparse.Namespace) -> dict[str, Any]:
    """Return what happened when the disk was full, and when it was nearly full."""
    return {name: _fill(args, floor_gb) for name, floor_gb in (("full", 0.0), ("floor", args.size_mb / 4e3))}


def _fill(args: argparse.Namespace, floor_gb: float) -> dict[str, Any]:
    with _small_disk(args.size_mb) as folder:
        recorder = _recorder(folder, args.cameras, min_free_gb=floor_gb)
        feed = Feed(recorder, args.cameras)
        recorder.start().result()
        full_at = told_at = None
        until = time.monotonic() + 60
        wanted = 1 if floor_gb else 2  # notes: on a full disk that it ended, then that it is complete
        while not (not recorder.recording and len(recorder.notes) >= wanted) and time.monotonic() < until:
            feed.step()
            now = time.monotonic()
            if full_at is None and shutil.disk_usage(folder).free < max(floor_gb * 1e9, 1 << 20):
                full_at = now
            if told_at is None and recorder.notes:
                told_at = now
        notes = [note.text for note in recorder.notes]
        recorder.close()
        with AnyReader([folder / "bench" / "episode_000000"]) as reader:
            recorded = Counter(connection.topic for connection, _, _ in reader.messages())
        bag = Bag.open(folder / "bench" / "episode_000000")
        lost = lost_of(bag)
        return {
            "told_after_s": None if told_at is None or full_at is None else max(0.0, told_at - full_at),
            "longest_receive_ms": 1e3 * feed.longest_s,
            "recorded": dict(recorded),
            "lost": lost,
            "handed_over_by_then": dict(feed.counts),
            "warnings": bag.warnings,
            "notes": notes,
        }


@contextlib.contextmanager
def _small_disk(size_mb: int) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def _throughput_table(result: dict[str, Any]) -> str:
    lines = ["| run | topic | published | recorded | reported lost | missing by number | twice |", "|---|" + "---|" * 6]
    for index, run in enumerate(result["runs"]):
        lines += [f"| {index} | {topic} | {' | '.join(str(v) for v in t.values())} |" for topic, t in run["topics"].items()]
    return "\n".join([*lines, "", f"exact: {result['exact']}; lost: {result['lost']}", ""])


def _kill_table(result: dict[str, Any]) -> str:
    lines = ["| topic | median [ms] | p99 [ms] | largest [ms] |", "|---|---|---|---|"]
    lines += [f"| {t} | {f['median_ms']:.0f} | {f['p99_ms']:.0f} | {f['max_ms']:.0f} |" for t, f in result["topics"].items()]
    end = f"{result['times']} kills; {result['opened']} bags opened after recovery, {result['without_gap']} without a gap"
    return "\n".join([*lines, "", end, ""])


def _corrupt_table(result: dict[str, Any]) -> str:
    keys = sorted({*result["cut"], *result["bit"]})
    lines = [f"| of {result['times']} each | cuts | flipped bits |", "|---|---|---|"]
    lines += [f"| {key} | {result['cut'].get(key, 0)} | {result['bit'].get(key, 0)} |" for key in keys]
    return "\n".join([*lines, "", f"{result['messages']} messages in {result['chunks']} chunks, {result['bytes']} bytes", ""])


def _disk_table(result: dict[str, Any]) -> str:
    lines = ["| | told after [s] | longest receive [ms] | recorded | lost |", "|---|---|---|---|---|"]
    for name in ("full", "floor"):
        r = result[name]
        told = "never" if r["told_after_s"] is None else f"{r['told_after_s']:.3f}"
        recorded, lost = (sum(r[key].values()) for key in ("recorded", "lost"))
        lines.append(f"| {name} | {told} | {r['longest_receive_ms']:.2f} | {recorded} | {lost} |")
    return "\n".join([*lines, "", *result["full"]["notes"], *result["floor"]["notes"], ""])


_TABLES = {"throughput": _throughput_table, "kill": _kill_table, "corrupt": _corrupt_table, "disk": _disk_table}


if __name__ == "__main__":
    sys.exit(main())
