# SPDX-License-Identifier: Apache-2.0
"""Every method of the folder: its loss falls, its teacher stays, its seed decides all; then what single ones do."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from ros_vdd import cli, methods, policies  # noqa: E402
from ros_vdd.bundle import Bundle  # noqa: E402
from ros_vdd.config import build, dump_yaml  # noqa: E402
from ros_vdd.data.dataset import Windows  # noqa: E402
from ros_vdd.data.frames import LabelledFrames, Target  # noqa: E402
from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.errors import ConfigError, DataError, PolicyError  # noqa: E402
from ros_vdd.methods import em, regression, score_matching  # noqa: E402
from ros_vdd.offline.training_run import TrainingRun  # noqa: E402
from ros_vdd.training.config import TrainConfig  # noqa: E402

RECIPES = [(name, kind) for name in methods.names() for kind in getattr(methods.find(name), "KINDS", [methods.find(name).KIND])]
STUDENTS = [name for name in methods.names() if methods.find(name).NEEDS_TEACHER]
SLOW = {"learning_rate": 3e-3, "validate_every": 1000, "checkpoint_every": 1000, "batch_size": 32}


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    return toy.store(tmp_path_factory.mktemp("blind") / "store")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    return toy.store(tmp_path_factory.mktemp("seeing") / "store", toy.SEEING)


@pytest.fixture(scope="module")
def teacher(blind, tmp_path_factory):
    """The folder of a teacher that saw a few batches."""
    values = toy.config("score_matching", "diffusion", blind.root, {**SLOW, "steps": 60})
    return TrainingRun(
        build(TrainConfig, values), str(tmp_path_factory.mktemp("teacher") / "policy"), progress=False
    ).run()


@pytest.fixture
def configured(blind, seeing, teacher):
    """Return a function that gives the configuration of any method on a toy store that suits it."""

    def make(name, loop=None, kind=None, **fields):
        module = methods.find(name)
        data = seeing if module.KIND == "encoder" else blind
        given = {"teacher": str(teacher.path)} if module.NEEDS_TEACHER else {}
        return build(TrainConfig, toy.config(name, kind or module.KIND, data.root, loop, **given, **fields))

    return make


def train(config, out):
    return TrainingRun(config, str(out), progress=False).run()


def weights(bundle):
    return bundle.file("weights.safetensors").read_bytes()


def column(path, name):
    header, *rows = [line.split(",") for line in path.read_text().split()]
    return np.array([float(row[header.index(name)]) for row in rows])


@pytest.mark.parametrize("name, kind", [r for r in RECIPES if getattr(methods.find(r[0]), "LOSS_FALLS", True)])
def test_loss_falls(name, kind, configured, tmp_path):
    train(configured(name, {**SLOW, "steps": 200, "log_every": 10}, kind), tmp_path / "policy")
    loss = column(tmp_path / "policy.training" / "train.csv", "loss")
    assert np.mean(loss[-5:]) < np.mean(loss[:2])


@pytest.mark.parametrize("name", [n for n in methods.names() if not getattr(methods.find(n), "LOSS_FALLS", True)])
def test_what_a_method_learns_from_falls_where_its_loss_neednt(name, configured, tmp_path):
    """dmd2: the distance of the student's law from the teacher's. dxdp: the error of Q, whose opinion of the student is the loss."""
    table, column_name = {"dmd2": ("validation.csv", "energy_distance"), "dxdp": ("train.csv", "return_error")}[name]
    loop = {**SLOW, "learning_rate": 1e-3, "steps": 100, "log_every": 10, "validate_every": 10, "validation_batches": 4, "ema": 0.9}
    train(configured(name, loop), tmp_path / "policy")
    found = column(tmp_path / "policy.training" / table, column_name)
    assert np.mean(found[-4:]) < np.mean(found[:1])


@pytest.mark.parametrize("name", STUDENTS)
def test_an_exported_student_computes_what_pytorch_computes(name, configured, tmp_path):
    """By method, after a few steps of its own training: test_export.py has untrained policies by kind and walk."""
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed, reason="the parity check needs it")
    from ros_vdd import backends
    from ros_vdd.offline.export import TOLERANCE, export

    bundle = export(train(configured(name, {**SLOW, "steps": 4}), tmp_path / "policy"), draws=5)
    assert 0 < bundle.manifest.export["parity_max_abs"] < TOLERANCE
    engine, policy, rng = backends.load(bundle, "onnxruntime"), policies.load(bundle), np.random.default_rng(7)
    chunks = []
    for _ in range(5):
        inputs = backends.random_inputs(bundle, rng)
        tensors = {k: torch.from_numpy(v) for k, v in inputs.items()}
        noise = tensors.pop("noise", None)
        with torch.no_grad():
            answer = policy(tensors, noise)
        expected = dict(zip(("means", "log_gate"), answer)) if policy.kind == "mixture" else {"actions": answer}
        found = engine.run(inputs)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value.numpy(), rtol=0, atol=1e-4)
        chunks.append(next(iter(found.values())))
    assert np.std(chunks, axis=0).max() > 1e-3, "the answer depends on what is asked"


@pytest.mark.parametrize("name", STUDENTS)
def test_the_teacher_stays_as_it_was(name, configured, teacher, tmp_path):
    run = TrainingRun(configured(name), str(tmp_path / "policy"), progress=False)
    made, real = [], policies.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "load", lambda bundle: made.append(real(bundle)) or made[-1])
        run.run()
    fresh = policies.load(Bundle.open(teacher.path)).state_dict()
    assert made and all(torch.equal(v, fresh[k]) for k, v in made[0].state_dict().items())
    assert not made[0].training


@pytest.mark.parametrize("name, kind", RECIPES)
def test_the_seed_decides_every_bit_of_the_weights(name, kind, configured, tmp_path):
    one, same = (weights(train(configured(name, kind=kind, seed=3), tmp_path / n)) for n in ("one", "same"))
    other = weights(train(configured(name, kind=kind, seed=4), tmp_path / "other"))
    assert one == same
    assert one != other


@pytest.mark.parametrize("name, kind", RECIPES)
def test_a_policy_folder_says_how_it_was_made(name, kind, configured, tmp_path):
    config = configured(name, kind=kind)
    manifest = train(config, tmp_path / "policy").manifest
    assert build(TrainConfig, manifest.training) == config
    assert manifest.kind == kind
    assert np.isfinite(manifest.provenance["validation"]["loss"])


@pytest.mark.parametrize("name", methods.names())
def test_a_method_declares_what_the_loop_needs(name):
    module = methods.find(name)
    assert {module.KIND, *getattr(module, "KINDS", ())} <= set(policies.KINDS) and isinstance(module.NEEDS_TEACHER, bool)
    assert module.Options and module.Method and module.__doc__.strip()


def test_a_wrong_name_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match="no method 'vd'.*did you mean 'vdd'"):
        methods.find("vd")


def test_a_dotted_name_loads_from_outside(tmp_path, monkeypatch):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "sid.py").write_text("KIND = 'mixture'")
    monkeypatch.syspath_prepend(tmp_path)
    assert methods.find("my_lab.sid").KIND == "mixture"
    with pytest.raises(ConfigError, match="'my_lab.nothing' can't be imported"):
        methods.find("my_lab.nothing")


def batch_of(store, robot_kind="mixture", count=8):
    sizes = toy.NETWORKS[robot_kind]
    windows = Windows(store, range(len(store)), sizes["n_obs_steps"], sizes["horizon"])
    return windows.batch(np.arange(len(windows) - count, len(windows)))  # the last ones are padded


def test_em_has_the_gradient_of_the_likelihood(blind):
    batch, policy = batch_of(blind), toy.network("mixture")
    method = em.Method(em.Options(), policy)
    method.loss(batch, None, progress=1.0)[0].backward()
    surrogate = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    mixture = policy.mixture(policy.condition(batch))
    chunk, mask = policy.from_chunk(batch["actions"]), batch["mask"].repeat_interleave(2, dim=1)
    normal = torch.distributions.Normal(mixture.means, mixture.stds).log_prob(chunk[:, None]) * mask[:, None]
    (-(mixture.log_gate + normal.sum(2)).logsumexp(1).mean()).backward()
    assert batch["mask"].min() == 0
    for ours, theirs in zip(surrogate, (p.grad for p in policy.parameters())):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_ems_temperature_softens_the_start_only(blind):
    batch, policy = batch_of(blind), toy.network("mixture")
    exact = em.Method(em.Options(temperature=1.0), policy).loss(batch, None, 0.0)[0]
    heated = em.Method(em.Options(temperature=30.0, anneal=0.5), policy)
    assert heated.loss(batch, None, 0.5)[0] == exact
    assert heated.loss(batch, None, 0.0)[0] > exact, "an even share of every expert fits worse"


@pytest.mark.parametrize("kind, module", [("mixture", em), ("diffusion", score_matching)])
def test_what_stands_in_padded_steps_doesnt_matter(kind, module, blind):
    batch, policy = batch_of(blind), toy.network(kind)
    padded = {
        **batch,
        "actions": torch.where(batch["mask"][:, :, None].bool(), batch["actions"], batch["actions"] + 0.3),
    }
    if kind == "diffusion":  # the network itself sees padded numbers; only their error must not count
        policy.denoiser.forward = lambda x, sigma, condition: torch.zeros_like(x)
    method = module.Method(module.Options(), policy)
    with torch.no_grad():
        one, other = (method.loss(given, Draws(0), 1.0)[0] for given in (batch, padded))
    assert torch.equal(one, other)


def test_score_matching_weighs_the_error_of_every_level_alike(blind):
    """With F = 0 the loss is E[(c_skip y - a)^2 / c_out^2], an independent formula in float64."""
    batch, policy = batch_of(blind), toy.network("diffusion")
    with torch.no_grad():
        for parameter in policy.denoiser.network.leave.parameters():
            parameter.zero_()
    loss, _ = score_matching.Method(score_matching.Options(), policy).loss(batch, Draws(5))
    generator = torch.Generator().manual_seed(5)
    log_sigma = (-1.2 + 1.2 * torch.randn(8, generator=generator)).double()
    s = log_sigma.clamp(np.log(0.01), np.log(20.0)).exp()[:, None]
    clean = policy.from_chunk(batch["actions"]).double()
    noisy = clean + s * torch.randn(clean.shape, generator=generator).double()
    skip, out = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25).sqrt()
    mask = batch["mask"].repeat_interleave(2, dim=1).double()
    expected = (((skip * noisy - clean) / out) ** 2 * mask).sum() / mask.sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_regression_measures_angles_the_short_way_round():
    targets = (Target("extra.angle", (0,), angle=True),)
    policy = toy.network("encoder", toy.SEEING)
    method = regression.Method(regression.Options(targets=targets), policy)
    labels = torch.tensor([[np.cos(3.1), np.sin(3.1)]], dtype=torch.float32)
    method.policy.forward = lambda batch: torch.tensor([[[np.cos(-3.1), np.sin(-3.1)]]], dtype=torch.float32)
    figures = method.validate({"labels": labels}, None)
    assert figures["error_angle_0"] == pytest.approx(2 * np.pi - 6.2, abs=1e-5)


def test_regression_refuses_more_labels_than_features():
    policy = toy.network("encoder", toy.SEEING)
    with pytest.raises(ConfigError, match="features' is 2; 'options.targets' have 3"):
        regression.Method(regression.Options(targets=(Target("a", (0, 1, 2)),)), policy)


def test_labelled_pictures_stay_with_their_labels():
    first = (np.zeros((3, 2, 2, 3), np.uint8), np.zeros((3, 1), np.float32))
    second = (np.full((2, 2, 2, 3), 9, np.uint8), np.full((2, 1), 9, np.float32))
    batch = LabelledFrames("images.top", [first, second]).batch(np.array([4, 0, 2, 3]))
    assert batch["labels"][:, 0].tolist() == batch["images.top"][:, 0, 0, 0, 0].tolist() == [9, 0, 0, 9]


def test_a_target_scales_columns_and_splits_angles():
    values = np.array([[0.0, 512.0, np.pi / 2]])
    assert Target("a", (0, 1), 0.0, 512.0).encode(values).tolist() == [[-1, 1]]
    np.testing.assert_allclose(Target("a", (2,), angle=True).encode(values), [[0, 1]], atol=1e-7)
    with pytest.raises(DataError, match="columns \\(3,\\)"):
        Target("a", (3,)).encode(values)
    with pytest.raises(ConfigError, match="counted from 0"):
        Target("a", (-1,))


def test_a_student_in_other_units_than_its_teacher_is_refused(configured, teacher, tmp_path):
    other = toy.store(tmp_path / "other", seed=9)
    start = train(build(TrainConfig, toy.config("em", "mixture", other.root)), tmp_path / "start")
    with pytest.raises(ConfigError, match="another action_normalizer than the teacher"):
        train(configured("vdd", start=str(start.path)), tmp_path / "student")


def test_a_student_that_plans_further_than_its_teacher_is_refused(configured, tmp_path):
    longer = {**toy.NETWORKS["mixture"], "horizon": 6}
    values = configured("vdd")
    with pytest.raises(ConfigError, match="'policy.horizon' is 6; the teacher has 4"):
        train(type(values)(**{**vars(values), "policy": longer}), tmp_path / "student")


def test_paths_on_the_command_line_are_taken_as_they_are(blind, tmp_path, capsys):
    """As YAML, a path of digits would be a number and '@' or a colon an error."""
    (tmp_path / "train.yaml").write_text(dump_yaml(toy.config("em", "mixture", tmp_path)), encoding="utf-8")
    for data in ("20261120", "@here", "a: b", "null"):
        assert cli.main(["train", str(tmp_path / "train.yaml"), "--data", data]) == cli.USER_ERROR
        assert f"'{data}' is not an episode store" in capsys.readouterr().err


def test_distillation_without_a_teacher_says_so(blind, tmp_path):
    with pytest.raises(ConfigError, match="needs a teacher; give --teacher"):
        TrainingRun(build(TrainConfig, toy.config("vdd", "mixture", blind.root)), str(tmp_path), progress=False)


def test_a_teacher_of_another_robot_is_refused(seeing, teacher, tmp_path):
    values = toy.config("vdd", "mixture", seeing.root, teacher=str(teacher.path))
    with pytest.raises(PolicyError, match="made for another robot file.*cameras"):
        TrainingRun(build(TrainConfig, values), str(tmp_path), progress=False)


def test_only_a_diffusion_policy_is_a_teacher(configured, blind, tmp_path):
    student = train(configured("em", {"steps": 1}), tmp_path / "em")
    values = toy.config("vdd", "mixture", blind.root, teacher=str(student.path))
    with pytest.raises(
        PolicyError, match="is of kind 'mixture'; expected 'diffusion', 'window', 'mode' or 'few_step'; give --teacher"
    ):
        TrainingRun(build(TrainConfig, values), str(tmp_path / "student"), progress=False)


def test_a_method_that_is_left_nothing_to_train_says_so(configured, tmp_path):
    with pytest.raises(ConfigError, match="'freeze_encoder' leaves method 'regression' nothing to train"):
        train(configured("regression", freeze_encoder=True), tmp_path / "encoder")


@pytest.mark.parametrize("wrong", [{"temperature": 0.5}, {"anneal": 0.0}])
def test_em_refuses_options_without_meaning(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        em.Options(**wrong)


def imc_weights(means, log_gate, actions, eta):
    """The curricula by numpy in float64: softmax over the batch of the log-likelihood over eta plus the log-gate."""
    log_probs = -0.5 * ((actions[:, None] - means) ** 2).sum(axis=2) - 0.5 * actions.shape[1] * np.log(2 * np.pi)
    joint = log_probs / eta + log_gate
    weights = np.exp(joint - joint.max(axis=0))
    return weights / weights.sum(axis=0), log_probs


@pytest.mark.parametrize("eta", [0.5, 4.0])
def test_imc_weighs_each_demonstration_by_the_experts_own_curriculum(blind, eta):
    from ros_vdd.methods import imc
    from ros_vdd.policies.gaussians import Diagonal
    from ros_vdd.policies.mixture import Mixture

    batch, policy = batch_of(blind), toy.network("mixture")
    batch["mask"] = torch.ones_like(batch["mask"])
    mixture = policy.mixture(policy.condition(batch))
    policy.mixture = lambda condition: Mixture(Diagonal(mixture.means, torch.ones_like(mixture.stds)), mixture.log_gate)
    loss, figures = imc.Method(imc.Options(eta=eta), policy).loss(batch, Draws(0))
    chunk = policy.from_chunk(batch["actions"]).double().numpy()
    weights, log_probs = imc_weights(*(v.detach().double().numpy() for v in (mixture.means, mixture.log_gate)), chunk, eta)
    assert figures["experts"] == pytest.approx(-(weights * log_probs).sum(axis=0).mean() / chunk.shape[1], rel=1e-4)
    shares = weights / weights.sum(axis=1, keepdims=True)
    log_gate = mixture.log_gate.detach().double().numpy()
    assert figures["gate"] == pytest.approx(-(shares * log_gate).sum(axis=1).mean(), rel=1e-4)


def test_imc_doesnt_choose_rows_by_how_much_of_them_was_recorded(blind):
    """A row that repeats another's actions has the same weight whether its end was recorded or is padding."""
    from ros_vdd.methods import imc

    batch, policy = batch_of(blind), toy.network("mixture")
    chunk = torch.zeros_like(policy.from_chunk(batch["actions"]))
    policy.from_chunk = lambda actions: chunk
    batch["state"] = batch["state"][:1].expand_as(batch["state"])
    policy.mixture = lambda condition, real=policy.mixture: real(condition * 0)._replace(
        experts=type(real(condition).experts)(torch.ones(len(condition), 2, 8), torch.ones(len(condition), 2, 8))
    )
    log_probs, _ = imc.Method(imc.Options(), policy)._log_probs(batch)
    assert batch["mask"].min() == 0
    torch.testing.assert_close(log_probs, log_probs[:1].expand_as(log_probs))
