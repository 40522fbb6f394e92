# SPDX-License-Identifier: Apache-2.0
"""Pictures into an mp4, one frame after the other, at a constant rate: AV1, H.264, or without loss."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ros_vdd.errors import DataError, suggest

KINDS = ("auto", "av1", "h264", "lossless")
AV1_SMALLEST = 64  # [px] libsvtav1 takes no smaller side


class Encoding(NamedTuple):
    """An encoder of FFmpeg, with what LeRobot's datasets are written with: every second frame a key frame, crf 30."""

    encoder: str
    codec: str
    pix_fmt: str
    options: dict[str, str]


def choose_encoding(kind: str, height: int, width: int) -> Encoding:
    """Return how to write pictures of a size.

    Args:
        kind: "av1"; "h264"; "lossless" (H.264 in RGB, exact); "auto": AV1, else H.264 where AV1's encoder lacks or the
            size isn't for it.

    Raises:
        DataError: an unknown kind, PyAV isn't installed, or an encoder that lacks or doesn't take the size.
    """
    if kind not in KINDS:
        raise DataError(f"video '{kind}' isn't known; {suggest(kind, KINDS)}")
    available = _av().codecs_available
    even = height % 2 == 0 and width % 2 == 0
    fits = even and min(height, width) >= AV1_SMALLEST
    if kind == "lossless":
        chosen = Encoding("libx264rgb", "h264", "rgb24", {"qp": "0", "g": "2", "bf": "0"})
    elif kind == "av1" or kind == "auto" and fits and "libsvtav1" in available:
        if not fits:
            raise DataError(
                f"AV1 doesn't take pictures of {width}x{height}; expected even sides from {AV1_SMALLEST}. Choose h264 or lossless"
            )
        chosen = Encoding("libsvtav1", "av1", "yuv420p", {"g": "2", "crf": "30", "preset": "10"})
    else:
        chosen = Encoding("libx264", "h264", "yuv420p" if even else "yuv444p", {"g": "2", "crf": "23", "bf": "0"})
    if chosen.encoder not in available:
        raise DataError(
            f"FFmpeg of this PyAV has no encoder '{chosen.encoder}'; pip install a wheel of av, or choose another video format"
        )
    return chosen


def write_video(path: Path, frames: Iterable[np.ndarray], rate_hz: float, encoding: Encoding) -> None:
    """Write pictures (H, W, 3) uint8 RGB, frame k at time k / rate_hz.

    Raises:
        DataError: the encoder refuses them.
    """
    av = _av()
    os.environ.setdefault("SVT_LOG", "1")  # errors only: libsvtav1 greets every video
    rate = Fraction(rate_hz).limit_denominator(1001)
    try:
        with av.open(f"file:{path}", "w", format="mp4") as container:
            stream = None
            for k, pixels in enumerate(frames):
                if stream is None:
                    stream = container.add_stream(encoding.encoder, rate=rate, options=encoding.options)
                    stream.height, stream.width = pixels.shape[:2]
                    stream.pix_fmt, stream.codec_context.time_base = encoding.pix_fmt, 1 / rate
                    stream.codec_context.thread_count = 1
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts, frame.time_base = k, 1 / rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except (av.FFmpegError, ValueError) as error:
        raise DataError(f"'{path}' can't be written as {encoding.codec} ({encoding.encoder}): {error}") from error


def _av():
    try:
        import av
    except ModuleNotFoundError as error:
        raise DataError("videos of LeRobotDatasets need PyAV; pip install 'ros_vdd[data]'") from error
    return av
