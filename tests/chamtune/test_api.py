"""What `import chamtune` offers, and that the examples of docs/api.md run."""

import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import chamtune as ct
from personalization.data.demo.world import make_world
from personalization.data.known import known_items
from personalization.errors import UsageError
from personalization.stages import STAGES
from search_spaces import SPACES

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)


@pytest.fixture
def tables_as_they_were():
    stages, spaces = dict(STAGES), dict(SPACES)
    yield
    for table, before in ((STAGES, stages), (SPACES, spaces)):
        table.clear()
        table.update(before)


@pytest.fixture(scope="module")
def frame():
    """A row an item, as a user has it."""
    world = make_world(3, users=40, questions_per_user=1).dataset
    rows = []
    for question in world.questions:
        for place, item in enumerate(known_items(world.task, question)[-5:]):
            rows.append((question.user_id, item.text, item.label, datetime(2020, 1, 1 + place)))
        text = question.text.rpartition("description: ")[2]
        rows.append((question.user_id, text, question.gold, datetime(2020, 2, 1)))
    return pd.DataFrame(rows, columns=["user", "text", "label", "time"])


def test_importing_is_quick_and_names_what_there_is():
    code = (
        "import sys, chamtune; print(sorted({'torch', 'pandas', 'optuna', 'mlflow'} & set(sys.modules)), dir(chamtune))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.startswith("[] ['Auto', 'Dataset', 'Facts', 'Model'")
    with pytest.raises(AttributeError, match="it has Auto, Dataset, Facts, Model"):
        ct.Modell  # noqa: B018


@pytest.mark.slow
def test_the_examples_run(tmp_path, monkeypatch, frame, tables_as_they_were):
    monkeypatch.chdir(tmp_path)
    frame.assign(time=frame["time"].astype(str)).to_json("items.jsonl", orient="records", lines=True)
    text = "\n".join(EXAMPLES)
    space: dict = {}
    exec(compile(text, "docs/api.md", "exec"), space)
    assert space["study"].result.trials == 12
    assert "promoted" in space["verdict"]
    assert set(space["own"].trials()["params_times"]) != {1.0}


def test_a_table_is_asked_for_its_newest_rows_and_knows_the_earlier_ones(frame):
    shuffled = frame.sample(frac=1.0, random_state=0)
    data = ct.Dataset.from_frame(shuffled, time="time", newest=2)
    assert len(data) == 2 * frame["user"].nunique()
    first, second = data.records.questions[:2]
    assert first.user_id == second.user_id
    assert second.history[-1].text in first.text
    assert all(item.date < second.date for item in second.history)
    found = data.to_frame()
    assert list(found.columns) == ["id", "user", "text", "label", "known"]
    assert found["known"].between(1, 5).all()


def test_a_table_survives_its_files(frame, tmp_path):
    data = ct.Dataset.from_frame(frame, time="time")
    again = ct.Dataset.from_lamp(data.save(tmp_path / "saved"), task=data.records.task)
    assert again.records.labels == data.records.labels
    assert [(q.user_id, q.text, q.gold) for q in again.records.questions] == [
        (q.user_id, q.text, q.gold) for q in data.records.questions
    ]


def test_data_and_model_of_a_study_are_paths_or_text(tmp_path):
    told = {"name": "s", "data": tmp_path / "items", "model": tmp_path / "model"}
    as_text = {name: str(value) for name, value in told.items()}
    assert ct.Study(told, tmp_path).spec == ct.Study(as_text, tmp_path).spec


def test_a_file_is_the_same_data_as_its_frame(frame, tmp_path):
    frame.to_csv(tmp_path / "items.csv", index=False)
    columns = {"time": "time", "newest": 2}
    found = ct.Dataset.from_table(tmp_path / "items.csv", **columns)
    assert found.records.fingerprint() == ct.Dataset.from_frame(frame, **columns).records.fingerprint()
    with pytest.raises(UsageError, match="'labels' is no column of a data set; give user, text, label, time, id"):
        ct.Dataset.from_table(tmp_path / "items.csv", labels="label")


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"label": "tag"}, "no column 'tag'; it has user, text, label, time"), ({"task": "LaMP_9"}, "known are LaMP_1")],
)
def test_a_table_that_does_not_fit_is_one_line(frame, changes, said):
    with pytest.raises(UsageError, match=said):
        ct.Dataset.from_frame(frame, **changes)


