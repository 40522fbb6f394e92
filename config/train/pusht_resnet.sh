#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The quick recipe of PushT on images with a ResNet-18 for the small encoder, 13.0 M parameters: about an hour and a half of one CPU core.
# Each stage can be killed and started again; it goes on where it was.
set -eu
data=$1
look='policy.vision={encoder: resnet18, features: 4}'
from='encoder=runs/pusht_resnet_encoder'
[ -d data/pusht ] || ros-vdd convert "$data" --robot pusht --map 'state=state[0:2]' --out data/pusht
ros-vdd train pusht_encoder "$look" name=pusht_resnet_encoder loop.steps=6000 loop.batch_size=64 loop.validate_every=500 loop.checkpoint_every=500
ros-vdd train pusht_fast_mixture "$look" "$from" name=pusht_resnet_mixture policy.width=512
ros-vdd train pusht_fast_teacher "$look" "$from" name=pusht_resnet_teacher
ros-vdd distill pusht_fast_vdd "$look" name=pusht_resnet_vdd policy.width=512 teacher=runs/pusht_resnet_teacher start=runs/pusht_resnet_mixture
ros-vdd export runs/pusht_resnet_vdd
ros-vdd evaluate runs/pusht_resnet_vdd --env pusht --episodes 200 --seed 100000 --choice coherent --temperature 0.7
