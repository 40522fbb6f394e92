# SPDX-License-Identifier: Apache-2.0
"""Camera images, joint states and a goal in, time-stamped action chunks out; inference runs in a thread of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from ros_vdd import backends, resources
from ros_vdd.bundle import Bundle
from ros_vdd.errors import ConfigError, PolicyError
from ros_vdd.nodes.managed import AUTOSTART, ManagedNode
from ros_vdd.nodes.messages import CAMERA_QOS, CLASSES, COMMAND_QOS, JOINT_STATE_QOS, LATCHED_QOS, ChunkMessage, json_message
from ros_vdd.nodes.parameters import Parameter
from ros_vdd.nodes.process import await_reader, publish, run
from ros_vdd.nodes.transport import image_problem
from ros_vdd.runtime import fallback
from ros_vdd.runtime.choice import RULES, ChoiceConfig
from ros_vdd.runtime.fallback import Fallback
from ros_vdd.runtime.inference import PolicyRunner
from ros_vdd.runtime.intake import CameraIntake
from ros_vdd.runtime.monitor import JUDGEMENT, PATIENCE, PlanMonitor, open_monitor
from ros_vdd.runtime.observer import Observer
from ros_vdd.runtime.planning import Plan, Planner
from ros_vdd.runtime.statistics import Rate, Window
from ros_vdd.runtime.watch import PlanWatch
from ros_vdd.streams.spec import RobotSpec, load_robot

PARAMETERS = (
    Parameter("autostart", True, AUTOSTART),
    Parameter("policy", "", "policy folder: a path, or the name of a shipped one"),
    Parameter("robot", "", "robot file: a path, or the name of a shipped one; empty for the policy's own"),
    Parameter("goal", "", "goal until one is published: a task's name or number, or numbers with commas between them"),
    Parameter("backend", "onnxruntime", "engine that runs the policy"),
    Parameter("fallback", "", "engines that take over in this order when the one before fails, with commas between them"),
    Parameter("threads", 1, "of engines that compute on the CPU; more than one pays for large networks on idle cores", 1, 64),
    Parameter("engine_timeout_s", 1.0, "how long an engine may take for a chunk until the next answers, or all have failed; 0 for ever [s]", 0.0, 600.0),
    Parameter("choice", "argmax", "which expert acts; sticky, gumbel, coherent and committed commit", choices=RULES),
    Parameter("temperature", 1.0, "of sample, gumbel, coherent and committed: 1 follows the gate, less favours likely experts", 1e-3, 1e3),
    Parameter("sticky_margin", 1.0, "of sticky and committed: by how much another expert must lead [nats]", 0.0, 100.0),
    Parameter("sticky_steps", 2, "of choice sticky: at how many plans in a row", 1, 1000),
    Parameter("tolerance", 0.5, "of choice coherent: departure from the plan before, share of half the joint range", 1e-3, 1e3),
    Parameter("commit_steps", 1, "of choice committed: how many actions of the plan before are executed whatever comes", 0, 1000),
    Parameter("draws", 8, "of choice coherent: how many chunks a policy without experts draws to choose from", 1, 1000),
    Parameter("seed", 0, "of everything drawn at random in the first episode; each later one adds 1", 0, 2**31 - 1),
    Parameter("replan_steps", 0, "policy periods between two chunks; 0 for the policy's n_action_steps", 0, 1000),
    Parameter("monitor", False, "tell on ~/prediction and /diagnostics how sure the policy is; warn once calibrated"),
    Parameter("settle_s", 0.02, "how long a plan waits for streams that have brought nothing from its tick yet", 0.0, 1.0),
    Parameter("max_skew_s", 5.0, "refuse header stamps farther than this from the node's clock; 0 compares nothing", 0.0, 1e6),
    Parameter("equal_stamps", False, "lock-step: use only ticks at which every stream has the same stamp"),
)
STATUS_PERIOD_S = 0.1


class PolicyWork:
    """A `Planner` between the sensor topics and the chunk topic: the work of a `ManagedNode`.

    Callbacks run in the executor's thread, `_publish` in the inference thread. Inactive it takes what comes and plans nothing.
    """

    def __init__(self, node: ManagedNode, parameters: Any):
        self._node, self._status, self._active = node, node.status, False
        bundle, self._robot = _open_policy(parameters.policy, parameters.robot)
        goal = _parse_goal(parameters.goal, self._robot)
        replan_steps = _replan_steps(parameters.replan_steps, bundle)
        rule = ("choice", "temperature", "sticky_margin", "sticky_steps", "tolerance", "commit_steps", "draws")
        choice = ChoiceConfig(*(getattr(parameters, name) for name in rule))
        names = [parameters.backend, *filter(None, (name.strip() for name in parameters.fallback.split(",")))]
        drawn = partial(backends.random_inputs, bundle, np.random.default_rng(0))
        engine = self._open_engines(names, partial(backends.load, bundle, threads=parameters.threads), drawn, parameters.engine_timeout_s)
        likelihood = None
        if choice.asks_likelihood(bundle):
            blank = lambda: {name: np.zeros(*kind) for name, kind in backends.likelihood_shapes(bundle).items()}  # noqa: E731
            likelihood = self._open_engines(names, partial(backends.load_likelihood, bundle, threads=parameters.threads), blank, parameters.engine_timeout_s)
        self._engine = likelihood or engine  # the one that is asked
        runner = PolicyRunner(bundle, engine, choice, parameters.seed, likelihood)
        runner.warm_up(_blank(bundle))
        self._monitor = _open_monitor(bundle, names) if parameters.monitor else None
        self._figures: dict[str, Any] = dict.fromkeys(self._monitor.keys if self._monitor else ())
        self._strange: str | None = None  # the warning that is in force
        self._chunks, self._expert, self._lock_step = 0, None, parameters.equal_stamps
        self._chunk_message = ChunkMessage()
        self._latency_ms, self._compute_ms = Window(), Window()
        self._status.robot = self._robot.name
        self._chunk_publisher = node.create_lifecycle_publisher(JointTrajectory, "action_chunk", COMMAND_QOS)
        self._prediction_publisher = node.create_lifecycle_publisher(String, "~/prediction", COMMAND_QOS)
        observer = Observer(self._robot, bundle.n_obs_steps, parameters.equal_stamps, parameters.max_skew_s)
        self._jumps = 0  # clock jumps that were told
        if goal is not None:
            observer.goal.set(goal)
        self._planner = Planner(
            self._robot,
            observer,
            runner,
            parameters.seed,
            replan_steps,
            self._publish,
            parameters.settle_s,
            answer_s=parameters.engine_timeout_s * (1 + len(self._engine.spares)),  # each may be asked in turn
        )
        self._rates = {intake.name: Rate() for intake in observer.intakes}
        self._watch = PlanWatch(self._monitor, self._judged) if self._monitor else None
        if self._watch:
            node.at_cleanup(self._watch.stop)
        node.at_cleanup(self._planner.stop)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # a simulation that stands still is told about, too
        self._settle_timer = node.create_timer(max(parameters.settle_s, 0.001), self._poll, clock=steady)
        self._settle_timer.cancel()
        self._subscribe()
        if problem := image_problem(self._robot, get_rmw_implementation_identifier(), os.environ):
            node.get_logger().warning(problem)
        node.create_service(Trigger, "~/reset", self._reset)
        node.create_timer(STATUS_PERIOD_S, self._update_status, clock=steady)
        node.create_timer(1.0, self._diagnose, clock=steady)

    def activate(self) -> None:
        """Begin an episode with what has been seen since the node was configured or deactivated."""
        self._active = True
        self._poll()
        self._wait()

    def deactivate(self) -> None:
        """End the episode; the chunk that is being computed is dropped."""
        self._active = False
        self._settle_timer.cancel()
        self._begin_episode()

    def _open_engines(
        self,
        names: Sequence[str],
        open_engine: Callable[[str], backends.Engine],
        inputs: Callable[[], Mapping[str, np.ndarray]],
        timeout_s: float,
    ) -> Fallback:
        """Return the engines of the parameters `backend` and `fallback`, all loaded and warm; `inputs` are what they are warmed with."""
        tell = self._node.get_logger().error
        told = lambda failure: tell(f"engine '{failure.engine}' is out of service: {failure.reason}")  # noqa: E731
        engines = fallback.load(names, open_engine, timeout_s, told)
        if engines.spares:
            engines.warm_up(inputs())
        self._node.at_cleanup(engines.close)
        return engines

    def _subscribe(self) -> None:
        """Subscribe to goal and joint states first: of messages that wait together, they are then taken before the images."""
        if goal := self._robot.goal:
            self._node.create_subscription(CLASSES[goal.type], goal.topic, self._take_goal, LATCHED_QOS)
        for name, spec in self._robot.states.items():
            take = partial(self._take, "push_joint_state", name)
            self._node.create_subscription(JointState, spec.topic, take, JOINT_STATE_QOS)
        for name, spec in self._robot.cameras.items():
            take = partial(self._take, "push_image", name)
            self._node.create_subscription(CLASSES[spec.type], spec.topic, take, CAMERA_QOS)

    def _take(self, push: str, stream: str, message: Any) -> None:
        taker = self._planner if self._active else self._planner.observer  # which plans nothing
        getattr(taker, push)(stream, message, self._node.get_clock().now().nanoseconds, time.perf_counter())
        self._wait()

    def _wait(self) -> None:
        """Come back when a wait for streams is over."""
        if self._planner.waiting and self._settle_timer.is_canceled():
            self._settle_timer.reset()

    def _take_goal(self, message: Any) -> None:
        goal = self._planner.observer.goal
        planner = self._planner
        if planner.push_goal(message, time.perf_counter()) if self._active else planner.observer.push_goal(message):
            self._node.get_logger().info(f"goal: {goal.spec.describe(goal.value)}")
        else:
            stays = "there is none" if goal.value is None else "the one before stays"
            self._node.get_logger().error(f"goal refused: {goal.refusal}; {stays}")

    def _poll(self) -> None:
        """Plan at the end of a wait, also when no further message comes."""
        self._settle_timer.cancel()
        self._planner.poll(time.perf_counter())

    def _publish(self, plan: Plan) -> None:
        """Publish a chunk, then what belongs to it but not into the command."""
        if self._lock_step:
            await_reader(self._chunk_publisher)
        publish(self._node, self._chunk_publisher, self._chunk_message.fill(plan.chunk))
        latency_ms = (self._node.get_clock().now().nanoseconds - plan.chunk.stamp_ns) / 1e6
        compute_ms = (time.perf_counter() - plan.received_s) * 1e3
        self._chunks += 1
        self._latency_ms.add(latency_ms)
        self._compute_ms.add(compute_ms)
        self._expert, log_gate = plan.prediction.expert, plan.prediction.log_gate
        content = {
            "stamp_ns": plan.chunk.stamp_ns,
            "expert": plan.prediction.expert,
            "log_gate": None if log_gate is None else log_gate.tolist(),
            "latency_ms": latency_ms,
            "compute_ms": compute_ms,
            "inference_ms": plan.prediction.latency_ns / 1e6,
        }
        if self._watch:
            self._watch.submit(plan, content)
        else:
            publish(self._node, self._prediction_publisher, json_message(content))

    def _judged(self, content: dict[str, Any], figures: dict[str, Any], problem: Exception | None) -> None:
        """Tell how sure the policy is of a plan, in the watch's thread; what goes wrong there is told and never costs a plan."""
        self._figures = figures
        publish(self._node, self._prediction_publisher, json_message({**content, **figures}))
        if problem:
            self._node.get_logger().warning(f"the monitor can't judge a plan: {problem}", throttle_duration_sec=10.0)
        if figures[JUDGEMENT] is None:
            return
        before, self._strange = self._strange, _warning(self._monitor, self._figures)
        if self._strange and not before:
            self._node.get_logger().warning(self._strange)
        elif before and not self._strange:
            self._node.get_logger().info("plans are ordinary again")

    def _reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._begin_episode()
        response.success, response.message = True, "history and expert forgotten, next seed"
        return response

    def _begin_episode(self) -> None:
        self._planner.reset()
        if self._watch:
            self._watch.reset()
            self._strange = None

    def _update_status(self) -> None:
        if not self._active:
            return
        observer = self._planner.observer
        if observer.clock_jumps > self._jumps:
            self._jumps = observer.clock_jumps
            self._node.get_logger().warning(f"clock_jumped: {observer.last_jump}", throttle_duration_sec=10.0)
        problem = self._planner.problem(self._node.get_clock().now().nanoseconds)
        if problem:
            state = "stopped" if self._chunks else "waiting"
            self._status.set(state, problem.code.value, problem.detail, problem.stream)
        elif self._chunks:
            self._status.set("running")

    def _diagnose(self) -> None:
        now_ns = self._node.get_clock().now().nanoseconds
        values: dict[str, Any] = {"chunks": self._chunks, "observations_replaced": self._planner.replaced}
        for intake in self._planner.observer.intakes:
            values[f"{intake.name}.received"] = intake.received
            values[f"{intake.name}.refused"] = intake.refused
            values[f"{intake.name}.age_s"] = intake.age_s(now_ns)
            values[f"{intake.name}.rate_hz"] = self._rates[intake.name].of(intake.received, time.monotonic())
            if isinstance(intake, CameraIntake):
                values[f"{intake.name}.unchanged_s"], values[f"{intake.name}.frozen"] = intake.unchanged_s, intake.frozen
        values["clock_jumps"] = self._planner.observer.clock_jumps
        if goal := self._planner.observer.goal:
            told = None if goal.value is None else goal.spec.describe(goal.value)
            values |= {"goal": told, "goal.received": goal.received, "goal.refused": goal.refused}
        for name, window in (("latency_ms", self._latency_ms), ("compute_ms", self._compute_ms)):
            values[f"{name}.p50"], values[f"{name}.p99"] = window.percentile(50), window.percentile(99)
        values |= {"engine": self._engine.name, "engine.spares": ", ".join(self._engine.spares)}
        values["engine.failures"] = "; ".join(f"{f.engine}: {f.reason}" for f in self._engine.failures)
        values["chunks_clamped"] = self._planner.gate.clamped
        if self._monitor is not None:
            behind = self._watch.waiting >= PATIENCE  # what was found last is of long ago
            values |= {"expert": self._expert, **(dict.fromkeys(self._monitor.keys) if behind else self._figures)}
        self._status.diagnose(values, self._strange)


