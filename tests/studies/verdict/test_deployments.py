import shutil

import numpy as np
import pytest
import yaml

from personalization.deployment import CONFIG, FORMAT, read_config
from personalization.errors import DataError, UsageError
from personalization.stages.calibration import Learned, Numbers
from personalization.stages.chain import Fitted
from search_spaces import chain_space
from studies.verdict import deployments
from studies.verdict.deployments import (
    generations,
    publish,
    published,
    registry_name,
    roll_back,
    roll_back_deployment,
    set_aside,
)
from tests.studies.test_sync import make_study
from tracking.deployed import standing_digest


def config(state: str = "s") -> dict:
    """As much of a deploy config as reading one asks for."""
    return {
        "format": FORMAT,
        "model": {**dict.fromkeys(("path", "dtype", "device", "fingerprint"), "x"), "blocks": None, "chat": False},
        "task": "LaMP_2",
        "labels": ["a", "b"],
        "provenance": {"state": state, "study": "gone", "study_id": "id"},
    }


def put(home, out, beta: float, state: str = "s") -> int:
    """Publish a calibration with this beta."""
    params = chain_space(("calibration",)).BASELINE.changed(beta=float(beta))
    numbers = Numbers({"batch": np.full(2, beta)}, float(beta), 0.0, 1.0)
    learned = Learned(numbers, numbers, None, np.array([1, 1]))
    return publish(home, out, config(state), Fitted(params, {"calibration": learned}))


def beta(out) -> float:
    found = read_config(out)
    return found["chain"][0]["params"]["beta"]


def test_generations_go_on_across_homes_and_each_home_can_roll_back(tmp_path):
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "deploy"
    assert [put(one, out, b) for b in (1, 2, 3)] == [1, 2, 3]
    assert put(two, out, 4) == 4
    assert put(one, out, 5) == 5
    assert roll_back(one, out) == (6, 4)
    assert beta(out) == 4
    assert roll_back(two, out) == (7, 3)
    assert beta(out) == 3


def test_a_moved_config_is_rolled_back_where_its_predecessor_is_kept(tmp_path):
    home, out, moved = tmp_path / "home", tmp_path / "deploy", tmp_path / "elsewhere" / "prod"
    put(home, tmp_path / "other", 7)
    put(home, out, 1)
    put(home, out, 2)
    moved.parent.mkdir()
    shutil.move(out, moved)
    with pytest.raises(UsageError, match="generation 2 replaced generation 1, which is not kept in .*stranger$"):
        roll_back(tmp_path / "stranger", moved)
    assert roll_back(home, moved) == (3, 1)
    assert beta(moved) == 1


def test_a_generation_that_was_never_finished_is_none_and_is_written_over(tmp_path):
    home, out = tmp_path / "home", tmp_path / "deploy"
    assert [put(home, out, b) for b in (1, 2)] == [1, 2]
    kept = next((home / "deployments").iterdir())
    (kept / "3" / ".files-0123456789abcdef.1f").mkdir(parents=True)  # of a promotion that was killed
    (kept / "2" / CONFIG).unlink()
    assert published(home, out, "s") == 1
    assert put(home, out, 3, "other") == 3
    assert [row["generation"] for row in generations(home, out)] == [1, 2, 3]
    assert roll_back(home, out) == (4, 2)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(4))
