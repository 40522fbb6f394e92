# SPDX-License-Identifier: Apache-2.0
"""One training run from its configuration: data, policy, method, loop, and the policy folder at the end."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ros_vdd import __version__, envs, methods, policies
from ros_vdd.bundle import WEIGHTS, Bundle, file_sha256, write
from ros_vdd.config import build, override, read_yaml, to_plain
from ros_vdd.data.dataset import Windows, split_episodes
from ros_vdd.data.episodes import EpisodeStore
from ros_vdd.data.frames import LabelledFrames, Target
from ros_vdd.errors import ConfigError, PolicyError
from ros_vdd.policies.policy import Policy
from ros_vdd.resources import find
from ros_vdd.training.config import TrainConfig
from ros_vdd.training.loop import Loop


def read_config(name: str, overrides: Sequence[str]) -> TrainConfig:
    """Read a training configuration by path or shipped name and apply `key=value` overrides."""
    return build(TrainConfig, override(read_yaml(find("config/train", name)), overrides))


class TrainingRun:
    """Everything between a configuration and a policy folder."""

    def __init__(self, config: TrainConfig, out: str | None, progress: bool = True):
        self.config, self.progress = config, progress
        self.out = Path(out or Path("runs") / config.name)
        self.module = methods.find(config.method)
        self.options = build(self.module.Options, config.options, "options")
        self.store = EpisodeStore(config.data)
        self.teacher_bundle = self._teacher()

    def run(self) -> Bundle:
        """Train (or continue a killed training) and write the policy folder."""
        torch.manual_seed(self.config.seed)
        teacher = policies.load(self.teacher_bundle).requires_grad_(False) if self.teacher_bundle else None
        train, validation = split_episodes(len(self.store), self.config.validation_fraction, self.config.seed)
        policy = self._policy(teacher)
        data = self._data(policy, train, rendered=True)
        held = self._data(policy, validation, rendered=False) if validation else None
        method = self.module.Method(self.options, policy, teacher)
        state = self.out.with_name(f"{self.out.name}.training")
        loop = Loop(method, data, held, self.config.loop, self.config.seed, state, self._identity())
        began = time.monotonic()
        self._say(f"{self.config.method}: {sum(p.numel() for p in loop.trained):,} trained parameters, {len(data):,} samples -> {self.out}")
        loop.run(self.progress)
        return self._write(policy, loop, time.monotonic() - began)

    def _teacher(self) -> Bundle | None:
        if not self.module.NEEDS_TEACHER:
            return None
        if not self.config.teacher:
            raise ConfigError(f"method '{self.config.method}' needs a teacher; give --teacher FOLDER")
        bundle = Bundle.open(find("models", self.config.teacher))
        self._agree(bundle, "teacher")
        return bundle

    def _agree(self, bundle: Bundle, role: str) -> None:
        differences = bundle.robot.difference(self.store.robot)
        if differences:
            raise PolicyError(f"{role} '{bundle.path}' was made for another robot file than the data: {'; '.join(differences)}")

    def _policy(self, teacher: Policy | None) -> Policy:
        kind, config_class = policies.KINDS[self.module.KIND]
        policy = kind(self.store.robot, build(config_class, self.config.policy, "policy"))
        if teacher is not None:
            _require_equal_shapes(policy, teacher)
            _copy_observation_side(teacher, policy)
        else:
            self._fit_normalizers(policy)
        if self.config.encoder:
            source = Bundle.open(find("models", self.config.encoder))
            self._agree(source, "encoder")
            _copy(policies.load(source).encoders, policy.encoders, source)
        if self.config.start:
            source = Bundle.open(find("models", self.config.start))
            self._agree(source, "start")
            _copy(policies.load(source), policy, source)
        if teacher is not None:
            _require_equal_senses(policy, teacher, self.config.freeze_encoder)
        if self.config.freeze_encoder:
            policy.encoders.requires_grad_(False)
        return policy

    def _fit_normalizers(self, policy: Policy) -> None:
        policy.action_normalizer.fit(np.concatenate([np.asarray(e["action"]) for e in self.store]))
        if policy.state_normalizer is not None:
            policy.state_normalizer.fit(np.concatenate([np.asarray(e["state"]) for e in self.store]))

    def _data(self, policy: Policy, episodes: list[int], rendered: bool):
        if self.module.KIND == "encoder":
            return self._labelled_frames(episodes, rendered)
        windows = Windows(self.store, episodes, policy.config.n_obs_steps, policy.config.horizon)
        if self.config.freeze_encoder and len(policy.encoders):
            windows.cache_features(lambda pictures: _encode(policy, pictures))
        return windows

    def _labelled_frames(self, episodes: list[int], rendered: bool) -> LabelledFrames:
        """Pictures of the demonstrations, and for training also those that the simulator draws around them."""
        camera, targets = self._camera(), self.options.targets
        chosen = [self.store[i] for i in episodes]
        sources = [(e[camera], _labels(targets, e)) for e in chosen]
        if rendered and self.config.renderings:
            sources.append(self._rendered(camera, targets, np.concatenate([np.asarray(e[targets[0].array]) for e in chosen])))
        return LabelledFrames(camera, sources)

    def _camera(self) -> str:
        cameras = [n for n in self.store.robot.observation_shapes() if n.startswith("images.")]
        if len(cameras) != 1:
            raise ConfigError(f"method 'regression' trains the encoder of one camera; the robot file has {len(cameras)}")
        return cameras[0]

    def _rendered(self, camera: str, targets: Sequence[Target], states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from tqdm import tqdm

        extra, env = self.config.renderings, envs.make(self.config.renderings.env)
        rng = np.random.default_rng(self.config.seed)
        pictures, values = None, []
        for i in tqdm(range(extra.frames), desc="rendering", disable=not self.progress, mininterval=1.0):
            drawn = env.render_labelled(rng, states, extra.spread)
            if pictures is None:
                pictures = np.empty((extra.frames, *drawn[camera].shape), np.uint8)
            pictures[i] = drawn[camera]
            values.append({t.array: drawn[t.array] for t in targets})
        stacked = {t.array: np.stack([v[t.array] for v in values]) for t in targets}
        return pictures, _labels(targets, stacked)

    def _identity(self) -> str:
        """Name configuration, data and the policies it begins with: a checkpoint of anything else isn't continued."""
        bundles = [self.teacher_bundle, *(Bundle.open(find("models", n)) for n in (self.config.encoder, self.config.start) if n)]
        weights = [file_sha256(b.file(WEIGHTS)) for b in bundles if b]  # scores that are added later change nothing
        parts = [to_plain(self.config), self.store.fingerprint(), weights]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _write(self, policy: Policy, loop: Loop, seconds: float) -> Bundle:
        from safetensors.torch import save

        tensors = {k: v.detach().contiguous().clone() for k, v in policy.state_dict().items()}
        provenance = {
            "data_sha256": self.store.fingerprint(),
            "episodes": len(self.store),
            "teacher_sha256": self.teacher_bundle.sha256 if self.teacher_bundle else None,
            "parameters": sum(p.numel() for p in policy.parameters()),
            "training_seconds_this_process": round(seconds, 1),
            "ros_vdd": __version__,
            "torch": str(torch.__version__),
            "validation": {k: round(v, 6) for k, v in loop.last_validation.items()},
        }
        manifest = policies.manifest(policy, self.config.name, training=to_plain(self.config), provenance=provenance)
        bundle = write(self.out, manifest, {WEIGHTS: save(tensors)})
        self._say(f"wrote {self.out} ({(self.out / WEIGHTS).stat().st_size / 1e6:.1f} MB); next: ros-vdd export {self.out}")
        return bundle

    def _say(self, text: str) -> None:
        if self.progress:
            print(text, flush=True)


