# SPDX-License-Identifier: Apache-2.0
"""One training run from its configuration: data, policy, method, loop, and the policy folder at the end."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ros_vdd import __version__, methods, policies
from ros_vdd.bundle import SAMPLED, WEIGHTS, Bundle, file_sha256, require_place, write
from ros_vdd.config import build, override, read_yaml, to_plain
from ros_vdd.data.dataset import split_episodes
from ros_vdd.data.episodes import EpisodeStore
from ros_vdd.errors import ConfigError, DataError, PolicyError
from ros_vdd.offline.training_data import training_data, validation_data
from ros_vdd.policies import pretrained, transfer
from ros_vdd.policies.policy import Policy
from ros_vdd.resources import find
from ros_vdd.training.collection import Collection, Experience, Practice
from ros_vdd.training.compute import compile_networks, computes_bf16
from ros_vdd.training.config import TrainConfig
from ros_vdd.training.distributed import Group, join
from ros_vdd.training.loop import Loop
from ros_vdd.training.rollouts import require_env


def read_config(name: str, overrides: Sequence[str]) -> TrainConfig:
    """Read a training configuration by path or shipped name and apply `key=value` overrides."""
    return build(TrainConfig, override(read_yaml(find("config/train", name)), overrides))


class TrainingRun:
    """Everything between a configuration and a policy folder."""

    def __init__(self, config: TrainConfig, out: str | None, progress: bool = True):
        self.config, self.progress, self._tells = config, progress, True
        self.out = Path(out or Path("runs") / config.name)
        require_place(self.out)  # told now, not after hours of training
        self.module = methods.find(config.method)
        self.options = build(self.module.Options, config.options, "options")
        self.store = EpisodeStore(config.data)
        if not len(self.store):
            raise DataError(f"the store '{self.store.root}' holds no episode; add some with ros-vdd convert")
        self.teacher_bundle = self._teacher()
        self._require_playable()

    def run(self) -> Bundle | None:
        """Train (or continue a killed training) and write the policy folder; of several processes only the first returns it."""
        with join(self.config.loop) as group:
            if group.world > 1 and (self.config.collect or self.config.rollouts):
                raise ConfigError(
                    f"'collect' and 'rollouts' play in one process, and there are {group.world}; start it without torchrun"
                )
            self.progress, self._tells = self.progress and group.first, group.first
            bundle = self._train(group)
            group.wait()
        return bundle

    def _train(self, group: Group) -> Bundle | None:
        torch.manual_seed(self.config.seed)
        teacher = policies.load(self.teacher_bundle).requires_grad_(False) if self.teacher_bundle else None
        train, validation = split_episodes(len(self.store), self.config.validation_fraction, self.config.seed)
        policy = self._policy(teacher).to(group.device)
        if teacher is not None:
            teacher.to(group.device)
        data = training_data(self.config, self.options, self.store, policy, train, self.progress)
        held = validation_data(self.config, self.options, self.store, policy, validation)
        if self.config.loop.compile:
            compile_networks(policy, teacher)
        method = self.module.Method(self.options, policy, teacher)
        state = self.out.with_name(f"{self.out.name}.training")
        experience = self._experience(method, policy, teacher)
        loop = Loop(method, data, held, self.config.loop, self.config.seed, state, self._identity(), group, experience)
        began = time.monotonic()
        trained = sum(p.numel() for p in loop.trained)
        sizes = f"{trained:,} trained parameters, {len(data):,} samples, {_described(group)}, {loop.precision}"
        self._say(f"{self.config.method}: {sizes} -> {self.out}")
        if getattr(self.options, "warm_start", False) and teacher is not None and not policy.resembles(teacher):
            self._say("begins at random numbers: 'options.warm_start' is true, but the teacher's network is of another kind or size")
        if loop.precision == "bf16" and not computes_bf16(group.device):
            self._say(f"'loop.precision' is bf16, and this {group.device.type} has no instructions for it: fp32, or auto, is many times faster")
        if held is None:
            self._say(f"no validation: of {len(self.store)} episodes, 'validation_fraction' {self.config.validation_fraction:g} holds out none")
        loop.run(self.progress)
        if not group.first:
            return None
        self._warn_of_dead_experts(policy, loop)
        return self._write(policy, loop, time.monotonic() - began)

    def _teacher(self) -> Bundle | None:
        if not self.module.NEEDS_TEACHER:
            return None
        if not self.config.teacher:
            raise ConfigError(f"method '{self.config.method}' needs a teacher; give --teacher FOLDER")
        bundle = self._open("teacher")
        if bundle.kind not in SAMPLED:
            raise PolicyError(
                f"teacher '{bundle.path}' is of kind '{bundle.kind}'; expected {_listed(SAMPLED)}; give --teacher the folder of "
                "a diffusion policy, as ros-vdd train pusht_teacher makes it"
            )
        if bundle.kind == "few_step" and bundle.manifest.network["walk"] != "euler":
            raise PolicyError(
                f"teacher '{bundle.path}' is a few-step student whose 'walk' is '{bundle.manifest.network['walk']}': it answers at a few "
                "levels and has no score; give its own teacher"
            )
        self._agree(bundle, "teacher")
        return bundle

    def _require_playable(self) -> None:
        """Refuse episodes that the method has no use for, or can't be played, and a method that lacks them."""
        config, plays = self.config, getattr(self.module, "NEEDS_ENV", False)
        if plays and not config.rollouts:
            example = "rollouts: {env: avoiding, every: 500, episodes: 500}"
            raise ConfigError(f"method '{config.method}' learns from episodes; write which: {example}")
        if config.rollouts and not plays:
            raise ConfigError(
                f"'rollouts' is given, and method '{config.method}' doesn't learn from what it earns; leave it out (DAgger: 'collect')"
            )
        if config.collect and (plays or not self.module.NEEDS_TEACHER):
            raise ConfigError(
                f"'collect' is given, and method '{config.method}' has no teacher that would label what is collected; leave it out"
            )
        for key in ("collect", "rollouts"):
            if section := getattr(config, key):
                require_env(section.env, self.store.robot, f"{key}.env")

    def _experience(self, method, policy: Policy, teacher: Policy | None) -> Experience | None:
        config = self.config
        if config.rollouts:
            return Practice(config.rollouts, method, config.seed)
        return Collection(config.collect, policy, teacher, config.seed) if config.collect else None

    def _open(self, role: str) -> Bundle:
        """Open the policy that the configuration names as `teacher`, `encoder` or `start`."""
        try:
            return Bundle.open(find("models", getattr(self.config, role)))
        except ConfigError as error:
            other = "--teacher FOLDER" if role == "teacher" else f"{role}=FOLDER"
            raise ConfigError(f"'{role}': {error}. Train that one first, or give another by {other}") from error

    def _agree(self, bundle: Bundle, role: str) -> None:
        differences = bundle.robot.difference(self.store.robot)
        if differences:
            raise PolicyError(f"{role} '{bundle.path}' was made for another robot file than the data: {'; '.join(differences)}")

    def _policy(self, teacher: Policy | None) -> Policy:
        sizes = dict(self.config.policy)
        name = sizes.pop("kind", self.module.KIND)
        if name not in (trained := getattr(self.module, "KINDS", (self.module.KIND,))):
            raise ConfigError(f"'policy.kind' is '{name}'; method '{self.config.method}' trains {_listed(trained)}")
        kind, config_class = policies.KINDS[name]
        policy = kind(self.store.robot, build(config_class, sizes, "policy"))
        if teacher is not None:
            transfer.require_equal_shapes(policy, teacher)
            transfer.require_known_levels(policy, teacher)
            transfer.copy_observation_side(teacher, policy)
        else:
            self._fit_normalizers(policy)
        if self.config.encoder and pretrained.is_weights_file(self.config.encoder):
            if self.config.freeze_encoder:
                raise ConfigError(
                    f"'freeze_encoder' is true and 'encoder' is '{self.config.encoder}': a file of weights has no head for this policy, "
                    "which would stay as it began, at random numbers; set freeze_encoder: false"
                )
            pretrained.load_trunks(self.config.encoder, policy.encoders)
        elif self.config.encoder:
            source = self._open("encoder")
            self._agree(source, "encoder")
            transfer.copy_weights(policies.load(source).encoders, policy.encoders, source)
        if self.config.start:
            if getattr(self.options, "warm_start", False):
                raise ConfigError(
                    "'start' is given, and 'options.warm_start' is true: the run can begin as one policy only; "
                    "set options.warm_start=false, or leave 'start' out"
                )
            source = self._open("start")
            self._agree(source, "start")
            begun = policies.load(source)
            transfer.copy_weights(begun, policy, source)
            transfer.require_equal_reading(policy, begun, source)
        if teacher is not None:
            transfer.require_equal_senses(policy, teacher, self.config.freeze_encoder)
        if self.config.freeze_encoder:
            policy.encoders.requires_grad_(False)
        if not any(p.requires_grad for p in policy.parameters()):
            raise ConfigError(f"'freeze_encoder' leaves method '{self.config.method}' nothing to train; set it to false")
        return policy

    def _fit_normalizers(self, policy: Policy) -> None:
        policy.action_normalizer.fit(np.concatenate([np.asarray(e["action"]) for e in self.store]))
        if policy.state_normalizer is not None:
            policy.state_normalizer.fit(np.concatenate([np.asarray(e["state"]) for e in self.store]))

    def _identity(self) -> str:
        """Name configuration, data and the policies it begins with: a checkpoint of anything else isn't continued.

        Another device, or another number of processes, may continue it.
        """
        file = self.config.encoder if self.config.encoder and pretrained.is_weights_file(self.config.encoder) else None
        named = (None if file else self.config.encoder, self.config.start)
        bundles = [self.teacher_bundle, *(Bundle.open(find("models", n)) for n in named if n)]
        weights = [file_sha256(b.file(WEIGHTS)) for b in bundles if b]  # scores that are added later change nothing
        weights += [file_sha256(Path(file))] if file else []
        config = to_plain(self.config)
        for name in ("device", "compile"):
            del config["loop"][name]
        for name in ("collect", "rollouts"):  # where nothing is played, the checkpoints of earlier versions go on
            if config[name] is None:
                del config[name]
        parts = [config, self.store.fingerprint(), weights]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _write(self, policy: Policy, loop: Loop, seconds: float) -> Bundle:
        from safetensors.torch import save

        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in policy.state_dict().items()}
        provenance = {
            "data_sha256": self.store.fingerprint(),
            "episodes": len(self.store),
            "teacher_sha256": self.teacher_bundle.sha256 if self.teacher_bundle else None,
            "parameters": sum(p.numel() for p in policy.parameters()),
            "training_seconds_this_process": round(seconds, 1),
            "training_cpu_seconds": round(loop.cpu_seconds, 1),
            "processes": loop.group.world,
            "device": loop.group.device.type,
            "precision": loop.precision,
            "ros_vdd": __version__,
            "torch": str(torch.__version__),
            "validation": {k: round(v, 6) for k, v in loop.last_validation.items()},
        }
        manifest = policies.manifest(policy, self.config.name, training=to_plain(self.config), provenance=provenance)
        bundle = write(self.out, manifest, {WEIGHTS: save(tensors)})
        self._say(f"wrote {self.out} ({(self.out / WEIGHTS).stat().st_size / 1e6:.1f} MB); next: ros-vdd export {self.out}")
        return bundle

    def _warn_of_dead_experts(self, policy: Policy, loop: Loop) -> None:
        dead = round(loop.last_validation.get("dead_experts", 0.0))
        if dead:
            print(
                f"warning: {dead} of {policy.config.experts} experts are hardly ever used (less than a twentieth of an even share "
                f"of the validation cases; 'dead_experts' in {loop.folder / 'validation.csv'}); train with fewer "
                "(policy.experts), raise options.gate_floor where the method has it, or begin with options.initialise=kmeans",
                file=sys.stderr,
            )

    def _say(self, text: str) -> None:
        if self._tells:
            print(text, flush=True)


def _described(group: Group) -> str:
    return group.device.type if group.world == 1 else f"{group.world} processes on {group.device.type}"


def _listed(names: Sequence[str]) -> str:
    *most, last = (f"'{name}'" for name in names)
    return f"{', '.join(most)} or {last}" if most else last
