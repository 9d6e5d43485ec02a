"""`headway bench engine MODEL` and `headway evaluate MODEL --against MODEL`: the engine's own commands, each in a process
of its own, as the gateway knows no torch."""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence

_BENCH = ("batches", "contexts", "tokens", "rounds", "device", "threads", "dtype", "kv_dtype", "linear", "out")
_EVALUATE = ("linear", "kv_dtype", "text", "size", "threads", "out")


def bench(arguments: Namespace, env: Mapping[str, str]) -> int:
    command = ["backends.bench", arguments.model, *_options(arguments, _BENCH)]
    return _run([*command, "--json"] if arguments.json else command, env)


def evaluate(arguments: Namespace, env: Mapping[str, str]) -> int:
    command = ["backends.evaluate", arguments.model, "--against", arguments.against]
    return _run([*command, *_options(arguments, _EVALUATE)], env)


def _options(arguments: Namespace, names: Sequence[str]) -> list[str]:
    given = [(name, getattr(arguments, name)) for name in names]
    return [part for name, value in given if value is not None for part in (f"--{name.replace('_', '-')}", value)]


def _run(command: Sequence[str], env: Mapping[str, str]) -> int:
    return subprocess.run([sys.executable, "-m", *command], env=dict(env), check=False).returncode