def _labels(targets: Sequence[Target], arrays) -> np.ndarray:
    if not targets:
        raise ConfigError("'options.targets' is empty; name at least one array and its columns")
    return np.concatenate([t.encode(np.asarray(arrays[t.array])) for t in targets], axis=1)


@torch.no_grad()
def _encode(policy: Policy, pictures) -> np.ndarray:
    policy.eval()
    return policy.encode_frames({k: torch.from_numpy(v) for k, v in pictures.items()}).float().numpy()


def _require_equal_shapes(student: Policy, teacher: Policy) -> None:
    for name in ("n_obs_steps", "horizon", "vision"):
        mine, theirs = getattr(student.config, name), getattr(teacher.config, name)
        if mine != theirs:
            raise ConfigError(f"'policy.{name}' is {mine}; the teacher has {theirs}, and both must see and plan the same")


def _require_equal_senses(student: Policy, teacher: Policy, shared_features: bool) -> None:
    """Refuse a start whose units aren't the teacher's, or another encoder where one set of features serves both."""
    for name in ("action_normalizer", "state_normalizer", *(["encoders"] if shared_features else [])):
        mine, theirs = getattr(student, name), getattr(teacher, name)
        if mine is not None and any(not torch.equal(v, theirs.state_dict()[k]) for k, v in mine.state_dict().items()):
            raise ConfigError(f"'start' or 'encoder' brings another {name} than the teacher's; train both on the same data and encoder")


def _copy_observation_side(teacher: Policy, student: Policy) -> None:
    """Give the student the teacher's units and eyes, so that chunks and features mean the same to both."""
    student.action_normalizer.load_state_dict(teacher.action_normalizer.state_dict())
    if student.state_normalizer is not None:
        student.state_normalizer.load_state_dict(teacher.state_normalizer.state_dict())
    student.encoders.load_state_dict(teacher.encoders.state_dict())


def _copy(source: torch.nn.Module, target: torch.nn.Module, bundle: Bundle) -> None:
    mine = {k: tuple(v.shape) for k, v in target.state_dict().items()}
    theirs = {k: tuple(v.shape) for k, v in source.state_dict().items()}
    if mine != theirs:
        wrong = sorted(set(mine.items()) ^ set(theirs.items()))[:4]
        raise PolicyError(f"weights of '{bundle.path}' don't fit this configuration, for example {wrong}")
    target.load_state_dict(source.state_dict())
