"""Writes docs/reference.md from the code: `python docs/make_reference.py`. A test holds that it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from cli import app
from personalization.metrics import METRICS, ORDERED
from search_spaces import SPACES, space_of
from search_spaces.aliases import ALIASES
from studies.spec import RELATIVE_METRICS, StudySpec

BETTER = {"maximize": "upwards", "minimize": "downwards"}
PAGE = Path(__file__).with_name("reference.md")


def page() -> str:
    """The whole page."""
    parts = [
        "# Reference\n\nMade from the code by `python docs/make_reference.py`.\n",
        "## Spec\n\nA study is a YAML file with these keys; `chamtune schema` prints the JSON Schema for editors.\n",
        _table(("key", "type", "default", "meaning"), _keys(StudySpec.model_json_schema())),
        "## Metrics\n\nFor `optimize` and `constraints`. `mae` and `rmse` need labels that are numbers in a row.\n",
        _table(("metric", "improves"), _metrics()),
        "## Parameters\n\nFor `space`, by stage: `stage.parameter`, or `parameter` where no other stage has it. "
        "`route.arms` is JSON in a string, a list of chains with all their parameters, as `auto` gives it "
        "(`search_spaces.route.arms_of`); by hand it is `start_from: [STUDY, STUDY]`.\n",
        *(f"### {name}\n\n{_table(('parameter', 'range'), _parameters(name))}" for name in SPACES),
        "### Objectives of earlier versions\n\nChains by another name; `ranking` and `mix` are of two stages.\n",
        _table(("objective", "chain", "parameters"), _aliases()),
        "## Commands\n",
        *_commands(typer.main.get_command(app), "chamtune"),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _keys(
    schema: dict[str, Any], definitions: dict[str, Any] | None = None, lead: str = ""
) -> Iterator[tuple[str, ...]]:
    definitions = definitions if definitions is not None else schema.get("$defs", {})
    for name, field in schema["properties"].items():
        options = [field, *field.get("anyOf", []), *field.get("allOf", [])]
        inner = next((option["$ref"].rpartition("/")[2] for option in options if "$ref" in option), None)
        default = "required" if name in schema.get("required", []) else f"`{_plain(field.get('default'))}`"
        shown = "" if inner is not None and default != "required" else default
        yield f"`{lead}{name}`", "mapping" if inner else _type(field), shown, field.get("description", "")
        if inner is not None:
            yield from _keys(definitions[inner], definitions, f"{lead}{name}.")


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return str(value).replace("'", "")


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(option) for option in field["anyOf"] if option.get("type") != "null"))
    return {"object": "mapping", "array": "list"}.get(field.get("type", ""), field.get("type", "any"))


def _metrics() -> Iterator[tuple[str, ...]]:
    for name, metric in (METRICS | ORDERED).items():
        yield f"`{name}`", BETTER[metric.direction]
    for name, direction in RELATIVE_METRICS.items():
        yield f"`{name}`", f"{BETTER[direction]}; against the baseline"


def _aliases() -> Iterator[tuple[str, ...]]:
    for name, alias in ALIASES.items():
        yield f"`{name}`", ", ".join(alias.chain), ", ".join(f"`{own}`" for own in alias.names)


def _parameters(stage: str) -> Iterator[tuple[str, ...]]:
    space = space_of(stage)
    on_request = getattr(space, "ON_REQUEST", {})
    for name, found in {**space.SPACE, **on_request}.items():
        more = "; only where a spec names it" if name in on_request else ""
        if (pattern := getattr(space, "OPEN", {}).get(name)) is not None:
            more += f"; in a spec also what matches `{pattern}`"
        choices = getattr(found, "choices", None)
        if choices is not None:
            yield f"`{name}`", ", ".join(f"`{choice}`" if choice != "" else "none" for choice in choices) + more
        else:
            ends: Any = found
            yield f"`{name}`", f"{ends.low} to {ends.high}{', logarithmic' if ends.log else ''}{more}"


def _commands(command: Any, name: str) -> Iterator[str]:
    if hasattr(command, "commands"):
        for inner in command.commands.values():
            yield from _commands(inner, f"{name} {inner.name}")
        return
    rows = [(_named(parameter), parameter.help or "") for parameter in command.params if not parameter.hidden]
    table = _table(("argument or option", "meaning"), iter(rows)) if rows else ""
    yield f"### {name}\n\n{command.help}\n\n{table}".rstrip() + "\n"


def _named(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{(parameter.metavar or parameter.name).upper()}`"
    return ", ".join(f"`{option}`" for option in parameter.opts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
