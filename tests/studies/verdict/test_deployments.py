import shutil

import pytest
import yaml

from personalization.data.prompts import WORDINGS
from personalization.deployment import FORMAT, read_config
from personalization.errors import UsageError
from studies.verdict.deployments import publish, published, registry_name, roll_back, roll_back_deployment
from tracking.deployed import config_digest, standing_digest


def config(beta: float, state: str = "s") -> dict:
    """As much of a deploy config as reading one asks for."""
    return {
        "format": FORMAT,
        "method": "calibration",
        "model": {},
        "template": next(iter(WORDINGS.values())).template,
        "task": "LaMP_2",
        "labels": ["a", "b"],
        "params": {"beta": beta},
        "priors": {},
        "fallback": {},
        "provenance": {"state": state, "study": "gone", "study_id": "id"},
    }


def beta(out) -> float:
    return read_config(out)["params"]["beta"]


def test_generations_go_on_across_homes_and_each_home_can_roll_back(tmp_path):
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "deploy.yaml"
    assert [publish(one, out, config(b)) for b in (1, 2, 3)] == [1, 2, 3]
    assert publish(two, out, config(4)) == 4
    assert publish(one, out, config(5)) == 5
    assert roll_back(one, out) == (6, 4)
    assert beta(out) == 4
    assert roll_back(two, out) == (7, 3)
    assert beta(out) == 3


def test_a_moved_config_is_rolled_back_where_its_predecessor_is_kept(tmp_path):
    home, out, moved = tmp_path / "home", tmp_path / "deploy.yaml", tmp_path / "elsewhere" / "prod.yaml"
    publish(home, tmp_path / "other.yaml", config(7))
    publish(home, out, config(1))
    publish(home, out, config(2))
    moved.parent.mkdir()
    shutil.move(out, moved)
    with pytest.raises(UsageError, match="replaced nothing that is kept"):
        roll_back(tmp_path / "stranger", moved)
    assert roll_back(home, moved) == (3, 1)
    assert beta(moved) == 1


def test_published_is_the_newest_generation_of_a_state(tmp_path):
    home, out = tmp_path / "home", tmp_path / "deploy.yaml"
    for number in range(12):
        publish(home, out, config(number, "old" if number == 8 else "state"))
    assert published(home, out, "state") == 12
    assert published(home, out, "old") == 9
    assert published(home, out, "never") is None


def test_a_config_that_is_brought_back_has_the_digest_that_it_had(tmp_path):
    home, out = tmp_path / "home", tmp_path / "deploy.yaml"
    publish(home, out, config(1))
    first = standing_digest(out)
    publish(home, out, config(2))
    assert standing_digest(out) != first == config_digest(config(1))
    roll_back(home, out)
    assert standing_digest(out) == first
    out.write_text("generation: [")
    assert standing_digest(out) is None


def test_a_registry_name_has_only_letters_that_a_registry_takes(tmp_path):
    assert registry_name(tmp_path, tmp_path / "it's a/b: model.yaml").startswith("chamtune-b-model-")


def test_a_rollback_of_a_study_that_is_not_here_says_that_mlflow_is_not_told(tmp_path, caplog):
    home, out = tmp_path / "home", tmp_path / "deploy.yaml"
    publish(home, out, config(1))
    publish(home, out, config(2))
    assert roll_back_deployment(home, out) == (3, 1)
    assert yaml.safe_load(out.read_text())["restored_from"] == 1
    assert "MLflow's champion is not moved: no studies in" in caplog.text
    assert not (home / "spool").exists()
