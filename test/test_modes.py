# SPDX-License-Identifier: Apache-2.0
"""Mode entropy against closed forms and torch.distributions; what `evaluate` makes of an environment with known ways."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import test_evaluate
import toy
from ros_vdd import backends, cli, envs
from ros_vdd.config import dump_yaml
from ros_vdd.errors import ConfigError
from ros_vdd.runtime.modes import mode_entropy


def test_all_ways_equally_often_have_entropy_one():
    assert mode_entropy(list(range(24)) * 4, 24) == pytest.approx(1.0)


@pytest.mark.parametrize("modes", [[], [5], [5] * 100])
def test_no_success_and_one_way_have_entropy_zero(modes):
    assert mode_entropy(modes, 24) == 0.0 and math.copysign(1, mode_entropy(modes, 24)) == 1.0


@pytest.mark.parametrize("found", [2, 3, 12])
def test_m_even_ways_of_n_have_log_m_over_log_n(found):
    assert mode_entropy(list(range(found)) * 7, 24) == pytest.approx(math.log(found) / math.log(24))


def test_a_share_of_one_quarter_is_the_coins_closed_form():
    assert mode_entropy([0, 1, 1, 1], 2) == pytest.approx(2 - 0.75 * math.log2(3))


def test_names_and_order_of_ways_dont_matter():
    rng = np.random.default_rng(0)
    modes, names = rng.integers(24, size=200), rng.permutation(24)
    assert mode_entropy(names[rng.permutation(modes)].tolist(), 24) == pytest.approx(mode_entropy(modes.tolist(), 24))


@pytest.mark.parametrize("seed", range(5))
def test_entropy_is_that_of_torchs_categorical(seed):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    modes = rng.choice(24, size=300, p=rng.dirichlet(np.full(24, 0.3)))
    law = torch.distributions.Categorical(torch.bincount(torch.from_numpy(modes)).double() / len(modes))
    assert mode_entropy(modes, 24) == pytest.approx(law.entropy().item() / math.log(24), rel=1e-6)


@pytest.mark.parametrize(
    "modes, base, told", [([0], 1, r"1 way\(s\) has no meaning"), ([0, 24], 24, "expected 0 to 23"), ([-1], 2, "expected 0 to 1")]
)
def test_ways_that_arent_the_tasks_are_refused(modes, base, told):
    with pytest.raises(ConfigError, match=told):
        mode_entropy(modes, base)


class Env(test_evaluate.Env):
    """The stand-in with four ways of success: the tens of the seed."""

    modes = 4

    @property
    def mode(self):
        return self.seeds[-1] // 10 % 10 if self.success else None


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """Return a function that runs the verb on the stand-ins and gives its JSON."""
    policy = test_evaluate.policy(tmp_path)
    (tmp_path / "toy.yaml").write_text(dump_yaml(toy.BLIND), encoding="utf-8")
    env = Env(str(tmp_path / "toy.yaml"))
    monkeypatch.setattr(envs, "make", lambda name: env)
    monkeypatch.setattr(backends, "load", lambda bundle, *options: test_evaluate.Engine())

    def run(*more):
        file = tmp_path / "result.json"
        assert cli.run(["evaluate", str(policy.path), "--env", "x", "--no-progress", "--json", str(file), *more]) == 0
        return json.loads(file.read_text())

    return run


def test_evaluate_tells_how_successes_spread_over_the_ways(evaluate, capsys):
    summary = evaluate("--episodes", "32", "--seed", "0")  # the last digit of a seed decides on success: eight of ten
    taken = [0] * 8 + [1] * 8 + [2] * 8
    assert [e["mode"] for e in summary["per_episode"] if e["success"]] == taken
    assert all(e["mode"] is None for e in summary["per_episode"] if not e["success"])
    assert summary["mode_entropy"] == pytest.approx(math.log(3) / math.log(4), abs=1e-4)
    assert (summary["modes_found"], summary["modes"]) == (3, 4)
    assert "mode entropy 0.79 (3 of 4 ways)" in capsys.readouterr().out


def test_evaluate_tells_of_no_ways_where_the_environment_defines_none(evaluate, capsys, monkeypatch):
    monkeypatch.setattr(Env, "modes", None)
    summary = evaluate("--episodes", "3")
    assert summary["mode_entropy"] is summary["modes_found"] is summary["modes"] is None
    assert "entropy" not in capsys.readouterr().out
