"""Check of a YAML tree against the policy's types. One pass finds every problem with its line.

Only nodes that the types name are visited, so an alias bomb costs nothing.
"""

import difflib
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

import msgspec
import yaml

from gateway.policy.mismatch import takes_text, wrong

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_WRONG = object()
_SECRET = frozenset({"keys", "key", "token"})
"""Names of values that no problem repeats."""

Key = tuple[str | int, ...]


class Problem(NamedTuple):
    """One problem. `path` is such as `routes[0].slo`; `line` counts from 1; `file` is the include, empty for the file
    itself."""

    path: str
    line: int
    message: str
    file: str = ""


def path_text(key: Key) -> str:
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean "x"?)`, or the list of known names when none is close."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f' (did you mean "{close[0]}"?)'
    return f" (known: {', '.join(sorted(names))})" if names else ""


class YamlDocument:
    """Checker of one policy. It collects `problems` and the file and line of every value (`place_of`)."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self.problems: list[Problem] = []
        self._lines: dict[Key, tuple[str, int]] = {}
        self._constructor = yaml.constructor.SafeConstructor()
        self._resolver = yaml.resolver.Resolver()

    def place_of(self, key: Key) -> tuple[str, int]:
        """Return file and line of a value, or of the nearest enclosing value in the file."""
        while key and key not in self._lines:
            key = key[:-1]
        return self._lines.get(key, ("", 1))

    def report(self, key: Key, message: str) -> None:
        file, line = self.place_of(key)
        self.problems.append(Problem(path_text(key), line, message, file))

    def read(self, node: yaml.Node | None, kind: type[msgspec.Struct]) -> Any:
        """Return plain data for `msgspec.convert`. It converts to `kind` if `problems` is empty, else perhaps not."""
        return _WRONG if node is None else self._value(node, kind, ())

    def compose(self, text: str, file: str = "", *, quoted: bool = True) -> yaml.Node | None:
        """Return the tree of a file, whose marks carry its name. Reports a problem and returns None for invalid YAML. Without
        `quoted` the problem has only its line: it could quote the file."""
        try:
            loader = yaml.SafeLoader(text)
            loader.name = file
            try:
                node: yaml.Node | None = loader.get_single_node()
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            hint = ': put "${...}" in quotes inside braces' if "${" in "".join(text.splitlines()[line - 1 : line]) else ""
            what = f": {error.problem or error.context}{hint}" if quoted else ""
            self.problems.append(Problem("", line, f"not YAML{what}", file))
            return None
        except (yaml.YAMLError, RecursionError) as error:
            what = f": {type(error).__name__}: {str(error).splitlines()[:1]}" if quoted else ""
            self.problems.append(Problem("", 1, f"not YAML{what}", file))
            return None
        if node is None:
            self.problems.append(Problem("", 1, "the file is empty", file))
        return node

    def _value(self, node: yaml.Node, kind: Any, key: Key) -> Any:
        self._lines.setdefault(key, _place(node))
        plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        if (inner := _optional_struct(plain)) is not None:
            if isinstance(node, yaml.ScalarNode) and self._constructor.construct_object(node) is None:
                return None
            plain = inner
        if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
            return self._struct(node, plain, key)
        match get_origin(plain):
            case origin if origin is dict:
                return self._mapping(node, plain, key)
            case origin if origin is tuple:
                return self._sequence(node, get_args(plain)[0], key)
            case _:
                return self._scalar(node, kind, key)

    def _pairs(self, node: yaml.MappingNode, key: Key) -> dict[str, yaml.Node]:
        """Return values by key, in order. A duplicate key is a problem; its first value counts."""
        pairs: dict[str, yaml.Node] = {}
        for name_node, value_node in node.value:
            file, line = _place(name_node)
            if not isinstance(name_node, yaml.ScalarNode):
                self.problems.append(Problem(path_text(key), line, "a key must be a word", file))
            elif name_node.value in pairs:
                _, first = self._lines[(*key, name_node.value)]
                message = f"written twice, first on line {first}: remove one"
                self.problems.append(Problem(path_text((*key, name_node.value)), line, message, file))
            else:
                pairs[name_node.value] = value_node
                self._lines[(*key, name_node.value)] = (file, line)
        return pairs

    def _struct(self, node: yaml.Node, kind: type[msgspec.Struct], key: Key) -> Any:
        if not isinstance(node, yaml.MappingNode):
            self.report(key, f"expected keys and values, got {_kind_of(node)}")
            return _WRONG
        pairs = self._pairs(node, key)
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        for name in pairs.keys() - fields.keys():
            self.report((*key, name), f"unknown key{did_you_mean(name, fields)}")
        for name, field in fields.items():
            if field.required and name not in pairs:
                self.report(key, f'"{name}" is missing')
        values = {name: self._value(node, fields[name].type, (*key, name)) for name, node in pairs.items() if name in fields}
        # A wrong value of a field with a default is left out, so that the rest can still be checked.
        return {name: value for name, value in values.items() if value is not _WRONG or fields[name].required}

    def _mapping(self, node: yaml.Node, kind: Any, key: Key) -> Any:
        if not isinstance(node, yaml.MappingNode):
            self.report(key, f"expected names and values, got {_kind_of(node)}")
            return _WRONG
        name_kind, value_kind = get_args(kind)
        result = {}
        for name, value in self._pairs(node, key).items():
            self._convert(name, name_kind, (*key, name))
            result[name] = self._value(value, value_kind, (*key, name))
        return result

    def _sequence(self, node: yaml.Node, kind: Any, key: Key) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            if _SECRET.isdisjoint(key):
                problem = f"got {_kind_of(node)}: write [{getattr(node, 'value', '...')}]"
            else:
                problem = "write [KEY]"
            self.report(key, f"expected a list, {problem}"[:120])
            return _WRONG
        return [self._value(item, kind, (*key, index)) for index, item in enumerate(node.value)]

    def _scalar(self, node: yaml.Node, kind: Any, key: Key) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            self.report(key, f"expected one value, got {_kind_of(node)}")
            return _WRONG
        if "${" in node.value:
            expanded = self._expand(node.value, key)
            return _WRONG if expanded is None else self._convert_expanded(expanded, kind, key)
        try:
            value = self._constructor.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            self.report(key, f"not a value: {error}")
            return _WRONG
        return self._convert(value, kind, key)

    def _expand(self, text: str, key: Key) -> str | None:
        is_complete = True

        def replacement(match: re.Match[str]) -> str:
            nonlocal is_complete
            name = match.group(1)
            if not _VARIABLE_NAME.match(name):
                is_complete = False
                self.report(key, f'"${{{name}}}" is not a valid name of an environment variable')
            elif name not in self.env:
                is_complete = False
                self.report(key, f"the environment variable {name} is not set")
            return self.env.get(name, "")

        expanded = _VARIABLE.sub(replacement, text)
        return expanded if is_complete else None

    def _convert_expanded(self, text: str, kind: Any, key: Key) -> Any:
        """Convert a variable's value: as text if the type accepts text, else as YAML would parse it."""
        if takes_text(kind):
            return self._convert(text, kind, key)
        tag = self._resolver.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        value = self._constructor.construct_object(yaml.ScalarNode(tag, text))
        return self._convert(value, kind, key)

    def _convert(self, value: Any, kind: Any, key: Key) -> Any:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError:
            self.report(key, _explained(value, kind))
            return _WRONG


def _place(node: yaml.Node) -> tuple[str, int]:
    return node.start_mark.name, node.start_mark.line + 1


def _optional_struct(kind: Any) -> type[msgspec.Struct] | None:
    """Return the struct of `Struct | None`; None for any other type."""
    if get_origin(kind) not in (Union, types.UnionType):
        return None
    parts = [part for part in get_args(kind) if part is not type(None)]
    return parts[0] if len(parts) == 1 and isinstance(parts[0], type) and issubclass(parts[0], msgspec.Struct) else None


_DESCRIBE: dict[type, Callable[[yaml.Node], str]] = {
    yaml.MappingNode: lambda node: "keys and values",
    yaml.SequenceNode: lambda node: "a list",
    yaml.ScalarNode: lambda node: f'"{node.value}"' if len(node.value) < 40 else "a long text",
}


def _kind_of(node: yaml.Node) -> str:
    return _DESCRIBE[type(node)](node)


def _explained(value: Any, kind: Any) -> str:
    """What is wrong with a value, and what to do where that is known. Values of text are never repeated."""
    text = wrong(value, kind) or "the value does not fit"
    return f"{text}: put it in quotes" if takes_text(kind) and not isinstance(value, str) and value is not None else text
