"""Where the command line speaks: answers on standard output, progress and remarks on standard error."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from studies.shown import logs

answers = Console(highlight=False, markup=False, soft_wrap=True)
notes = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
WIDE = 1_000_000
"""Characters of a line, where no terminal bounds it."""


def speak(tables: bool, log: bool) -> None:
    """Whether progress and tables are shown, and whether the log is."""
    answers.quiet = notes.quiet = not tables
    logs.shown_from = logging.INFO if log else logging.WARNING


@contextmanager
def beside(standard_output: bool) -> Iterator[None]:
    """Print answers to standard error inside, where standard output is taken."""
    before, answers.stderr = answers.stderr, standard_output
    try:
        yield
    finally:
        answers.stderr = before


def empty_table(heading: str | None, *columns: str, left: Container[str] | None = None) -> Table:
    """Columns stand to the right where `left` is given and does not name them."""
    made = Table(title=heading, title_justify="left")
    for name in columns:
        made.add_column(name, justify="left" if left is None or name in left else "right", overflow="fold")
    return made


def print_table(table: Table) -> None:
    """A table on standard output: in a terminal as wide as that, elsewhere as wide as what stands in it."""
    if not answers.is_terminal:
        table.width = answers.measure(table, options=answers.options.update(max_width=WIDE)).maximum
    answers.print(table, soft_wrap=False, crop=answers.is_terminal)
