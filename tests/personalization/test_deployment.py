"""Serving: the config says what may be asked."""

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from personalization.backbones.cached import CachedScorer
from personalization.data.records import HistoryItem, Question
from personalization.deployment import CONFIG, FORMAT, Deployment, read_config, write_files
from personalization.errors import DataError
from personalization.stages.calibration import Learned, Numbers
from personalization.stages.chain import Fitted
from search_spaces import chain_space

FRAME = "What is the score of the following review on a scale of 1 to 5? review: "
MOVIE = "Which tag? tags: [comedy, drama] description: a film"


@pytest.fixture(scope="module")
def config(tiny_encoder, tmp_path_factory):
    """A deployment of LaMP-3 on a tiny encoder: the taste of users alone, as a folder."""
    scorer = CachedScorer(str(tiny_encoder), None)
    model = {"path": str(tiny_encoder), "dtype": "float32", "device": "auto", "blocks": None, "chat": False}
    params = chain_space(("calibration",)).BASELINE.changed(gamma=50.0, prior_mode="user")
    none = Numbers({"batch": np.zeros(5)}, 0.0, 50.0, 1.0)
    learned = Learned(none, none, np.array([0.1, 0.1, 0.1, 0.6, 0.1]), np.array([1, 1, 1, 6, 1]))
    folder = tmp_path_factory.mktemp("deploy")
    written = {
        "format": FORMAT,
        "generation": 1,
        "model": {**model, "fingerprint": scorer.fingerprint},
        "task": "LaMP_3",
        "labels": ["1", "2", "3", "4", "5"],
        **write_files(Fitted(params, {"calibration": learned}), folder),
        "provenance": {},
    }
    (folder / CONFIG).write_text(yaml.safe_dump(written))
    return folder


@pytest.fixture
def predict(config, tmp_path, command):
    """A function that asks by the command line and returns (exit code, stderr, predictions)."""

    def ask(records, lines=False):
        path, out = tmp_path / f"new_questions.json{'l' if lines else ''}", tmp_path / "p.json"
        path.write_text("\n".join(map(json.dumps, records)) if lines else json.dumps(records))
        asked = ("--questions", path, "--out", out, "--home", tmp_path / "h")
        code, _, err = command("predict", "--config", config, *asked)
        return code, err, json.loads(out.read_text()) if out.exists() else None

    return ask


def asked(text, number=0, profile=()):
    return {"id": number, "user_id": f"u{number}", "input": text, "profile": list(profile)}


@pytest.mark.parametrize("lines", [False, True])
def test_new_users_alone_are_answered_with_the_prior_of_all(predict, lines):
    code, err, found = predict([asked(FRAME + f"a lamp {n}", n) for n in range(3)], lines)
    assert (code, found) == (0, {"task": "LaMP_3", "golds": [{"id": n, "output": "4"} for n in range(3)]})
    assert "3 of 3 questions (100 %) have no history" in err
    assert "scoring prompts 3/3" in err


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


def test_a_log_that_the_disk_does_not_take_keeps_nobody_from_an_answer(predict, tmp_path):
    (tmp_path / "h" / "logs").mkdir(parents=True)
    (tmp_path / "h" / "logs" / "chamtune.log").symlink_to("/dev/full")
    code, err, found = predict([asked(FRAME + "a lamp")])
    assert (code, found["golds"]) == (0, [{"id": 0, "output": "4"}])
    assert err.count("no log is kept any longer: ") == 1
    assert "logs/chamtune.log: No space left on device\n" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("broken", "error", "code", "said"),
    [
        ("files.os.fsync", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 74, "p.json: No space left on device"),
        ("files.os.fsync", KeyboardInterrupt(), 130, ""),
        ("deployment.Deployment.predict", KeyboardInterrupt(), 130, ""),
    ],
)
def test_answers_that_are_not_written_to_the_end_leave_what_stood_there(
    predict, tmp_path, monkeypatch, broken, error, code, said
):
    def breaks(*_):
        raise error

    (tmp_path / "p.json").write_text('"old"')
    monkeypatch.setattr(f"personalization.{broken}", breaks)
    found, err, kept = predict([asked(FRAME + "a lamp")])
    assert (found, kept) == (code, "old")
    assert [line for line in err.splitlines() if "error" in line] == [f"error: {tmp_path / said}"] * bool(said)
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"h", "new_questions.json", "p.json"}


def test_plain_questions_are_checked_too(config):
    served = Deployment.load(config)
    history = (HistoryItem("h", "a fan", "2"),)
    question = Question("q", "u", FRAME + "a lamp", history)
    assert served.predict([question])[0].label == "2"
    assert served.predict([replace(question, text="a lamp")])[0].label == "2"
    for text, said in ((MOVIE, "question q: a question of LaMP_2"), ("tags: [a, b] x", "its label list differs")):
        with pytest.raises(DataError, match=said):
            served.predict([question, replace(question, text=text)])


def test_the_item_itself_in_the_history_says_nothing(config):
    served = Deployment.load(config)
    asked = Question("q", "u", FRAME + "a lamp", (HistoryItem("h", "a lamp", "2"),))
    assert (served.predict([asked])[0].label, served.predict([asked])[0].prior_mode) == ("4", "global (fall-back)")


