"""A run and the runs after it, in homes and storages of any name."""

import json

import pytest

from personalization.errors import UsageError
from studies.runner import run_study
from studies.samplers import derived_seed
from studies.shown.show import list_studies
from studies.study import RECORD, find_study
from studies.trial import MEASURED

pytestmark = pytest.mark.usefixtures("kept_scores")


def trials_of(home, name="small"):
    return find_study(name, home, None).get_trials(deepcopy=False)


def test_a_study_runs_and_every_trial_says_what_it_measured(tmp_path, spec_of):
    result = run_study(spec_of(trials=6), tmp_path)
    trials = trials_of(tmp_path)
    assert (result.trials, result.complete, len(trials)) == (6, 6, 6)
    for trial in trials:
        assert list(trial.constraints) == ["entropy", "top1_share"]
        metrics = trial.user_attrs[MEASURED]["metrics"]
        assert trial.value == metrics["accuracy"]
        assert trial.constraints["entropy"] == pytest.approx((0.6 - metrics["entropy"]) / 0.6)
        assert trial.user_attrs[MEASURED]["seed"] == derived_seed(0, "tpe", "0", 0)
    assert result.feasible == sum(all(v <= 0 for v in t.constraints.values()) for t in trials)
    assert result.best["trial"] == find_study("small", tmp_path, None).best_trial.number
    assert (tmp_path / "results" / "small" / "baseline" / "summary.csv").exists()


@pytest.mark.slow
def test_resuming_continues_to_the_total_and_proposes_new_points(tmp_path, spec_of):
    run_study(spec_of(trials=5), tmp_path)
    run_study(spec_of(trials=10), tmp_path)
    params = [json.dumps(t.params) for t in trials_of(tmp_path)]
    assert len(params) == len(set(params)) == 10
    assert run_study(spec_of(trials=10), tmp_path).trials == 10


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampler": "random"}, "spec.sampler: tpe -> random"),
        ({"constraints": {"entropy": ">= 0.5"}}, "spec.constraints.entropy: >= 0.6 -> >= 0.5"),
        ({"space": {"tau": 1.0}}, "spec.space.tau: (absent) -> 1.0"),
    ],
)
def test_resuming_with_another_spec_is_refused_with_the_difference(tmp_path, spec_of, no_results, changes, said):
    run_study(spec_of(trials=1), tmp_path)
    with pytest.raises(UsageError) as caught:
        run_study(spec_of(trials=2, **changes), tmp_path)
    assert said in str(caught.value)
    assert len(trials_of(tmp_path)) == 1


def test_a_study_from_before_an_option_existed_resumes(tmp_path, spec_of, no_results):
    run_study(spec_of(trials=1), tmp_path)
    study = find_study("small", tmp_path, None)
    record = study.user_attrs[RECORD]
    del record["spec"]["model"]["blocks"]
    study.set_user_attr(RECORD, record)
    assert run_study(spec_of(trials=2), tmp_path).trials == 2


def test_resuming_with_other_data_or_another_model_is_refused(tmp_path, spec_of, no_results, small_data, tiny_model):
    import shutil

    data, model = tmp_path / "data", tmp_path / "model"
    shutil.copytree(small_data, data)
    shutil.copytree(tiny_model, model)
    spec = spec_of(trials=1, data={"path": str(data)}, model={"path": str(model)})
    run_study(spec, tmp_path / "home")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    with pytest.raises(UsageError, match="model: "):
        run_study(spec, tmp_path / "home")
    (model / "config.json").write_text(json.dumps(config, indent=2))
    outputs = data / "small_outputs.json"
    shutil.copy(tiny_model / "config.json", model / "config.json")
    golds = json.loads(outputs.read_text())
    golds["golds"][0]["output"] = "violence" if golds["golds"][0]["output"] != "violence" else "comedy"
    outputs.write_text(json.dumps(golds))
    with pytest.raises(UsageError, match="data\\."):
        run_study(spec, tmp_path / "home")


def test_a_study_without_a_feasible_trial_names_the_closest(tmp_path, spec_of, no_results):
    result = run_study(spec_of(trials=2, constraints={"entropy": ">= 99"}), tmp_path)
    assert result.best is None
    assert result.closest["constraints"]["entropy"] > 0


def test_another_order_of_goals_is_refused(tmp_path, spec_of, no_results):
    run_study(spec_of(trials=1, optimize={"accuracy": "maximize", "nll": "minimize"}), tmp_path)
    with pytest.raises(UsageError, match="order: "):
        run_study(spec_of(trials=2, optimize={"nll": "minimize", "accuracy": "maximize"}), tmp_path)


@pytest.mark.parametrize("spelling", ["both.db", "./both.db?timeout=5", "x/../both.db"])
def test_one_database_for_two_masters_is_refused(tmp_path, spec_of, spelling):
    storage, tracking = f"sqlite:///{tmp_path}/both.db", f"sqlite:///{tmp_path}/{spelling}"
    with pytest.raises(UsageError, match="a database each"):
        run_study(spec_of(storage=storage, tracking=tracking), tmp_path)


@pytest.mark.parametrize("name", ["a?b", "a%20b", "ä #b"])
def test_a_home_of_any_name_holds_all_its_files(tmp_path, spec_of, name):
    home = tmp_path / name
    run_study(spec_of(trials=1), home)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (home / "studies.db").exists()
    assert [row["study"] for row in list_studies(home, None)] == ["small"]
    assert find_study("small", home, None).study_name == "small"


@pytest.mark.parametrize("url", ["sqlite:///{}/q.db?timeout=100", "sqlite+pysqlite:///{}/p.db"])
def test_a_study_in_a_storage_of_any_spelling_is_found(tmp_path, spec_of, no_results, url):
    url, home = url.format(tmp_path), tmp_path / "home"
    run_study(spec_of(trials=1, storage=url), home)
    assert [row["study"] for row in list_studies(home, url)] == ["small"]
    assert find_study("small", home, url).study_name == "small"
    with pytest.raises(UsageError, match="--storage"):
        find_study("small", home, None)
