"""The config that a promotion leaves."""

import json
import shutil
from dataclasses import replace
from threading import Thread
from types import SimpleNamespace

import pytest
import yaml

from personalization.backbones.cached import CachedScorer
from personalization.deployment import CONFIG, Deployment, read_config
from personalization.errors import DataError, UsageError
from personalization.files import sha256_of
from personalization.stages.chain import Fitted
from personalization.stages.work import Tools
from studies.study import open_study
from studies.verdict.deployments import located, registry_name
from studies.verdict.evidence import Evidence
from studies.verdict.promotion import promote
from tests.gguf_files import byte_level, make_llama, write_gguf
from tests.planted import BiasedScorer
from tracking.spool import Spool


def looks(opened):
    return Evidence(opened.storage).looks()


@pytest.mark.parametrize("damage", ["format: 99\n", "model: [\n"])
def test_a_config_that_cannot_be_read_is_reported_before_any_look_and_replaced_on_purpose(tmp_path, make_study, damage):
    opened, out = make_study(), tmp_path / "deploy"
    out.mkdir()
    (out / CONFIG).write_text(damage)
    with pytest.raises(DataError, match="--replace-unreadable"):
        promote(opened, out)
    assert looks(opened) == []
    result = promote(opened, out, replace_unreadable=True)
    assert result["promoted"]
    assert "not a deploy config" in read_config(out)["provenance"]["replaced_unreadable"]
    assert (tmp_path / "deploy.unreadable" / CONFIG).read_text() == damage


def lose_files(out):
    shutil.rmtree(out / read_config(out)["folder"])


def change_model(out):
    config = read_config(out)
    changed = {**config, "model": {**config["model"], "fingerprint": "0" * 64}}
    (out / CONFIG).write_text(yaml.safe_dump(changed))


@pytest.mark.parametrize(
    ("harm", "said"), [(lose_files, "missing or changed"), (change_model, "is not the one of the promotion")]
)
def test_a_deployment_that_cannot_answer_is_reported_before_any_look_and_replaced_on_purpose(
    tmp_path, make_study, harm, said
):
    first, out = make_study(), tmp_path / "deploy"
    assert promote(first, out)["promoted"]
    harm(out)
    more = make_study(trials=17)
    with pytest.raises(DataError, match=f"{said}.*--replace-unreadable"):
        promote(more, out)
    assert len(looks(more)) == 1
    result = promote(more, out, replace_unreadable=True)
    assert (result["promoted"], result["confirm"]["use"], result["confirm"]["incumbent"]) == (True, 2, None)
    assert said in read_config(out)["provenance"]["replaced_unreadable"]
    assert Deployment.load(out).predict(more.splits.confirm.questions[:1])
    assert (tmp_path / "deploy.unreadable" / CONFIG).exists()


def test_a_file_of_an_earlier_version_is_not_replaced_by_a_folder(tmp_path, make_study):
    opened, out = make_study(), tmp_path / "deploy.yaml"
    out.write_text("format: 5\n")
    with pytest.raises(UsageError, match="is a file, and a deployment is a folder; give --out FOLDER"):
        promote(opened, out)
    assert looks(opened) == []


def test_a_place_that_cannot_be_made_is_refused_before_any_look(tmp_path, make_study):
    opened = make_study()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=str(tmp_path / "file")):
        promote(opened, tmp_path / "file" / "deploy")
    assert looks(opened) == []


def test_config_of_a_changed_model_is_refused(tmp_path, make_study):
    opened = make_study()
    out = tmp_path / "deploy"
    promote(opened, out)
    config = read_config(out)
    config["model"]["fingerprint"] = "0" * 64
    (out / CONFIG).write_text(yaml.safe_dump(config))
    with pytest.raises(DataError, match="is not the one of the promotion"):
        Deployment.load(out)


def test_requests_of_threads_wait_for_each_other(tmp_path):
    terms = {"task": "LaMP_2", "labels": ["a", "b"]}
    deployment = Deployment(terms, Fitted({}, {}), Tools(BiasedScorer("", tmp_path)))
    found = []
    other = Thread(target=lambda: found.append(deployment.predict([])))
    with deployment.scorer.lock:
        other.start()
        other.join(0.3)
        assert not found
    other.join()
    assert found == [[]]


@pytest.mark.slow
def test_a_hub_model_is_promoted_and_served_at_the_commit_of_its_study(tmp_path, make_study, hub):
    class Hub(BiasedScorer):
        def __init__(self, model, folder, *rest, **named):
            super().__init__(model, folder, *rest, **named)
            self.commit = CachedScorer(model, folder, *rest, **named).commit

    opened = make_study(Hub, model={"path": "owner/name"})
    hub.push(2)
    out = tmp_path / "deploy"
    promote(open_study(opened.spec, opened.home), out)
    model = read_config(out)["model"]
    assert (model["path"], model["revision"]) == ("owner/name", hub.commit(1))
    assert Deployment.load(out).scorer.commit == hub.commit(1)


