"""Serving a promoted config.

    deployment = Deployment.load("deploy.yaml")
    predictions = deployment.predict(questions)

A deploy config holds the model and its fingerprint, labels, method, parameters, prior tables, the changes for users
without history (`fallback`), a generation number and where it came from. It is plain YAML, read by `yaml.safe_load`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from personalization.backbones.cached import CachedScorer
from personalization.data.defects import Checked
from personalization.data.lamp import check_dataset
from personalization.data.layout import Terms
from personalization.data.prompts import WORDINGS, continuations, mismatch
from personalization.data.records import Dataset, Question
from personalization.errors import DataError
from personalization.methods.adapters.trained import Trained
from personalization.methods.adapters.user_adapters import UserAdapters, blended
from personalization.methods.adapters.user_heads import UserHeads, load_heads
from personalization.methods.history.ranking import Histories, retrieval_calibrate
from personalization.methods.taste.calibration import Calibrated, PriorTables, calibrate, report_calibrate
from personalization.methods.taste.priors import history_counts

FORMAT = 5


def steered_calibrate(
    scores: NDArray[np.floating], counts: NDArray[np.int64], tables: PriorTables, **params: Any
) -> Calibrated:
    """`calibrate` with its own of the steering method's parameters; the scores are steered already."""
    own = ("beta", "gamma", "kappa", "tau", "prior_mode", "source")
    return calibrate(scores, counts, tables, **{name: params[name] for name in own})


METHODS: dict[str, Callable[..., Calibrated]] = {
    "calibration": calibrate,
    "report_calibration": report_calibrate,
    "steering": steered_calibrate,
    "retrieval": retrieval_calibrate,
    "adapter": retrieval_calibrate,
}
"""method name -> function of (scores, history counts, prior tables, **params)."""

_REQUIRED = (
    "format",
    "generation",
    "model",
    "template",
    "task",
    "labels",
    "method",
    "params",
    "fallback",
    "priors",
    "provenance",
)


class Prediction(NamedTuple):
    """The answer to one question. `log_probs`: label -> natural log-probability."""

    id: str
    label: str
    log_probs: dict[str, float]
    prior_mode: str


