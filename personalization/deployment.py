"""A promoted chain as a folder, and what serves it.

    deployment = Deployment.load("deploy/")
    predictions = deployment.predict(questions)

The folder holds `deploy.yaml` (model and its fingerprint, the task with its whole wording, labels, stages with their
parameters, provenance; plain YAML, no arrays) and beside it a folder of files, named by their content, with everything
that the stages learned: safetensors, and PEFT's folders. All paths are relative, so the folder may be copied, and it
may be read-only. Opening checks the SHA-256 of every file. Nothing is written while questions are answered; what is
remembered is bounded.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from personalization.backbones.cached import CachedScorer
from personalization.data.defects import Checked
from personalization.data.lamp import check_dataset
from personalization.data.prompts import mismatch
from personalization.data.records import Dataset, Question
from personalization.data.table import Columns, is_table, read_table
from personalization.errors import ChamtuneError, DataError, UsageError
from personalization.files import sha256_of
from personalization.manifest import refuse_changed, refuse_misshapen
from personalization.mappings import Kept, read_mapping
from personalization.methods.taste.calibration import Calibrated
from personalization.scoring.store import Progress
from personalization.stages import STAGES, chain
from personalization.stages.chain import Fitted
from personalization.stages.work import Tools, begin
from personalization.tasks import Task, Terms, load_task, task

FORMAT = 6
CONFIG = "deploy.yaml"

SHARED = ("fingerprint", "dtype", "device", "blocks", "chat")
"""What makes two configs' models the same one, beside their retriever."""
_REQUIRED = ("format", "generation", "model", "task", "labels", "chain", "files", "provenance")


class Prediction(NamedTuple):
    """The answer to one question. `log_probs`: label -> natural log-probability."""

    id: str
    label: str
    log_probs: dict[str, float]
    prior_mode: str

    @property
    def probability(self) -> float:
        """Of the label."""
        return math.exp(self.log_probs[self.label])


@dataclass(frozen=True)
class Deployment:
    """A fitted chain ready to answer. The model is loaded with the first question."""

    config: Mapping[str, Any]
    fitted: Fitted
    tools: Tools

    @classmethod
    def load(cls, path: str | Path, model: str | Path | None = None, progress: Progress | None = None) -> Deployment:
        """Open a deployment; DataError where it is damaged or its model is not the one it was made with.

        `path`: the folder, or a config file of format 5. `model`: where the model lies on this machine.
        `progress`: told of the prompts that are scored.
        """
        path = Path(path)
        config = read_config(path)
        told = config["model"]
        how = {name: told[name] for name in ("dtype", "device", "blocks", "chat")}
        if model is None:
            how["revision"] = told.get("revision")
        scorer = CachedScorer(str(model or told["path"]), None, **how)
        scorer.retriever = _retriever(path, told)
        _refuse_other(path, "model", scorer, told)
        if config["format"] != FORMAT:
            from personalization.upgrade import fitted_of_format_5

            return cls(config, fitted_of_format_5(config), Tools(scorer, progress))
        return cls(config, chain.load(config["chain"], path / config["folder"]), Tools(scorer, progress))

    @property
    def scorer(self) -> CachedScorer:
        """The model."""
        return self.tools.scorer

    @cached_property
    def terms(self) -> Terms:
        """The task and labels that the config answers."""
        return Terms(task_of(self.config), tuple(self.config["labels"]))

    def read(self, path: str | Path) -> Checked:
        """Questions of a file or folder for this config, which says task and labels where they do not.

        A table has the columns of the study's; what is asked are the rows without a label, or else each user's newest.
        JSON Lines are questions where the study read no table.
        """
        if not is_table(Path(path)):
            return check_dataset(Path(path), self.terms)
        told = self.config["provenance"].get("spec", {}).get("data", {})
        if told.get("user") is None and Path(path).suffix == ".jsonl":
            return check_dataset(Path(path), self.terms)
        if told.get("user") is None:
            raise DataError(f"{path}: a table, but the study of this config read none; give LaMP questions")
        return read_table(str(path), Columns.of(told), None, self.terms)

    def predict(self, questions: Sequence[Question]) -> list[Prediction]:
        """Answer questions. DataError where one is of another task, or lists other labels.

        Threads may share a deployment: their calls wait for each other.
        """
        labels = self.terms.labels
        for question in questions:
            problem = mismatch(*self.terms, question.text)
            if problem is not None:
                raise DataError(f"question {question.id}: {problem}")
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

    def log_probs(self, dataset: Dataset) -> Calibrated:
        """Log-probabilities [n, K] and prior modes of a data set of the config's task with its labels."""
        terms = self.terms
        if dataset.task.name != terms.task.name:
            raise DataError(f"the questions are of {dataset.task}, but the deploy config is for {terms.task}")
        if set(dataset.labels) != set(self.config["labels"]):
            odd = sorted(set(dataset.labels) ^ set(self.config["labels"]))
            raise DataError(f"the questions' labels differ from the deploy config's in {', '.join(odd)}")
        asked = Dataset(*terms, dataset.questions)
        with self.scorer.lock:
            found = chain.answer(self.fitted, begin(asked, self.tools), self.tools).answer
        assert found is not None
        return found

    def export(self, questions: Sequence[Question], out: Path) -> list[str]:
        """Write what other tools read of the chain for these questions' users into a new folder; a line a thing.

        LoRA and prefixes as PEFT has them (vLLM takes LoRA so), steering vectors as safetensors and as control vectors.
        UsageError where the folder is there, or no stage has anything that another tool could use.
        """
        if out.exists():
            raise UsageError(f"{out} is there already; name a new folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as name, self.scorer.lock:
            draft = Path(name) / "export"
            work = begin(Dataset(*self.terms, tuple(questions)), self.tools)
            lines = chain.export(self.fitted, work, self.tools, draft)
            if not draft.exists():
                raise UsageError(f"no stage of {', '.join(self.fitted.chain)} has weights or vectors for another tool")
            draft.rename(out)
        return lines

    def aligned(self, dataset: Dataset) -> NDArray[np.float64]:
        """Log-probabilities in the order of the data set's own labels, [n, K]."""
        columns = [self.terms.labels.index(label) for label in dataset.labels]
        return self.log_probs(dataset).log_probs[:, columns]


def write_files(fitted: Fitted, out: Path) -> dict[str, Any]:
    """Write what the stages learned into a new folder of `out`; the part of a config that describes it.

    The folder is named by its content, and is there as a whole or not at all.
    """
    out.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".files-", dir=out))
    try:
        listed = chain.save(fitted, draft)
        found = {str(path.relative_to(draft)): sha256_of(path) for path in sorted(draft.rglob("*")) if path.is_file()}
        name = "files-" + hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
        if not (out / name).exists():
            draft.chmod(0o755)
            draft.rename(out / name)
    finally:
        if draft.exists():
            shutil.rmtree(draft)
    return {"chain": listed, "folder": name, "files": found}


