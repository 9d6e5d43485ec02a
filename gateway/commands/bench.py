"""`headway bench engine MODEL`: runs the engine's own command in a separate process, because the gateway does not import
torch."""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping

OPTIONS = ("batches", "contexts", "tokens", "rounds", "device", "threads", "dtype", "kv_dtype", "linear", "out")


def engine(arguments: Namespace, env: Mapping[str, str]) -> int:
    command = [sys.executable, "-m", "backends.bench", arguments.model]
    for name in OPTIONS:
        value = getattr(arguments, name)
        if value is not None:
            command += [f"--{name.replace('_', '-')}", value]
    if arguments.json:
        command.append("--json")
    return subprocess.run(command, env=dict(env), check=False).returncode