@dataclass(frozen=True)
class Deployment:
    """A config ready to predict. The model is loaded on the first prediction."""

    config: Mapping[str, Any]
    scorer: CachedScorer

    @classmethod
    def load(cls, path: str | Path, cache: str | Path | None = None) -> Deployment:
        """Read and check a deploy config; DataError where it is damaged or its model is not the one it was made with.

        `cache`: folder for score tables; by default `.chamtune/cache/scores` beside the config.
        """
        path = Path(path)
        config = read_config(path)
        model = config["model"]
        folder = Path(cache) if cache is not None else path.resolve().parent / ".chamtune" / "cache" / "scores"
        scorer = CachedScorer(
            model["path"],
            folder,
            model["dtype"],
            model["device"],
            model["blocks"],
            model["chat"],
            model.get("revision"),
        )
        if scorer.fingerprint != model["fingerprint"]:
            raise DataError(
                f"{path}: model {model['path']} has changed since the promotion (fingerprint "
                f"{scorer.fingerprint[:12]}, not {model['fingerprint'][:12]}); restore it or promote again"
            )
        return cls(config, scorer)

    @property
    def terms(self) -> Terms:
        """The task and labels that the config answers."""
        return Terms(self.config["task"], tuple(self.config["labels"]))

    def read(self, path: str | Path) -> Checked:
        """Questions of a file or folder for this config, which says task and labels where they do not."""
        return check_dataset(Path(path), self.terms)

    def predict(self, questions: Sequence[Question]) -> list[Prediction]:
        """Answer questions; a user without history is answered with the fall-back parameters.

        DataError where one is of another task, or lists other labels. Threads may share a deployment: their calls wait
        for each other.
        """
        labels = self.terms.labels
        for question in questions:
            problem = mismatch(*self.terms, question.text)
            if problem is not None:
                raise DataError(f"question {question.id}: {problem}")
        with self.scorer.lock:
            log_probs, modes = self.log_probs(Dataset(*self.terms, tuple(questions)))
        return [
            Prediction(
                question.id,
                labels[int(row.argmax())],
                {label: float(value) for label, value in zip(labels, row, strict=True)},
                mode,
            )
            for question, row, mode in zip(questions, log_probs, modes, strict=True)
        ]

    def _scores(self, dataset: Dataset) -> NDArray[np.float32]:
        """The model's own label scores."""
        wording = WORDINGS[self.scorer.kind]
        return self.scorer.label_logprobs(
            [wording.prompt(dataset.task, q) for q in dataset.questions],
            continuations(dataset.labels, wording.template["continuation"]),
        )

    def _steered(self, dataset: Dataset, tables: PriorTables) -> tuple[NDArray[np.float32], PriorTables]:
        """Scores where the config's steering moves the states, and the prior tables for them."""
        from personalization.methods.steering.user_steering import Learned, Settings, UserSteering

        settings = Settings(**{field.name: self.config["params"][field.name] for field in fields(Settings)})
        learned = Learned.from_listed(self.config["steering"]["learned"])
        scores, steered, _ = UserSteering(self.scorer, dataset).scores(settings, learned, resume=False)
        if not steered.all():
            scores[~steered] = self._scores(dataset.only(~steered))
        bias = np.where(steered[:, None], self.config["steering"]["log_model"], tables.log_model["batch"])
        return scores, replace(tables, log_model={**tables.log_model, "batch": bias})

    def _adapted(self, dataset: Dataset, scores: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Scores blended with those of the adapter that the config names, if it names one; whose it did not answer."""
        adapter, params = self.config.get("adapter"), self.config["params"]
        left = np.zeros(len(dataset), dtype=np.bool_)
        if adapter is None or not dataset.questions:
            return scores, left
        if params["adapter"] == "head":
            own = UserHeads(self.scorer, Path()).scores(dataset, load_heads(adapter))
        else:
            adapters, trained = UserAdapters(self.scorer, Path()), Trained.from_listed(adapter)
            own, left = adapters.scores(dataset, trained, resume=False), adapters.left_alone(dataset, trained)
        return blended(scores, own, params["blend"]), left

    def log_probs(self, dataset: Dataset) -> Calibrated:
        """Log-probabilities [n, K] and prior modes of a data set of the config's task with its labels."""
        if dataset.task != self.config["task"]:
            raise DataError(f"the questions are of {dataset.task}, but the deploy config is for {self.config['task']}")
        if set(dataset.labels) != set(self.config["labels"]):
            odd = sorted(set(dataset.labels) ^ set(self.config["labels"]))
            raise DataError(f"the questions' labels differ from the deploy config's in {', '.join(odd)}")
        dataset = Dataset(dataset.task, tuple(self.config["labels"]), dataset.questions)
        tables, params = _tables(self.config["priors"]), self.config["params"]
        plain = history_counts(dataset)
        known = plain.sum(axis=1) > 0
        counts: NDArray[np.number[Any]] = plain
        left = np.zeros(len(dataset), dtype=np.bool_)
        if self.config["method"] in ("retrieval", "adapter"):
            histories, wanted = Histories(self.scorer, dataset), SimpleNamespace(**params)
            scores, left = self._adapted(dataset, histories.scores(wanted))
            counts = histories.counts(wanted) if params["prior_mode"] == "similar" else plain
        elif "steering" in self.config and dataset.questions:
            scores, tables = self._steered(dataset, tables)
        else:
            scores = self._scores(dataset)
        others: dict[str, Any] = {}
        if left.any():
            others = self.config["without_adapter"]["params"]
            bias = np.where(left[:, None], self.config["without_adapter"]["log_model"], tables.log_model["batch"])
            tables = replace(tables, log_model={**tables.log_model, "batch": bias})
        method, fallback = METHODS[self.config["method"]], self.config["fallback"]
        log_probs = np.empty(scores.shape)
        modes = [""] * len(dataset)
        for own, chosen in (
            (known & ~left, params),
            (known & left, params | others),
            (~known & ~left, params | fallback),
            (~known & left, params | others | fallback),
        ):
            if own.any():
                rows = np.flatnonzero(own)
                part = method(scores[rows], counts[rows], tables.only(rows), **chosen)
                log_probs[rows] = part.log_probs
                for row, mode in zip(rows, part.prior_modes, strict=True):
                    modes[row] = mode
        return Calibrated(log_probs, modes)


def read_config(path: Path) -> dict[str, Any]:
    """A deploy config as a mapping; DataError naming what is wrong with it."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a deploy config: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict) or (missing := [key for key in _REQUIRED if key not in config]):
        lacks = "it is no mapping" if not isinstance(config, dict) else f"it lacks {', '.join(missing)}"
        raise DataError(f"{path}: not a deploy config: {lacks}; write one with `chamtune promote`")
    if config["format"] != FORMAT or config["method"] not in METHODS:
        raise DataError(
            f"{path}: format {config['format']} with method {config['method']!r} is not known here; "
            f"known are format {FORMAT} with {', '.join(METHODS)}"
        )
    known = [wording.template for wording in WORDINGS.values()]
    if config["template"] not in known:
        raise DataError(f"{path}: its prompts are put together as {config['template']}, here as {known}; promote again")
    return config


def _tables(priors: Mapping[str, Any]) -> PriorTables:
    def array(values: Any) -> NDArray[np.float64]:
        return np.array(values, dtype=np.float64)

    return PriorTables(
        log_model={source: array(table) for source, table in priors["log_model"].items()},
        global_probs=None if priors["global_probs"] is None else array(priors["global_probs"]),
        global_counts=np.array(priors["global_counts"], dtype=np.int64),
    )
