"""Command line of `headway`. Each command is in gateway/commands and is imported when it is run."""

import argparse
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

DEFAULT_POLICY = "policies/default.yaml"

Command = Callable[[Namespace, Mapping[str, str]], int]


def main(arguments: Sequence[str] | None = None, env: Mapping[str, str] | None = None) -> int:
    """Run a command and return the exit status: 0 success, 1 invalid input or failure, 2 an invalid command line."""
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    if not hasattr(parsed, "run"):
        parser.print_help(sys.stderr)
        return 2
    try:
        return _load(parsed.run)(parsed, os.environ if env is None else env)
    except BrokenPipeError:  # `headway ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="headway", description="A multi-model routing gateway that hosts its own models.")
    parser.add_argument("--version", action="version", version=f"headway {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND")
    _add_serve(commands)
    _add_demo(commands)
    _add_explain(commands)
    _add_cost(commands)
    _add_keys(commands)
    _add_ledger(commands)
    _add_policy(commands)
    _add_router(commands)
    _add_evaluate(commands)
    _add_bench(commands)
    _add_runs(commands)
    _add_load(commands)
    shown = commands.add_parser("version", help="print the version")
    shown.set_defaults(run="gateway.cli:print_version")
    return parser


def print_version(arguments: Namespace, env: Mapping[str, str]) -> int:
    print(f"headway {_version()}")
    return 0


_Commands = argparse._SubParsersAction  # argparse has no public name for it


def _add_serve(commands: "_Commands[ArgumentParser]") -> None:
    serve = commands.add_parser("serve", help="start the gateway and its local workers")
    _add_policy_option(serve)
    serve.set_defaults(run="gateway.commands.serve:serve")


def _add_demo(commands: "_Commands[ArgumentParser]") -> None:
    demo = commands.add_parser("demo", help="serve, run a small agent, and show its decisions and costs")
    _add_policy_option(demo)
    demo.add_argument("--exit", action="store_true", help="stop after the agent; exit status 0 only if every answer was right")
    demo.set_defaults(run="gateway.commands.demo:demo")


def _add_explain(commands: "_Commands[ArgumentParser]") -> None:
    explain = commands.add_parser("explain", help="show which worker would answer a request, and why not the others")
    explain.add_argument("request", metavar="REQUEST.json", help="the body of a chat completion; - for standard input")
    explain.add_argument("--url", help="a running gateway; by default the one at the policy's address, if it runs")
    explain.add_argument("--json", action="store_true", help="print the decision as JSON")
    _add_policy_option(explain)
    explain.set_defaults(run="gateway.commands.explain:explain")


def _add_cost(commands: "_Commands[ArgumentParser]") -> None:
    cost = commands.add_parser("cost", help="show costs from the ledger, by tenant, model, run or day")
    cost.add_argument("--by", choices=("tenant", "model", "run", "day"), default="model", help="default: %(default)s")
    cost.add_argument("--days", type=float, default=30.0, help="how far back; default: %(default)s")
    cost.add_argument("--tenant", help="only this tenant's")
    cost.add_argument("--csv", action="store_true", help="FOCUS columns, for a cost tool")
    cost.add_argument("--ledger", metavar="FILE", help="default: HEADWAY_LEDGER")
    cost.set_defaults(run="gateway.commands.cost:cost")


def _add_keys(commands: "_Commands[ArgumentParser]") -> None:
    parts = commands.add_parser("keys", help="create, list and revoke API keys, also while a gateway runs").add_subparsers(
        metavar="COMMAND", required=True
    )
    create = parts.add_parser("create", help="create a key and print it, this once")
    create.add_argument("--tenant", required=True, metavar="NAME", help="the key's tenant, one of the policy")
    create.add_argument("--requests-per-minute", type=_count, metavar="N")
    create.add_argument("--tokens-per-minute", type=_count, metavar="N", help="of prompts and answers")
    create.add_argument("--concurrent-requests", type=_count, metavar="N")
    _add_policy_option(create)
    create.set_defaults(run="gateway.commands.keys:create_command")
    shown = parts.add_parser("list", help="show every key: tenant, first characters, last use, limits")
    shown.set_defaults(run="gateway.commands.keys:list_command")
    revoke = parts.add_parser("revoke", help="reject a key from now on")
    revoke.add_argument("key", metavar="ID", help="its id or first characters")
    revoke.set_defaults(run="gateway.commands.keys:revoke_command")
    for part in (create, shown, revoke):
        part.add_argument("--ledger", metavar="FILE", help="the ledger that the gateway runs on; default: HEADWAY_LEDGER")


