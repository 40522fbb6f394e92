# SPDX-License-Identifier: Apache-2.0
"""A per-step teacher over a window: what fills which slot, one past in training and at run time, memory, training and export."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from ros_vdd import backends, policies  # noqa: E402
from ros_vdd.config import build  # noqa: E402
from ros_vdd.data.dataset import Windows  # noqa: E402
from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.methods import score_matching, vdd  # noqa: E402
from ros_vdd.offline.export import export  # noqa: E402
from ros_vdd.offline.export_sampler import resampled  # noqa: E402
from ros_vdd.offline.inspect import describe_policy  # noqa: E402
from ros_vdd.offline.inspect_tables import show_policy  # noqa: E402
from ros_vdd.offline.training_run import TrainingRun  # noqa: E402
from ros_vdd.policies.mixture import MixtureConfig  # noqa: E402
from ros_vdd.policies.window import WindowConfig  # noqa: E402
from ros_vdd.runtime.inference import PolicyRunner  # noqa: E402
from ros_vdd.training.config import TrainConfig  # noqa: E402

T, A = 3, 2


@pytest.fixture(params=["ve", "vp"])
def policy(request, monkeypatch):
    """An untrained window policy of either process."""
    monkeypatch.setitem(toy.NETWORKS, "window", {**toy.NETWORKS["window"], "process": request.param, "vp_steps": 8})
    return toy.network("window")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy.store(tmp_path_factory.mktemp("data") / "store")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch_of(count=4, past_mask=None):
    mask = torch.ones(count, T - 1) if past_mask is None else past_mask
    return {
        "state": random(count, T, 2),
        "past_actions": random(count, T - 1, A, seed=1),
        "past_mask": mask,
        "actions": random(count, 1, A, seed=2),
        "mask": torch.ones(count, 1),
    }


def sigma_of(policy, count=4):
    return torch.full((count,), 0.4) if policy.levels is None else policy.levels[[1] * count]


def seen_by(policy):
    """Return the windows `(B, T, A)`, levels and features that the denoiser will be asked about."""
    seen, real = [], policy.denoiser.forward
    policy.denoiser.forward = lambda x, s, c: (seen.append((x.unflatten(1, (T, A)), s, c)), real(x, s, c))[1]
    return seen


def test_the_features_of_one_tick_stand_together(policy):
    batch = batch_of()
    torch.testing.assert_close(policy.condition(batch).unflatten(1, (T, 2)), policy.state_normalizer(batch["state"]))


def test_pictures_and_states_of_one_tick_stand_together():
    policy = toy.network("window", toy.SEEING)
    pictures = torch.randint(0, 256, (2, T, toy.SIDE, toy.SIDE, 3), dtype=torch.uint8)
    state = random(2, T, 2)
    features = policy.encode_frames({"images.top": pictures.flatten(0, 1)}).unflatten(0, (2, T))
    ticks = policy.ticks({"images.top": pictures, "state": state})
    torch.testing.assert_close(ticks, torch.cat([features, policy.state_normalizer(state)], dim=2))
    assert torch.equal(policy.condition({"features": features, "state": state}), ticks.flatten(1))


def test_training_restores_every_recorded_action_of_the_window(policy):
    batch = batch_of(past_mask=torch.tensor([[1.0, 1], [0, 1], [0, 0], [1, 1]]))
    clean, mask = policy.targets(batch)
    window = torch.cat([batch["past_actions"], batch["actions"]], dim=1)
    recorded = torch.cat([batch["past_mask"], torch.ones(4, 1)], dim=1).bool()
    assert torch.equal(mask.unflatten(1, (T, A))[..., 0].bool(), recorded)
    torch.testing.assert_close(clean.unflatten(1, (T, A))[recorded], policy.action_normalizer(window)[recorded])
    assert not clean.unflatten(1, (T, A))[~recorded].any(), "what is missing is the middle of the range"


def test_what_stands_in_missing_actions_does_not_matter(policy):
    mask = torch.tensor([[0.0, 1], [0, 0], [1, 1], [0, 1]])
    one = batch_of(past_mask=mask)
    other = {**one, "past_actions": torch.where(mask[:, :, None].bool(), one["past_actions"], one["past_actions"] + 9)}
    assert torch.equal(policy.context(one), policy.context(other))
    assert torch.equal(policy.targets(one)[0], policy.targets(other)[0])


def test_a_score_asks_about_the_newest_action_behind_the_recorded_ones(policy):
    seen, batch, a = seen_by(policy), batch_of(), random(4, A, seed=3)
    sigma, noise = sigma_of(policy), random(4, T - 1, A, seed=4)
    with torch.no_grad():
        policy._ask(policy.denoiser, a, sigma, policy._context(batch, noise))
    window, level, features = seen[0]
    past = policy.action_normalizer(batch["past_actions"]) + sigma[:, None, None] * noise
    torch.testing.assert_close(window, torch.cat([past, a[:, None]], dim=1))
    assert torch.equal(level, sigma) and torch.equal(features, policy.condition(batch))


@pytest.mark.parametrize("noise", ["matched", "clean"])
def test_a_student_asks_about_earlier_actions_noised_as_in_training(policy, noise):
    """Unit noise at the asked level, one draw a row: the same for every expert and sample, another for each row and step."""
    rows, experts, samples = 500, 2, 3
    batch, asked, real = batch_of(rows), [], policy.denoiser.score
    policy.denoiser.score = lambda x, s, c: (asked.append((x.unflatten(1, (T, A)), s)), real(x, s, c))[1]
    student = policies.MixturePolicy(toy.BLIND, build(MixtureConfig, {**toy.NETWORKS["mixture"], **PER_STEP, "experts": experts}))
    student.action_normalizer = policy.action_normalizer
    options = vdd.Options(samples=samples, noise=noise, sigma_min=0.05, sigma_max=1.0)
    for seed in range(2):
        vdd.Method(options, student, policy).loss(batch, Draws(seed))
    past = policy.action_normalizer(batch["past_actions"]).repeat_interleave(experts * samples, dim=0)
    drawn = [((x[:, :-1] - past) / s[:, None, None]).unflatten(0, (rows, -1)) for x, s in asked]
    for unit in drawn:
        torch.testing.assert_close(unit, unit[:, :1].expand_as(unit), rtol=0, atol=1e-3)
        numbers = unit[:, 0].flatten()  # 2000 of N(0, 1): standard errors 0.022 and 0.016
        assert abs(numbers.mean()) < 0.11 and abs(numbers.std() - 1) < 0.08
    assert not torch.allclose(drawn[0], drawn[1])


def test_the_score_agrees_with_the_clean_estimate(policy):
    context, a, sigma = policy.context(batch_of()), random(4, A, seed=3), sigma_of(policy)
    estimate = policy._ask(policy.denoiser, a, sigma, context)
    torch.testing.assert_close(policy.score(a, sigma, context), (estimate - a) / sigma[:, None].square(), rtol=1e-4, atol=1e-4)
    assert not policy.score(a, sigma, context).requires_grad
    assert torch.equal(policy.score(a, sigma, context), policy.score(a, sigma, policy.context(batch_of())))


def test_contexts_repeat_row_by_row(policy):
    context, a, sigma = policy.context(batch_of()), random(8, A), sigma_of(policy, 8)
    many = policy.score(a, sigma, context.repeat_interleave(2, dim=0))
    torch.testing.assert_close(many[4:6], policy.score(a[4:6], sigma[4:6], context[2].expand(2, -1)))


def test_the_sampler_noises_earlier_actions_at_its_own_level(policy):
    batch, noise = {k: v[:1] for k, v in batch_of().items()}, random(1, T, A, seed=5)
    seen = seen_by(policy)
    with torch.no_grad():
        policy(batch, noise)
    past = policy.action_normalizer(batch["past_actions"])
    assert len(seen) == policy.nfe == 3
    for window, sigma, _ in seen:
        torch.testing.assert_close(window[:, :-1], past + sigma[:, None, None] * noise[:, :-1])
    torch.testing.assert_close(seen[0][0][:, -1], seen[0][1][:, None] * noise[:, -1])


def test_the_answer_is_one_action_in_the_range_of_the_data(policy):
    with torch.no_grad():
        actions = policy(batch_of(), random(4, T, A))
    assert actions.shape == (4, 1, A)
    low, high = policy.action_normalizer.low, policy.action_normalizer.high
    assert (actions >= low - 1e-5).all() and (actions <= high + 1e-5).all()


class Recorded:
    """An engine that answers the recorded actions one by one, and keeps what it was given."""

    name = "stand-in"

    def __init__(self, actions):
        self.actions, self.inputs = list(actions), []

    def run(self, inputs):
        self.inputs.append(inputs)
        return {"actions": self.actions[len(self.inputs) - 1][None, None]}


def test_the_past_at_run_time_is_that_of_the_training_windows(store, tmp_path):
    """An episode is played over with its own actions: every tick's inputs are the window of that frame."""
    windows, episode = Windows(store, [1], T, 1), store[1]
    engine = Recorded(np.asarray(episode["action"]))
    runner = PolicyRunner(toy.policy(tmp_path / "window", "window"), engine)
    batch = windows.batch(np.arange(episode.length))
    for frame in range(episode.length):
        runner.act({"state": batch["state"][frame].numpy()})
    for name in ("state", "past_mask"):
        np.testing.assert_array_equal(np.concatenate([i[name] for i in engine.inputs]), batch[name].numpy())
    past = np.concatenate([i["past_actions"] for i in engine.inputs])
    mask = batch["past_mask"][:, :, None].numpy()
    np.testing.assert_array_equal(past * mask, batch["past_actions"].numpy() * mask)
    assert mask.min() == 0 and mask.max() == 1


