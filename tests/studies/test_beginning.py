"""`init`: which column is what, and files that a study starts from."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from personalization.errors import UsageError
from studies.beginning import begin
from studies.data import load_splits
from studies.spec import load_spec
from tests.tickets import GERMAN, JAPANESE, tickets

NONE: dict[str, None] = dict.fromkeys(("user", "text", "label", "time"))


@pytest.mark.parametrize(("language", "suffix"), [(GERMAN, "csv"), (JAPANESE, "parquet")])
def test_columns_are_told_by_what_stands_in_them(tmp_path, monkeypatch, language, suffix):
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame(tickets(language, 20, 12))
    frame.to_csv("tickets.csv", index=False) if suffix == "csv" else frame.to_parquet("tickets.parquet")
    found = begin(f"tickets.{suffix}", NONE, tmp_path)
    number, who, when, what, where = language["columns"]
    assert found["columns"] == {"user": who, "text": (what,), "label": where, "time": when, "id": number}
    assert (found["rows"], found["users"], len(found["labels"])) == (240, 20, 6)
    spec = load_spec(found["spec"])
    splits = load_splits(spec)
    assert len({q.user_id for part in (splits.tune, splits.select, splits.confirm) for q in part.questions}) == 20
    assert set(splits.tune.labels) == set(language["queues"])
    prompt = spec.task.prompt_of("TEXT", splits.tune.questions[0].history[:1])
    assert prompt.endswith(f"\n\nTEXT\n{where}:")
    assert splits.tune.questions[0].history[0].text in prompt
    assert yaml.safe_load(Path(found["task"]).read_text(encoding="utf-8"))["labels"]


def test_who_knows_better_names_them(tmp_path):
    pd.DataFrame(tickets(GERMAN, 20, 12)).to_csv(tmp_path / "t.csv", index=False)
    found = begin(str(tmp_path / "t.csv"), {**NONE, "user": "warteschlange", "label": "kunde"}, tmp_path, "odd")
    assert (found["columns"]["user"], found["columns"]["label"]) == ("warteschlange", "kunde")
    assert found["spec"].endswith("odd.yaml")
    with pytest.raises(UsageError, match="is there already; give another --name"):
        begin(str(tmp_path / "t.csv"), NONE, tmp_path, "odd")
    with pytest.raises(UsageError, match="there is no column 'queue'; there are ticket, kunde"):
        begin(str(tmp_path / "t.csv"), {**NONE, "label": "queue"}, tmp_path, "new")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"a": f"text {i}", "b": f"{i}"} for i in range(9)],
            "not clear which column is the user; say so with --user",
        ),
        ([{"a": f"text {i}", "b": "xy"[i % 2]} for i in range(9)], "not clear which column is the user"),
    ],
)
def test_what_is_not_clear_is_asked_for(tmp_path, rows, said):
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(UsageError, match=said):
        begin(str(tmp_path / "t.csv"), NONE, tmp_path)
