"""Output of every benchmark: a table, then one JSON object as the last line of stdout."""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("litestar", "uvicorn", "httptools", "msgspec", "aiohttp", "torch", "transformers", "tokenizers")


class Target(NamedTuple):
    """A figure with the value to reach."""

    name: str
    value: float
    op: Literal[">=", "<="]
    target: float

    @property
    def met(self) -> bool:
        return self.value >= self.target if self.op == ">=" else self.value <= self.target


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with `--quick` and `--data`, which every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller run that shows the path, not the figures")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of public traces")
    return parser


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def finish(benchmark: str, results: Mapping[str, Any], targets: Sequence[Target]) -> None:
    """Print the targets as a table and everything as JSON in the last line."""
    if targets:
        print(table(("target", "value", "wanted", "met"), [_row(t) for t in targets]))
    report = {
        "benchmark": benchmark,
        "commit": _commit(),
        "machine": machine(),
        "versions": versions(),
        "results": results,
        "targets": [{**t._asdict(), "met": t.met} for t in targets],
    }
    print(json.dumps(report))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return columns padded to their widest cell, numbers right-aligned."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in (lines[0], "  ".join("-" * width for width in widths), *lines[1:]))


def machine() -> str:
    """Return processor, cores and memory in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
        cores = sum(line.startswith("processor") for line in lines)
        memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
        return f"{model}, {cores} cores, {memory:.0f} GiB"
    return model


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    run = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def _row(target: Target) -> tuple[object, ...]:
    return target.name, target.value, f"{target.op} {_cell(target.target)}", "yes" if target.met else "NO"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
