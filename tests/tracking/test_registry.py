"""The registered model whose champion is the deployed config."""

from pathlib import Path

import pytest
import yaml

from tests.sent import Ended, begun, result
from tracking.deployed import config_digest
from tracking.spool import Spool

mlflow = pytest.importorskip("mlflow")
from mlflow import MlflowClient  # noqa: E402

from tracking.mlflow_tracker import send  # noqa: E402


def deploy(out: Path, generation: int, **content) -> str:
    """Put a config to a place; its digest."""
    config = {"generation": generation, **content}
    out.write_text(yaml.safe_dump(config))
    return config_digest(config)


def promoted(spool: Spool, folder: Path, out: Path, generation: int, digest: str) -> None:
    (folder / "deploy").mkdir(parents=True, exist_ok=True)
    key = f"promoted-{spool.study_id}-{generation}"
    spool.append(result("promoted", key, folder))
    place = {"name": "chamtune-test", "out": str(out), "digest": digest}
    spool.append({"kind": "model", **place, "key": key, "generation": generation})


def champion(uri: str) -> str:
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    return client.get_model_version_by_alias("chamtune-test", "champion").tags["config"]


@pytest.mark.slow
def test_the_champion_is_what_stands_after_promotions_and_rollbacks(tmp_path, own_store):
    spool, out = begun(tmp_path, "registry"), tmp_path / "deploy.yaml"
    first = deploy(out, 1, beta=1)
    promoted(spool, tmp_path / "result", out, 1, first)
    second = deploy(out, 2, beta=2)
    promoted(spool, tmp_path / "result", out, 2, second)
    assert send(spool, own_store, Ended())
    assert champion(own_store) == second != first
    assert deploy(out, 3, beta=1, restored_from=1) == first
    spool.append({"kind": "rollback", "name": "chamtune-test", "out": str(out), "digest": first})
    assert send(spool, own_store, Ended())
    assert champion(own_store) == first


@pytest.mark.slow
def test_two_homes_that_deploy_to_one_place_agree_on_the_champion(tmp_path, own_store):
    one, two = begun(tmp_path / "one", "study", study_id="a"), begun(tmp_path / "two", "study", study_id="b")
    out = tmp_path / "deploy.yaml"
    first = deploy(out, 1, study="a")
    promoted(one, tmp_path / "result", out, 1, first)
    second = deploy(out, 1, study="b")
    promoted(two, tmp_path / "result", out, 1, second)
    assert send(two, own_store, Ended())
    assert send(one, own_store, Ended())
    assert champion(own_store) == second != first
    versions = MlflowClient(own_store, own_store).search_model_versions("name = 'chamtune-test'")
    assert sorted(version.tags["config"] for version in versions) == sorted([first, second])


@pytest.mark.slow
def test_a_place_where_something_unknown_stands_has_no_champion(tmp_path, own_store):
    spool, out = begun(tmp_path, "registry"), tmp_path / "deploy.yaml"
    promoted(spool, tmp_path / "result", out, 1, deploy(out, 1, beta=1))
    assert send(spool, own_store, Ended())
    digest = deploy(out, 2, beta="of a home that tells another MLflow")
    spool.append({"kind": "rollback", "name": "chamtune-test", "out": str(out), "digest": digest})
    assert send(spool, own_store, Ended())
    with pytest.raises(mlflow.MlflowException, match="champion"):
        champion(own_store)
