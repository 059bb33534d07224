"""YAML as users write it: no key stands twice in a mapping, and 1e-4 is a number, as in YAML 1.2."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from personalization.errors import UsageError

FLOAT = "tag:yaml.org,2002:float"
EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
"""Numbers that YAML 1.1 takes for texts."""


class Kept(yaml.SafeLoader):
    """Reads what `yaml.safe_dump` wrote; no key may stand twice in a mapping."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it is written, before what `<<` names is merged into it."""
        node = super().compose_mapping_node(anchor)
        lines = dict[Hashable, int]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                found = self.construct_object(key)
                if found in lines:
                    problem = f"the key {key.value!r} stands already in line {lines[found]}"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                lines[found] = key.start_mark.line + 1
        return node


class Told(Kept):
    """Reads what users write."""


class Saying(yaml.SafeDumper):
    """Writes what users may change."""


for _kind in (Told, Saying):
    _kind.add_implicit_resolver(FLOAT, EXPONENT, list("-+.0123456789"))


def read_mapping(path: Path, what: str, loader: type[Kept] = Told) -> dict[str, Any]:
    """The keys of a YAML file, which should be `what`; UsageError where it has none."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), loader)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start} is not UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark is not None else ""
        problem = str(getattr(error, "problem", error)).splitlines()[0]
        raise UsageError(f"{path}: {place}not YAML: {problem}") from None
    except (RecursionError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{path}: {what} is a mapping of keys, but this is a {type(raw).__name__}")
    return raw
