# SPDX-License-Identifier: Apache-2.0
"""Where the values of a graph's tensors lie, so that uint8 meets them as well as it can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

SAMPLE = 1 << 14
"""Values of a tensor that decide, drawn evenly from all observations."""
SHARES = np.linspace(0.3, 1.0, 36)
"""Shares of the observed range that are tried: values outside are clipped, values inside are met more finely."""


class Grid(NamedTuple):
    """The numbers `scale * (q - zero)`, q from 0 to 255."""

    scale: float
    zero: int

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Return the nearest numbers of the grid."""
        return (np.clip(np.rint(values / np.float32(self.scale)) + self.zero, 0, 255) - self.zero) * np.float32(self.scale)


def observed_grids(graph: bytes, tensors: Sequence[str], observations: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Grid]:
    """Return the grid of each tensor of a graph, by what it holds under observations."""
    import onnx

    from ros_vdd.backends.onnxruntime import session

    model = onnx.load_model_from_string(graph)
    known = {value.name for value in [*model.graph.input, *model.graph.output]}
    shown = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors if name not in known]
    model.graph.output.extend(shown)
    opened, rng = session(model.SerializeToString()), np.random.default_rng(0)
    asked = [name for name in tensors if name not in {value.name for value in model.graph.input}]
    each = max(SAMPLE // len(observations), 64)
    kept: dict[str, list[np.ndarray]] = {name: [] for name in tensors}
    for observation in observations:
        found = {**observation, **dict(zip(asked, opened.run(asked, dict(observation))))}
        for name, parts in kept.items():
            values = found[name].ravel()
            drawn = values[rng.integers(values.size, size=each)]
            parts.append(np.append(drawn, [values.min(), values.max()]))
    return {name: best_grid(np.concatenate(parts)) for name, parts in kept.items()}


def best_grid(values: np.ndarray) -> Grid:
    """Return the grid with the least squared error over values, among those that hold a share of their range and 0 itself."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if high - low < 1e-12:
        return Grid(1.0, 0)
    tried = [share * (high - low) / 255 for share in SHARES]
    grids = [Grid(float(np.float32(scale)), int(np.rint(-low / (high - low) * 255))) for scale in tried]
    return min(grids, key=lambda grid: float(np.square(grid.rounded(values) - values).mean()))
