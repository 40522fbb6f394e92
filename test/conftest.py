# SPDX-License-Identifier: Apache-2.0
"""The environment of every test: one thread per library, no display, ROS traffic kept on this machine."""

from __future__ import annotations

import functools
import itertools
import os
import pathlib

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
# Two test runs on one machine don't hear each other (101 is the last safe domain on Linux).
_DOMAINS = itertools.count(os.getpid())
os.environ.setdefault("ROS_DOMAIN_ID", str(1 + next(_DOMAINS) % 101))


@pytest.fixture(scope="module", autouse=True)
def _domain():
    """A ROS domain of its own for every file: a node that was killed leaves Fast DDS's shared memory behind, and those that come after
    it in the same domain may miss what is sent to them."""
    before = os.environ["ROS_DOMAIN_ID"]
    os.environ["ROS_DOMAIN_ID"] = str(1 + next(_DOMAINS) % 101)
    yield
    os.environ["ROS_DOMAIN_ID"] = before


def pytest_configure(config: pytest.Config) -> None:
    """Make known a mark that pytest-rerunfailures understands, where it is installed."""
    config.addinivalue_line("markers", "flaky(reruns): a test that is run again where it fails; the summary tells it as a rerun")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Run a test of nodes once more where it fails: on a busy machine a message may come later than any test waits."""
    if _starts_nodes(item.path):
        item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, where it is installed
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Of several pytest processes let one run all that starts ROS nodes, which mostly wait; keep the others' files whole."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "ros" if _starts_nodes(config.rootpath / path) else path

    return Scheduling(config, log)


@functools.cache
def _starts_nodes(path: pathlib.Path) -> bool:
    return 'importorskip("rclpy"' in path.read_text()
