"""Claim: classifying a request takes a small part of a millisecond, however long it is.

Method: the shipped artefact, one thread, requests of one user message of English words with numbers and signs. Each is timed
alone, from messages to quality by tier. A token is taken as 4.3 characters. Times are the thread's CPU time, so that other
processes do not count; the rate is at 200 tokens.
"""

import random
import time

from benchmarks.report import ROOT, Target, arguments, finish, table
from gateway.request import Message
from gateway.routing.quality import QualityModel

_CHARS_A_TOKEN = 4.3
_WORDS = (
    "the a of model request answer which list find value number between order tool 17 402 3.5 (x) because; item, then: why?"
)


def main() -> None:
    args = arguments(__doc__).parse_args()
    repeats = 200 if args.quick else 5000
    model = QualityModel.load(ROOT / "policies" / "quality.json")
    results: dict[str, float] = {}
    rows = []
    for tokens in (100, 200, 2_000, 32_000):
        asked = [[Message(role="user", content=_text(tokens, seed))] for seed in range(20)]
        p50, p99 = _percentiles_us(model, asked, repeats)
        results |= {f"p50_us_{tokens}": p50, f"p99_us_{tokens}": p99}
        rows.append((tokens, p50, p99))
    asked = [[Message(role="user", content=_text(200, seed))] for seed in range(20)]
    results["per_second_200"] = _rate(model, asked, repeats)
    print(table(("tokens", "p50 us", "p99 us"), rows))
    targets = [
        Target("per_second_200", results["per_second_200"], ">=", 5000),
        Target("p99_us_2000", results["p99_us_2000"], "<=", 1000),
    ]
    finish("classify", results, targets)


def _text(tokens: int, seed: int) -> str:
    rng, words = random.Random(seed), _WORDS.split()
    text = ""
    while len(text) < tokens * _CHARS_A_TOKEN:
        text += " ".join(rng.choices(words, k=200)) + ".\n"
    return text[: int(tokens * _CHARS_A_TOKEN)]


def _percentiles_us(model: QualityModel, asked: list[list[Message]], repeats: int) -> tuple[float, float]:
    times = []
    for index in range(repeats):
        messages = asked[index % len(asked)]
        started = time.thread_time_ns()
        model.judge(messages, ())
        times.append(time.thread_time_ns() - started)
    times.sort()
    return times[len(times) // 2] / 1e3, times[int(len(times) * 0.99)] / 1e3


def _rate(model: QualityModel, asked: list[list[Message]], repeats: int) -> float:
    started = time.thread_time()
    for index in range(repeats):
        model.judge(asked[index % len(asked)], ())
    return repeats / (time.thread_time() - started)


if __name__ == "__main__":
    main()
