#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Everything from nothing to runs/metaworld_mode, a policy of the ten tasks of MT10, and its one-evaluation student; the demonstrations are made here, in about a minute.
# Each stage can be killed and started again; it goes on where it was.
set -eu
[ -d data/metaworld ] || ros-vdd convert env:metaworld --out data/metaworld
ros-vdd train metaworld_mode
ros-vdd export runs/metaworld_mode
ros-vdd evaluate runs/metaworld_mode --env metaworld --episodes 200 --seed 500000 --json runs/metaworld_mode.json
ros-vdd distill metaworld_vdd
ros-vdd export runs/metaworld_vdd
ros-vdd evaluate runs/metaworld_vdd --env metaworld --episodes 200 --seed 500000 --choice sample
