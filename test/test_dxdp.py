# SPDX-License-Identifier: Apache-2.0
"""DxDP on returns: what an episode earned, Q that reads executed actions only, a step up Q held by the trust region."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from ros_vdd import cli  # noqa: E402
from ros_vdd.config import build, dump_yaml  # noqa: E402
from ros_vdd.data.dataset import Windows  # noqa: E402
from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.methods import dxdp  # noqa: E402
from ros_vdd.methods.dxdp import Options, earned  # noqa: E402
from ros_vdd.offline.training_run import TrainingRun  # noqa: E402
from ros_vdd.training.config import TrainConfig  # noqa: E402
from ros_vdd.training.rollouts import Player, episode_seeds  # noqa: E402

ROWS, SIZE, EXECUTED = 16, 8, 4  # of a chunk of 4 actions of 2 numbers 2 actions are executed
SAMPLER = {"steps": 2, "sigma_min": 0.01, "sigma_max": 2.0}
CRITIC = {"width": 16, "depth": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy.store(tmp_path_factory.mktemp("dxdp") / "store")


@pytest.fixture(scope="module")
def batch(store):
    windows = Windows(store, range(len(store)), 2, 4)
    return windows.batch(np.arange(len(windows) - ROWS, len(windows)))


def method(policy=None, **options) -> dxdp.Method:
    policy = policy or toy.network("few_step", walk="posterior", sampler=SAMPLER)
    return dxdp.Method(build(Options, {"critic": CRITIC, "practice": 0.0, "warm_start": False, **options}), policy, None)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_a_decision_earned_what_came_after_it(discount):
    results = np.array([0.1, 0.1, 0.5, 0.4, 1.0], np.float32)
    expected = [sum(discount ** (j - k) * (results[j + 1] - results[j]) for j in range(k, 4)) for k in range(4)]
    np.testing.assert_allclose(earned(results, discount), expected, rtol=1e-6)
    if discount == 1.0:
        np.testing.assert_allclose(earned(results, discount), results[-1] - results[:-1], rtol=1e-6)


@pytest.mark.parametrize("reward", ["score", "success"])
def test_played_decisions_are_kept_with_what_they_earned(reward):
    made = method(reward=reward, discount=0.9)
    episodes = Player(toy.ARM).play(made.policy, episode_seeds(0, 0, 3))
    made.practise(episodes)
    count = sum(len(e.chunks) for e in episodes)
    assert made.ring.held == count
    results = [e.scores if reward == "score" else e.successes for e in episodes]
    np.testing.assert_allclose(made.ring.earned[:count].numpy(), np.concatenate([earned(r, 0.9) for r in results]), rtol=1e-6)
    np.testing.assert_array_equal(made.ring.chunk[:count].numpy(), np.concatenate([e.chunks for e in episodes]))
    observed = {k: torch.from_numpy(v) for k, v in episodes[0].observations.items()}
    assert torch.equal(made.ring.context[: len(episodes[0].chunks)], made.policy.context(observed))
    figures = made.before({"actions": torch.zeros(4, 4, 2)}, Draws(0))
    assert figures["played_score"] == pytest.approx(np.mean([e.score for e in episodes]))


def test_q_reads_the_executed_actions_only():
    made = method()
    with torch.no_grad():
        for parameter in made.returns.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    chunk, context = Draws(0).normal((ROWS, SIZE)), Draws(1).normal((ROWS, 4))
    other = chunk.clone()
    other[:, EXECUTED:] += 1.0
    assert torch.equal(made.returns.both(chunk, context), made.returns.both(other, context))
    other[:, EXECUTED - 1] += 1.0
    said = made.returns.both(chunk, context)
    assert not torch.equal(said, made.returns.both(other, context)) and not torch.equal(said[0], said[1])
    assert torch.equal(made.returns.energy(chunk, context, None), -torch.minimum(*said))


def test_q_learns_what_is_earned(batch):
    """Of G = the first number of a chunk plus 1, after 300 steps."""
    made = method(critic_learning_rate=1e-2)
    chunk = 2 * Draws(0).uniform((500, SIZE)) - 1
    made.ring.add({"chunk": chunk, "context": torch.zeros(500, 4), "earned": chunk[:, 0] + 1})
    errors = [made.before(batch, Draws(step))["return_error"] for step in range(300)]
    assert np.mean(errors[-20:]) < 0.05 < 0.3 < errors[0]


def given(made, energy):
    """Let the energy at the end be a closed one, for both halves of the program."""
    made.averaged.both = lambda chunk, context: -energy(chunk)[None].expand(2, -1)
    return made


def improved(trust, store, steps=400, **options):
    """Return chunks before and after training where Q is minus the squared distance of the first number from 0.5."""
    made = given(method(trust=trust, critic_learning_rate=1e-2, **options), lambda chunk: (chunk[:, 0] - 0.5).square())
    made.prepare(None, Draws(0))
    made.ring.add({"chunk": torch.zeros(64, SIZE), "context": torch.zeros(64, 4), "earned": torch.zeros(64)})
    optimizer = torch.optim.Adam([p for p in made.policy.parameters() if p.requires_grad], 1e-2)
    noise = Draws(9).normal((200, *made.policy.noise_shape))
    with torch.no_grad():
        begun = made.policy.sample(torch.zeros(200, 4), noise)
    for step in range(steps):
        walked = made._walked = made.program.walk(torch.zeros(64, 4), torch.ones(64, SIZE), Draws(step))
        index = torch.ones(64, dtype=torch.long)
        away = made.value(walked.states[1], index, walked.context, walked.mask) - made.program.target(walked, 1)
        dxdp.descend(away.square().mean(), made.optimizers["value"], 1.0, Draws(step))
        optimizer.zero_grad()
        made.loss({}, Draws(step), 1.0)[0].backward()
        optimizer.step()
    with torch.no_grad():
        ended = made.policy.sample(torch.zeros(200, 4), noise)
    return begun, ended


def test_the_student_climbs_q(store):
    begun, ended = improved(0.0, store)
    miss = lambda chunk: (chunk[:, 0] - 0.5).square().mean().sqrt().item()  # noqa: E731
    assert miss(ended) < 0.1 < 0.3 < miss(begun)


def test_the_trust_region_holds_the_student(store):
    begun, ended = improved(1000.0, store, 150)
    assert (ended - begun).square().mean().sqrt() < 0.02


def walks(chunks, steps=2):
    chunks = torch.as_tensor(chunks)
    states = torch.stack([torch.zeros_like(chunks)] * steps + [chunks])
    return dxdp.Walked(states, torch.zeros(len(chunks), 4), torch.ones_like(chunks))


@pytest.mark.parametrize("trust, chosen", [(0.0, [2, 2, 2]), (1.0, [1, 1, 2]), (100.0, [0, 1, 2])])
def test_a_chunk_moves_to_the_best_that_is_worth_the_way(trust, chosen):
    """Q 0, 0.5, 0.9 at 0, 0.5, 2 of every number: a way of 0.5, 2 or 1.5 costs trust times its square."""
    made = given(method(improve="best", candidates=3, trust=trust), lambda chunk: -torch.tensor([0.0, 0.5, 0.9]).repeat(2))
    at = torch.tensor([0.0, 0.5, 2.0])
    chunks = at.repeat(2)[:, None].expand(6, SIZE)  # two observations: none takes a chunk of the other
    torch.testing.assert_close(made.shifts(walks(chunks)), (at[chosen] - at).repeat(2)[:, None].expand(6, SIZE))


def test_the_loss_of_the_best_pulls_the_last_step_by_the_shift(batch):
    made = method(improve="best", candidates=2, trust=0.0, hold=0.0)
    walked = walks(Draws(0).normal((ROWS, SIZE)))
    shift = made.shifts(walked)
    clean = torch.zeros(ROWS, SIZE, requires_grad=True)
    made.policy.denoiser.forward = lambda x, sigma, condition: clean
    loss = made.best_loss(walked)
    loss.backward()
    assert loss.item() == pytest.approx(shift.square().mean().item())
    torch.testing.assert_close(clean.grad, -2 * shift / shift.numel())
    assert 0 < (shift != 0).any(dim=1).sum() < ROWS


def test_best_of_several_climbs_too(store):
    begun, ended = improved(0.0, store, improve="best", hold=0.0)
    miss = lambda chunk: (chunk[:, 0] - 0.5).square().mean().sqrt().item()  # noqa: E731
    assert miss(ended) < 0.1 < 0.3 < miss(begun)


def test_the_tether_is_the_squared_distance_from_the_first_student(batch):
    made = method(trust=3.0)
    made.prepare(None, Draws(0))
    x, level, context = Draws(0).normal((ROWS, SIZE)), torch.full((ROWS,), 0.4), made.policy.context(batch)
    with torch.no_grad():
        clean = made.policy.denoiser(x, level, context).clamp(-1, 1)
        assert made._tether(clean, x, level, context).abs().max() < 1e-12
        torch.testing.assert_close(made._tether(clean + 0.1, x, level, context), torch.full((ROWS,), 0.03))
        for parameter in made.policy.denoiser.parameters():
            parameter.add_(1.0)
        assert made._tether(clean, x, level, context).abs().max() < 1e-12, "the anchor stays where the run began"


def test_while_q_learns_alone_the_student_stays(batch):
    made = method(practice=0.5)
    made.before(batch, Draws(0), 0.2)
    loss = made.loss(batch, Draws(1), 0.2)[0]
    assert not made.learns(0.49) and not loss.requires_grad and made.policy.log_sigma.grad is None
    assert made.learns(0.5)
    made.before(batch, Draws(0), 0.5)
    made.policy.zero_grad()
    made.loss(batch, Draws(1), 0.5)[0].backward()
    assert made.policy.log_sigma.grad is None, "sigma is kept by default"
    assert method(train_sigma=True, practice=0.0).policy.log_sigma.grad is None


def test_the_student_begins_where_start_says(store, tmp_path):
    teacher = build(TrainConfig, toy.config("score_matching", "diffusion", store.root, {"steps": 3}))
    TrainingRun(teacher, str(tmp_path / "teacher"), progress=False).run()
    values = {"teacher": str(tmp_path / "teacher")}
    first = build(TrainConfig, toy.config("dxdp", "few_step", store.root, {"steps": 4}, **values))
    TrainingRun(first, str(tmp_path / "first"), progress=False).run()
    again = {**toy.config("dxdp", "few_step", store.root, {"steps": 2}, **values), "start": str(tmp_path / "first")}
    again["options"] = {"warm_start": False, "practice": 0.9}
    again["loop"]["weight_decay"] = 0.0
    TrainingRun(build(TrainConfig, again), str(tmp_path / "again"), progress=False).run()
    from safetensors.torch import load_file

    one, other = (load_file(str(tmp_path / name / "weights.safetensors")) for name in ("first", "again"))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_a_killed_run_by_the_best_ends_as_the_unbroken_one(store, tmp_path):
    toy.policy(tmp_path / "teacher", "diffusion")
    options = {"keep": 20, "critic": CRITIC, "improve": "best", "candidates": 3}
    values = toy.config("dxdp", "few_step", store.root, {"steps": 4}, teacher=str(tmp_path / "teacher"), options=options)
    config = build(TrainConfig, values)
    TrainingRun(config, str(tmp_path / "unbroken"), progress=False).run()
    with toy.killed_before(3):
        TrainingRun(config, str(tmp_path / "killed"), progress=False).run()
    TrainingRun(config, str(tmp_path / "killed"), progress=False).run()
    one, other = (tmp_path / f"{name}.training" / "checkpoint.safetensors" for name in ("unbroken", "killed"))
    assert _tensors(one).keys() == _tensors(other).keys()
    assert all(torch.equal(value, _tensors(other)[name]) for name, value in _tensors(one).items())


def _tensors(path):
    from safetensors.torch import load_file

    return load_file(str(path))


def test_episodes_are_needed_and_only_for_who_learns_from_them(store, tmp_path, capsys):
    toy.policy(tmp_path / "teacher", "diffusion")
    values = {**toy.config("dxdp", "few_step", store.root), "rollouts": None, "teacher": str(tmp_path / "teacher")}
    with pytest.raises(ConfigError, match="method 'dxdp' learns from episodes; write which: rollouts: {env: "):
        TrainingRun(build(TrainConfig, values), str(tmp_path / "policy"), progress=False)
    values = {**values, "rollouts": {"env": toy.ARM}, "collect": {"env": toy.ARM, "every": 2}}
    with pytest.raises(ConfigError, match="'collect' is given, and method 'dxdp' has no teacher that would label"):
        TrainingRun(build(TrainConfig, values), str(tmp_path / "policy"), progress=False)
    (tmp_path / "train.yaml").write_text(dump_yaml({**values, "collect": None, "rollouts": {"env": "toy2d"}}), encoding="utf-8")
    assert cli.main(["distill", str(tmp_path / "train.yaml")]) == cli.USER_ERROR
    assert "'rollouts.env' is 'toy2d', an environment of robot 'toy2d', not that of the data" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key, value",
    [("discount", 0.0), ("discount", 1.1), ("keep", 0), ("trust", -1.0), ("practice", 1.0), ("candidates", 1), ("hold", -1.0)],
)
def test_options_without_meaning_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"'{key}'"):
        Options(**{key: value})


IDLE = [
    *({"train_sigma": True}, {"tau_entropy": 0.1}, {"tau_velocity": 0.1}, {"time_cost": 1.0}),
    *({"look_ahead": False}, {"velocity_keep": 0.5}),
]


@pytest.mark.parametrize("idle", IDLE)
def test_what_would_change_nothing_beside_the_best_is_refused(idle):
    name, value = next(iter(idle.items()))
    with pytest.raises(ConfigError, match=f"'improve' is 'best'.*; '{name}' {value} would change nothing"):
        Options(improve="best", **idle)
    Options(**idle)


def test_a_rate_or_a_switch_for_a_noise_that_stays_is_refused():
    with pytest.raises(ConfigError, match="'sigma_learning_rate' is 0.01, and 'train_sigma' is false"):
        Options(sigma_learning_rate=0.01)
    Options(sigma_learning_rate=0.01, train_sigma=True)
    held = toy.network("few_step", walk="posterior", sampler=SAMPLER, sigma_bound=1.0)
    with pytest.raises(ConfigError, match="'train_sigma' is true, and 'policy.sigma_bound' 1 keeps the steps' noise"):
        method(held, train_sigma=True)


def test_only_a_critic_that_was_trained_is_brought_along():
    fields = {"walk": "posterior", "sampler": SAMPLER, "critic": CRITIC}
    method(toy.network("few_step", **fields))  # of random weights
    begun = toy.network("few_step", **fields)
    torch.nn.init.zeros_(begun.critic.leave[1].weight)
    with pytest.raises(ConfigError, match="'policy.critic' is given, and dxdp doesn't train it"):
        method(begun)


def test_a_student_that_cannot_be_trained_so_is_refused():
    with pytest.raises(ConfigError, match="'policy.walk' is 'renoise'; dxdp trains a student that walks by 'posterior'"):
        method(toy.network("few_step"))
    with pytest.raises(ConfigError, match="'freeze_encoder' is false; dxdp"):
        method(toy.network("few_step", toy.SEEING, walk="posterior"))


@pytest.mark.parametrize("key, value", [("hold", 0.3), ("candidates", 4)])
def test_what_only_improving_by_the_best_reads_is_refused_beside_the_gradient(key, value):
    with pytest.raises(ConfigError, match=f"'{key}' {value} belongs to improve: best"):
        Options(**{key: value})
    assert getattr(Options(improve="best", **{key: value}), key) == value


def test_q_begins_by_the_seed():
    policy = toy.network("few_step", walk="posterior", sampler=SAMPLER)

    def first(seed):
        torch.manual_seed(seed)
        return method(policy).returns.critics[0].enter.weight

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))
