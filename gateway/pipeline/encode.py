"""From a request to its prompts: the workers and upstreams that can serve it, and the tokens of each."""

from gateway.errors import NoWorker, UnsupportedParameter
from gateway.fleet.fleet import Fleet
from gateway.fleet.upstream import Upstream
from gateway.fleet.worker_client import target_of
from gateway.parsers.output_format import OutputFormat
from gateway.policy.schema import Policy
from gateway.policy.validate import AUTO
from gateway.request import Request
from gateway.text.prompt_encoder import Prompt, PromptEncoder, Target, check_length


class RequestEncoder:
    def __init__(self, fleet: Fleet, prompt_encoder: PromptEncoder) -> None:
        self._fleet, self.prompt_encoder = fleet, prompt_encoder

    async def encode(self, policy: Policy, request: Request, *, chain: str, tenant: str) -> dict[str, Prompt]:
        """Return the prompt for every healthy worker and upstream that may serve the request, by name.

        Raises UnsupportedParameter when none of them supports a parameter, BadRequest for a prompt that is too long.
        """
        upstreams = self._upstreams(policy, request)
        targets = self._targets(policy, request, instead=bool(upstreams))
        if not upstreams:
            check_length(request, targets)
        known = policy.tenants.get(tenant)
        shares = known is not None and known.share_prefix == "system"
        prompts = await self.prompt_encoder.build(request, targets, chain=chain, salt=tenant, shares_system=shares)
        return prompts | {upstream.name: upstream.prompt(request, chain) for upstream in upstreams}

    async def count(self, policy: Policy, request: Request, tenant: str) -> int:
        """Return the largest number of prompt tokens among the models that may answer. Raises BadRequest or NoWorker."""
        prompts = await self.encode(policy, request, chain="", tenant=tenant)
        if not prompts:
            raise NoWorker("no worker is up that could count: try again", retry_after_s=1.0)
        return longest(prompts)

    def output_format(self, policy: Policy, worker: str) -> OutputFormat:
        """Return the output format of a worker's model, by the policy or else by its chat template."""
        if worker in self._fleet.upstreams:
            return OutputFormat(calls="said")
        model = policy.models[policy.workers[worker].model]
        text = self._fleet.clients[worker].text
        output_format = text.output_format if text else OutputFormat()
        if model.tool_calls != "auto":
            output_format = output_format._replace(calls=model.tool_calls)
        return output_format if model.reasoning == "auto" else output_format._replace(thinks=model.reasoning)

    def _upstreams(self, policy: Policy, request: Request) -> list[Upstream]:
        """Return the upstreams that support every parameter of the request."""
        asked = [
            upstream
            for upstream in self._fleet.upstreams.values()
            if request.model in (AUTO, upstream.policy.model, upstream.policy.tier)
        ]
        able = [upstream for upstream in asked if upstream.unsupported_param(request) is None]
        if asked and not able and not self._asked_targets(policy, request.model):
            param = asked[0].unsupported_param(request)
            raise UnsupportedParameter(
                f"{param}: no upstream that you may be answered by can do this: leave it out", param=param
            )
        return able

    def _targets(self, policy: Policy, request: Request, *, instead: bool) -> list[Target]:
        """Return the workers that support the request. Raises UnsupportedParameter without one and no upstream `instead`."""
        targets = self._asked_targets(policy, request.model)
        if request.has_grammar:
            hellos = {target.worker: self._fleet.clients[target.worker].hello for target in targets}
            param = request.calls.param if request.calls else "response_format"
            able = [t for t in targets if (hello := hellos[t.worker]) is not None and hello.grammars]
            targets = _those(targets, able, param, instead=instead)
        if request.reasoning_effort not in (None, "none"):
            able = [target for target in targets if target.text.output_format.has_effort]
            targets = _those(targets, able, request.effort_param, instead=instead)
        return targets

    def _asked_targets(self, policy: Policy, asked: str) -> list[Target]:
        targets = []
        for name, worker in policy.workers.items():
            if asked in (AUTO, worker.model, policy.models[worker.model].tier):
                target = target_of(self._fleet.clients[name])
                if target:
                    targets.append(target)
        return targets


def longest(prompts: dict[str, Prompt]) -> int:
    """Return the number of tokens of the longest prompt, 0 without any."""
    return max((prompt.num_tokens for prompt in prompts.values()), default=0)


def _those(targets: list[Target], able: list[Target], param: str, *, instead: bool) -> list[Target]:
    if targets and not able and not instead:
        raise UnsupportedParameter(f"{param}: no model that you may be answered by can do this: leave it out", param=param)
    return able
