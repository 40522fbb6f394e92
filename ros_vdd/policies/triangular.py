# SPDX-License-Identifier: Apache-2.0
"""Cholesky factors and triangular solves; written out column by column while a graph is exported, as ONNX has neither.

Loops over columns subtract what is known from what is left (Golub and Van Loan, Matrix Computations, algorithms 3.1.3, 4.2.1).
"""

from __future__ import annotations

import torch
from torch import Tensor


def cholesky(matrix: Tensor) -> Tensor:
    """Return the lower triangular L of a positive definite `(..., r, r)` = L L^T."""
    if not torch.compiler.is_exporting():
        return torch.linalg.cholesky(matrix)
    rest, columns = matrix, []
    for j in range(matrix.shape[-1]):
        column = rest[..., :, j] / rest[..., j, j, None].sqrt()
        column = torch.cat([torch.zeros_like(column[..., :j]), column[..., j:]], dim=-1)
        rest = rest - column[..., :, None] * column[..., None, :]
        columns.append(column)
    return torch.stack(columns, dim=-1)


def solve_lower(factor: Tensor, right: Tensor) -> Tensor:
    """Return L^-1 y `(..., D, M)` for lower triangular L `(..., D, D)`."""
    if not torch.compiler.is_exporting():
        return torch.linalg.solve_triangular(factor, right, upper=False)
    return _substitute(factor, right, range(right.shape[-2]))


def solve(factor: Tensor, right: Tensor) -> Tensor:
    """Return (L L^T)^-1 y `(..., r, M)`."""
    if not torch.compiler.is_exporting():
        return torch.cholesky_solve(right, factor)
    half = solve_lower(factor, right)
    return _substitute(factor.transpose(-1, -2), half, reversed(range(right.shape[-2])))


def _substitute(triangle: Tensor, right: Tensor, order) -> Tensor:
    rest, rows = right, {}
    for j in order:
        rows[j] = rest[..., j, :] / triangle[..., j, j, None]
        rest = rest - triangle[..., :, j, None] * rows[j][..., None, :]
    return torch.stack([rows[j] for j in sorted(rows)], dim=-2)
