"""Policy files, and the tokenizers, templates and configurations of checkpoints."""

import json
import random
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from backends.models.model_config import read_model_config
from backends.quant.weight import UnsupportedCheckpoint
from gateway.errors import BadRequest
from gateway.policy.load import PolicyError, load_policy
from gateway.request import Message, Tool
from gateway.text.model_text import ModelText
from gateway.text.tokenizer_files import read_directory
from tests.builders import PICO, ROOT
from tests.fuzz.rounds import Rounds
from tests.fuzz.values import changed_bytes, changed_json

NOW = datetime(2026, 1, 1)
CONVERSATION = (Message(role="system", content="s"), Message(role="user", content="hello"))
TOOLS = (Tool(name="f", parameters={"type": "object", "properties": {}}),)
PIECES = (
    "{% for a in range(99999) %}", "{% endfor %}", "{{ messages }}", "{{ x ~ x }}", "{% set x = 'ab' * 9999 %}",
    "{{ x * 9999 }}", "{% if messages %}", "{% endif %}", "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ '%9999d' % 1 }}", "{{ x.__class__.__mro__ }}", "{{ x|replace('a', x) }}", "{{ raise_exception('no') }}",
    "{{ strftime_now(x) }}", "{{ messages|map(attribute='content')|join(x) }}", "{% set ns = namespace(x=x) %}",
    "{% set ns.x = ns.x + ns.x %}", "{{ ns.x }}", "{% generation %}", "{% endgeneration %}", "{% break %}",
    "{% include 'x' %}", "{% import 'x' as y %}", "{{ tools|tojson(indent=999) }}",
)  # fmt: skip


def test_policy_files_are_read_or_refused(tmp_path: Path) -> None:
    rounds, file = Rounds("policy files"), tmp_path / "policy.yaml"
    sources = sorted((ROOT / "policies").glob("*.yaml"))
    trees = [yaml.safe_load(path.read_text()) for path in sources]
    for rng in rounds:
        data = yaml.safe_dump(changed_json(rng, rng.choice(trees)), allow_unicode=True).encode(errors="surrogatepass")
        if rng.random() < 0.4:
            data = changed_bytes(rng, rng.choice(sources).read_bytes())
        file.write_bytes(data)
        try:
            load_policy(file, {"KEY": "value"})
        except PolicyError as error:
            assert error.problems and all(problem.line >= 1 for problem in error.problems), str(rounds)
            rounds.counts["refused"] += 1
        else:
            rounds.counts["read"] += 1


def test_tokenizers_and_templates_are_read_or_refused() -> None:
    rounds, files = Rounds("tokenizers and templates"), read_directory(PICO)
    for rng in rounds:
        changed = {**files, **_changed(rng, files)}
        try:
            text = ModelText.from_files(changed)
        except ValueError as error:
            assert str(error)
            rounds.counts["refused"] += 1
            continue
        try:
            prompt = text.prompt(CONVERSATION, TOOLS if rng.random() < 0.5 else (), now=NOW)
        except BadRequest:
            rounds.counts["refused to render"] += 1
        else:
            assert len(prompt.text) <= 2_000_000, str(rounds)
            rounds.counts["rendered"] += 1


def _changed(rng: random.Random, files: dict[str, bytes]) -> dict[str, bytes]:
    name = rng.choice((*files, "chat_template.jinja", "chat_template.jinja"))
    if name == "chat_template.jinja":
        return {name: "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 8))).encode()}
    if rng.random() < 0.3:
        return {name: changed_bytes(rng, files[name])}
    return {name: json.dumps(changed_json(rng, json.loads(files[name]))).encode()}


def test_configurations_of_checkpoints_are_read_or_refused(tmp_path: Path) -> None:
    rounds = Rounds("configurations of checkpoints")
    config: dict[str, Any] = json.loads((PICO / "config.json").read_text())
    for rng in rounds:
        changed = json.dumps(changed_json(rng, config)).encode()
        (tmp_path / "config.json").write_bytes(changed_bytes(rng, changed) if rng.random() < 0.3 else changed)
        try:
            read = read_model_config(tmp_path)
        except UnsupportedCheckpoint as error:
            assert str(error)
            rounds.counts["refused"] += 1
        else:
            assert read.head_dim > 0 and read.num_layers > 0, str(rounds)
            rounds.counts["read"] += 1