def test_only_what_stood_is_kept_at_whatever_step_a_promotion_is_killed(tmp_path, monkeypatch, step):
    home, out, steps = tmp_path / "home", tmp_path / "deploy", iter(range(9))
    assert [put(home, out, b) for b in (1, 2)] == [1, 2]

    def killed(real):
        def call(*arguments):
            if next(steps) == step:
                raise Killed
            real(*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in ("copy_atomic", "write_atomic"):
            patch.setattr(f"studies.verdict.deployments.{name}", killed(getattr(deployments, name)))
        with pytest.raises(Killed):
            put(home, out, 3)
    stood = [1.0, 2.0, 3.0][: int(beta(out))]
    assert [row["generation"] for row in generations(home, out)] == [1, 2]
    assert put(home, out, 4) == len(stood) + 1
    kept = deployments.kept_generations(deployments._kept(home, out))
    assert [beta(path) for path in kept.values()] == [*stood, 4.0]
    assert [len(list(path.iterdir())) for path in kept.values()] == [2] * len(kept)


def test_a_rollback_can_be_undone(tmp_path):
    home, out = tmp_path / "home", tmp_path / "deploy"
    put(home, out, 1)
    with pytest.raises(UsageError, match="generation 1 replaced nothing$"):
        roll_back(home, out)
    put(home, out, 2)
    assert roll_back(home, out) == (3, 1)
    said = "generation 3 has the content of generation 1, which replaced nothing; --to brings back one of 1, 2$"
    with pytest.raises(UsageError, match=said):
        roll_back(home, out)
    with pytest.raises(UsageError, match="generation 9 is not kept in .*; --to brings back one of 1, 2$"):
        roll_back(home, out, 9)
    assert roll_back(home, out, 2) == (4, 2)
    assert beta(out) == 2
    assert roll_back(home, out) == (5, 1)


def test_published_is_the_newest_generation_of_a_state(tmp_path):
    home, out = tmp_path / "home", tmp_path / "deploy"
    for number in range(12):
        put(home, out, number, "old" if number == 8 else "state")
    assert published(home, out, "state") == 12
    assert published(home, out, "old") == 9
    assert published(home, out, "never") is None


def test_a_damaged_kept_generation_keeps_nobody_from_promoting(tmp_path):
    home, out = tmp_path / "home", tmp_path / "deploy"
    assert [put(home, out, b) for b in (1, 2)] == [1, 2]
    kept = deployments.kept_generations(deployments._kept(home, out))
    next(kept[1].glob("files-*/**/*.safetensors")).write_bytes(b"damaged")
    assert published(home, out, "new") is None
    assert put(home, out, 3, "new") == 3
    assert [row["generation"] for row in generations(home, out)] == [1, 2, 3]


def test_a_config_that_is_brought_back_has_the_digest_that_it_had(tmp_path):
    home, out = tmp_path / "home", tmp_path / "deploy"
    put(home, out, 1)
    first = standing_digest(out)
    put(home, out, 2)
    assert standing_digest(out) != first
    roll_back(home, out)
    assert standing_digest(out) == first
    (out / CONFIG).write_text("generation: [")
    assert standing_digest(out) is None


def test_a_registry_name_has_only_letters_that_a_registry_takes(tmp_path):
    assert registry_name(tmp_path, tmp_path / "it's a/b: model.yaml").startswith("chamtune-b-model-")


def test_a_rollback_makes_no_home(tmp_path):
    home, out = tmp_path / "home", tmp_path / "deploy"
    put(home, out, 1)
    for place, error, said in (
        (out, UsageError, "generation 1 replaced nothing"),
        (tmp_path / "no", DataError, "no: "),
    ):
        with pytest.raises(error, match=said):
            roll_back_deployment(tmp_path / "other", place)
    assert not (tmp_path / "other").exists()


def test_a_rollback_of_a_study_that_is_not_here_says_that_mlflow_is_not_told(tmp_path, caplog):
    home, out = tmp_path / "home", tmp_path / "deploy"
    put(home, out, 1)
    put(home, out, 2)
    assert roll_back_deployment(home, out) == (3, 1)
    assert read_config(out)["restored_from"] == 1
    assert "MLflow's champion is not moved: no studies in" in caplog.text
    assert not (home / "spool").exists()


@pytest.mark.parametrize(
    ("of_study", "given", "asked"),
    [
        ("http://mlflow.example:5000", None, ["http://mlflow.example:5000"]),
        ("http://mlflow.example:5000", "http://other", ["http://other"]),
        ("none", None, []),
    ],
)
def test_a_rollback_is_told_to_the_place_of_its_study_unless_another_is_given(
    tmp_path, monkeypatch, of_study, given, asked
):
    home, out, uris = tmp_path / "home", tmp_path / "deploy", []

    class Recorded:
        def __init__(self, spool, uri):
            uris.append(uri)
            self.spool = spool

        def finish(self, timeout_s):
            assert (self.spool.study, self.spool.records()[-1][0]["kind"]) == ("gone", "rollback")

    monkeypatch.setattr(deployments, "Sender", Recorded)
    make_study(home, "gone", of_study)
    put(home, out, 1)
    put(home, out, 2)
    assert roll_back_deployment(home, out, tracking=given) == (3, 1)
    assert uris == asked


def test_an_empty_folder_is_filled_as_it_stands(tmp_path):
    home, out = tmp_path / "home", tmp_path / "deploy"
    out.mkdir()
    (out / "lost+found").mkdir()
    (out / ".files-0123456789abcdef.1f").mkdir()  # of a promotion that was killed before its config
    before = out.stat().st_ino
    assert put(home, out, 1) == 1
    assert (beta(out), out.stat().st_ino) == (1, before)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    out = tmp_path / "deploy"
    out.mkdir()
    for name in ("notes.txt", "a", "b", "c"):
        (out / name).write_text("")
    with pytest.raises(UsageError, match="is no deployment: it holds a, b, c and 1 more and no deploy.yaml"):
        put(tmp_path / "home", out, 1)
    assert len(list(out.iterdir())) == 4


def test_a_deployment_that_cannot_be_renamed_is_one_line(tmp_path):
    out = tmp_path / "deploy"
    for folder in (out, tmp_path / "deploy.unreadable"):
        folder.mkdir()
        (folder / CONFIG).write_text("")
    with pytest.raises(UsageError, match="cannot be renamed to deploy.unreadable .Directory not empty."):
        set_aside(out)


@pytest.mark.parametrize("part", ["task", "labels", "chain"])
def test_what_was_changed_by_hand_after_the_promotion_is_refused_by_name(tmp_path, part):
    out = tmp_path / "deploy"
    put(tmp_path / "home", out, 0.5)
    told = yaml.safe_load((out / CONFIG).read_text())
    told["model"]["path"] = "elsewhere"  # where the model lies may change
    (out / CONFIG).write_text(yaml.safe_dump(told))
    assert beta(out) == 0.5
    told["chain"][0]["params"]["beta"] += part == "chain"
    told |= {"task": "LaMP_2N"} if part == "task" else {"labels": ["b", "a"]} if part == "labels" else {}
    (out / CONFIG).write_text(yaml.safe_dump(told))
    with pytest.raises(DataError, match=f"{CONFIG}: {part} was changed after the promotion.* --to 1` restores it"):
        read_config(out)
    assert roll_back(tmp_path / "home", out, 1) == (2, 1)
    assert beta(out) == 0.5


def test_a_damaged_deployment_gives_way_to_what_stood_before(tmp_path):
    out = tmp_path / "deploy"
    for number in (1, 2):
        put(tmp_path / "home", out, number, str(number))
    next(out.rglob("*.safetensors")).unlink()
    assert roll_back(tmp_path / "home", out) == (3, 1)
    assert beta(out) == 1.0
