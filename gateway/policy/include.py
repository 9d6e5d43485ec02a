"""Policy file merged with its includes, as one YAML tree whose marks carry the file.

Mappings are merged. A value of the including file replaces the included one. Its routes stand before the included routes; other
lists are replaced. Only regular files in the folder of the loaded file are included, or in those that HEADWAY_POLICY_FOLDERS
names. File paths in values are relative to the folder of the loaded file.
"""

from collections.abc import Sequence
from pathlib import Path

import yaml

from gateway.policy.regular_file import read_regular
from gateway.policy.schema import Policy
from gateway.policy.yaml_document import Problem, YamlDocument
from gateway.settings import FOLDERS, policy_folders

MAX_FILE_BYTES = 4_000_000
MAX_FILES = 32
_JOINED = ("routes",)
"""Lists that are concatenated instead of replaced."""


class Tree:
    """Reader of a file and its includes. `files` are all files read, the loaded one first."""

    def __init__(self, document: YamlDocument) -> None:
        self.files: list[Path] = []
        self._document = document
        self._folders: tuple[Path, ...] = ()

    def read(self, path: Path) -> yaml.Node | None:
        self._folders = (path.absolute().parent.resolve(), *policy_folders(self._document.env))
        return self._read(path.absolute(), ())

    def _read(self, path: Path, above: tuple[Path, ...]) -> yaml.Node | None:
        name = str(path) if above else ""
        if len(self.files) >= MAX_FILES:
            self._problem(name, f"more than {MAX_FILES} files are included: merge some")
            return None
        self.files.append(path)
        try:
            node = self._document.compose(read_regular(path, MAX_FILE_BYTES), name, quoted=not above)
        except OSError as error:
            self._problem(name, f"cannot be read: {error.strerror or error}")
            return None
        except ValueError as error:
            self._problem(name, str(error))
            return None
        if above and not _is_policy(node):
            self._problem(name, "is no policy: it has none of its keys")
            return None
        for include in _includes(node):
            if "\0" in include.value:
                self._problem(name, "an included file's name has a zero byte: remove it")
                continue
            file = (path.parent / include.value).resolve()
            if file in (path, *above):
                line = include.start_mark.line + 1
                self._document.problems.append(Problem("include", line, f"{include.value} includes itself", name))
                continue
            if not any(file.is_relative_to(folder) for folder in self._folders):
                line = include.start_mark.line + 1
                message = f"{include.value} is outside of the policy's folder: name its folder in {FOLDERS}"
                self._document.problems.append(Problem("include", line, message, name))
                continue
            below = self._read(file, (*above, path))
            if isinstance(node, yaml.MappingNode) and isinstance(below, yaml.MappingNode):
                _merge(node, below)
        return node

    def _problem(self, file: str, message: str) -> None:
        self._document.problems.append(Problem("", 1, message, file))


def _is_policy(node: yaml.Node | None) -> bool:
    """Return whether a tree has a key of a policy. Problems of other files would quote their content. None has its problem."""
    if not isinstance(node, yaml.MappingNode):
        return node is None
    return any(isinstance(name, yaml.ScalarNode) and name.value in Policy.__struct_fields__ for name, _ in node.value)


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
