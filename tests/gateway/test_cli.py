import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from gateway.cli import main
from gateway.policy.load import policy_json_schema
from gateway.routing.decision import Decision, Option, Rejected

DEFAULT = Path(__file__).parents[2] / "policies" / "default.yaml"
OPTION = Option(
    worker="pico-0",
    model="pico",
    tier="small",
    quality=0.97,
    prompt_tokens=1234,
    cached_tokens=1200,
    ttft_s=0.0123,
    finish_s=1.5,
    usd=2e-6,
    switch_usd=0.0,
    miss_probability=0.03,
    score_usd=2e-6,
)
DECISION = Decision(
    id="d-1",
    reason="cheapest_good_enough",
    chosen=OPTION,
    rejected=(Rejected(option=msgspec.structs.replace(OPTION, worker="nano-0", model="nano"), reason="costs_more"),),
    rejected_by_reason={"costs_more": 1, "not_healthy": 4},
    route="default",
    quality_bar=0.9,
)


class FakeGateway(BaseHTTPRequestHandler):
    """Answers /v1/headway/explain with the decision, or 401 without the key."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        good = self.path == "/v1/headway/explain" and self.headers.get("authorization") == "Bearer secret"
        body = {"decision": DECISION, "more": 1} if good else {"error": {"message": "no such key"}}
        self.send_response(200 if good else 401)
        self.end_headers()
        self.wfile.write(msgspec.json.encode(body))

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def gateway_url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), FakeGateway)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    file = tmp_path / "request.json"
    file.write_text(json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}]}))
    return file


def test_policy_check_accepts_a_valid_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", str(DEFAULT)], {}) == 0
    assert "valid (2 tiers, 2 models, 2 workers, 1 routes)" in capsys.readouterr().out


def test_policy_check_names_file_line_and_path_of_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(DEFAULT.read_text().replace("usd_per_hour", "usd_per_our").replace("model: pico", "model: pica"))
    assert main(["policy", "check", str(bad)], {}) == 1
    line = next(n for n, text in enumerate(bad.read_text().splitlines(), 1) if "usd_per_our" in text)
    shown = capsys.readouterr().err
    assert f'{bad}:{line}: devices.cpu.usd_per_our: unknown key (did you mean "usd_per_hour"?)' in shown
    assert f"{bad}: 2 problems" in shown


def test_policy_schema_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "schema"], {}) == 0
    assert json.loads(capsys.readouterr().out) == policy_json_schema()


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], {}) == 2
    assert "policy" in capsys.readouterr().err
    assert main(["version"], {}) == 0
    assert capsys.readouterr().out.startswith("headway ")


def test_serving_a_bad_policy_stops_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--policy", str(tmp_path / "none.yaml")], {}) == 1
    assert "none.yaml:1: cannot be read" in capsys.readouterr().err


def test_explain_asks_a_running_gateway(request_file: Path, gateway_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(request_file), "--url", gateway_url], {"HEADWAY_API_KEY": "secret"}) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"asked {gateway_url}"
    assert shown[1] == "decision d-1: pico on pico-0 (cheapest good enough)"
    assert shown[5].startswith("=>  pico-0  pico   small    0.970   1,234   1,200  12.3 ms  1.50 s  2.000")
    assert shown[5].endswith("cheapest good enough")
    assert shown[6].endswith("costs more")
    assert shown[-1] == "4 more rejected; in all: 1 costs more, 4 not healthy"


def test_explain_with_json_option_prints_json(request_file: Path, gateway_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(request_file), "--url", gateway_url, "--json"], {"HEADWAY_API_KEY": "secret"}) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=Decision) == DECISION


def test_explain_shows_the_error_of_the_gateway(
    request_file: Path, gateway_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(request_file), "--url", gateway_url], {}) == 1
    assert "answered 401: no such key" in capsys.readouterr().err


def tiny_model(folder: Path, *, weights: int) -> None:
    """What a model's directory must have to be decided about, without a model in it."""
    folder.mkdir()
    tokenizer = Tokenizer(WordLevel({"hi": 0, "user": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for message in messages %}{{ message.role }} {{ message.content }} {% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    (folder / "model.safetensors").write_bytes(b"x" * weights)


def test_explain_decides_locally_without_a_gateway(
    tmp_path: Path, request_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    tiny_model(tmp_path / "pico", weights=1_000)
    tiny_model(tmp_path / "nano", weights=1_000_000)
    policy = tmp_path / "lab.yaml"
    text = DEFAULT.read_text().replace("../backends/zoo/", "").replace("port: 8080", f"port: {port}")
    policy.write_text(text.replace("router: quality.json", "router: null"))
    assert main(["explain", str(request_file), "--policy", str(policy)], {}) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"no gateway at http://127.0.0.1:{port}: decided locally, for idle workers with empty caches"
    assert shown[1] == "decision offline: nano on nano-0 (cheapest good enough)"
    assert shown[-1].endswith("below quality bar")


def test_explain_of_a_missing_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tmp_path / "none.json")], {}) == 1
    assert "none.json" in capsys.readouterr().err


def test_the_router_is_trained_and_graded_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "messages": [{"role": "user", "content": f"{'Sort' if hard else 'Repeat'} {i}"}],
            "outcomes": {"small": not hard, "large": True},
            "skill": "x",
        }
        for i in range(200)
        for hard in (True, False)
    ]
    outcomes, artefact = tmp_path / "outcomes.jsonl", tmp_path / "quality.json"
    outcomes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["router", "train", str(outcomes), "--out", str(artefact)], {}) == 0
    assert json.loads(artefact.read_text())["command"] == "headway router train outcomes.jsonl --tiers small,large"
    assert main(["router", "grade", str(outcomes), "--artefact", str(artefact)], {}) == 0
    shown = capsys.readouterr().out
    assert "AUC 1.0000" in shown
    assert "kept of large's accuracy" in shown


@pytest.mark.parametrize("line", ["{", '{"messages": []}', '{"messages": [{"role": "robot"}], "outcomes": {}}'])
def test_bad_line_of_outcomes_is_named_by_its_number(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    good = json.dumps({"messages": [{"role": "user", "content": "x"}], "outcomes": {"small": True, "large": True}})
    (tmp_path / "o.jsonl").write_text(f"{good}\n\n{line}\n")
    assert main(["router", "train", str(tmp_path / "o.jsonl"), "--out", str(tmp_path / "q.json")], {}) == 1
    assert "line 3:" in capsys.readouterr().err
    assert main(["router", "grade", str(tmp_path / "o.jsonl"), "--artefact", str(tmp_path / "none.json")], {}) == 1