def copied(config, tmp_path):
    return Path(shutil.copytree(config, tmp_path / "copy"))


def test_a_copy_that_is_read_only_answers_the_same_and_nothing_is_written(config, tmp_path):
    question = Question("q", "u", FRAME + "a lamp", (HistoryItem("h", "a fan", "2"),))
    expected = Deployment.load(config).predict([question])
    copy = copied(config, tmp_path)
    for path in (*copy.rglob("*"), copy):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(tmp_path.rglob("*"))
    assert Deployment.load(copy).predict([question]) == expected
    assert sorted(tmp_path.rglob("*")) == before


def test_threads_share_a_deployment_and_no_answer_differs(config):
    served = Deployment.load(config)
    questions = [
        Question(str(n), f"u{n}", FRAME + f"a lamp {n}", (HistoryItem("h", "a fan", str(1 + n % 5)),))
        for n in range(40)
    ]
    expected = {p.id: p for p in served.predict(questions)}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda q: served.predict([q])[0], questions * 3))
    for found in answers:
        assert found.label == expected[found.id].label
        assert found.log_probs == pytest.approx(expected[found.id].log_probs, abs=1e-5)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / CONFIG).unlink(), "No such file"),
        (lambda folder: (folder / CONFIG).write_text("a: ["), "not a deploy config"),
        (lambda folder: (folder / CONFIG).write_text("a: 1"), "it lacks format, generation"),
        (lambda folder: edit(folder, format=7), "format 7 is not known here; known are 5 and 6"),
        (
            lambda folder: edit(folder, chain=[{"stage": "magic", "params": {}, "learned": {}}]),
            "stage 'magic' is not known here",
        ),
        (lambda folder: edit(folder, chain=None), "chain: Input should be a valid list"),
        (lambda folder: edit(folder, chain=[]), "chain: List should have at least 1 item"),
        (lambda folder: edit(folder, labels=[1]), "labels.0: Input should be a valid string"),
        (lambda folder: edit(folder, generation="2"), "generation: Input should be a valid integer"),
        (lambda folder: edit(folder, model={"path": "x"}), "model.device: Field required"),
        (lambda folder: edit_learned(folder, "apart", "x"), "stage calibration cannot be read: TypeError"),
        (lambda folder: edit_learned(folder, "plain", None), "stage calibration cannot be read: TypeError"),
        (lambda folder: edit_learned(folder, "apart", [OWN_GAMMA]), "calibration cannot be read: .*'delta' is none of"),
        (
            lambda folder: edit_learned(folder, "apart", [{**OWN_GAMMA, "name": "gamma", "spread": float("nan")}]),
            "chain.0.learned.apart.0.spread is nan, and no number",
        ),
        (
            lambda folder: edit(folder, task={"name": "x", "prompt": "{{nothing}}"}),
            "it may name history, input, labels, text",
        ),
        (lambda folder: edit(folder, folder="../x"), "its files lie outside of"),
        (lambda folder: edit(folder, files={"../../x": "0"}), "missing or changed"),
        (lambda folder: next(folder.rglob("*.safetensors")).unlink(), "missing or changed; copy the whole folder"),
        (lambda folder: next(folder.rglob("*.safetensors")).write_bytes(b"x"), "missing or changed"),
        (
            lambda folder: edit(folder, model={**read_config(folder)["model"], "fingerprint": "0" * 64}),
            "is not the one",
        ),
    ],
)
def test_a_damaged_deployment_is_one_line(config, tmp_path, harm, said):
    copy = copied(config, tmp_path)
    harm(copy)
    with pytest.raises(DataError, match=said) as caught:
        Deployment.load(copy)
    assert "\n" not in str(caught.value)


def test_a_parameter_that_came_later_is_what_it_was_before(config, tmp_path):
    copy = copied(config, tmp_path)
    (entry,) = read_config(copy)["chain"]
    told = {name: value for name, value in entry["params"].items() if name not in ("per_user", "reach")}
    edit(copy, chain=[{**entry, "params": told}])
    question = Question("q", "u", FRAME + "a lamp", (HistoryItem("h", "a fan", "2"),))
    assert Deployment.load(copy).predict([question]) == Deployment.load(config).predict([question])


OWN_GAMMA = {"name": "delta", "centre": 0.0, "spread": 0.2, "gain": 1.0, "error": 0.1}


def edit_learned(folder, key, value):
    (entry,) = read_config(folder)["chain"]
    edit(folder, chain=[{**entry, "learned": {**entry["learned"], key: value}}])


def edit(folder, /, **changes):
    written = yaml.safe_load((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(yaml.safe_dump({**written, **changes}))


def test_a_model_that_lies_elsewhere_is_named(config, tiny_encoder, tmp_path):
    copy = copied(config, tmp_path)
    edit(copy, model={**read_config(copy)["model"], "path": "/nowhere"})
    question = Question("q", "u", FRAME + "a lamp", (HistoryItem("h", "a fan", "2"),))
    moved = shutil.copytree(tiny_encoder, tmp_path / "model")
    assert Deployment.load(copy, moved).predict([question])[0].label == "2"
