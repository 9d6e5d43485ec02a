"""`headway explain REQUEST.json`: prints the decision for a chat request, with the rejected options, without running it.

It asks a running gateway. If no address was given and no gateway responds, it decides locally, for idle workers with empty
caches.
"""

import sys
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gateway.api.chat import parse_chat
from gateway.api.chat_dialect import DEFAULT_MAX_TOKENS
from gateway.commands.format_table import decision_text
from gateway.errors import HeadwayError
from gateway.metering.cost import worker_usd_per_s
from gateway.policy.load import PolicyError, load_policy
from gateway.policy.routes import find_route
from gateway.policy.schema import Policy
from gateway.routing.decide import decide
from gateway.routing.decision import Decision, WorkerView
from gateway.routing.quality import ArtefactError, QualityModel, top_only
from gateway.routing.routing_request import routing_request_for
from gateway.scheduling.latency_model import LatencyPredictor, OutputLengths, cold_rates
from gateway.text.model_text import ModelText
from gateway.text.normalize import normalized

_TIMEOUT_S = 10.0
_NO_TENANT = "nobody"
"""Tenant of an offline decision: not in the policy, so that it may use all models."""


class Explained(msgspec.Struct, kw_only=True):
    """Response of `POST /v1/headway/explain`; other fields are ignored."""

    decision: Decision
    normalized: tuple[str, ...] = ()


class _Fault(msgspec.Struct, kw_only=True):
    message: str


class _Failed(msgspec.Struct, kw_only=True):
    error: _Fault


class _Rejected(Exception):
    """The gateway answered with an error; the message is the gateway's."""


class _Config(msgspec.Struct, kw_only=True):
    """The part of a model's config.json that a decision needs."""

    max_position_embeddings: int


def explain(arguments: Namespace, env: Mapping[str, str]) -> int:
    try:
        body = sys.stdin.buffer.read() if arguments.request == "-" else Path(arguments.request).read_bytes()
        explained, how = _decided(arguments, body, env)
    except (OSError, PolicyError, ArtefactError, HeadwayError, ValueError, _Rejected) as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.json:
        print(msgspec.json.encode(explained.decision).decode())
    else:
        print("\n".join([how, *(f"normalized: {what}" for what in explained.normalized), decision_text(explained.decision)]))
    return 0


def _decided(arguments: Namespace, body: bytes, env: Mapping[str, str]) -> tuple[Explained, str]:
    key = env.get("HEADWAY_API_KEY", "")
    if arguments.url:
        return ask(arguments.url, body, key), f"asked {arguments.url}"
    policy = load_policy(Path(arguments.policy), env)
    url = f"http://{policy.listen.host}:{policy.listen.port}"
    try:
        return ask(url, body, key), f"asked {url}"
    except OSError:
        return decide_offline(policy, body), f"no gateway at {url}: decided locally, for idle workers with empty caches"


def ask(url: str, body: bytes, key: str) -> Explained:
    """Return the decision of a running gateway. Raises OSError if no server responds."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/headway/explain", data=body, headers=headers)
    if request.type not in ("http", "https"):
        raise _Rejected(f"{url}: not an http address")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return msgspec.json.decode(answer.read(), type=Explained)
    except urllib.error.HTTPError as error:
        with error:
            raise _Rejected(f"{url} answered {error.code}: {_message(error.read())}") from error
    except msgspec.DecodeError as error:
        raise _Rejected(f"{url} is not a Headway gateway of this version: {error}") from error


def _message(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Failed).error.message
    except msgspec.DecodeError:
        return body[:200].decode(errors="replace")


def decide_offline(policy: Policy, body: bytes) -> Explained:
    """Return the decision of a gateway that has just started. Needs the model directories. Raises HeadwayError, OSError or
    ValueError."""
    request = normalized(parse_chat(body, max_tokens_default=DEFAULT_MAX_TOKENS), policy.text)
    now = datetime.now(UTC)
    views = {name: _cold_view(policy, name) for name in policy.workers}
    tokens_by_model: dict[str, int] = {}
    for model in {view.model for view in views.values()}:
        text = ModelText.from_directory(Path(policy.models[model].path))
        tokens_by_model[model] = len(text.prompt(request.messages, request.tools, now=now, previous=None).ids)
    router = QualityModel.load(Path(policy.router)) if policy.router else None
    route = find_route(
        policy,
        asked=request.model,
        tenant=_NO_TENANT,
        has_tools=bool(request.tools),
        prompt_tokens=max(tokens_by_model.values(), default=0),
    )
    routing_request = routing_request_for(
        policy,
        route,
        policy.slo[route.slo],
        asked=request.model,
        tenant=_NO_TENANT,
        prompt_tokens={name: tokens_by_model[view.model] for name, view in views.items()},
        cached_tokens={},
        quality=router.judge(request.messages, request.tools) if router else top_only(policy.tiers),
        max_output_tokens=request.sampling.max_tokens,
        expected_output_tokens=OutputLengths().expect("", request.sampling.max_tokens),
        has_tools=bool(request.tools),
        escalations=router.escalations() if router else {},
    )
    decision = decide(routing_request, list(views.values()), decision_id="offline", route=route.name)
    return Explained(decision=decision, normalized=request.normalized)


def _cold_view(policy: Policy, name: str) -> WorkerView:
    worker = policy.workers[name]
    folder = Path(policy.models[worker.model].path)
    config = msgspec.json.decode((folder / "config.json").read_bytes(), type=_Config)
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return LatencyPredictor(cold_rates(weights)).view(
        worker=name,
        model=worker.model,
        tier=policy.models[worker.model].tier,
        healthy=True,
        max_context=config.max_position_embeddings,
        usd_per_s=worker_usd_per_s(policy)[name],
        max_sequences=worker.max_sequences,
        now=0.0,
    )
