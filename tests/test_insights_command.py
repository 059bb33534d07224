"""`chamtune insights` and `chamtune.insights`, from a table and from studies."""

import io
import json

import pandas as pd
import pytest

import chamtune as ct
from personalization.errors import UsageError
from studies.insights.reading import kept_path
from studies.insights.report import NAMES, harmless
from studies.recovery import POINT
from studies.runner import run_study
from studies.study import find_study
from tests.studies.test_foreign import EXPERIMENTS


def test_a_table_is_told_without_being_stored(command, tmp_path):
    arguments = ("insights", "--csv", EXPERIMENTS, "--value", "recall_at_100", "--home", tmp_path / "home")
    code, out, err = command(*arguments, "--columns", "training=optimizer,batch_size")
    assert (code, err) == (0, "")
    assert "25 trials, 24 feasible" in out
    assert "what good trials hang on" in out
    assert not (tmp_path / "home").exists()
    code, out, _ = command(*arguments, "--format", "csv")
    table = pd.read_csv(io.StringIO(out))
    assert {"parameter", "value", "score", "low", "high", "ratio_raw", "confidence"} <= set(table)
    code, out, _ = command(
        *arguments, "--format", "json", "--columns", "training=optimizer,batch_size",
        "--group", "training",
    )  # fmt: skip
    assert list(json.loads(out)["analysis"]) == ["training"]


def test_no_cell_of_the_csv_is_a_formula(command, tmp_path):
    table = tmp_path / "t.csv"
    choices = ("=1+1", "-1+cmd", "+x", "@x", "plain")
    rows = [f'"{choices[i % 5]}",{i % 4 - 2},{i}' for i in range(40)]
    table.write_text("\n".join(["-name,n,v", *rows]))
    code, out, _ = command("insights", "--csv", table, "--value", "v", "--format", "csv")
    found = pd.read_csv(io.StringIO(out), dtype=str)
    assert code == 0
    assert set(found["parameter"]) == {"'-name", "n"}
    assert set(found["value"]) == {"'=1+1", "'-1+cmd", "'+x", "'@x", "plain", "-2", "-1", "0", "1"}


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("-1.5", "-1.5"), ("-1e-05 to 0.5", "-1e-05 to 0.5"), ("\rx", "'\rx"), ("\t1", "'\t1"), (-1.5, -1.5),
        ("-x", "'-x"),
    ],
)  # fmt: skip
def test_numbers_stay_and_formulas_do_not(value, cell):
    assert harmless(value) == cell


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--csv", EXPERIMENTS), "which column tells how good a run was? Give --value COLUMN"),
        (("--csv", EXPERIMENTS, "--value", "x"), "there is no column 'x'"),
        (("--csv", EXPERIMENTS, "--value", "recall_at_100", "--columns", "x"), "write GROUP=COLUMN,COLUMN"),
        (("--csv", EXPERIMENTS, "--value", "recall_at_100", "--constraint", "x"), 'write "COLUMN <= NUMBER"'),
        (("--csv", EXPERIMENTS, "--value", "recall_at_100", "--group", "nothing"), "is in group 'nothing'"),
        (("--format", "pdf"), "--format pdf: there are table, json, csv"),
        (("--enqueue", "2"), "--enqueue is of one study; name it"),
        (("nowhere",), "no studies in"),
    ],
)
def test_what_cannot_be_told_is_one_line(command, tmp_path, arguments, said):
    code, _, err = command("insights", *arguments, "--home", tmp_path / "home")
    assert code == 64
    assert said in err
    assert err.count("\n") == 1


def test_suggestions_are_queued_and_taken_first(command, tmp_path, spec_of, kept_scores, no_results):
    run_study(spec_of(trials=15, constraints={}), tmp_path)
    code, out, _ = command("insights", "small", "--format", "json", "--home", tmp_path)
    wanted = [one["params"] for one in json.loads(out)["suggestions"][:2]]
    assert code == 0
    assert wanted
    command("insights", "small", "--enqueue", "2", "--home", tmp_path)
    run_study(spec_of(trials=15 + len(wanted), constraints={}), tmp_path)
    trials = find_study("small", tmp_path, None).trials[15:]
    assert [trial.params for trial in trials] == wanted
    assert [trial.user_attrs[POINT] for trial in trials] == wanted
    assert all(trial.user_attrs["suggested"] for trial in trials)


def test_the_path_is_printed_and_kept_for_the_page(command, tmp_path, spec_of, kept_scores, no_results):
    run_study(spec_of(trials=12, warm_start=True, constraints={}), tmp_path)
    code, out, _ = command("insights", "small", "--path", "--home", tmp_path)
    assert code == 0
    assert "from the baseline to trial" in out
    assert "tune users: optimistic" in out.replace("\n", " ")
    kept = kept_path(tmp_path, "small")
    assert sum(step["gain"] for step in kept["steps"]) == pytest.approx(kept["gain"])


def test_python_gives_frames_of_a_table_and_of_studies(tmp_path):
    frame = pd.read_csv(EXPERIMENTS)
    groups = {"optimizer": "training"}
    made = ct.insights(frame=frame, value="recall_at_100", constraints={"training_minutes": "<= 30"}, groups=groups)
    assert set(made) == set(NAMES)
    assert (made["scores"]["group"] == "training").sum() == 3
    assert made["prices"]["constraint"].tolist() == ["training_minutes"]
    with pytest.raises(UsageError, match="insights has no 'tops'"):
        ct.insights(frame=frame, value="recall_at_100", tops=0.2)
    with pytest.raises(UsageError, match="give a frame and its column of values, or studies"):
        ct.insights(frame=frame)
