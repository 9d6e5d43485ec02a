"""The life of a request: prepare, dispatch, attempts, account.

Nothing here knows HTTP: http/generate.py writes the answer from the stream that `start` leaves running.
"""

import time
from collections.abc import Mapping
from types import MappingProxyType

from gateway.errors import HeadwayError
from gateway.fleet.fleet import Fleet
from gateway.pipeline.active_request import ActiveRequest, ClientGone
from gateway.pipeline.attempts import Attempts
from gateway.pipeline.dispatcher import Dispatcher
from gateway.pipeline.prepare import Judge, Preparer
from gateway.pipeline.recorder import RequestRecorder
from gateway.policy.schema import Policy
from gateway.routing.escalation import Escalation
from gateway.runs.registry import Run, RunRegistry
from gateway.runs.retention_publisher import RetentionPublisher
from gateway.scheduling.latency_model import OutputLengths
from gateway.text.prompt_encoder import PromptEncoder


class Pipeline:
    """Callers close the parts that they pass in."""

    def __init__(
        self,
        policy: Policy,
        fleet: Fleet,
        dispatcher: Dispatcher,
        runs: RunRegistry,
        retention: RetentionPublisher,
        prompt_encoder: PromptEncoder,
        recorder: RequestRecorder,
        lengths: OutputLengths,
        judge: Judge,
        escalations: Mapping[str, Escalation] = MappingProxyType({}),
    ) -> None:
        self.runs, self.retention, self.prompt_encoder, self.recorder = runs, retention, prompt_encoder, recorder
        self.preparer = Preparer(
            policy, fleet, dispatcher, runs, retention, prompt_encoder, recorder, lengths, judge, escalations
        )
        attempts = Attempts(dispatcher, runs, retention, recorder, self._close)
        self.prepare, self.start = self.preparer.prepare, attempts.start

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.preparer.policy

    def apply(self, policy: Policy, judge: Judge, escalations: Mapping[str, Escalation]) -> None:
        """Put a policy in force for requests that arrive from now on."""
        self.preparer.policy, self.preparer.estimate_quality, self.preparer.escalations = policy, judge, escalations

    def release(self, active: ActiveRequest, error: HeadwayError | None) -> None:
        """End the answer of a request. A sequence that still runs is aborted, and recorded when it ends."""
        stream = active.stream
        if stream is not None and stream.finished is None:
            active.detached, active.failure = True, error
            stream.abort()
        else:
            self._close(active, error)

    def _close(self, active: ActiveRequest, error: HeadwayError | None) -> None:
        if error is None:
            self.recorder.close(active, "ok", 200)
            self._record_pause(active)
        elif isinstance(error, ClientGone):
            self.recorder.close(active, "aborted", error.status, error.code)
        else:
            self.recorder.close(active, "rejected" if error.status < 500 else "failed", error.status, error.code)
        if active.run.is_final and self.runs.get(active.run.name) is not active.run:
            self.forget(active.run)

    def forget(self, run: Run) -> None:
        """Release the pages and texts of a run that is over."""
        self.retention.ended(run)
        self.prompt_encoder.forget(run.chains)

    def _record_pause(self, active: ActiveRequest) -> None:
        """Set the retention of a run after a turn. The chain of a finished sub-agent is released."""
        if active.finished is None or self.runs.get(active.run.name) is not active.run:
            return
        if active.identity.closes:
            if self.runs.end_chain(active.chain):
                self.retention.chain_ended(active.chain)
            return
        calls = active.answer.tool_calls if active.answer else ()
        finish, tool = ("tool_calls", calls[-1].name) if calls else (active.finished.reason, "")
        self.retention.finished(active.chain, time.monotonic(), finish=finish, tool=tool, keep_s=active.request.keep_s)
