# SPDX-License-Identifier: Apache-2.0
"""Normalisation maps the data's range to [-1, 1] and back, and travels with the weights."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

from ros_vdd.policies.normalizer import Normalizer  # noqa: E402

import toy  # noqa: E402

DATA = np.array([[0.0, -3.0, 7.0], [512.0, 1.0, 7.0], [100.0, 0.0, 7.0]], dtype=np.float32)


@pytest.fixture
def normalizer():
    made = Normalizer(3)
    made.fit(DATA)
    return made


def test_the_range_of_the_data_becomes_minus_one_to_one(normalizer):
    mapped = normalizer(torch.from_numpy(DATA))
    assert mapped[:, :2].amin(0).tolist() == [-1, -1]
    assert mapped[:, :2].amax(0).tolist() == [1, 1]


def test_a_dimension_that_never_moves_becomes_zero(normalizer):
    assert (normalizer(torch.from_numpy(DATA))[:, 2] == 0).all()


def test_inverse_undoes_the_mapping_also_outside_the_range(normalizer):
    x = torch.tensor([[-40.0, 5.0, 7.3], [600.0, -9.0, 6.0]])
    torch.testing.assert_close(normalizer.inverse(normalizer(x)), x, rtol=1e-5, atol=1e-4)


def test_the_range_travels_with_the_weights(normalizer):
    copy = Normalizer(3)
    copy.load_state_dict(normalizer.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(copy(x), normalizer(x))


def test_chunks_outside_the_datas_range_are_cut_to_it():
    policy = toy.network("mixture")
    flat = torch.full((1, policy.chunk_size), 5.0)
    assert torch.equal(policy.to_chunk(flat), policy.to_chunk(torch.ones_like(flat)))
    assert policy.to_chunk(flat)[0, 0].tolist() == [1.0, 2.5]


def test_flattening_keeps_steps_and_joints_in_place():
    policy = toy.network("mixture")
    actions = torch.rand(2, 4, 2) * 1.8 - 0.9
    flat = policy.from_chunk(actions)
    assert flat[1, 3 * 2 + 1] == policy.action_normalizer(actions)[1, 3, 1]
    torch.testing.assert_close(policy.to_chunk(flat), actions)
