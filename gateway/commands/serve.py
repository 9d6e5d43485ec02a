"""`headway serve`: the gateway and its local workers, until a signal."""

import sqlite3
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from gateway.http.auth import KeylessBindError
from gateway.http.server import run
from gateway.policy.load import PolicyError, load_policy
from gateway.routing.quality import ArtefactError
from gateway.settings import SettingsError, read_settings


def serve(arguments: Namespace, env: Mapping[str, str]) -> int:
    try:
        path = Path(arguments.policy)
        run(load_policy(path, env), read_settings(env), env, path=path)
    except (PolicyError, SettingsError, KeylessBindError, ArtefactError, OSError, sqlite3.Error) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