def read_config(path: Path, to_answer: bool = True) -> dict[str, Any]:
    """The config of a deployment, its files checked; DataError naming what is wrong with it.

    A file of format 5 is read as it is. One that is not `to_answer`, but to give way, may be damaged or changed.
    """
    place = path / CONFIG if path.is_dir() else path
    try:
        config = read_mapping(place, "a deploy config", Kept)
    except UsageError as error:
        raise DataError(f"not a deploy config: {error}") from None
    if config.get("format") == 5:
        if config["model"]["chat"]:
            raise DataError(
                f"{place}: a chat config of an earlier version asks as no chat model answers; promote again"
            )
        return config
    if missing := [key for key in _REQUIRED if key not in config]:
        raise DataError(
            f"{place}: not a deploy config: it lacks {', '.join(missing)}; write one with `chamtune promote`"
        )
    if config["format"] != FORMAT:
        raise DataError(f"{place}: format {config['format']} is not known here; known are 5 and {FORMAT}")
    refuse_misshapen(place, config)
    if unknown := [entry["stage"] for entry in config["chain"] if entry["stage"] not in STAGES]:
        raise DataError(f"{place}: stage {unknown[0]!r} is not known here; there are {', '.join(STAGES)}")
    task_of(config)
    if to_answer:
        _check_files(place, config)
        refuse_changed(place, config)
    return config


def task_of(config: Mapping[str, Any]) -> Task:
    """The task of a config, in its own wording."""
    if config.get("format") == 5:
        from personalization.upgrade import task_of_format_5

        return task_of_format_5(config["task"])
    told = config["task"]
    try:
        return task(told) if isinstance(told, str) else load_task(told)
    except UsageError as error:
        raise DataError(f"not a deploy config: {error}; promote again") from None


def _check_files(place: Path, config: Mapping[str, Any]) -> None:
    """DataError where a file is missing, changed, or outside of the folder."""
    folder = place.parent / str(config["folder"])
    if not folder.resolve().is_relative_to(place.parent.resolve()):
        raise DataError(f"{place}: its files lie outside of {place.parent}")
    for name, digest in config["files"].items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file() or sha256_of(path) != digest:
            raise DataError(f"{path}: missing or changed; copy the whole folder, restore it, or promote again")


def _retriever(path: Path, told: Mapping[str, Any]) -> CachedScorer | None:
    """What embeds texts in the place of the model; None where the study had no retriever."""
    own = told.get("retriever")
    if own is None:
        return None
    found = CachedScorer(own["path"], None, device=own["device"], revision=own["revision"])
    try:
        found.files  # noqa: B018
    except ChamtuneError as error:
        raise DataError(f"{path}: retriever: {error}; set model.retriever.path in {CONFIG}") from None
    _refuse_other(path, "retriever", found, own)
    return found


def _refuse_other(path: Path, what: str, scorer: CachedScorer, told: Mapping[str, Any]) -> None:
    """DataError where a model is not there, or not the one of the promotion."""
    name = "name its place" if what == "model" else f"set model.retriever.path in {CONFIG}"
    if scorer.fingerprint != told["fingerprint"]:
        raise DataError(
            f"{path}: {what} {scorer.model} is not the one of the promotion (fingerprint {scorer.fingerprint[:12]}, "
            f"not {told['fingerprint'][:12]}); restore it, {name}, or promote again"
        )


def sharing(new: Deployment, old: Deployment) -> Deployment | None:
    """A deployment with the model that another one has loaded; None where that is not its model."""
    own, other = new.config["model"], old.config["model"]
    retrievers = [told.get("retriever") or {} for told in (own, other)]
    if any(own[name] != other[name] for name in SHARED):
        return None
    if any(retrievers[0].get(name) != retrievers[1].get(name) for name in ("fingerprint", "device")):
        return None
    return Deployment(new.config, new.fitted, Tools(old.scorer))


def served(config: Mapping[str, Any], fitted: Fitted, scorer: CachedScorer) -> Deployment:
    """A chain as it would be served by a model that is loaded already, with nothing in any store."""
    bare = replace(fitted, tune=())
    return Deployment(config, bare, Tools(scorer.unstored()))
