# SPDX-License-Identifier: Apache-2.0
"""Managed nodes: a node is its parameters, its status and its life; what it does is work, made in configure, gone after cleanup.

    unconfigured --configure--> inactive --activate--> active --deactivate--> inactive --cleanup--> unconfigured
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, Protocol

from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter as RosParameter

from ros_vdd.errors import RosVddError
from ros_vdd.nodes.parameters import Parameter, declare, problem, read, without_effect
from ros_vdd.nodes.status import Status
from ros_vdd.runtime.reasons import Reason

AUTOSTART = "configure and activate when the process starts; false: wait for ~/change_state"
_SUCCESS, _FAILURE, _ERROR = (getattr(TransitionCallbackReturn, name) for name in ("SUCCESS", "FAILURE", "ERROR"))


class Work(Protocol):
    """What a node does while it is configured; made as `work(node, parameters)`, which loads, checks, warms up and listens.

    Entities it makes of the node while it is made are destroyed in cleanup. All is called from the executor's thread.
    """

    def activate(self) -> None:
        """Begin to publish."""

    def deactivate(self) -> None:
        """Bring what is under way to a good end; nothing is published after it has returned."""


class ManagedNode(LifecycleNode):
    """A lifecycle node around its `Work`.

    With the parameter `autostart` it is configured and activated when it is made; what refuses that is raised. Parameters are
    read by configure and may be set while the node is unconfigured. An error ends the work; the node is unconfigured then.

    Args:
        name: of the node.
        task: what it does, in a word, for its diagnostics.
        work: see `Work`.
        parameters: of the node, `autostart` among them.

    Raises:
        RosVddError: a parameter is wrong, or with `autostart` what `work` refused.
    """

    def __init__(
        self,
        name: str,
        task: str,
        work: Callable[[ManagedNode, SimpleNamespace], Work],
        parameters: Sequence[Parameter],
        **options: Any,
    ):
        self._ends = ExitStack()
        self._make, self._described = work, parameters
        self._entities: list[Any] = []  # made by the work
        self._error: Exception | None = None  # the newest one
        self._failing = False  # whether fail() was called and isn't dealt with yet
        self.work: Work | None = None
        """None while the node is unconfigured."""
        super().__init__(name, **options)
        declare(self, parameters, read_only=("autostart",))
        for line in without_effect(self, parameters):
            self.get_logger().warning(line)
        self.add_on_set_parameters_callback(self._check_change)
        self.status = Status(self, task)
        """What the node says about itself, in every state."""
        self._failed = self.create_guard_condition(self._give_up)
        self._guard_service()
        if self.get_parameter("autostart").value:
            self._start()
        else:
            self._say("unconfigured", "configure it by ~/change_state")

    def at_cleanup(self, end: Callable[[], Any]) -> None:
        """Have something of the work ended before the entities go; the last one first."""
        self._ends.callback(end)

    def fail(self, error: Exception) -> None:
        """End the work because of an error outside of transitions; may be called from any thread."""
        self._error, self._failing = error, True
        self._failed.trigger()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Make the work; a refusal leaves the node unconfigured, with the reason."""
        self._error, before = None, set(self._all_entities())
        try:
            self.work = self._make(self, read(self, self._described))
        except Exception as error:  # also of libraries, such as an engine's: to be told, not to end the process
            self._error = error
        self._entities = [entity for entity in self._all_entities() if entity not in before]
        if self.work is None:
            self._release()
            return self._refuse("unconfigured", Reason.NOT_CONFIGURED)
        self._say("inactive", "configured; activate it by ~/change_state")
        return _SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to publish; a refusal leaves the node inactive, with the reason."""
        super().on_activate(state)
        try:
            self.work.activate()
        except Exception as error:  # see on_configure
            super().on_deactivate(state)
            self._error = error
            return self._refuse("inactive", Reason.FAILED)
        return _SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Bring what is under way to a good end, then be silent."""
        try:
            if self._failing:
                return _ERROR
            self.work.deactivate()
        except Exception as error:  # see on_configure
            self._error = error
            return _ERROR
        finally:
            super().on_deactivate(state)
        self._say("inactive", "deactivated; activate it by ~/change_state")
        return _SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the work and free what it held."""
        self._release()
        self._error = None  # its traceback holds what it was raised in
        self._say("unconfigured", "cleaned up; configure it by ~/change_state")
        return _SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Bring what is under way to a good end, and end for good; the process goes on until it is told to end."""
        if state.label == "active":
            self.on_deactivate(state)
        self._release()
        self._say("finalized", "shut down; end the process")
        return _SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the work after an error; the node is unconfigured then, or finalized if even that fails."""
        try:
            self._release()
        except Exception as error:
            self._error = error
            self._refuse("finalized", Reason.FAILED)
            return _FAILURE
        self._refuse("unconfigured", Reason.FAILED)
        return _SUCCESS

    def end(self) -> None:
        """Bring what is under way to a good end before the process ends; the graph must still be there."""
        if self._state_machine.current_state[1] == "active":
            self.trigger_deactivate()

    def destroy_node(self) -> None:
        """End the work, then the node; rclpy also destroys a node whose constructor refused."""
        self._ends.close()
        super().destroy_node()

    def _start(self) -> None:
        for transition in (self.trigger_configure, self.trigger_activate):
            if transition() is not _SUCCESS:
                raise self._error or RuntimeError(f"{self.get_name()}: the transition failed; see the log")

    def _give_up(self) -> None:
        """Leave the active state by an error, in the executor's thread."""
        if self.work is not None:
            self.trigger_deactivate()

    def _refuse(self, state: str, reason: Reason) -> TransitionCallbackReturn:
        error, self._failing = self._error, False
        detail = str(error) if isinstance(error, RosVddError) else f"{type(error).__name__}: {error}"
        self.status.set(state, reason.value, detail, about=detail)
        if not isinstance(error, RosVddError):
            self.get_logger().error("".join(traceback.format_exception(type(error), error, error.__traceback__)))
        return _FAILURE

    def _say(self, state: str, detail: str) -> None:
        self.status.set(state, Reason.INACTIVE.value, detail, about=detail)

    def _release(self) -> None:
        try:
            self._ends.close()
        finally:
            self.work = None
            kinds = {"publishers": self.destroy_lifecycle_publisher}  # of both kinds
            for kind in ("subscription", "client", "service", "timer"):
                kinds[f"{kind}s"] = getattr(self, f"destroy_{kind}")
            kinds["guards"] = self.destroy_guard_condition
            for kind, destroy in kinds.items():
                for entity in [e for e in getattr(self, kind) if e in self._entities]:
                    destroy(entity)
            self._entities = []
            gc.collect()  # an engine holds much memory, and cycles hold the engine

    def _all_entities(self) -> list[Any]:
        return [*self.publishers, *self.subscriptions, *self.clients, *self.services, *self.timers, *self.guards]

    def _check_change(self, changes: Sequence[RosParameter]) -> SetParametersResult:
        """Refuse what configure would refuse, and a change that would have no effect before the next configure."""
        ours = {parameter.name: parameter for parameter in self._described}
        changes = [change for change in changes if change.name in ours]
        for change in changes:
            if self.work is not None:
                reason = f"'{change.name}' is read by configure; deactivate and clean up {self.get_name()} first"
                return SetParametersResult(successful=False, reason=reason)
            if reason := problem(self, ours[change.name], change.value):
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _guard_service(self) -> None:
        """Answer a transition that isn't possible now with a refusal: the rclpy of Humble raises, which would end the process."""
        answer = self._service_change_state.callback

        def change(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
            possible = {t[0]: t[1] for t in self._state_machine.available_transitions}
            asked = request.transition
            if asked.label in possible.values() or (not asked.label and asked.id in possible):
                return answer(request, response)
            state, given = self._state_machine.current_state[1], asked.label or asked.id
            instead = ", ".join(possible.values())
            self.get_logger().error(f"transition '{given}' isn't possible while {state}; possible: {instead}")
            response.success = False
            return response

        self._service_change_state.callback = change