def test_reset_forgets_the_past_and_warming_up_leaves_none(tmp_path):
    observation = toy.observation(toy.BLIND, T)
    engine = Recorded(np.arange(20, dtype=np.float32).reshape(10, 2))
    runner = PolicyRunner(toy.policy(tmp_path / "window", "window"), engine)
    runner.warm_up(observation, 2)
    runner.act(observation)
    runner.act(observation)
    runner.reset(0)
    runner.act(observation)
    assert [i["past_mask"][0].tolist() for i in engine.inputs[2:]] == [[0, 0], [0, 1], [0, 0]]
    assert engine.inputs[3]["past_actions"][0].tolist() == [[0, 0], [4, 5]]


@pytest.mark.parametrize("elapsed, mask", [(None, [0, 1]), (1, [0, 1]), (2, [0, 0]), (7, [0, 0])])
def test_after_a_gap_no_action_counts_as_executed(elapsed, mask, tmp_path):
    engine, observation = Recorded(np.ones((3, 2), np.float32)), toy.observation(toy.BLIND, T)
    runner = PolicyRunner(toy.policy(tmp_path / "window", "window"), engine)
    runner.act(observation, 1)
    runner.act(observation, elapsed)
    assert engine.inputs[1]["past_mask"][0].tolist() == mask
    assert bool(engine.inputs[1]["past_actions"].any()) == (1 in mask)
    runner.act(observation, 1)
    assert engine.inputs[2]["past_mask"][0].tolist() == ([1, 1] if 1 in mask else [0, 1])


