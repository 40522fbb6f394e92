# SPDX-License-Identifier: Apache-2.0
"""Where experts begin: at the clusters of recorded or of the teacher's chunks, or spread; never over what was trained."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from ros_vdd import methods  # noqa: E402
from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.errors import ConfigError, DataError  # noqa: E402

MIXTURES = [name for name in methods.names() if methods.find(name).KIND == "mixture"]


class TwoPlans:
    """Chunks of two kinds, every number `low` or `high` in normalised units, a hundredth apart."""

    def __init__(self, policy, count=9000, low=-0.5, high=0.7):
        self.policy, self.count, self.levels = policy, count, torch.tensor([low, high])

    def __len__(self):
        return self.count

    def batch(self, indices):
        kind = torch.from_numpy(indices) % 2
        flat = self.levels[kind][:, None] + 0.01 * torch.randn(len(indices), 8, generator=torch.Generator().manual_seed(1))
        return {
            "actions": self.policy.action_normalizer.inverse(flat.reshape(-1, 4, 2)),
            "state": torch.zeros(len(indices), 2, 2),
        }


def prepared(name, initialise, trained=False, **data):
    """Return the experts' levels after `prepare`, of a policy whose experts know no observation yet."""
    policy, teacher = toy.network("mixture"), toy.network("diffusion")
    if not trained:
        torch.nn.init.zeros_(policy.mean_head.weight)
    module = methods.find(name)
    method = module.Method(module.Options(initialise=initialise), policy, teacher if module.NEEDS_TEACHER else None)
    teacher.sample = lambda context, noise: (
        0.9 * torch.where(torch.arange(len(noise)) % 2 == 0, 1.0, -1.0)[:, None].expand(noise.shape)
    )
    before = policy.mean_head.bias.detach().clone()
    method.prepare(TwoPlans(policy, **data), Draws(0))
    return before.reshape(2, 8), policy.mean_head.bias.detach().reshape(2, 8)


@pytest.mark.parametrize("name", MIXTURES)
def test_kmeans_puts_each_expert_on_a_cluster_of_the_recorded_chunks(name):
    _, after = prepared(name, "kmeans")
    expected = torch.tensor([-0.5, 0.7])[:, None].expand(2, 8)
    torch.testing.assert_close(after.sort(dim=0).values, expected, rtol=0, atol=0.01)


def test_vdd_may_begin_at_the_clusters_of_the_teachers_chunks():
    _, after = prepared("vdd", "teacher")
    torch.testing.assert_close(after.sort(dim=0).values, torch.tensor([-0.9, 0.9])[:, None].expand(2, 8))


@pytest.mark.parametrize("name", MIXTURES)
def test_spread_leaves_the_experts_where_they_are(name):
    before, after = prepared(name, "spread")
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_that_were_trained_are_not_thrown_away(name):
    with pytest.raises(ConfigError, match="'initialise' would overwrite the experts that 'start' brings"):
        prepared(name, "kmeans", trained=True)


@pytest.mark.parametrize("name", MIXTURES)
def test_fewer_chunks_than_experts_are_told(name):
    with pytest.raises(DataError, match="1 windows are too few for the k-means of 2 experts"):
        prepared(name, "kmeans", count=1)
