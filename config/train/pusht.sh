#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Everything between the 206 human demonstrations of PushT and models/pusht_vdd: about an hour on two CPU cores.
# Each stage can be killed and started again; it goes on where it was.
set -eu
data=$1
[ -d data/pusht ] || ros-vdd convert "$data" --robot pusht --map 'state=state[0:2]' --out data/pusht
ros-vdd train pusht_encoder
ros-vdd train pusht_mixture
ros-vdd train pusht_teacher
ros-vdd export runs/pusht_teacher
ros-vdd export runs/pusht_teacher --steps 5 --out runs/pusht_teacher_5
ros-vdd distill pusht_vdd --teacher runs/pusht_teacher_5
ros-vdd export runs/pusht_vdd
ros-vdd evaluate runs/pusht_teacher --env pusht --episodes 50
ros-vdd evaluate runs/pusht_vdd --env pusht --episodes 50
