"""The grammar of an answer in the format of each worker's model."""

from collections.abc import Callable, Iterable

from msgspec import structs

from backends.wire import Grammar
from gateway.parsers.output_format import OutputFormat
from gateway.request import Request


def grammars_for(request: Request, workers: Iterable[str], family: Callable[[str], OutputFormat]) -> dict[str, Grammar]:
    """Return the grammar by worker, or {} if the sampling parameters are enough.

    `family` is called only if there is a grammar. With tools and a format, output may be a call or follow the format.
    """
    if not request.has_grammar:
        return {}
    return {worker: grammar for worker in workers if (grammar := _grammar(request, family(worker))) is not None}


def _grammar(request: Request, output_format: OutputFormat) -> Grammar | None:
    rule, format = request.calls, request.sampling.grammar
    if rule is not None:
        calls = output_format.grammar(rule.tools, param=rule.param, required=rule.required, parallel=rule.parallel)
        return structs.replace(calls, text=_schema(format)) if format and not rule.required else calls
    assert format
    if request.tools:
        calls = output_format.grammar(request.tools, param=format.param, required=False, parallel=True)
        return structs.replace(calls, text=_schema(format))
    return structs.replace(format, thinks=output_format.thinks) if output_format.thinks != "no" else None


def _schema(format: Grammar) -> str:
    return format.text if format.kind == "schema" else '{"type": "object"}'