@pytest.mark.slow
def test_a_gguf_file_is_promoted_by_its_place_and_served_from_another(tmp_path, make_study, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    file, out = write_gguf(tmp_path / "tiny.gguf", make_llama(), byte_level()), tmp_path / "deploy"

    class Converted(BiasedScorer):
        def __init__(self, model, folder, *rest, **named):
            super().__init__(model, folder, *rest, **named)
            self.fingerprint = CachedScorer(model, folder, *rest, **named).fingerprint

    promote(make_study(Converted, model={"path": "tiny.gguf"}), out)
    model = read_config(out)["model"]
    assert (model["path"], model["fingerprint"]) == (str(file), sha256_of(file))
    file.rename(tmp_path / "moved.gguf")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert Deployment.load(out, tmp_path / "moved.gguf").scorer.fingerprint == model["fingerprint"]
    with pytest.raises(DataError, match=r"GGUF file .*tiny.gguf: No such file"):
        Deployment.load(out)


@pytest.mark.parametrize(
    "text", ["", "a: [", "generation: 1\n", "!!python/object/apply:os.system [ls]\n", json.dumps({"format": 9})]
)
def test_damaged_config_is_one_line(tmp_path, text):
    path = tmp_path / "deploy"
    path.write_text(text)
    with pytest.raises(DataError, match="not a deploy config") as caught:
        Deployment.load(path)
    assert "\n" not in str(caught.value)


def test_users_without_history_get_the_fall_back(tmp_path, make_study):
    opened = make_study()
    out = tmp_path / "deploy"
    promote(opened, out)
    deployment = Deployment.load(out)
    question = opened.splits.confirm.questions[0]
    stranger = type(question)(question.id, "new", question.text, (), None)
    modes = [p.prior_mode for p in deployment.predict([question, stranger])]
    assert deployment.fitted.params["calibration"].prior_mode == "user"
    assert modes == ["user", "global (fall-back)"]


@pytest.mark.slow
def test_the_registrys_champion_is_the_whole_deployment(tmp_path, make_study):
    uri = f"sqlite:///{tmp_path / 'own.db'}"
    opened, out = make_study(tracking=uri), tmp_path / "deploy"
    assert promote(opened, out)["promoted"]
    questions = opened.splits.confirm.questions[:5]
    expected = Deployment.load(out).predict(questions)
    name = registry_name(opened.home, out)
    shutil.rmtree(out)
    with located(f"models:/{name}@champion", tmp_path / "elsewhere", uri) as folder:
        assert Deployment.load(folder).predict(questions) == expected
    with (
        pytest.raises(DataError, match=r"models:/nobody@champion is not to be had from"),
        located("models:/nobody@champion", tmp_path / "elsewhere", uri),
    ):
        pass


def test_a_folder_of_something_else_is_refused_before_any_look_whatever_is_asked(tmp_path, make_study):
    opened, out = make_study(), tmp_path / "deploy"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for replacing in (False, True):
        with pytest.raises(UsageError, match="is no deployment: it holds notes.txt and no deploy.yaml"):
            promote(opened, out, replace_unreadable=replacing)
    assert looks(opened) == []
    (out / "notes.txt").unlink()
    assert promote(opened, out)["promoted"]


def died(*_):
    raise KeyboardInterrupt


def test_a_promotion_that_died_before_it_was_told_is_told_by_the_same_command_once(tmp_path, make_study, monkeypatch):
    opened, out = make_study(), tmp_path / "deploy"
    opened = replace(opened, spec=opened.spec.model_copy(update={"tracking": "sqlite:///unused.db"}))
    monkeypatch.setattr("studies.verdict.deployments.Sender", lambda *_: SimpleNamespace(finish=lambda _: 0))
    with monkeypatch.context() as dying:
        dying.setattr("studies.verdict.promotion.track", died)
        with pytest.raises(KeyboardInterrupt):
            promote(opened, out, with_cold_start=False)
    (opened.home / "deployments" / registry_name(opened.home, out).removeprefix("chamtune-") / "1" / CONFIG).unlink()
    for _ in range(2):  # killed before the kept config, too
        assert promote(opened, out, with_cold_start=False)["generation"] == 1
    records = [record for record, _ in Spool(opened.home, "planted", opened.record["id"]).records()]
    told = [record["key"] for record in records if record["kind"] == "model"]
    assert told == [f"promoted-{looks(opened)[0].found['trial']}-1"]
