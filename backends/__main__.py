"""A worker: `python -m backends --model DIR --listen unix:///path`. Progress on stderr, one JSON line on stdout when ready."""

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import get_args

from backends.config import DtypeChoice, KvDtype, LinearChoice, Settings, SpeculateChoice, StepChoice
from backends.worker.address import Address, parse_address
from backends.worker.assets import read_assets
from backends.worker.startup import Started, start_engine
from backends.worker.worker import Worker

FAREWELL_S = 0.2
"""Time for links to hear why they are closed after the engine has failed."""


def main() -> None:
    args = _parser().parse_args()
    try:
        settings = _settings(args)
        address = parse_address(settings.listen, token=settings.token)
        say(f"loading {settings.model} on {settings.device} with {settings.threads} threads")
        started = start_engine(settings, say)
    except (ValueError, OSError) as error:
        sys.exit(f"backends: {error}")
    failed = asyncio.run(serve(settings, address, started, follow_stdin=args.exit_with_parent))
    sys.exit(1 if failed else 0)


async def serve(settings: Settings, address: Address, started: Started, *, follow_stdin: bool) -> bool:
    """Runs until told to stop. True if the engine failed."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    files = read_assets(settings.model)
    worker = Worker(started.engine, started.hello, files, token=settings.token, grammars=started.grammars)
    worker.failure.add_done_callback(lambda _: loop.call_later(FAREWELL_S, stop.set))
    where = await worker.open(address)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if follow_stdin:
        threading.Thread(target=_wait_for_stdin, args=(loop, stop), daemon=True).start()
    ready = {"listen": where, "name": settings.name, "pid": os.getpid(), "fingerprint": started.hello.fingerprint}
    print(json.dumps({"ready": ready}), flush=True)
    say(f"ready on {where}")
    await stop.wait()
    await worker.close()
    return worker.failure.done()


def say(line: str) -> None:
    print(f"backends: {line}", file=sys.stderr, flush=True)


def _wait_for_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)


def _settings(args: argparse.Namespace) -> Settings:
    token = os.environ.get(args.token_env) if args.token_env else None
    if args.token_env and not token:
        raise ValueError(f"--token-env names {args.token_env}, which is not set")
    names = (
        "model",
        "listen",
        "device",
        "threads",
        "kv_tokens",
        "max_sequences",
        "dtype",
        "kv_dtype",
        "host_kv_tokens",
        "speculate",
        "draft",
        "linear",
        "step",
        "variant",
        "page_size",
        "prefill_tokens",
    )
    return Settings(name=args.name or args.model.name, token=token, **{name: getattr(args, name) for name in names})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backends", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face directory of a causal LM")
    parser.add_argument("--name", help="what the worker calls its model (the directory's name)")
    parser.add_argument("--listen", required=True, help="unix:///path or tcp://host:port")
    parser.add_argument("--token-env", help="environment variable with the token that links must send")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kv-tokens", type=int, help="tokens that the KV pages hold")
    parser.add_argument("--host-kv-tokens", type=int, default=0, help="tokens that host memory keeps for reloading")
    parser.add_argument("--speculate", choices=get_args(SpeculateChoice), default="off", help="guess tokens from the prompt")
    parser.add_argument("--draft", type=Path, metavar="DIR", help="a small model of the same tokenizer that guesses tokens")
    parser.add_argument("--max-sequences", type=int, default=16, help="sequences in one step")
    parser.add_argument("--prefill-tokens", type=int, default=512, help="prompt tokens in one step")
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--dtype", choices=get_args(DtypeChoice), default="auto", help="of activations and KV")
    parser.add_argument("--kv-dtype", choices=get_args(KvDtype), default="auto", help="of KV alone; int8 halves its memory")
    parser.add_argument("--linear", choices=get_args(LinearChoice), default="auto", help="kernel of all matrices")
    parser.add_argument("--step", choices=get_args(StepChoice), default="auto", help="whose code runs steps on CPU")
    parser.add_argument("--variant", default="auto", help="build of the compiled step: one of this processor's, or native")
    parser.add_argument("--exit-with-parent", action="store_true", help="stop when stdin closes")
    return parser


if __name__ == "__main__":
    main()
