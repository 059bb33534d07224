"""Deploy configs in MLflow's registry: one registered model for each place, one version for each config.

A version is known by the digest of the config, and the alias `champion` is on the config that stands at the place, who
ever put it there and in whichever order the records arrive.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from personalization.databases import shown, without_secrets
from personalization.errors import DataError, first_line
from tracking.deployed import standing_digest
from tracking.urls import tracking_environment

CHAMPION = "champion"
DIGEST_TAG = "config"


def register(client: MlflowClient, record: Mapping[str, Any], run_id: str | None) -> None:
    """A version of the deploy config in the registry, known by the digest of its content."""
    name, digest = record["name"], record["digest"]
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    if newest_version(client, name, digest) is None:
        if run_id is None:
            raise MlflowException.invalid_parameter_value(f"the run of {record['key']} is not there")
        tags = {"generation": str(record["generation"]), DIGEST_TAG: digest}
        client.create_model_version(name, source=f"runs:/{run_id}/deploy", run_id=run_id, tags=tags)
    crown(client, record)


def crown(client: MlflowClient, record: Mapping[str, Any]) -> None:
    """Put the alias on what stands at the place of the deploy config; on nothing where MLflow does not know that."""
    name = record["name"]
    version = newest_version(client, name, standing_digest(Path(record["out"])) or record["digest"])
    if version is not None:
        client.set_registered_model_alias(name, CHAMPION, version)
        return
    for model in client.search_registered_models(f"name = '{name}'"):
        if CHAMPION in model.aliases:
            client.delete_registered_model_alias(name, CHAMPION)


def download(name: str, uri: str, folder: Path) -> Path:
    """The deployment of a model version, `models:/NAME@alias` or `models:/NAME/VERSION`, in this folder.

    DataError where MLflow does not have it.
    """
    import mlflow

    mlflow.set_tracking_uri(tracking_environment(uri)["MLFLOW_TRACKING_URI"])
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=name, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        said = without_secrets(first_line(error), uri)
        raise DataError(f"{name} is not to be had from {shown(uri)}: {said}") from None


def newest_version(client: MlflowClient, name: str, digest: str) -> str | None:
    """The last version with a config's digest."""
    found = client.search_model_versions(f"name = '{name}' AND tags.{DIGEST_TAG} = '{digest}'")
    return max((str(version.version) for version in found), key=int, default=None)
