"""`headway policy check FILE` and `headway policy schema`."""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from gateway.policy.load import PolicyError, load_policy, missing_files, policy_json_schema


def check(arguments: Namespace, env: Mapping[str, str]) -> int:
    """Every problem of every file on stderr; 1 if there is any."""
    failed = False
    for file in arguments.files:
        try:
            policy = load_policy(Path(file), env)
        except PolicyError as error:
            failed = True
            number = len(error.problems)
            print(f"{error}\n{file}: {number} problem{'s' * (number != 1)}", file=sys.stderr)
            continue
        for path in missing_files(policy):
            print(f"{file}: note: {path} is not there yet", file=sys.stderr)
        counts = [f"{len(getattr(policy, part))} {part}" for part in ("tiers", "models", "workers", "routes")]
        print(f"{file}: good ({', '.join(counts)})")
    return int(failed)


def schema(arguments: Namespace, env: Mapping[str, str]) -> int:
    print(json.dumps(policy_json_schema(), indent=2))
    return 0
