"""Tables, other storages and MLflow as studies; the case of 25 experiments with 22 fields in four categories."""

import json
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from sqlalchemy.exc import OperationalError

from personalization.errors import DataError, UsageError
from studies.foreign import Mapped, cell, csv_rows, import_optuna, import_rows, rows_of, table_history, trials_of
from studies.insights.reading import FOREIGN, read_histories
from studies.insights.report import as_json, insights_of
from studies.storage import storage_url

EXPERIMENTS = Path(__file__).parents[1] / "fixtures" / "experiments.csv"
FIELDS = {
    "training": ("optimizer", "output_embedding_dim", "retrieval_algorithm", "top_k"),
    "architecture": (
        "buyer_tower_structure", "product_tower_structure", "buyer_activation", "product_activation", "buyer_l2",
        "product_l2", "buyer_total_params", "product_total_params",
    ),
    "features": (
        "buyer_tensor_dim", "product_tensor_dim", "buyer_feature_count", "product_feature_count", "buyer_cross_count",
        "product_cross_count",
    ),
    "data": ("dataset_row_count", "dataset_date_range_days", "dataset_unique_users", "dataset_unique_products"),
}  # fmt: skip
DETAILS = ("buyer_feature_details", "product_feature_details", "buyer_cross_details", "product_cross_details")
GROUPS = {name: group for group, names in FIELDS.items() for name in names} | dict.fromkeys(DETAILS, "features")
MAPPED = Mapped("recall_at_100", constraints={"training_minutes": "<= 30"}, groups=GROUPS)


def test_the_experiments_are_imported_analysed_and_told_as_the_report_draws_them(tmp_path):
    rows, name = rows_of(EXPERIMENTS)
    done = import_rows(rows, MAPPED, name, (tmp_path, None))
    assert done == {
        "study": "experiments", "source": "experiments", "trials": 25, "complete": 24, "left_out": ["experiment"]
    }  # fmt: skip
    study = optuna.load_study(study_name="experiments", storage=storage_url(tmp_path, None))
    assert all(FOREIGN in trial.user_attrs for trial in study.trials)
    found = read_histories(["experiments"], tmp_path)[0]
    assert found.foreign
    told = json.loads(json.dumps(as_json(found, insights_of(found))))
    assert sum(len(names) for names in FIELDS.values()) == 22
    by_group = {group: [entry["field"] for entry in entries] for group, entries in told["analysis"].items()}
    for group, names in FIELDS.items():
        assert set(names) <= set(by_group[group])
    details = {e["field"]: e["values"] for e in told["analysis"]["features"] if e["items"]}
    assert {v["value"] for v in details["buyer_feature_details"]} >= {
        "customer_id 32D",
        "customer_id 64D",
        "segment 8D",
    }
    l2 = next(e for e in told["analysis"]["architecture"] if e["field"] == "buyer_l2")
    assert {v["value"] for v in l2["values"]} == {"none", "light", "medium", "heavy"}
    assert told["total_experiments"] == 25
    assert told["good_experiments"] == 7
    first = next(e for e in told["analysis"]["training"] if e["field"] == "optimizer")["values"][0]
    assert {"value", "score", "ratio_raw", "mean", "best", "count", "good_count", "confidence"} <= set(first)


