# SPDX-License-Identifier: Apache-2.0
"""A picture of latency distributions: how many chunks took longer than how long."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

_MARKS = {0.5: "p50", 0.01: "p99", 0.001: "p99.9"}


def draw(file: Path, samples: Mapping[str, np.ndarray], floors: Mapping[str, float], title: str) -> None:
    """Write a picture of the share of chunks `P(latency > t)` over t, both logarithmic.

    Args:
        file: ends in .png, .svg or .pdf.
        samples: latencies [ms] by label.
        floors: [ms] by label; drawn as dotted lines where known.
        title: hardware in words.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    figure, axis = pyplot.subplots(figsize=(9, 5))
    least = 0.5 / max(map(len, samples.values()))
    for label, latencies in samples.items():
        ordered = np.sort(latencies)
        above = 1 - np.arange(len(ordered)) / len(ordered)
        (line,) = axis.step(ordered, above, where="post", label=f"{label}: p50 {np.median(ordered):.3g} ms", linewidth=1.4)
        if label in floors:
            axis.axvline(floors[label], color=line.get_color(), linestyle=":", linewidth=1)
    for share, name in _MARKS.items():
        if share > least:
            axis.axhline(share, color="0.75", linewidth=0.7, zorder=0)
            told = {"xycoords": ("axes fraction", "data"), "xytext": (4, -3), "textcoords": "offset points", "fontsize": 8}
            axis.annotate(name, (1, share), **told)
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set(xscale="log", yscale="log", ylim=(least, 1.2))
    axis.set(xlabel="time per chunk [ms]", ylabel="share of chunks that took longer")
    axis.xaxis.set_major_formatter(plain)
    axis.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))
    axis.tick_params(axis="x", which="minor", labelsize=7)
    axis.yaxis.set_major_formatter(plain)
    axis.grid(axis="x", which="both", alpha=0.2)
    axis.legend(fontsize=8, loc="best", title="dotted: floor" if floors else None, title_fontsize=8)
    axis.set_title(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
