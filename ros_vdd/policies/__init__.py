# SPDX-License-Identifier: Apache-2.0
"""Policies in PyTorch: `forward(observation, noise) -> chunk`, SI units in, SI units out."""

from __future__ import annotations

from ros_vdd.bundle import WEIGHTS, Bundle, Manifest
from ros_vdd.config import build, to_plain
from ros_vdd.errors import PolicyError
from ros_vdd.policies.diffusion import DiffusionConfig, DiffusionPolicy
from ros_vdd.policies.encoder import EncoderConfig, EncoderPolicy
from ros_vdd.policies.few_step import FewStepConfig, FewStepPolicy
from ros_vdd.policies.mixture import MixtureConfig, MixturePolicy
from ros_vdd.policies.mode import ModeConfig, ModePolicy
from ros_vdd.policies.policy import Policy
from ros_vdd.policies.window import WindowConfig, WindowPolicy

KINDS = {
    "diffusion": (DiffusionPolicy, DiffusionConfig),
    "window": (WindowPolicy, WindowConfig),
    "few_step": (FewStepPolicy, FewStepConfig),
    "mode": (ModePolicy, ModeConfig),
    "mixture": (MixturePolicy, MixtureConfig),
    "encoder": (EncoderPolicy, EncoderConfig),
}


def load(bundle: Bundle) -> Policy:
    """Build the PyTorch policy of a verified folder and fill in its weights, in evaluation mode.

    Raises:
        PolicyError: the weights can't be read, or their names or shapes aren't those of the network in the manifest.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    kind, config = KINDS[bundle.kind]
    policy = kind(bundle.robot, build(config, bundle.manifest.network))
    try:
        tensors = load_file(str(bundle.file(WEIGHTS)))
    except SafetensorError as error:
        raise PolicyError(f"'{bundle.path / WEIGHTS}' isn't a safetensors file ({error}); train the policy again") from error
    expected = {k: tuple(v.shape) for k, v in policy.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in tensors.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))[:4]
        raise PolicyError(f"weights of '{bundle.path}' don't fit its manifest, for example {wrong}")
    policy.load_state_dict(tensors)
    return policy.eval()


def manifest(policy: Policy, name: str, **fields) -> Manifest:
    """Return the manifest that describes a policy; `fields` adds training, provenance and scores."""
    config = policy.config
    return Manifest(
        name=name,
        kind=policy.kind,
        robot=to_plain(policy.robot),
        network=to_plain(config),
        n_obs_steps=config.n_obs_steps,
        horizon=config.horizon,
        n_action_steps=config.n_action_steps,
        nfe=policy.nfe,
        experts=config.experts if policy.kind == "mixture" else None,
        **fields,
    )
