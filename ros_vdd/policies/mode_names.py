# SPDX-License-Identifier: Apache-2.0
"""What released MoDE checkpoints call their parameters, and what `ModeNetwork` calls them; both ways.

Source: the layout of the released code (intuitive-robots/MoDE_Diffusion_Policy, 72cf8a2), by description.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ros_vdd.networks.film_resnet import ENCODERS
from ros_vdd.networks.mode import ModeNetwork, ModeSizes

Shapes = dict[str, tuple[int, ...]]
STATIC, WRIST, NETWORK = "static", "wrist", "network"
PLACES = (  # longest first: the hub's script cuts "model." out of every name, also out of "inner_model."
    ("model.inner_model.", NETWORK, ""),
    ("inner_model.", NETWORK, ""),
    ("inner_", NETWORK, ""),
    ("static_resnet.", STATIC, ""),
    ("img_encoder_image_primary.", STATIC, ""),
    ("img_encoder_image_secondary.", STATIC, ""),
    ("gripper_resnet.", WRIST, ""),
    ("img_encoder_image_wrist.", WRIST, ""),
    ("net.", WRIST, "resnet."),
)
"""How a key begins, what it belongs to, and how the rest begins there."""
SKIPPED = ("language_goal.",)
"""The text encoder: here its vector is an input, the goal."""
COUNTER = ".num_batches_tracked"
"""What batch norm counts in training; no answer depends on it."""
UNUSED = "gripper_embed.weight"
"""An embedding of the wrist camera that the release holds and never uses: both cameras share `tok_emb`."""

_RULES = [
    (r"noise\.enter\.", "sigma_emb."),
    (r"noise\.leave\.", "sigma_linear."),
    (r"goal\.", "goal_emb."),
    (r"camera\.", "tok_emb."),
    (r"action\.", "action_emb."),
    (r"positions", "pos_emb"),
    (r"norm\.gain", "ln.g"),
    (r"leave\.", "out."),
]
_BLOCK_RULES = [
    (r"attention_norm\.gain", "ln_1.g"),
    (r"expert_norm\.gain", "ln_2.g"),
    (r"attention\.(query|key|value)\.", r"attn.\1."),
    (r"attention\.leave\.", "attn.c_proj."),
    (r"attention\.query_norm\.gain", "attn.q_norm.g"),
    (r"attention\.key_norm\.gain", "attn.k_norm.g"),
    (r"router\.enter\.", "router.router.mlp.0."),
    (r"router\.leave\.", "router.router.mlp.3."),
    (r"experts\.(\d+)\.enter\.", r"experts.expert_\1.mlp.0.project."),
    (r"experts\.(\d+)\.leave\.", r"experts.expert_\1.mlp.2."),
]


class Place(NamedTuple):
    """Where a key of a file belongs: NETWORK, STATIC or WRIST, and its released name there."""

    part: str
    name: str


def placed(key: str) -> Place | None:
    """Return where a key of a released file belongs; None for one of no known prefix."""
    for prefix, part, begin in PLACES:
        if key.startswith(prefix):
            return Place(part, begin + key[len(prefix) :])
    return None


def released_name(name: str) -> str:
    """Return the released name of a parameter of `ModeNetwork`, without prefix.

    Raises:
        ValueError: the release has no such parameter.
    """
    block = re.match(r"blocks\.\d+\.", name)
    start, rules = (block.group(), _BLOCK_RULES) if block else ("", _RULES)
    for pattern, theirs in rules:
        changed, count = re.subn(f"^{pattern}", theirs, name[len(start) :])
        if count:
            return start + changed
    raise ValueError(f"released checkpoints have no '{name}'")


def released_shapes(sizes: ModeSizes) -> Shapes:
    """Return the shape of every transformer tensor of a released file of these sizes, by its name without prefix."""
    shapes = {released_name(name): shape for name, shape in network_shapes(sizes).items()}
    return shapes | {"pos_emb": (1, *shapes["pos_emb"]), UNUSED: shapes["tok_emb.weight"]}


def to_released(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a `ModeNetwork` under their released names."""
    return {released_name(name): value[None] if name == "positions" else value for name, value in tensors.items()}


def from_released(tensors: Mapping[str, Tensor], sizes: ModeSizes) -> dict[str, Tensor]:
    """Return released transformer tensors under the names of `ModeNetwork`, the unused ones left out."""
    named = {name: tensors[released_name(name)] for name in network_shapes(sizes)}
    return named | {"positions": named["positions"][0]}


def network_shapes(sizes: ModeSizes) -> Shapes:
    """Return the shape of every tensor of a `ModeNetwork`, without taking memory for it."""
    with torch.device("meta"):
        return _shapes(ModeNetwork(sizes))


def encoder_shapes(encoder: str, sizes: ModeSizes) -> Shapes:
    """Return the shape of every tensor of one camera's encoder; released files use the same names."""
    with torch.device("meta"):
        return _shapes(ENCODERS[encoder](sizes.goal, sizes.features))


def _shapes(module: torch.nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