def _add_ledger(commands: "_Commands[ArgumentParser]") -> None:
    parts = commands.add_parser("ledger", help="check the ledger of a running gateway").add_subparsers(
        metavar="COMMAND", required=True
    )
    check = parts.add_parser("check", help="compare the gateway's counters with the ledger's rows since its start")
    check.add_argument("--url", help="a running gateway; by default the one at the policy's address")
    check.add_argument("--ledger", metavar="FILE", help="default: HEADWAY_LEDGER")
    _add_policy_option(check)
    check.set_defaults(run="gateway.commands.ledger:check")


def _add_policy(commands: "_Commands[ArgumentParser]") -> None:
    parts = commands.add_parser("policy", help="check, compare and replay policy files").add_subparsers(
        metavar="COMMAND", required=True
    )
    check = parts.add_parser("check", help="show every problem of a policy file, with its line")
    check.add_argument("files", metavar="FILE", nargs="+")
    check.set_defaults(run="gateway.commands.policy:check")
    diff = parts.add_parser("diff", help="show the values that differ between two policies")
    diff.add_argument("old", metavar="OLD")
    diff.add_argument("new", metavar="NEW")
    diff.set_defaults(run="gateway.commands.policy:diff")
    replay = parts.add_parser("replay", help="decide recorded traffic again under another policy")
    replay.add_argument("new", metavar="NEW")
    replay.add_argument("--ledger", required=True, metavar="FILE", help="the ledger of a gateway, with its decisions")
    _add_policy_option(replay)
    replay.set_defaults(run="gateway.commands.policy:replay_command")
    schema = parts.add_parser("schema", help="print the JSON Schema of policy files")
    schema.set_defaults(run="gateway.commands.policy:schema")
    reference = parts.add_parser("reference", help="print the reference of policy keys and environment variables")
    reference.set_defaults(run="gateway.commands.policy:reference")


def _add_router(commands: "_Commands[ArgumentParser]") -> None:
    parts = commands.add_parser("router", help="train and grade the quality model").add_subparsers(
        metavar="COMMAND", required=True
    )
    train = parts.add_parser("train", help="write an artefact trained on labelled outcomes")
    train.add_argument("outcomes", metavar="OUTCOMES.jsonl", nargs="?")
    train.add_argument("--ledger", metavar="FILE", help="also train on posted outcomes; needs --tiers")
    train.add_argument("--out", required=True, metavar="FILE", help="the artefact to write")
    train.add_argument("--tiers", help="from the cheapest to the best, by commas; by default as in the first line")
    train.add_argument(
        "--tenant-share",
        type=_share,
        default=0.5,
        metavar="SHARE",
        help="most of all rows of one tenant (default: %(default)s)",
    )
    train.set_defaults(run="gateway.commands.router:train_command")
    grade = parts.add_parser("grade", help="show how good an artefact is on labelled outcomes")
    grade.add_argument("outcomes", metavar="OUTCOMES.jsonl")
    grade.add_argument("--artefact", required=True, metavar="FILE")
    grade.set_defaults(run="gateway.commands.router:grade_command")
    escalation = parts.add_parser("escalation", help="fit the escalation to a better tier from outcomes with confidences")
    escalation.add_argument("outcomes", metavar="OUTCOMES.jsonl")
    escalation.add_argument("--artefact", required=True, metavar="FILE", help="the artefact to write it into")
    escalation.add_argument("--tier", help="by default every tier but the top one")
    escalation.add_argument("--keep", type=float, default=0.98, help="of the top tier's accuracy (default: %(default)s)")
    escalation.add_argument("--tokens", type=int, default=8, help="of the answer to hold back (default: %(default)s)")
    escalation.set_defaults(run="gateway.commands.router:escalation_command")


def _add_evaluate(commands: "_Commands[ArgumentParser]") -> None:
    evaluate = commands.add_parser("evaluate", help="measure the accuracy loss of a quantization or another checkpoint")
    evaluate.add_argument("model", metavar="MODEL", help="a directory of a causal LM")
    evaluate.add_argument("--against", required=True, metavar="MODEL", help="the reference model")
    evaluate.add_argument("--linear", metavar="KERNEL", help="of the model's matrices: auto, float32, bfloat16, w8a8, int4")
    evaluate.add_argument("--kv-dtype", metavar="TYPE", help="auto or int8")
    evaluate.add_argument("--text", metavar="FILE", help="score this text instead of lab conversations")
    evaluate.add_argument("--size", metavar="N", help="lab instances of each skill and level")
    evaluate.add_argument("--threads", metavar="N")
    evaluate.add_argument("--out", metavar="FILE", help="write the report as JSON")
    evaluate.set_defaults(run="gateway.commands.engine_tools:evaluate")


