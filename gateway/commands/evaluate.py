"""`headway evaluate MODEL --against MODEL`: runs the engine's own command in a separate process, because the gateway does not
import torch."""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping

OPTIONS = ("linear", "kv_dtype", "text", "size", "threads", "out")


def evaluate(arguments: Namespace, env: Mapping[str, str]) -> int:
    command = [sys.executable, "-m", "backends.evaluate", arguments.model, "--against", arguments.against]
    for name in OPTIONS:
        value = getattr(arguments, name)
        if value is not None:
            command += [f"--{name.replace('_', '-')}", value]
    return subprocess.run(command, env=dict(env), check=False).returncode
