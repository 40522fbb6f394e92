#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Everything to models/avoiding_teacher and models/avoiding_vdd: about seven minutes on one CPU core; the demonstrations are made here.
# Each stage can be killed and started again; it goes on where it was.
set -eu
[ -d data/avoiding ] || ros-vdd convert env:avoiding --out data/avoiding
ros-vdd train avoiding_teacher
ros-vdd train avoiding_mixture
ros-vdd distill avoiding_vdd
for policy in avoiding_teacher avoiding_vdd; do ros-vdd export "runs/$policy"; done
ros-vdd evaluate runs/avoiding_teacher --env avoiding --episodes 480 --seed 500000
ros-vdd evaluate runs/avoiding_vdd --env avoiding --episodes 480 --seed 500000 --choice coherent --temperature 0.7
