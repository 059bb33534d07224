import json
import shutil
from pathlib import Path

import pytest

from personalization.errors import DataError, UsageError
from studies.record import held_versions, places_of
from studies.runner import run_study
from studies.shown.show import describe_study
from studies.study import RECORD, find_study, located_spec, open_study, stored_spec

pytestmark = pytest.mark.usefixtures("kept_scores", "no_results")


@pytest.fixture
def moving(tmp_path, small_data, tiny_model, spec_of, monkeypatch):
    """A function that makes a spec with relative paths, in a folder that holds data and model, which it is in."""
    here = tmp_path / "here"
    shutil.copytree(small_data, here / "lamp")
    shutil.copytree(tiny_model, here / "llama")
    monkeypatch.chdir(here)
    return lambda **changes: spec_of(**{"trials": 1, "data": {"path": "lamp"}, "model": {"path": "llama"}} | changes)


def record_of(home):
    return find_study("small", home, None).user_attrs[RECORD]


def test_the_same_data_and_model_by_other_paths_resume(tmp_path, moving):
    home = tmp_path / "home"
    run_study(moving(), home)
    here = Path.cwd()
    absolute = moving(trials=2, data={"path": str(here / "lamp")}, model={"path": str(here / "llama")})
    assert run_study(absolute, home).trials == 2
    questions = str(here / "lamp" / "small_questions.json")
    one_file = moving(trials=3, data={"path": questions})
    assert run_study(one_file, home).trials == 3
    assert stored_spec(find_study("small", home, None)).data.path == questions


def test_a_study_opens_from_another_folder_and_where_everything_was_moved(tmp_path, moving, monkeypatch):
    run_study(moving(), tmp_path / "here" / "home")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    spec = located_spec(find_study("small", tmp_path / "here" / "home", None))
    assert open_study(spec, tmp_path / "here" / "home").splits.tune.questions
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    spec = located_spec(find_study("small", Path("home"), None))
    assert (spec.data.path, spec.model.path) == ("lamp", "llama")
    open_study(spec, Path("home"))
    assert record_of(Path("home"))["places"]["data.path"] == [str(tmp_path / "there" / "lamp"), "lamp"]


@pytest.mark.parametrize(("lost", "key"), [("lamp", "data.path"), ("llama", "model.path")])
def test_data_or_a_model_at_none_of_its_places_is_one_line_with_the_places(tmp_path, moving, lost, key):
    home = tmp_path / "home"
    run_study(moving(), home)
    shutil.move(lost, tmp_path / "elsewhere")
    study = find_study("small", home, None)
    with pytest.raises(DataError) as caught:
        located_spec(study)
    said = str(caught.value)
    assert key in said
    assert str(Path.cwd() / lost) in said
    assert "chamtune run SPEC" in said
    assert "\n" not in said
    assert describe_study("small", home, None)["trials"] == 1
    moved = {"data": {"path": str(tmp_path / "elsewhere")}} if lost == "lamp" else {}
    moved |= {"model": {"path": str(tmp_path / "elsewhere")}} if lost == "llama" else {}
    run_study(moving(**moved), home)
    assert located_spec(find_study("small", home, None)).trials == 1


def test_files_for_each_part_are_found_from_another_folder(tmp_path, moving, monkeypatch, small_data):
    questions = json.loads((small_data / "small_questions.json").read_text())
    golds = json.loads((small_data / "small_outputs.json").read_text())
    third = len(questions) // 3 // 2 * 2
    for number, part in enumerate(("tune", "select", "confirm")):
        rows = slice(number * third, (number + 1) * third)
        Path(f"{part}_questions.json").write_text(json.dumps(questions[rows]))
        Path(f"{part}_outputs.json").write_text(json.dumps({**golds, "golds": golds["golds"][rows]}))
    files = {part: f"{part}_questions.json" for part in ("tune", "select", "confirm")}
    home = tmp_path / "home"
    here = Path.cwd()
    run_study(moving(data={"files": files}), home)
    monkeypatch.chdir(tmp_path)
    spec = located_spec(find_study("small", home, None))
    assert spec.data.files.select == str(here / "select_questions.json")
    assert open_study(spec, home).splits.select.questions


