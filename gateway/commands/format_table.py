"""Formats aligned columns of text and decisions."""

from collections.abc import Sequence

from gateway.routing.decision import Decision, Option, PlacementReason

_WHY: dict[PlacementReason, str] = {
    "stays": "its pages are cached there",
    "moves": "waiting for its cached pages costs more than recomputing them",
    "burst": "a run with the same beginning went there",
    "roomiest": "it has the most free capacity",
}
_HEADER = (
    "",
    "worker",
    "model",
    "tier",
    "quality",
    "prompt",
    "cached",
    "ttft",
    "finish",
    "µ$",
    "switch µ$",
    "risk µ$",
    "miss",
    "why",
)


def columns(rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> str:
    """Return rows with columns padded to their widest cell; those in `right` are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def decision_text(decision: Decision) -> str:
    """Return the chosen option, then the rejected ones with the reason. Dollars are in millionths."""
    rows = [_HEADER, _row("=>", decision.chosen, decision.reason)]
    rows += [_row("", rejected.option, rejected.reason) for rejected in decision.rejected]
    lines = [
        f"decision {decision.id}: {decision.chosen.model} on {decision.chosen.worker} ({_words(decision.reason)})",
        f"route {decision.route or '-'}, quality bar {decision.quality_bar:.2f}{_placement(decision)}",
        "",
        columns(rows, right=frozenset(range(4, 13))),
    ]
    more = sum(decision.rejected_by_reason.values()) - len(decision.rejected)
    if more > 0:
        counts = ", ".join(f"{number} {_words(reason)}" for reason, number in sorted(decision.rejected_by_reason.items()))
        lines += ["", f"{more} more rejected; in all: {counts}"]
    return "\n".join(lines)


def _row(mark: str, option: Option, why: str) -> tuple[str, ...]:
    return (
        mark,
        option.worker,
        option.model,
        option.tier,
        f"{option.quality:.3f}",
        f"{option.prompt_tokens:,}",
        f"{option.cached_tokens:,}",
        seconds(option.ttft_s),
        seconds(option.finish_s),
        f"{option.usd * 1e6:,.3f}",
        f"{option.switch_usd * 1e6:,.3f}",
        f"{option.risk_usd * 1e6:,.3f}",
        f"{option.miss_probability:.0%}",
        _words(why),
    )


def _placement(decision: Decision) -> str:
    return f", placed there because: {_WHY[decision.placement]}" if decision.placement else ""


def seconds(value: float) -> str:
    return f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.2f} s"


def _words(reason: str) -> str:
    return reason.replace("_", " ")
