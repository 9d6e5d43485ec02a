"""A gateway in front of a scripted worker, for clients in another process: prints its URL and serves until stdin closes.

The script plays a model with one skill: it calls `add`, and when the sum is in front of it, says it (with `final_answer`, for
frameworks that want a call for that).
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

from backends.wire import Sampling
from tests.builders import PICO
from tests.served import fake, serve

TOKENIZER = Tokenizer.from_file(str(PICO / "tokenizer.json"))
SUM = "42"


def script(prompt: bytes, sampling: Sampling) -> Iterable[str]:
    """One character a token."""
    ids = [int.from_bytes(prompt[at : at + 4], "little") for at in range(0, len(prompt), 4)]
    text = TOKENIZER.decode(ids, skip_special_tokens=False)
    system, _, said = text.partition("<|user|>")
    if SUM not in said:
        return iter(call("add", a=19, b=23))
    if "final_answer" in system:
        return iter(call("final_answer", answer=SUM))
    if sampling.grammar is not None and sampling.grammar.kind == "schema":
        return iter('{"sum": 42}')
    return iter(f"The sum is {SUM}.")


def call(name: str, **arguments: object) -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {json.dumps(arguments)}}}</tool_call>'


async def main() -> None:
    worker = fake("nano", answer=script, max_context=65_536, num_pages=8_192, credit_tokens=65_536)
    with tempfile.TemporaryDirectory() as folder:
        async with serve(Path(folder), workers={"nano-0": worker}) as served:
            print(served.url, flush=True)
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
