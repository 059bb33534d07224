"""Runs that MLflow holds, as rows of a table: all of them, page by page."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from personalization.databases import shown, without_secrets
from personalization.errors import UnavailableError, UsageError, first_line
from tracking.urls import tracking_environment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE = 1000
"""Runs that are asked for at once."""


def every_run(client: MlflowClient, experiment_id: str, **wanted: Any) -> Iterator[Run]:
    """The runs of an experiment, page by page; `wanted`: further arguments of `MlflowClient.search_runs`."""
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=PAGE, page_token=token, **wanted)
        yield from page
        token = page.token or None
        if token is None:
            return


def runs_of(uri: str, experiment: str, wanted: Collection[str]) -> list[dict[str, Any]]:
    """A row a finished run of an experiment: its parameters (texts) and the metrics that are wanted (numbers), by name.

    Other metrics are left out: they are what came of a run, not what went into it. A metric that has the name of a
    parameter is called `metrics.NAME`. UsageError where there is no such experiment,
    UnavailableError where MLflow does not answer.
    """
    os.environ.update(tracking_environment(uri))
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    rows: list[dict[str, Any]] = []
    try:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise UsageError(f"MLflow at {shown(uri)} has no experiment {experiment!r}")
        finished, oldest_first = "attributes.status = 'FINISHED'", ["attributes.start_time ASC"]
        for run in every_run(client, found.experiment_id, filter_string=finished, order_by=oldest_first):
            metrics = {f"metrics.{k}" if k in run.data.params else k: v for k, v in run.data.metrics.items()}
            rows.append({**run.data.params, **{k: v for k, v in metrics.items() if k in wanted}})
    except (MlflowException, OSError) as error:
        raise UnavailableError(f"MLflow at {shown(uri)}: {without_secrets(first_line(error), uri)}") from error
    return rows