def test_a_changed_prediction_changes_no_memory(tmp_path):
    engine = Recorded(np.ones((2, 2), np.float32))
    runner, observation = PolicyRunner(toy.policy(tmp_path / "window", "window"), engine), toy.observation(toy.BLIND, T)
    runner.act(observation).actions[:] = 7
    runner.act(observation)
    assert engine.inputs[1]["past_actions"][0, -1].tolist() == [1, 1]


def test_a_folder_says_what_the_policy_takes(tmp_path):
    bundle = toy.policy(tmp_path / "window", "window")
    assert (bundle.noise_shape, bundle.past_shape) == ((T, A), (T - 1, A))
    shapes = {name: shape for name, (shape, _) in backends.input_shapes(bundle).items()}
    assert shapes == {"state": (1, T, 2), "noise": (1, T, A), "past_actions": (1, T - 1, A), "past_mask": (1, T - 1)}
    assert toy.policy(tmp_path / "chunks", "diffusion").past_shape is None


def test_inspect_tells_that_the_policy_remembers(tmp_path):
    for kind, past, told in (("window", [T - 1, A], True), ("diffusion", None, False)):
        content = describe_policy(toy.policy(tmp_path / kind, kind).path)
        assert content["past_actions"] == past and ("remembers its last 2 actions" in show_policy(content)) == told


def test_an_exported_policy_computes_what_pytorch_computes_tick_by_tick(policy, tmp_path):
    bundle = export(toy.policy(tmp_path / "window", "window"), draws=5)
    runners = [PolicyRunner(bundle, backends.load(bundle, name), seed=3) for name in ("eager", "onnxruntime")]
    for tick in range(T + 1):
        observation = toy.observation(toy.BLIND, T, seed=tick)
        eager, fast = (runner.act(observation).actions for runner in runners)
        np.testing.assert_allclose(fast, eager, rtol=0, atol=1e-4)


def test_the_parity_check_sees_young_episodes_too(tmp_path):
    bundle, rng = toy.policy(tmp_path / "window", "window"), np.random.default_rng(0)
    masks = [backends.random_inputs(bundle, rng)["past_mask"][0].tolist() for _ in range(30)]
    assert {tuple(mask) for mask in masks} == {(0, 0), (0, 1), (1, 1)}


def test_a_window_policy_has_a_sampler_to_change(tmp_path):
    made = resampled(toy.policy(tmp_path / "window", "window"), tmp_path / "fewer", 2, "heun")
    assert made.manifest.nfe == 3


