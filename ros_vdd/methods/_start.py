# SPDX-License-Identifier: Apache-2.0
"""Where the experts of a mixture begin: the centres of k-means over chunks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ros_vdd.diffusion.draws import Draws
from ros_vdd.errors import DataError
from ros_vdd.policies.mixture import MixturePolicy

_SAMPLES, _BLOCK, _STARTS = 4096, 256, 8


@torch.no_grad()
def start_experts(
    policy: MixturePolicy, initialise: str, data, draws: Draws, chunks: Callable[[dict], Tensor] | None = None
) -> None:
    """Let the experts begin where `initialise` says: "spread" leaves them where they are, anything else takes `chunk_clusters`.

    Raises:
        ConfigError: the experts were trained before.
        DataError: there are fewer chunks than experts.
    """
    if initialise != "spread":
        policy.begin_at(chunk_clusters(policy, data, draws, chunks))


def chunk_clusters(policy: MixturePolicy, data, draws: Draws, chunks: Callable[[dict], Tensor] | None = None) -> Tensor:
    """Return k-means centres `(K, D)` of normalised chunks: the best of 8 k-means++ starts.

    Args:
        policy: whose K and units are used.
        data: batches by index; 4096 chunks at most are looked at, spread evenly over it.
        draws: decides the start.
        chunks: gives chunks `(B, D)` for a batch; None takes the recorded ones.

    Raises:
        DataError: there are fewer chunks than experts.
    """
    from scipy.cluster.vq import kmeans2

    indices = np.unique(np.linspace(0, len(data) - 1, min(_SAMPLES, len(data))).astype(int))
    if len(indices) < policy.config.experts:
        raise DataError(
            f"{len(indices)} windows are too few for the k-means of {policy.config.experts} experts; use fewer experts"
        )
    take = chunks or (lambda batch: policy.from_chunk(batch["actions"]))
    parts = [take(data.batch(indices[i : i + _BLOCK])) for i in range(0, len(indices), _BLOCK)]
    points = torch.cat(parts).double().cpu().numpy()
    rng = np.random.default_rng(int(draws.integers(2**31 - 1, (1,))))
    tried = [kmeans2(points, policy.config.experts, iter=30, minit="++", rng=rng) for _ in range(_STARTS)]
    centres, _ = min(tried, key=lambda found: np.square(points - found[0][found[1]]).sum())
    return torch.from_numpy(centres).to(policy.mean_head.bias)
