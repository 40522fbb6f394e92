# SPDX-License-Identifier: Apache-2.0
"""A released MoDE checkpoint answers as its description says, and anything else is refused with all that is wrong."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")
pytest.importorskip("safetensors", reason="checkpoints are safetensors files")
from safetensors.torch import save_file  # noqa: E402

import released  # noqa: E402
from ros_vdd import api, cli, policies  # noqa: E402
from ros_vdd.bundle import Bundle  # noqa: E402
from ros_vdd.diffusion.denoiser import Denoiser  # noqa: E402
from ros_vdd.diffusion.sampling import euler  # noqa: E402
from ros_vdd.errors import ConfigError, EngineError, PolicyError  # noqa: E402
from ros_vdd.networks.mode import ModeNetwork  # noqa: E402
from ros_vdd.offline.export import export  # noqa: E402
from ros_vdd.policies import graph  # noqa: E402
from ros_vdd.policies.mode_checkpoint import infer_sizes, read_checkpoint  # noqa: E402
from ros_vdd.policies.mode_file import WeightsFile  # noqa: E402
from ros_vdd.policies.mode_names import (  # noqa: E402
    UNUSED,
    encoder_shapes,
    from_released,
    network_shapes,
    released_shapes,
    to_released,
)
from ros_vdd.policies.mode_release import released_policy, released_sampler  # noqa: E402
from ros_vdd.streams.goal import GoalSpec  # noqa: E402
from ros_vdd.streams.spec import load_robot  # noqa: E402

adopt = importlib.import_module("ros_vdd.offline.import").adopt
TINY, NETWORK = released.TINY, "model.inner_model."
CALVIN = load_robot("calvin")
SIDE = 32


def robot(joints=3, size=6, **changes):
    """The robot file of the release, for the tiny sizes."""
    cameras = {n: replace(c, resize=(SIDE, SIDE)) for n, c in CALVIN.cameras.items()}
    limits = {"lower": (-2.0, 0.0, -1.0)[:joints], "upper": (2.0, 10.0, 1.0)[:joints]}
    action = replace(CALVIN.action, joints=CALVIN.action.joints[:joints], **limits)
    given = {"cameras": cameras, "action": action, "goal": replace(CALVIN.goal, size=size)}
    return replace(CALVIN, **{**given, **changes})


@pytest.fixture(scope="module")
def state():
    return released.random_checkpoint()


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("release") / "model_cleaned.safetensors"
    save_file(state, path)
    return path


def written(path, state):
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path


def inputs(rows, seed=0):
    rng = np.random.default_rng(seed)
    pictures = [rng.integers(0, 256, (rows, SIDE, SIDE, 3), dtype=np.uint8) for _ in range(2)]
    return pictures, rng.standard_normal((rows, 6), np.float32), rng.standard_normal((rows, 4, 3), np.float32)


def observation(pictures, goal):
    seen = {f"images.{n}": torch.from_numpy(p)[:, None] for n, p in zip(("static", "wrist"), pictures)}
    return {**seen, "goal": torch.from_numpy(goal)}


@pytest.mark.parametrize("steps, sigma_min", [(10, 0.001), (5, 1.0), (1, 0.001)])
def test_an_imported_policy_answers_as_the_release_written_down_line_by_line(state, file, steps, sigma_min):
    policy = released_policy(read_checkpoint(file), robot(), released_sampler(steps, sigma_min))
    pictures, goal, noise = inputs(3)
    expected = released.answer(state, TINY, pictures, goal, noise, steps, sigma_min)
    assert np.abs(expected).max() > 0.5 and expected.std(axis=0).min() > 1e-3  # an answer that says something
    with torch.no_grad():
        found = policy.generate(observation(pictures, goal), torch.from_numpy(noise)).reshape(3, 4, 3)
        acted = policy(observation(pictures, goal), torch.from_numpy(noise))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)  # float32 at sigma 80 against float64
    low, high = np.array(robot().action.lower), np.array(robot().action.upper)
    np.testing.assert_allclose(acted, low + (np.clip(expected, -1, 1) + 1) / 2 * (high - low), rtol=0, atol=2e-3)


A_10 = [0.28527, 0.28558, 0.28943, 0.33357, 0.62210, 0.94022, 0.99473, 0.99957, 0.99997, 1.00000]
B_10 = [0.35737, 0.35729, 0.35633, 0.34509, 0.25986, 0.10336, 0.03068, 0.00878, 0.00251, 0.00100]
A_5, B_5 = [0.33440, 0.33460, 0.33644, 0.35247, 0.20000], [0.33281, 0.33276, 0.33230, 0.32826, 0.44721]


@pytest.mark.parametrize("steps, sigma_min, a, b", [(10, 0.001, A_10, B_10), (5, 1.0, A_5, B_5)])
def test_a_step_of_the_sampler_is_the_published_affine_map(steps, sigma_min, a, b):
    grid = released_sampler(steps, sigma_min).levels()
    zero, one = (Denoiser(lambda x, c_noise, condition, value=value: torch.full_like(x, value)) for value in (0.0, 1.0))
    for i in range(steps):
        pair, ones = grid[i : i + 2], torch.ones(1, 1, dtype=torch.float64)
        assert euler(lambda x, s: zero(x, s, None), ones / pair[0], pair).item() == pytest.approx(a[i], abs=6e-6)
        assert euler(lambda x, s: one(x, s, None), 0 * ones, pair).item() == pytest.approx(b[i], abs=6e-6)


@pytest.mark.parametrize(
    "layers, encoder, published",
    [(8, "film_resnet18", 456_022_055), (8, "film_resnet50", 459_167_783), (12, "film_resnet50", 685_853_751)],
)
def test_keys_and_shapes_of_the_full_sizes_are_those_of_the_reference(layers, encoder, published):
    features = {"film_resnet18": 512, "film_resnet50": 2048}[encoder]
    listed = released.transformer_keys(layers=layers, features=features, **released.FULL)
    assert sum(np.prod(shape) for shape in listed.values()) == published
    sizes = infer_sizes(listed)
    assert (sizes.depth, sizes.experts, sizes.top_k, sizes.heads, sizes.width) == (layers, 4, 2, 8, 1024)
    assert (sizes.action, sizes.horizon, sizes.goal, sizes.features, sizes.hidden) == (7, 10, 512, features, 4096)
    assert released_shapes(sizes) == listed
    keys = {"film_resnet18": released.resnet18_keys, "film_resnet50": released.resnet50_keys}[encoder](512, features)
    assert encoder_shapes(encoder, sizes) == {k: v for k, v in keys.items() if not k.endswith("num_batches_tracked")}


def test_names_translate_there_and_back():
    sizes = infer_sizes(released.transformer_keys(**TINY))
    torch.manual_seed(0)
    ours = ModeNetwork(sizes).state_dict()
    theirs = to_released(ours)
    assert theirs.keys() == released_shapes(sizes).keys() - {UNUSED}
    back = from_released(theirs, sizes)
    assert back.keys() == ours.keys() == network_shapes(sizes).keys() and all(torch.equal(back[k], ours[k]) for k in ours)


def test_the_names_of_a_file_may_begin_in_every_known_way(state, file, tmp_path):
    expected = read_checkpoint(file)
    ways = [
        {NETWORK: "inner_model."},
        {NETWORK: "inner_"},
        {"static_resnet.": "img_encoder_image_primary.", "gripper_resnet.": "img_encoder_image_wrist."},
        {"static_resnet.": "img_encoder_image_secondary."},
    ]
    for way in ways:
        renamed = {}
        for key, value in state.items():
            old = next((begin for begin in way if key.startswith(begin)), "")
            renamed[way.get(old, "") + key.removeprefix(old)] = value
        found = read_checkpoint(written(tmp_path / "renamed.safetensors", renamed))
        assert found.sizes == expected.sizes and found.encoder == "film_resnet18"
        pairs = [(found.network, expected.network), *((found.encoders[c], expected.encoders[c]) for c in ("static", "wrist"))]
        for mine, theirs in pairs:
            assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_what_no_answer_depends_on_may_be_missing_and_the_text_encoder_is_skipped(state, file, tmp_path):
    kept = [k for k in state if not k.endswith((UNUSED, "num_batches_tracked")) and not k.startswith("language_goal.")]
    less = {k: state[k] for k in kept}
    found, full = read_checkpoint(written(tmp_path / "less.safetensors", less)), read_checkpoint(file)
    assert found.skipped == () and full.skipped == ("language_goal.clip_rn50.logit_scale",)
    assert all(torch.equal(found.network[k], full.network[k]) for k in full.network)


def test_half_precision_is_read_as_float32(state, tmp_path):
    half = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in state.items()}
    found = read_checkpoint(written(tmp_path / "half.safetensors", half))
    assert all(v.dtype == torch.float32 for v in found.network.values())
    assert torch.equal(found.network["leave.weight"], half[f"{NETWORK}out.weight"].float())


def test_every_wrong_key_is_counted_and_the_first_twenty_are_listed(state, tmp_path):
    bad = dict(state)
    del bad[f"{NETWORK}blocks.1.ln_2.g"], bad["gripper_resnet.layer4.1.conv2.weight"]
    bad["static_resnet.fc.bias"] = torch.zeros(9)
    bad["value_head.weight"], bad[f"{NETWORK}blocks.0.attn.mask"] = torch.zeros(2), torch.zeros(2)
    with pytest.raises(PolicyError) as told:
        read_checkpoint(written(tmp_path / "bad.safetensors", bad))
    text = str(told.value)
    assert "2 keys missing, 2 surplus, 1 of another shape" in text
    assert f"missing  {NETWORK}blocks.1.ln_2.g (16,)" in text
    assert "missing  gripper_resnet.layer4.1.conv2.weight (512, 512, 3, 3)" in text
    assert "surplus  value_head.weight" in text and f"surplus  {NETWORK}blocks.0.attn.mask" in text
    assert "static_resnet.fc.bias is (9,), expected (8,)" in text and "3 layers, width 16, 2 heads, 4 experts" in text
    without = {k: v for k, v in state.items() if not k.startswith("gripper_resnet.")}
    with pytest.raises(PolicyError) as told:
        read_checkpoint(written(tmp_path / "bad.safetensors", without))
    count = len(encoder_shapes("film_resnet18", read_sizes()))
    text = str(told.value)
    assert f"{count} keys missing" in text and text.count("missing  ") == 20 and f"... and {count - 20} more" in text


def read_sizes():
    return infer_sizes(released.transformer_keys(**TINY))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda s: {f"policy.{k}": v for k, v in s.items()}, r"isn't a released MoDE.*none begins with model\..*policy \("),
        (lambda s: {k: v for k, v in s.items() if not k.endswith("pos_emb")}, "its sizes can't be told.*'pos_emb'"),
        (lambda s: {**s, f"{NETWORK}pos_emb": torch.zeros(5, 16)}, "'pos_emb' is .5, 16.; expected 3 axes"),
        (lambda s: {**s, f"{NETWORK}pos_emb": torch.zeros(1, 1, 16)}, "1 rows of 16"),
        (lambda s: {**s, "inner_ln.g": torch.zeros(16)}, r"1 tensors twice.*inner_ln\.g and model\.inner_model\.ln\.g"),
        (lambda s: {**s, f"{NETWORK}ln.g": torch.zeros(16, dtype=torch.int32)}, "'model.inner_model.ln.g' has type I32"),
        (lambda s: {**s, f"{NETWORK}ln.g": torch.full((16,), float("nan"))}, "'model.inner_model.ln.g' holds NaN"),
    ],
)
def test_a_file_of_another_model_or_without_numbers_is_refused(state, tmp_path, change, said):
    path = written(tmp_path / "other.safetensors", change(state))
    with pytest.raises(PolicyError, match=f"(?s)other.safetensors.*{said}"):
        read_checkpoint(path)


def test_a_pickle_is_refused_with_the_lines_that_convert_it(tmp_path):
    renamed = tmp_path / "weights.safetensors"
    torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / "model_cleaned.pt")
    torch.save({"x": torch.zeros(1)}, renamed)
    for given in (tmp_path / "model_cleaned.pt", renamed):
        with pytest.raises(PolicyError, match="(?s)is a pickle.*weights_only=True.*save_file"):
            read_checkpoint(given)


def test_the_lines_that_convert_a_pickle_do_so(tmp_path):
    given = {"a": torch.randn(3), "language_goal.b": torch.randn(2)}
    torch.save({"state_dict": given, "epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(PolicyError) as told:
        read_checkpoint(tmp_path)  # the folder of a download that holds a pickle alone
    lines = str(told.value).split("<<'END'\n")[1].split("\n    END")[0]
    subprocess.run([sys.executable, "-c", textwrap.dedent(lines)], check=True)
    found = WeightsFile(tmp_path / "model.safetensors").read(["a"])
    assert torch.equal(found["a"], given["a"]) and len(WeightsFile(tmp_path).shapes) == 1


def test_a_damaged_half_read_or_missing_file_is_told(file, tmp_path):
    whole = file.read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "header.safetensors").write_bytes(whole[:8] + b"x" * 100 + whole[108:])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "text.safetensors").write_bytes(b"hello, this is no checkpoint" * 9)
    for name in ("half", "header", "empty", "text"):
        with pytest.raises(PolicyError, match="damaged or only half there; download it again"):
            read_checkpoint(tmp_path / f"{name}.safetensors")
    (tmp_path / "lfs.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(PolicyError, match="git lfs pull"):
        read_checkpoint(tmp_path / "lfs.safetensors")
    with pytest.raises(PolicyError, match="did you mean 'half.safetensors'"):
        read_checkpoint(tmp_path / "hal.safetensors")
    with pytest.raises(PolicyError, match="holds 5 safetensors files"):
        read_checkpoint(tmp_path)
    assert read_checkpoint(file.parent).path == file


@pytest.mark.parametrize(
    "given, said",
    [
        (lambda: robot(cameras={"static": CALVIN.cameras["static"]}), r"'cameras' has 1 \(static\); expected 2: first the"),
        (lambda: robot(size=512), "'goal' has size 512; expected topic.*size: 6"),
        (lambda: robot(goal=None), "no section 'goal'; expected one with topic.*Float32MultiArray and size: 6"),
        (lambda: robot(goal=GoalSpec(topic="goal", tasks=tuple("abcdef"))), "'goal' has 6 tasks"),
        (lambda: robot(joints=2), r"'action.joints' has 2 \(x, y\); expected 3"),
        (lambda: robot(states=load_robot("pusht").states), r"'states' has 1 \(agent\); expected none"),
        (lambda: robot(action=replace(robot().action, lower=(-1.0, 0.0, 1.0))), "equal for z"),
    ],
)
def test_a_robot_file_that_does_not_fit_is_refused_with_what_would(file, given, said, tmp_path):
    with pytest.raises(PolicyError, match=f"(?s)robot file 'calvin' doesn't fit.*({said}).*config/robots/calvin.yaml"):
        adopt(file, given(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_that_does_not_fit_is_told_at_once(file, tmp_path):
    with pytest.raises(PolicyError) as told:
        adopt(file, load_robot("pusht"), tmp_path / "out")
    assert all(f"'{key}" in str(told.value) for key in ("cameras", "states", "goal", "action.joints"))


def test_the_command_makes_a_policy_that_runs_like_any_other(state, file, tmp_path, capsys):
    from ros_vdd.config import dump_yaml, to_plain

    yaml = tmp_path / "robot.yaml"
    yaml.write_text(dump_yaml(to_plain(robot())), encoding="utf-8")
    out = tmp_path / "mode"
    how = ["--robot", str(yaml), "--out", str(out), "--steps", "3", "--sigma-min", "0.5"]
    assert cli.main(["import", str(file.parent), *how]) == 0
    said = capsys.readouterr().out
    assert "stands still: 'static' 32x32" in said and "1 keys of the text encoder skipped" in said
    assert "3 steps, sigma 80 to 0.5" in said
    bundle = Bundle.open(out)
    assert (bundle.kind, bundle.manifest.nfe, bundle.n_obs_steps, bundle.n_action_steps) == ("mode", 3, 1, 4)
    assert bundle.input_shapes["goal"] == (6,) and not list(tmp_path.glob(".import*"))
    pictures, goal, noise = inputs(1)
    with torch.no_grad():
        found = policies.load(bundle).generate(observation(pictures, goal), torch.from_numpy(noise)).reshape(1, 4, 3)
    np.testing.assert_allclose(found, released.answer(state, TINY, pictures, goal, noise, 3, 0.5), rtol=0, atol=2e-4)
    acting = api.load(out, backend="eager")
    seen = {"images.static": pictures[0][0], "images.wrist": pictures[1][0], "goal": goal[0]}
    assert np.asarray(acting.act(seen)).shape[-1] == 3


def test_weights_that_no_graph_can_hold_are_refused_before_the_export(file, tmp_path, monkeypatch):
    bundle = adopt(file, robot(), tmp_path / "out")
    monkeypatch.setattr(graph, "MAX_BYTES", 10**7)
    with pytest.raises(EngineError, match=r"weights are 0\.\d\d GB.*at most 0\.01 GB.*--backend eager"):
        export(bundle)
    assert not (bundle.path / "policy.onnx").exists()


def test_a_mistake_at_the_command_is_one_message(file, tmp_path, capsys):
    assert cli.main(["import", str(file), "--robot", "calvin", "--out", str(tmp_path / "out")]) == 2
    assert "'goal' has size 512; expected" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="'sigma_min'"):
        adopt(file, robot(), tmp_path / "out", sigma_min=90.0)