def test_what_is_stored_reads_as_what_stood_in_the_table(tmp_path):
    rows, _ = rows_of(EXPERIMENTS)
    import_rows(rows, MAPPED, "e", (tmp_path, None))
    stored = read_histories(["e"], tmp_path)[0].trials
    direct = table_history(rows, MAPPED, "e").trials
    assert (
        list(stored["value"].dropna())
        == list(direct["value"].dropna())
        == [row["recall_at_100"] for row in rows if row["recall_at_100"] is not None]
    )
    for name in ("optimizer", "learning_rate", "batch_size", "buyer_feature_details"):
        assert (
            list(stored[f"params_{name}"])
            == list(direct[f"params_{name}"])
            == [tuple(row[name]) if isinstance(row[name], tuple) else row[name] for row in rows]
        )
    assert list(stored["feasible"]) == list(direct["feasible"])
    assert list(direct["feasible"]) == [
        row["recall_at_100"] is not None and row["training_minutes"] <= 30 for row in rows
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("3", 3), ("0.5", 0.5), ("nan", None), ("adam", "adam"), ('["a", "b"]', ("a", "b")),
        ('[{"name": "id", "dim": 32}]', ("id 32D",)), ("[torn", "[torn"),
        ("7_7", "7_7"), ("1_0.5", "1_0.5"), ('["a_b"]', ("a_b",)), ("[" * 5000,) * 2, (f"[{'1' * 5000}]",) * 2,
        (str(2**53 - 1), 2**53 - 1), (str(2**63 + 1), 2.0**63), ("1" * 400, None),
        (2**63 + 1, 2.0**63), (float("inf"), None),
    ],
)  # fmt: skip
def test_cells(text, value):
    assert cell(text) == value


@pytest.mark.parametrize(
    ("content", "mapped", "error", "said"),
    [
        ("a,v\n1,2\n", Mapped("w"), UsageError, "t.csv: there is no column 'w'; there are a, v"),
        ("a,v\n1,x\n", Mapped("v"), DataError, "t.csv: row 1: v is 'x', which is no number"),
        ("a,v\n", Mapped("v"), DataError, "no row in it"),
        ("a,v\n1\n", Mapped("v"), DataError, "line 2 has fewer cells than the heading"),
        ("a;v\n1;2;3\n", Mapped("v"), DataError, "line 2 has more values than the header has columns"),
        ("v\n1\n", Mapped("v"), DataError, "t.csv: no column is a parameter"),
        ("a,b,v\n1,1,2\n", Mapped("v", constraints={"a": "< 2"}), UsageError, "'< 2' is no bound"),
    ],
)
def test_bad_tables_are_one_line(tmp_path, content, mapped, error, said):
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(error, match=said) as caught:
        trials_of(csv_rows(path), mapped, "t.csv")
    assert "\n" not in str(caught.value)


def test_seeds_of_64_bits_are_numbers(tmp_path):
    rows = [{"seed": cell(str(2**63 + i)), "n": i % 2, "v": i} for i in range(0, 90000, 4096)]
    found = table_history(rows, Mapped("v"), "t")
    assert found.trials["params_seed"].tolist() == [float(row["seed"]) for row in rows]
    assert as_json(found, insights_of(found))["feasible_experiments"] == len(rows)
    assert import_rows(rows, Mapped("v"), "t", (tmp_path, None))["complete"] == len(rows)


@pytest.mark.parametrize("name", ["../../evil", "chamtune.looks", "Chamtune.Looks", "", "a\n", "ä", "-a", "a" * 101])
def test_a_name_that_no_study_can_have_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="no study can be called .*; --name gives one"):
        import_rows([{"a": 1, "v": 1}], Mapped("v"), name, (tmp_path / "home", None))
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("error", [OperationalError("INSERT", {}, Exception("disk is full")), KeyboardInterrupt()])
def test_an_import_that_ends_half_way_leaves_nothing_and_is_done_again(tmp_path, monkeypatch, error):
    rows, real = [{"a": number, "v": number} for number in range(5)], optuna.Study.add_trial

    def breaks(study, trial):
        if trial.params["a"] == 3:
            raise error
        real(study, trial)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "add_trial", breaks)
        with pytest.raises(type(error)):
            import_rows(rows, Mapped("v"), "t", (tmp_path, None))
    assert optuna.get_all_study_names(storage_url(tmp_path, None)) == []
    assert import_rows(rows, Mapped("v"), "t", (tmp_path, None))["complete"] == 5


def test_a_database_that_is_not_there_is_not_made(tmp_path):
    missing = tmp_path / "nope.db"
    with pytest.raises(UsageError, match="there is no file .*nope.db"):
        import_optuna(f"sqlite:///{missing}", None, None, (tmp_path / "home", None))
    assert list(tmp_path.iterdir()) == []


