# SPDX-License-Identifier: Apache-2.0
"""Train a mixture on demonstrations by an information-maximising curriculum (IMC): each expert chooses what it learns from.

    w_nz = softmax over n of ( ln q(a_n|s_n,z) / eta + ln q(z|s_n) )        the curriculum of expert z, detached
    L    = -sum_z sum_n w_nz ln q(a_n|s_n,z) / K  -  mean_n sum_z ( w_nz / sum_j w_nj ) ln q(z|s_n)

An expert ignores what it can't represent, so it doesn't average over modes; the price is that demonstrations which no expert
chooses are not learnt. Spreads stay as they start (`initial_std`), since an expert that may choose its data would shrink.

Source: Blessing et al. 2023 (IMC, arXiv 2303.15349), in the form of the baseline that was reviewed with VDD: eta weighs the
likelihood, spreads are fixed. Curricula are normalised over the batch (of one process); the loss is a number of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ros_vdd.diffusion.draws import Draws
from ros_vdd.errors import ConfigError
from ros_vdd.methods._start import start_experts
from ros_vdd.methods.em import best_expert_rmse, usage
from ros_vdd.policies.mixture import Mixture, MixturePolicy
from ros_vdd.policies.policy import flat_mask

KIND = "mixture"
NEEDS_TEACHER = False


@dataclass(frozen=True)
class Options:
    """`eta`: how freely an expert chooses; large values make it learn from everything that its gate gives it.

    `initialise`: the experts begin as `spread` poses, or at the `kmeans` centres of recorded chunks.
    """

    eta: float = 1.0
    initialise: Literal["spread", "kmeans"] = "kmeans"

    def __post_init__(self):
        if self.eta <= 0:
            raise ConfigError(f"'eta' is {self.eta}; expected above 0")


class Method:
    """Curriculum-weighted likelihood of recorded chunks under the mixture."""

    def __init__(self, options: Options, policy: MixturePolicy, teacher: None = None):
        self.options, self.policy = options, policy

    def prepare(self, data, draws: Draws) -> None:
        """Put the experts where `initialise` says, before the first step."""
        start_experts(self.policy, self.options.initialise, data, draws)

    def loss(self, batch: dict[str, Tensor], draws: Draws, progress: float = 1.0) -> tuple[Tensor, dict]:
        """Return the curriculum-weighted negative log-likelihood a number plus the gate's cross-entropy."""
        log_probs, mixture = self._log_probs(batch)
        weights = (log_probs.detach() / self.options.eta + mixture.log_gate.detach()).log_softmax(dim=0)
        experts = -(weights.exp() * log_probs).sum(dim=0).mean() / self.policy.chunk_size
        gate = -(weights.softmax(dim=1) * mixture.log_gate).sum(dim=1).mean()
        loss = experts + gate
        return loss, {"loss": loss.item(), "experts": experts.item(), "gate": gate.item(), **usage(mixture.log_gate)}

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Return the loss and the root mean square error of the likeliest expert's mean."""
        _, figures = self.loss(batch, draws)
        return {**figures, "action_rmse": best_expert_rmse(self.policy, batch)}

    def _log_probs(self, batch: dict[str, Tensor]) -> tuple[Tensor, Mixture]:
        """Return ln q(a|s,z) `(B, K)`, whose gradient reaches the means alone; of a padded chunk that of its recorded part,
        scaled to a whole one, so that the length of what was recorded favours no row."""
        mixture, mask = self.policy.mixture(self.policy.condition(batch)), flat_mask(batch)
        detached = mixture.experts.detach()
        experts = type(detached)(**{**vars(detached), "mean": mixture.experts.mean})
        chunk = self.policy.from_chunk(batch["actions"])
        whole = chunk.shape[1] / mask.sum(dim=1, keepdim=True).clamp(min=1)
        return experts.log_prob(chunk[:, None], mask)[:, 0] * whole, mixture