def _open_policy(policy: str, robot: str) -> tuple[Bundle, RobotSpec]:
    """Return the verified policy and the robot it runs on, which must agree with the one it was trained on."""
    if not policy:
        raise ConfigError("policy_node: parameter 'policy' is empty; give a policy folder or the name of a shipped one")
    bundle = Bundle.open(resources.find("models", policy))
    if not robot:
        return bundle, bundle.robot
    given = load_robot(robot)
    if lines := bundle.robot.difference(given):
        raise PolicyError(
            f"policy '{bundle.path}' doesn't fit robot '{robot}' (policy here, robot there): {'; '.join(lines)}. "
            "Use the robot file the policy was trained with, or train for this one"
        )
    return bundle, given


def _parse_goal(text: str, robot: RobotSpec) -> np.ndarray | None:
    """Return the goal (G,) that a parameter says, None for an empty one."""
    if not text:
        return None
    if robot.goal is None:
        raise ConfigError(
            f"policy_node: parameter 'goal' is '{text}', but robot '{robot.name}' has no section 'goal'; leave it out"
        )
    try:
        return robot.goal.parse(text)
    except ConfigError as error:
        raise ConfigError(f"policy_node: parameter 'goal': {error}") from error


def _blank(bundle: Bundle) -> dict[str, np.ndarray]:
    """Return an observation of zeros for the warm-up, whose results go nowhere."""
    shapes = backends.input_shapes(bundle).items()
    return {name: np.zeros(shape[1:], kind) for name, (shape, kind) in shapes if name in bundle.input_shapes}


