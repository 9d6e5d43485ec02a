"""Policy file merged with its includes, as one YAML tree whose marks carry the file.

Mappings are merged. A value of the including file replaces the included one. Its routes stand before the included routes; other
lists are replaced. File paths in values are relative to the folder of the loaded file.
"""

from collections.abc import Sequence
from pathlib import Path

import yaml

from gateway.policy.yaml_document import Problem, YamlDocument

MAX_FILE_BYTES = 4_000_000
MAX_FILES = 32
_JOINED = ("routes",)
"""Lists that are concatenated instead of replaced."""


class Tree:
    """Reader of a file and its includes. `files` are all files read, the loaded one first."""

    def __init__(self, document: YamlDocument) -> None:
        self.files: list[Path] = []
        self._document = document

    def read(self, path: Path) -> yaml.Node | None:
        return self._read(path.absolute(), ())

    def _read(self, path: Path, above: tuple[Path, ...]) -> yaml.Node | None:
        name = str(path) if above else ""
        if len(self.files) >= MAX_FILES:
            self._problem(name, f"more than {MAX_FILES} files are included: merge some")
            return None
        self.files.append(path)
        try:
            text = path.read_text(encoding="utf-8") if path.stat().st_size <= MAX_FILE_BYTES else None
        except (OSError, UnicodeDecodeError) as error:
            self._problem(name, f"cannot be read: {error}")
            return None
        if text is None:
            self._problem(name, f"is larger than {MAX_FILE_BYTES:,} bytes")
            return None
        node = self._document.compose(text, name)
        for include in _includes(node):
            file = (path.parent / include.value).resolve()
            if file in (path, *above):
                line = include.start_mark.line + 1
                self._document.problems.append(Problem("include", line, f"{include.value} includes itself", name))
                continue
            below = self._read(file, (*above, path))
            if isinstance(node, yaml.MappingNode) and isinstance(below, yaml.MappingNode):
                _merge(node, below)
        return node

    def _problem(self, file: str, message: str) -> None:
        self._document.problems.append(Problem("", 1, message, file))


def _includes(node: yaml.Node | None) -> Sequence[yaml.ScalarNode]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == "include" and isinstance(value, yaml.SequenceNode):
                return [item for item in value.value if isinstance(item, yaml.ScalarNode)]
    return ()


def _merge(above: yaml.MappingNode, below: yaml.MappingNode) -> None:
    """Add to `above` the values that only `below` has."""
    mine = {name.value: value for name, value in above.value if isinstance(name, yaml.ScalarNode)}
    for name, value in below.value:
        if not isinstance(name, yaml.ScalarNode) or name.value == "include":
            continue
        own = mine.get(name.value)
        if own is None:
            above.value.append((name, value))
        elif isinstance(own, yaml.MappingNode) and isinstance(value, yaml.MappingNode):
            _merge(own, value)
        elif name.value in _JOINED and isinstance(own, yaml.SequenceNode) and isinstance(value, yaml.SequenceNode):
            own.value.extend(value.value)
