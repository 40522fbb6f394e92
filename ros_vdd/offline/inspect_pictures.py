# SPDX-License-Identifier: Apache-2.0
"""Thumbnails inside the page: small JPEGs as data URIs."""

from __future__ import annotations

import base64

import cv2
import numpy as np

from ros_vdd.offline.inspect_html import Markup, tag

FRAMES = 8  # of a contact sheet
SIDE, QUALITY = 144, 78  # [px] longest side of a thumbnail; of its JPEG


def spread(count: int, frames: int = FRAMES) -> list[int]:
    """Return which of `count` frames a contact sheet shows: the first, the last and some evenly between."""
    return sorted(set(np.linspace(0, count - 1, min(frames, count)).round().astype(int).tolist()))


def thumbnail(image: np.ndarray, alt: str, side: int = SIDE) -> Markup:
    """Return an `img` of a picture (H, W, 3) uint8 RGB, made smaller where it is larger than `side`."""
    height, width = image.shape[:2]
    shrink = min(side / max(height, width), 1.0)
    small = (max(round(width * shrink), 1), max(round(height * shrink), 1))
    pixels = cv2.resize(np.asarray(image), small, interpolation=cv2.INTER_AREA) if shrink < 1 else np.asarray(image)
    _, data = cv2.imencode(
        ".jpg", cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    )
    source = "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
    return tag("img", src=source, alt=alt, width=small[0], height=small[1], loading="lazy")


def contact_sheet(pictures: list[tuple[str, np.ndarray]], label: str) -> Markup:
    """Return pictures in a row that wraps, each under its caption, for example its time."""
    shown = [tag("figure", thumbnail(image, f"{label} at {caption}"), tag("figcaption", caption)) for caption, image in pictures]
    return tag("div", shown, class_="sheet", role="group", aria_label=label)