def test_a_model_scores_labels(tiny_model):
    scores = ct.Model(tiny_model).score(["a b", "c"], ["x", "yes"])
    assert scores.shape == (2, 2)
    assert list(scores.columns) == ["x", "yes"]
    assert (scores.to_numpy() < 0).all()


class Leaning(ct.Stage):
    """A toy: what tune users were asked most often is made likelier."""

    def learn(self, params, work, tools):
        return np.log(np.bincount([len(q.text) % len(work.spoken) for q in work.dataset.questions],
                                  minlength=len(work.spoken)) + 1.0)  # fmt: skip

    def act(self, params, learned, work, tools):
        from dataclasses import replace

        from personalization.stages.work import Own, scores_of

        if params.lean == 0:
            return work
        return replace(work, own=Own((scores_of(work, tools) + params.lean * learned).astype(np.float32), 1.0))

    def facts(self, params, learned, below, done, tools):
        return ct.Facts(metrics={"lean": float(params.lean)})

    def save(self, params, learned, folder):
        (folder / "lean.json").write_text(json.dumps(learned.tolist()))
        return {"file": "lean.json"}

    def load(self, params, listed, folder):
        return np.array(json.loads((folder / listed["file"]).read_text()))


def test_an_own_stage_is_studied_promoted_and_served(tmp_path, frame, tiny_model, tables_as_they_were, monkeypatch):
    from optuna.distributions import FloatDistribution

    ct.stage("leaning", space={"lean": (FloatDistribution(0.0, 3.0), 0.0)})(Leaning)
    assert list(STAGES)[-2:] == ["leaning", "calibration"]
    spec = {
        "name": "own",
        "data": ct.Dataset.from_frame(frame, time="time"),
        "model": ct.Model(tiny_model),
        "chain": ["leaning", "calibration"],
        "space": {"lean": {"low": 0.5, "high": 3.0}},
        "trials": 6,
    }
    study = ct.Study({**spec, "promotion": {"beat_references": False}}, home=tmp_path).run()
    trials = study.trials()
    assert (trials["params_lean"] > 0).all()
    assert (trials["metrics_lean"] == trials["params_lean"]).all()
    found = study.predictions("tune")
    assert found["correct"].mean() == pytest.approx(trials["accuracy"].max())
    assert np.allclose(found.filter(like="p_").sum(axis=1), 1)
    monkeypatch.setattr("studies.verdict.promotion.judge", passing)
    verdict = study.promote(tmp_path / "deploy")
    assert verdict["promoted"]
    confirm = study._open.splits.confirm
    answers = ct.load(tmp_path / "deploy").predict(confirm.questions)
    right = [label == q.gold for label, q in zip(answers["label"], confirm.questions, strict=True)]
    assert np.mean(right) == pytest.approx(verdict["confirm"]["accuracy"])
    assert (answers["probability"] == answers.filter(like="p_").max(axis=1)).all()


def passing(*_):
    from studies.verdict.judgement import Judgement

    return Judgement(True, "for the test")


def test_confirm_users_are_not_shown(tmp_path, frame, tiny_model):
    spec = {"name": "s", "data": ct.Dataset.from_frame(frame), "model": ct.Model(tiny_model), "trials": 1}
    with pytest.raises(UsageError, match="allowed are tune, select"):
        ct.Study(spec, home=tmp_path).predictions("confirm")


@pytest.mark.slow
def test_a_study_goes_on_from_an_earlier_one(tmp_path, frame, tiny_model):
    data = ct.Dataset.from_frame(frame, time="time", task="LaMP_2")
    told = {"data": data, "model": tiny_model, "chain": ["calibration"], "sampler": "random", "trials": 4}
    first = ct.Study({**told, "name": "first"}, home=tmp_path).run()
    second = ct.Study({**told, "name": "second", "trials": 6}, home=tmp_path).run(from_=first)
    assert second.carried == [{"study": "first", "kept": 4, "queued": 0, "already": False, "outside": {}}]
    same = ["accuracy", "params_beta", "params_gamma"]
    pd.testing.assert_frame_equal(second.trials()[same][:4], first.trials()[same])
    assert len(second.trials()) == 6
    assert second.run(from_=["first"]).carried[0]["already"]
    with pytest.raises(UsageError, match="no study 'nowhere'"):
        second.run(from_="nowhere")
