"""Builders of the values that tests hand to the product."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
PICO = ROOT / "backends" / "zoo" / "pico"


def policy_text(workers: str, *, route: str = "", first_routes: str = "", more: str = "") -> str:
    """Return a policy with models pico (small) and nano (large) and one route, `default`, to both tiers.

    `workers` are lines of the mapping. `route` are further fields of the default route, as `on_overload: shed`. `first_routes`
    are lines before it. `more` is appended at the top level.
    """
    fields = f"name: default, candidates: [small, large]{route and f', {route}'}"
    return f"""
version: 1
devices: {{cpu: {{usd_per_hour: 3.6}}}}
tiers: [small, large]
models:
  pico: {{path: {PICO}, tier: small}}
  nano: {{path: {PICO}, tier: large}}
workers:
{workers}
routes:
{first_routes}
  - {{{fields}}}
{more}
"""