def test_names_of_what_comes_with_the_package_and_of_the_hub_are_no_paths(moving):
    Path("demo").mkdir()
    spec = moving(data={"path": "demo"}, model={"path": "demo"}).model_dump()
    assert places_of(spec) == {"data.path": "demo", "model.path": "demo"}
    spec = moving(model={"path": "m.gguf"}).model_dump()
    assert places_of(spec)["model.path"] == [str(Path.cwd() / "m.gguf"), "m.gguf"]
    spec = moving(model={"path": "owner/name"}).model_dump()
    assert places_of(spec) == {"data.path": [str(Path.cwd() / "lamp"), "lamp"], "model.path": "owner/name"}


def test_other_data_are_refused_with_both_places(tmp_path, moving):
    home = tmp_path / "home"
    run_study(moving(), home)
    shutil.copytree("lamp", "other")
    golds = json.loads(Path("other/small_outputs.json").read_text())
    for gold in golds["golds"]:
        gold["output"] = "violence" if gold["output"] != "violence" else "comedy"
    Path("other/small_outputs.json").write_text(json.dumps(golds))
    with pytest.raises(UsageError) as caught:
        run_study(moving(data={"path": "other"}), home)
    assert f"data.path: {Path.cwd() / 'lamp'} -> {Path.cwd() / 'other'}" in str(caught.value)


def test_a_record_with_the_paths_in_its_spec_resumes(tmp_path, moving):
    home = tmp_path / "home"
    run_study(moving(), home)
    study = find_study("small", home, None)
    record = study.user_attrs[RECORD]
    del record["places"]
    record["spec"]["data"] |= {"path": "lamp", "files": None}
    record["spec"]["model"]["path"] = "llama"
    study.set_user_attr(RECORD, record)
    assert located_spec(find_study("small", home, None)).data.path == str(Path.cwd() / "lamp")
    assert run_study(moving(trials=2, data={"path": str(Path.cwd() / "lamp")}), home).trials == 2


def test_versions_are_kept_with_the_trial_from_which_they_held():
    one, two, three = ({"torch": str(n)} for n in (1, 2, 3))
    stored = {"versions": one}
    assert held_versions(stored, 0, two) == [{"from_trial": 0, "versions": two}]
    assert held_versions(stored, 5, one) == [{"from_trial": 0, "versions": one}]
    later = held_versions(stored, 5, two)
    assert later == [{"from_trial": 0, "versions": one}, {"from_trial": 5, "versions": two}]
    stored["later_versions"] = later[1:]
    assert held_versions(stored, 5, three)[1:] == [{"from_trial": 5, "versions": three}]
    assert held_versions(stored, 5, one) == later[:1]
    assert [entry["from_trial"] for entry in held_versions(stored, 9, one)] == [0, 5, 9]


def test_a_run_under_other_versions_keeps_the_first_and_says_so_once(tmp_path, spec_of, monkeypatch, caplog):
    run_study(spec_of(trials=2), tmp_path)
    first = record_of(tmp_path)["versions"]
    assert "other versions" not in caplog.text
    monkeypatch.setattr("studies.study.versions", lambda: {**first, "torch": "99"})
    run_study(spec_of(trials=3), tmp_path)
    assert f"from trial 2 on: torch: {first['torch']} -> 99" in caplog.text
    assert record_of(tmp_path)["versions"] == first
    assert record_of(tmp_path)["later_versions"] == [{"from_trial": 2, "versions": {**first, "torch": "99"}}]
    caplog.clear()
    run_study(spec_of(trials=4), tmp_path)
    assert "other versions" not in caplog.text
    assert [entry["from_trial"] for entry in record_of(tmp_path)["later_versions"]] == [2]
