#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# PushT on images with one observation and the small encoder: teacher, mixture, VDD student, and models/pusht_mode. About an hour of one CPU core.
# Each stage can be killed and started again; it goes on where it was.
set -eu
data=$1
[ -d data/pusht ] || ros-vdd convert "$data" --robot pusht --map 'state=state[0:2]' --out data/pusht
ros-vdd train pusht_fast_encoder
ros-vdd train pusht_mode
ros-vdd train pusht_fast_mixture
ros-vdd train pusht_fast_teacher
ros-vdd distill pusht_fast_vdd
for policy in mode fast_mixture fast_teacher fast_vdd; do
    ros-vdd export "runs/pusht_$policy"
    ros-vdd evaluate "runs/pusht_$policy" --env pusht --episodes 50 --choice coherent --temperature 0.7
done
