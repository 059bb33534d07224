"""Tables on standard output."""

import io
import sys

import pytest

from studies.shown import consoles
from studies.shown.consoles import empty_table, print_table

NAME = "steering-and-calibration-of-the-news-with-every-layer-that-there-is"


def printed(monkeypatch, columns, terminal):
    out = io.StringIO()
    out.isatty = lambda: terminal
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(consoles, "answers", consoles.Console(highlight=False, markup=False, soft_wrap=True))
    table = empty_table("a title", "study", "objective", "trials")
    table.add_row(NAME, "prompt + steering + calibration", "100")
    print_table(table)
    return out.getvalue()


@pytest.mark.parametrize("columns", [40, 300])
def test_where_there_is_no_terminal_a_name_stands_on_one_line(monkeypatch, columns):
    (line,) = [line for line in printed(monkeypatch, columns, False).splitlines() if NAME in line]
    assert "100" in line


def test_in_a_narrow_terminal_a_name_is_folded_and_nothing_is_cut_off(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    lines = printed(monkeypatch, 40, True).splitlines()
    rows = [line for line in lines if line.startswith("│")]
    assert max(map(len, rows)) <= 40
    assert "".join(row.split("│")[1].strip() for row in rows) == NAME