def _open_monitor(bundle: Bundle, names: Sequence[str]) -> PlanMonitor:
    """Return the monitor of a policy in the first engine that has it, run once so that its first figures don't keep a plan waiting."""
    errors = []
    for name in names:
        try:
            monitor = open_monitor(bundle, name)
            monitor.score(_blank(bundle), np.zeros((1, bundle.robot.action_size)))
            return monitor
        except Exception as error:  # whatever an engine raises
            errors.append(error)
    raise errors[0]


def _warning(monitor: PlanMonitor, figures: Mapping[str, Any]) -> str | None:
    """Return what to warn of, or None while plans are ordinary or there is no calibration."""
    if not figures[JUDGEMENT]:
        return None
    bound, share = monitor.calibration.bound, monitor.calibration.quantile
    return (
        f"anomaly: at {PATIENCE} plans in a row '{monitor.SCORE}' lay beyond {bound:.4g}, as for less than "
        f"{1 - share:.2g} of the demonstrations; what is seen makes the plan that is being executed unlikely"
    )


def _replan_steps(asked: int, bundle: Bundle) -> int:
    if asked > bundle.horizon:
        raise ConfigError(
            f"policy_node: parameter 'replan_steps' is {asked}; this policy's chunks have {bundle.horizon}"
        )
    return asked or bundle.n_action_steps


def make(**options: Any) -> ManagedNode:
    """Return the node, of which `options` are rclpy's."""
    return ManagedNode("policy_node", "policy", PolicyWork, PARAMETERS, **options)


def main(args: list[str] | None = None) -> int:
    """Run the node; see `ros_vdd.nodes.process.run`."""
    return run(make, args)