def test_a_database_given_as_a_table_is_named_by_its_url(tmp_path):
    import_rows([{"a": 1, "v": 1}], Mapped("v"), "t", (tmp_path, None))
    path = tmp_path / "studies.db"
    with pytest.raises(DataError, match=f"is a SQLite database; `chamtune import sqlite:///{path}` reads one"):
        rows_of(path)


def test_what_was_measured_elsewhere_comes_along(tmp_path):
    url, space = f"sqlite:///{tmp_path / 'other.db'}", {"x": FloatDistribution(0, 1)}
    told = [{"metrics": {"a": 1.0}, "fields": {"training.steps": 3}}, {"metrics": {"a": 1.0}, "duplicate_of": 0}]
    study = optuna.create_study(storage=url, study_name="theirs")
    for measured in told:
        attrs = {"measured": measured, "foreign_items": {"kinds": ["b", "c"]}, "their own": [3]}
        study.add_trial(optuna.create_trial(params={"x": 0.5}, distributions=space, value=1.0, user_attrs=attrs))
    import_optuna(url, None, None, (tmp_path / "home", None))
    kept = optuna.load_study(study_name="theirs", storage=storage_url(tmp_path / "home", None)).trials
    assert [trial.user_attrs["measured"] for trial in kept] == [told[0]] * 2
    assert [trial.user_attrs["their own"] for trial in kept] == [[3]] * 2
    found = read_histories(["theirs"], tmp_path / "home")[0].trials
    assert found["params_kinds"].tolist() == [("b", "c")] * 2
    assert found["metrics_a"].tolist() == [1.0] * 2


def test_a_study_of_another_storage_is_copied_whole(tmp_path):
    url = f"sqlite:///{tmp_path / 'other.db'}"
    study = optuna.create_study(storage=url, study_name="theirs", direction="minimize")
    study.optimize(lambda t: (t.suggest_float("x", 0, 1) - 0.3) ** 2, n_trials=15)
    done = import_optuna(url, None, None, (tmp_path / "home", None))
    assert (done["study"], done["trials"], done["complete"]) == ("theirs", 15, 15)
    ours = optuna.load_study(study_name="theirs", storage=storage_url(tmp_path / "home", None))
    assert [t.params for t in ours.trials] == [t.params for t in study.trials]
    assert [t.value for t in ours.trials] == [t.value for t in study.trials]
    found = read_histories(["theirs"], tmp_path / "home")[0]
    assert (found.maximize, found.foreign) == (False, True)
    with pytest.raises(UsageError, match="there is a study 'theirs' already"):
        import_optuna(url, "theirs", None, (tmp_path / "home", None))
    with pytest.raises(UsageError, match="no study 'x' there; there are: theirs"):
        import_optuna(url, "x", None, (tmp_path / "home", None))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_runs_of_mlflow_are_rows(tmp_path):
    code = f"""
import mlflow
mlflow.set_tracking_uri("sqlite:///{tmp_path / "mlflow.db"}")
mlflow.create_experiment("theirs", artifact_location="{tmp_path.as_uri()}")
mlflow.set_experiment("theirs")
for i in range(4):
    with mlflow.start_run():
        mlflow.log_params({{"lr": 0.1 * i, "kind": "ab"[i % 2]}})
        mlflow.log_metrics({{"auc": 0.5 + i / 10, "loss": i}})
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cli", "import", f"sqlite:///{tmp_path / 'mlflow.db'}"),
            *("--experiment", "theirs", "--value", "auc", "--home", str(tmp_path / "home")),
        ],
        check=True,
        capture_output=True,
        text=True,
        cwd=EXPERIMENTS.parents[2],
    )
    assert "4 runs of theirs are study theirs, 4 with a value" in done.stdout
    study = optuna.load_study(study_name="theirs", storage=storage_url(tmp_path / "home", None))
    assert [t.params["kind"] for t in study.trials] == ["a", "b", "a", "b"]
    assert set(study.trials[0].params) == {"kind", "lr"}  # what came of a run went not into it
    assert [t.value for t in study.trials] == pytest.approx([0.5, 0.6, 0.7, 0.8])