def _add_bench(commands: "_Commands[ArgumentParser]") -> None:
    parts = commands.add_parser("bench", help="measure how fast models are served here").add_subparsers(
        metavar="COMMAND", required=True
    )
    engine = parts.add_parser("engine", help="prefill and decode tokens a second, by sequences and context")
    engine.add_argument("model", metavar="MODEL", help="a directory of a causal LM")
    engine.add_argument("--batches", metavar="N,N", help="numbers of sequences; default: 1,4,16")
    engine.add_argument("--contexts", metavar="N,N", help="prompt tokens of each; default: 128,1024")
    engine.add_argument("--tokens", metavar="N", help="decode steps to time; default: 32")
    engine.add_argument("--rounds", metavar="N", help="rounds to take medians of; default: 3")
    engine.add_argument("--device", metavar="DEVICE", help="default: cpu")
    engine.add_argument("--threads", metavar="N", help="default: 1")
    engine.add_argument("--dtype", metavar="TYPE", help="of activations and KV: auto, float32, bfloat16")
    engine.add_argument("--kv-dtype", metavar="TYPE", help="auto or int8")
    engine.add_argument("--linear", metavar="KERNEL", help="of the matrices: auto, float32, bfloat16, w8a8, int4")
    engine.add_argument("--json", action="store_true", help="print JSON instead of a table")
    engine.add_argument("--out", metavar="FILE", help="also write the JSON there")
    engine.set_defaults(run="gateway.commands.engine_tools:bench")


def _add_runs(commands: "_Commands[ArgumentParser]") -> None:
    runs = commands.add_parser("runs", help="show live runs: which field named them, their turns, what they cost")
    runs.add_argument("id", metavar="ID", nargs="?", help="one run, as JSON")
    runs.add_argument("--url", help="a running gateway; by default the one at the policy's address")
    _add_policy_option(runs)
    runs.set_defaults(run="gateway.commands.runs:runs")


def _add_load(commands: "_Commands[ArgumentParser]") -> None:
    load = commands.add_parser("load", help="send a trace or a rate to any OpenAI chat endpoint, and measure it")
    load.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8080; the key is HEADWAY_API_KEY or OPENAI_API_KEY")
    load.add_argument("--model", default="auto", help="default: %(default)s")
    load.add_argument("--trace", metavar="FILE", help="times and lengths: Azure's CSV or Mooncake's JSON lines, also gzipped")
    load.add_argument("--rate", type=_positive, metavar="N", help="requests a second; a trace without it keeps its own speed")
    load.add_argument(
        "--arrivals", choices=("poisson", "constant"), default="poisson", help="without a trace; default: %(default)s"
    )
    load.add_argument("--duration", type=_positive, default=30.0, metavar="S", help="default: %(default)s")
    load.add_argument("--prompt-tokens", type=_count, default=256, metavar="N", help="without a trace; default: %(default)s")
    load.add_argument("--output-tokens", type=_count, default=64, metavar="N", help="without a trace; default: %(default)s")
    load.add_argument("--max-prompt-tokens", type=_count, metavar="N", help="cut longer prompts of a trace")
    load.add_argument("--slo-ttft-ms", type=_positive, metavar="MS", help="SLO: milliseconds to the first token")
    load.add_argument("--slo-tpot-ms", type=_positive, metavar="MS", help="SLO: mean milliseconds per further token")
    load.add_argument("--timeout", type=_positive, default=600.0, metavar="S", help="of one request; default: %(default)s")
    load.add_argument("--seed", type=int, default=0, metavar="N", help="of arrivals and texts; default: %(default)s")
    load.add_argument("--json", metavar="FILE", help="write the figures there too")
    load.set_defaults(run="gateway.commands.load:load")


def _positive(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no number over 0")


def _share(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no share over 0 and up to 1")


def _count(text: str) -> int:
    with suppress(ValueError):
        if (value := int(text)) >= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")


def _add_policy_option(parser: ArgumentParser) -> None:
    parser.add_argument("--policy", default=DEFAULT_POLICY, metavar="FILE", help="default: %(default)s")


def _load(name: str) -> Command:
    module, _, function = name.partition(":")
    command: Command = getattr(import_module(module), function)
    return command


def _version() -> str:
    try:
        return version("headway")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
