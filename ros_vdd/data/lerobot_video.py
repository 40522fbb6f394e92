# SPDX-License-Identifier: Apache-2.0
"""Frames of a video at given times, found by their presentation time, never by counting."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ros_vdd.errors import DataError

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"  # never a list of other files, whatever the name of this one says


class FrameReader:
    """One episode's pictures of one mp4, in order of time.

    Args:
        file: the video; H.264, HEVC, AV1, whatever FFmpeg decodes.
        fps: [Hz] frames per second; a frame stands for a time when it lies within half a period of it.
        next_s: [s] where another episode begins in the file; no frame is taken from there.
    """

    def __init__(self, file: Path, fps: float, next_s: float = math.inf):
        self.file, self._fps, self._next_s = file, fps, next_s

    def at(self, times_s: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the frame at each time (N,) [s], ascending: uint8 (H, W, 3) RGB.

        Raises:
            DataError: PyAV isn't installed, the file is missing or damaged, or no frame lies within half a period of a time.
        """
        tolerance = 0.5 / self._fps
        frames = self._decode(max(0.0, float(times_s[0]) - tolerance))
        held = next(frames, None)
        after = next(frames, None)
        for row, time_s in enumerate(times_s.tolist()):
            while after is not None and abs(after[0] - time_s) <= abs(held[0] - time_s):
                held, after = after, next(frames, None)
            if held is None or abs(held[0] - time_s) > tolerance:
                nearest = "it holds none there" if held is None else f"the nearest stands at {held[0]:.3f} s"
                raise DataError(
                    f"'{self.file}' has no frame for row {row} at {time_s:.3f} s; {nearest}, half a period is {tolerance:.3f} s. "
                    "The video is cut off, or made at another rate than info.json says"
                )
            yield held[1].to_ndarray(format="rgb24")

    def _decode(self, start_s: float) -> Iterator[tuple]:
        """Yield (presentation time [s], frame) from the key frame at or before a time on."""
        av = _av()
        if not self.file.is_file():
            raise DataError(f"no video '{self.file}', which the data set's tables name; copy the whole data set")
        try:
            with av.open(f"file:{self.file}", container_options={"format_whitelist": FORMATS}) as container:
                if not container.streams.video:
                    raise DataError(f"'{self.file}' holds no video")
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                if start_s > 0:
                    container.seek(int(start_s / stream.time_base), stream=stream)
                for frame in container.decode(stream):
                    if frame.pts is None:
                        raise DataError(f"'{self.file}' has frames without a presentation time; write it again with its rate")
                    time_s = float(frame.pts * stream.time_base)
                    if time_s > self._next_s - 0.5 / self._fps:
                        return
                    yield time_s, frame
        except (av.FFmpegError, ValueError) as error:
            raise DataError(f"'{self.file}' can't be decoded: {error}; copy the data set again") from error


def _av():
    try:
        import av
    except ModuleNotFoundError as error:
        raise DataError("videos of LeRobotDatasets need PyAV; pip install 'ros_vdd[data]'") from error
    return av