def alternating(policy, count=64):
    """Actions that are minus the one before, under observations that say nothing; some episodes have just begun."""
    side = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)[:, None, None]
    window = policy.action_normalizer.inverse(0.5 * side * torch.tensor([1.0, -1.0, 1.0])[:, None].expand(T, A))
    mask = torch.ones(count, T - 1)
    mask[: count // 4, 0] = 0
    state = policy.state_normalizer.inverse(torch.zeros(count, T, 2))
    past = {"past_actions": window[:, :-1], "past_mask": mask}
    return {"state": state, **past, "actions": window[:, -1:], "mask": torch.ones(count, 1)}


def test_a_trained_policy_knows_the_newest_action_from_the_earlier_ones():
    """The noised newest action is 0, right between the two that there are; only the earlier ones tell."""
    policy = toy.network("window")
    options = score_matching.Options(log_sigma_mean=math.log(0.5), log_sigma_std=0.1)
    method, batch = score_matching.Method(options, policy.train()), alternating(policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-3)
    for step in range(200):
        loss, _ = method.loss(batch, Draws(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval()
    with torch.no_grad():
        estimate = policy._ask(policy.denoiser, torch.zeros(64, A), torch.full((64,), 0.5), policy.context(batch))
    torch.testing.assert_close(estimate, policy.from_chunk(batch["actions"]), rtol=0, atol=0.3)


PER_STEP = {"n_obs_steps": T, "horizon": 1, "n_action_steps": 1}


@pytest.mark.parametrize("network, options", [
    ({"backbone": "mlp"}, {}),
    ({"backbone": "transformer", "dropout": 0.1, "covariance": "full"}, {"initialise": "teacher", "targets": "teacher"}),
    ({"backbone": "transformer", "covariance": "low_rank"}, {"initialise": "kmeans", "noise": "clean", "observation_noise": 0.1}),
])  # fmt: skip
def test_a_window_policy_is_a_teacher(store, tmp_path, network, options):
    teacher = toy.policy(tmp_path / "teacher", "window")
    values = toy.config("vdd", "mixture", store.root, {"steps": 3}, teacher=str(teacher.path))
    values |= {"policy": {**values["policy"], **PER_STEP, **network}, "options": options}
    student = TrainingRun(build(TrainConfig, values), str(tmp_path / "student"), progress=False).run()
    assert np.isfinite(student.manifest.provenance["validation"]["loss"])
    assert (student.kind, student.past_shape, student.noise_shape) == ("mixture", None, None), "a student remembers nothing"
    assert export(student, draws=5).manifest.export["parity_max_abs"] < 1e-4
    runners = [PolicyRunner(student, backends.load(student, name), seed=3) for name in ("eager", "onnxruntime")]
    for tick in range(2):
        eager, fast = (runner.act(toy.observation(toy.BLIND, T, seed=tick)).actions for runner in runners)
        assert eager.shape == (1, A)
        np.testing.assert_allclose(fast, eager, rtol=0, atol=1e-4)


@pytest.mark.parametrize("wrong, told", [
    ({"n_obs_steps": 2}, "'policy.n_obs_steps' is 2.* 3"),
    ({"horizon": 2}, "'policy.horizon' is 2.* 1"),
])  # fmt: skip
def test_a_student_sees_and_plans_what_its_window_teacher_does(store, tmp_path, wrong, told):
    teacher = toy.policy(tmp_path / "teacher", "window")
    values = toy.config("vdd", "mixture", store.root, teacher=str(teacher.path))
    values["policy"] = {**values["policy"], **PER_STEP, **wrong}
    with pytest.raises(ConfigError, match=told):
        TrainingRun(build(TrainConfig, values), str(tmp_path / "student"), progress=False).run()


def test_a_transformer_learns_chunks_too(store, tmp_path):
    teacher = toy.policy(tmp_path / "teacher", "diffusion")
    values = toy.config("vdd", "mixture", store.root, {"steps": 3}, teacher=str(teacher.path))
    values["policy"] = {**values["policy"], "backbone": "transformer"}
    student = TrainingRun(build(TrainConfig, values), str(tmp_path / "student"), progress=False).run()
    assert export(student, draws=5).manifest.export["parity_max_abs"] < 1e-4


def test_a_kind_that_the_method_does_not_train_is_refused(store, tmp_path):
    values = toy.config("em", "mixture", store.root)
    values["policy"] = {**values["policy"], "kind": "window"}
    with pytest.raises(ConfigError, match="'policy.kind' is 'window'; method 'em' trains 'mixture'"):
        TrainingRun(build(TrainConfig, values), str(tmp_path / "policy"), progress=False).run()


@pytest.mark.parametrize(
    "wrong, told",
    [({"horizon": 2}, "'horizon' is 2"), ({"n_obs_steps": 1}, "'n_obs_steps' is 1"), ({"heads": 5}, "'heads' 5")],
)
def test_configurations_without_meaning_are_refused(wrong, told):
    with pytest.raises(ConfigError, match=told):
        WindowConfig(**wrong)
