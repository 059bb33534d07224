"""Serving: the config says what may be asked."""

import json
from dataclasses import replace

import pytest
import yaml

import cli
from personalization.backbones.cached import CachedScorer
from personalization.data.prompts import WORDINGS
from personalization.data.records import HistoryItem, Question
from personalization.deployment import FORMAT, Deployment
from personalization.errors import DataError

FRAME = "What is the score of the following review on a scale of 1 to 5? review: "
MOVIE = "Which tag? tags: [comedy, drama] description: a film"


def params_of(**changes):
    plain = {"beta": 0.0, "gamma": 1.0, "kappa": 1.0, "tau": 1.0, "prior_mode": "user", "source": "batch"}
    return {**plain, **changes}


@pytest.fixture(scope="module")
def config(tiny_encoder, tmp_path_factory):
    """A deploy config of LaMP-3 on a tiny encoder, as a file."""
    scorer = CachedScorer(str(tiny_encoder), tmp_path_factory.mktemp("scores"))
    model = {"path": str(tiny_encoder), "dtype": "float32", "device": "auto", "blocks": None, "chat": False}
    none = [0.0] * 5
    written = {
        "format": FORMAT,
        "generation": 1,
        "model": {**model, "fingerprint": scorer.fingerprint},
        "template": WORDINGS["encoder"].template,
        "task": "LaMP_3",
        "labels": ["1", "2", "3", "4", "5"],
        "method": "calibration",
        "params": params_of(gamma=50.0),
        "fallback": {"prior_mode": "global"},
        "priors": {
            "log_model": {"batch": none, "neutral": none, "content_free": none},
            "global_probs": [0.1, 0.1, 0.1, 0.6, 0.1],
            "global_counts": [1, 1, 1, 6, 1],
        },
        "provenance": {},
    }
    path = tmp_path_factory.mktemp("config") / "deploy.yaml"
    path.write_text(yaml.safe_dump(written))
    return path


@pytest.fixture
def predict(config, tmp_path, monkeypatch, capsys):
    """A function that asks by the command line and returns (exit code, stderr, predictions)."""

    def ask(records):
        path, out = tmp_path / "new_questions.json", tmp_path / "p.json"
        path.write_text(json.dumps(records))
        command = ["predict", "--config", config, "--questions", path, "--out", out, "--home", tmp_path / "h"]
        monkeypatch.setattr("sys.argv", ["chamtune", *map(str, command)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, capsys.readouterr().err, json.loads(out.read_text()) if out.exists() else None

    return ask


def asked(text, number=0, profile=()):
    return {"id": number, "user_id": f"u{number}", "input": text, "profile": list(profile)}


def test_new_users_alone_are_answered_with_the_prior_of_all(predict):
    code, err, found = predict([asked(FRAME + f"a lamp {n}", n) for n in range(3)])
    assert (code, found) == (0, {"task": "LaMP_3", "golds": [{"id": n, "output": "4"} for n in range(3)]})
    assert "3 of 3 questions (100 %) have no history" in err


def test_what_counts_for_nothing_is_said_and_equal_numbers_count(predict):
    items = [{"id": "h", "text": "a fan", "score": score} for score in ("2.0", "2.0", "ii")]
    _, err, found = predict([asked(FRAME + "a lamp", profile=items)])
    assert [answer["output"] for answer in found["golds"]] == ["2"]
    assert "1 of 3 history labels (33.3 %) are not among the labels and count for nothing: 'ii'" in err


@pytest.mark.parametrize(
    ("text", "profile", "said"),
    [
        (MOVIE, [], "a question of LaMP_2, but the config is for LaMP_3"),
        (
            "tags: [comedy, drama] a film",
            [],
            "its label list differs from the config's in 1, 2, 3, 4, 5, comedy, drama",
        ),
        (FRAME + "a lamp", [{"tag": "comedy", "description": "d"}], "are those of LaMP_2, and this is LaMP_3"),
    ],
)
def test_questions_of_another_kind_are_refused_in_one_line(predict, text, profile, said):
    code, err, found = predict([asked(text, n, profile) for n in range(2)])
    assert (code, found) == (65, None)
    assert err.count("\n") == 1
    assert said in err
    assert "2 records, first record 1" in err


def test_plain_questions_are_checked_too(config, tmp_path):
    served = Deployment.load(config, tmp_path)
    history = (HistoryItem("h", "a fan", "2"),)
    question = Question("q", "u", FRAME + "a lamp", history)
    assert served.predict([question])[0].label == "2"
    assert served.predict([replace(question, text="a lamp")])[0].label == "2"
    for text, said in ((MOVIE, "question q: a question of LaMP_2"), ("tags: [a, b] x", "its label list differs")):
        with pytest.raises(DataError, match=said):
            served.predict([question, replace(question, text=text)])


def test_the_item_itself_in_the_history_says_nothing(config, tmp_path):
    served = Deployment.load(config, tmp_path)
    asked = Question("q", "u", FRAME + "a lamp", (HistoryItem("h", "a lamp", "2"),))
    assert (served.predict([asked])[0].label, served.predict([asked])[0].prior_mode) == ("4", "global")
