# SPDX-License-Identifier: Apache-2.0
"""Small LeRobotDatasets for the tests, written with pyarrow and PyAV after the format's description, not with our writer."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LENGTHS = (4, 5, 3)
CAMERA = "observation.images.top"
TASKS = ("push it", "pull it")
PATHS_V2 = {
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
PATHS_V3 = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}


def pictures(count, size=(16, 16), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3)).astype(np.uint8)


def write_video(path: Path, frames, fps, codec="libx264rgb", options=None, times=None):
    """Write frames at `times` [s], by default k / fps; the codec is exact unless another one is named."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or ({"qp": "0"} if "264" in codec else {"crf": "5"}))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "rgb24" if codec == "libx264rgb" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10_000)
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts = round((k / fps if times is None else times[k]) * 10_000)
            frame.time_base = Fraction(1, 10_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def columns(length, episode, start, fps, seed):
    rng = np.random.default_rng(seed)
    return {
        "observation.state": rng.normal(size=(length, 5)).astype(np.float32),
        "action": rng.normal(size=(length, 2)).astype(np.float32),
        "timestamp": (np.arange(length) / fps).astype(np.float32),
        "frame_index": np.arange(length),
        "episode_index": np.full(length, episode),
        "index": np.arange(start, start + length),
        "task_index": np.full(length, episode % len(TASKS)),
        "next.reward": np.linspace(0, 1, length),
    }


def table(arrays):
    def cells(values):
        return pa.array(list(values)) if values.ndim > 1 else pa.array(values)

    return pa.table({name: cells(values) for name, values in arrays.items()})


def write_lerobot(root: Path, version="v3.0", fps=10.0, size=(16, 16), codec="libx264rgb", info=None, drop=(), change=None):
    """Write a data set and return (columns, pictures) of each episode.

    `info` overrides keys of info.json, `drop` leaves out columns, `change(columns)` alters an episode's columns.
    """
    vectors = {"observation.state": 5, "action": 2}
    features = {name: {"dtype": "float32", "shape": [n], "names": None} for name, n in vectors.items()}
    kinds = {"timestamp": "float32", "next.reward": "float64"}
    scalars = ("timestamp", "frame_index", "episode_index", "index", "task_index", "next.reward")
    features |= {k: {"dtype": kinds.get(k, "int64"), "shape": [1], "names": None} for k in scalars}
    features[CAMERA] = {
        "dtype": "video",
        "shape": [*size, 3],
        "names": ["height", "width", "channels"],
        "info": {"video.fps": fps},
    }
    starts = np.cumsum([0, *LENGTHS])
    episodes = []
    for e, length in enumerate(LENGTHS):
        arrays = columns(length, e, int(starts[e]), fps, seed=e)
        (change or (lambda arrays: None))(arrays)
        episodes.append(({k: v for k, v in arrays.items() if k not in drop}, pictures(length, size, seed=e)))
    said = {"codebase_version": version, "robot_type": "toy", "fps": fps, "features": features, "chunks_size": 1000}
    said |= {
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": len(TASKS),
        "splits": {"train": f"0:{len(LENGTHS)}"},
    }
    said |= PATHS_V3 if version == "v3.0" else PATHS_V2
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(said | (info or {})))
    (_write_v3 if version == "v3.0" else _write_v2)(root, episodes, fps, codec)
    return episodes


def _write_v2(root, episodes, fps, codec):
    def lines(rows):
        return "".join(json.dumps(row) + "\n" for row in rows)

    rows = [{"episode_index": e, "tasks": [TASKS[e % 2]], "length": n} for e, n in enumerate(LENGTHS)]
    (root / "meta" / "episodes.jsonl").write_text(lines(rows))
    (root / "meta" / "tasks.jsonl").write_text(lines({"task_index": i, "task": t} for i, t in enumerate(TASKS)))
    (root / "data" / "chunk-000").mkdir(parents=True)
    for e, (arrays, frames) in enumerate(episodes):
        pq.write_table(table(arrays), root / "data" / "chunk-000" / f"episode_{e:06d}.parquet")
        write_video(root / "videos" / "chunk-000" / CAMERA / f"episode_{e:06d}.mp4", frames, fps, codec)


def _write_v3(root, episodes, fps, codec):
    """Two files: episodes 0 and 1 share the first, of data and of video; the third has its own."""
    files = (0, 0, 1)
    starts = np.cumsum([0, *LENGTHS])
    (root / "data" / "chunk-000").mkdir(parents=True)
    (root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    for file in (0, 1):
        inside = [e for e in range(len(LENGTHS)) if files[e] == file]
        pq.write_table(
            pa.concat_tables([table(episodes[e][0]) for e in inside]), root / f"data/chunk-000/file-{file:03d}.parquet"
        )
        frames = np.concatenate([episodes[e][1] for e in inside])
        write_video(root / "videos" / CAMERA / "chunk-000" / f"file-{file:03d}.mp4", frames, fps, codec)
    rows = []
    for e, length in enumerate(LENGTHS):
        begin = (starts[e] - starts[files.index(files[e])]) / fps
        rows.append(
            {"episode_index": e, "tasks": [TASKS[e % 2]], "length": length, "data/chunk_index": 0, "data/file_index": files[e]}
            | {"dataset_from_index": int(starts[e]), "dataset_to_index": int(starts[e + 1])}
            | {f"videos/{CAMERA}/chunk_index": 0, f"videos/{CAMERA}/file_index": files[e]}
            | {f"videos/{CAMERA}/from_timestamp": begin, f"videos/{CAMERA}/to_timestamp": begin + length / fps}
            | {"stats/action/min": [0.0, 0.0]}
        )
    pq.write_table(pa.Table.from_pylist(rows), root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    # As pandas writes a table whose index is the task's text.
    pq.write_table(pa.table({"task_index": [0, 1], "__index_level_0__": list(TASKS)}), root / "meta" / "tasks.parquet")
