"""Loads a policy file as a `Policy`, or rejects it as a whole with every problem, its path and its line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gateway.policy.include import Tree
from gateway.policy.reference import field_docs
from gateway.policy.schema import Policy
from gateway.policy.secret_files import SecretFiles
from gateway.policy.struct_schema import components
from gateway.policy.validate import problems_of
from gateway.policy.yaml_document import Problem, YamlDocument


class PolicyError(Exception):
    """All problems of one file. `str()` has one line a problem, such as `lab.yaml:12: routes[0].slo: ...`."""

    def __init__(self, file: Path, problems: Sequence[Problem]) -> None:
        super().__init__(str(file))
        self.file = file
        self.problems = sorted(problems, key=lambda problem: (problem.file, problem.line, problem.path))

    def __str__(self) -> str:
        lines = (": ".join(filter(None, (f"{p.file or self.file}:{p.line}", p.path, p.message))) for p in self.problems)
        return "\n".join(lines)


class Loaded(NamedTuple):
    """A loaded policy. `files` are the file itself, its includes and its secrets."""

    policy: Policy
    files: tuple[Path, ...]


def load_policy(path: Path, env: Mapping[str, str]) -> Policy:
    """Return the policy with `${NAME}` taken from `env` and with absolute file paths. Raises PolicyError."""
    return load_files(path, env).policy


def load_files(path: Path, env: Mapping[str, str]) -> Loaded:
    """Load a policy as `load_policy` does, and return it with the files it came from."""
    document = YamlDocument(env)
    tree = Tree(document)
    data = document.read(tree.read(path), Policy)
    policy = _converted(document, data)
    secret_files = SecretFiles(path.absolute().parent, env, document.report)
    if policy is not None:
        policy = secret_files.filled(policy)
        for key, message in problems_of(policy):
            document.report(key, message)
    if policy is None or document.problems:
        raise PolicyError(path, document.problems)
    return Loaded(_resolved(policy, path.absolute().parent), (*tree.files, *secret_files.files))


def _converted(document: YamlDocument, data: Any) -> Policy | None:
    try:
        return msgspec.convert(data, Policy)
    except msgspec.ValidationError as error:
        if not document.problems:  # a constraint that YamlDocument does not check
            document.report((), str(error))
        return None


def _resolved(policy: Policy, folder: Path) -> Policy:
    """Return the policy with paths made absolute, relative to `folder`."""
    models = {
        name: msgspec.structs.replace(model, path=_absolute(folder, model.path)) if model.path else model
        for name, model in policy.models.items()
    }
    router = policy.router and _absolute(folder, policy.router)
    return msgspec.structs.replace(policy, models=models, router=router)


def _absolute(folder: Path, path: str) -> str:
    return str((folder / Path(path).expanduser()).resolve())


def missing_files(policy: Policy) -> list[str]:
    """Return the named files that do not exist yet: model directories of local workers and the router's artefact."""
    local = {worker.model for worker in policy.workers.values() if worker.url is None}
    paths = [policy.models[name].path for name in sorted(local)] + ([policy.router] if policy.router else [])
    return [path for path in paths if not Path(path).exists()]


def policy_json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a policy file, for editors. Attribute docstrings are the descriptions of its keys."""
    structs = components([Policy], ref_template="#/$defs/{name}")
    for name, docs in field_docs().items():
        for field, doc in docs.items():
            structs[name]["properties"][field]["description"] = doc
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Headway policy",
        "$ref": "#/$defs/Policy",
        "$defs": structs,
    }
