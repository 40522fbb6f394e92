# SPDX-License-Identifier: Apache-2.0
"""Figures of a run as CSV (always) and TensorBoard (where installed); a resumed run continues both at its checkpoint."""

from __future__ import annotations

import csv
import os
from pathlib import Path


class Logs:
    """Appends rows `step, figure...` to `NAME.csv` and scalars to TensorBoard.

    Args:
        folder: the run folder.
        step: rows after this step are dropped: they belong to work that a kill undid.
    """

    def __init__(self, folder: Path, step: int):
        self.folder = folder
        for path in folder.glob("*.csv"):
            _truncate(path, step)
        self._board = _tensorboard(folder / "tensorboard", step)

    def write(self, name: str, step: int, figures: dict[str, float]) -> None:
        """Add one row to `NAME.csv`; its first row decides the columns."""
        path = self.folder / f"{name}.csv"
        new = not path.exists() or path.stat().st_size == 0
        with path.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, ["step", *figures])
            if new:
                writer.writeheader()
            writer.writerow({"step": step, **{k: f"{v:.6g}" for k, v in figures.items()}})
        for key, value in figures.items() if self._board else ():
            self._board.add_scalar(f"{name}/{key}", value, step)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._board:
            self._board.close()


def _truncate(path: Path, step: int) -> None:
    """Keep the rows up to a step; a file without any is removed, since another configuration may have chosen its columns."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    kept = [row for row in rows[1:] if len(row) == len(rows[0]) and int(row[0]) <= step]
    if not kept:
        path.unlink()
        return
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([rows[0], *kept])
    os.replace(partial, path)


def _tensorboard(folder: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
