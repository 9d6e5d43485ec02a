"""Runs every benchmark in turn: `python -m benchmarks [--quick] [--data DIR]`. The exit status is non-zero if one did not
complete."""

import subprocess
import sys

from benchmarks.report import progress

BENCHMARKS = (
    "prefix_cache",
    "overhead",
    "cost_quality",
    "simulate",
    "kv_tiers",
    "speculative",
    "engine_cpu",
    "attribution",
    "tracing",
    "structured",
    "identity",
    "decide_scale",
    "route_public",
    "classify",
    "switching",
    "overload",
    "fairness",
    "soak",
)


def main() -> int:
    failed = []
    for name in BENCHMARKS:
        progress(f"== {name}")
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], check=False).returncode:
            failed.append(name)
    if failed:
        progress(f"did not complete: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
