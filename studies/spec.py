"""What a study is: the spec that a user writes in YAML, checked and frozen.

Paths are relative to the working directory. Unknown keys are refused with the nearest known one. What a spec says is
stored with its study; only the budget, the places of data, model and tracking, and the terms of promotion may change on
resume.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from personalization.data.splits import DEFAULT_SHARES, LEARNING_SHARES, PARTS
from personalization.data.table import NEWEST, Columns
from personalization.errors import UsageError
from personalization.evaluation import MEANS
from personalization.mappings import read_mapping
from personalization.metrics import METRICS, ORDERED
from personalization.stages import ordered, stage
from personalization.tasks import Task, load_task
from search_spaces import ChainSpace, chain_space
from search_spaces.aliases import alias_space
from studies.constraints import Constraint, parse_constraint
from studies.names import ALLOWED, study_name

PRESETS = Path(__file__).parent / "presets"
RELATIVE_METRICS = {
    "accuracy_gain": "maximize",
    "changed_rate": "minimize",
    "helped": "maximize",
    "hurt": "minimize",
}
"""Metrics against the baseline, with the direction in which they improve."""

DIRECTIONS = {name: metric.direction for name, metric in (METRICS | ORDERED).items()} | RELATIVE_METRICS
EITHER_WAY = ("entropy", "top1_share", "changed_rate")
"""Metrics that a study may want more of, or less; all others improve in one direction."""
SHARES = ("accuracy", "macro_f1", "balanced_accuracy", "top1_share", "changed_rate", "helped", "hurt")
"""Metrics between 0 and 1."""
COLUMNS = ("user", "text", "label", "time", "id", "newest")
"""Keys of data that a table alone has; the first three it must have."""
PLACES: dict[str, Any] = {"data": {"path", "table", "files"}, "model": {"path", "retriever"}}
"""Keys that say where data and model lie; they are known by content."""
ONE_OF = ("chain", "objective", "start_from", "task")
"""Keys that are left out of what is stored where they are not given."""
RESUMABLE = ("trials", "timeout_s", "storage", "tracking", "promotion")
"""Keys that may differ when a study is resumed."""


def _percent(shares: Mapping[str, float]) -> str:
    """Such as "30 % tune"."""
    return ", ".join(f"{100 * shares[part]:.0f} % {part}" for part in PARTS)


Value = bool | float | int | str


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_min_length=1)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError(f"cannot be {str(value).lower()}")
        return value


class SplitFiles(_Strict):
    """One questions file or folder for each part."""

    tune: str
    select: str
    confirm: str


class DataSpec(_Strict):
    """Where the questions are."""

    path: str | None = Field(None, description="demo, demo-null, a folder of LaMP files, or one questions file")
    table: str | None = Field(
        None,
        description="instead of path: a table with a row an item (.csv, .jsonl, .parquet, .arrow), or a hub data set",
    )
    files: SplitFiles | None = Field(None, description="instead of path: one file, folder or table for each part")
    user: str | None = Field(None, description="of a table: the column of who it is that an item belongs to")
    text: str | list[str] | None = Field(None, description="of a table: the column, or columns, of what is classified")
    label: str | None = Field(None, description="of a table: the column of the label")
    time: str | None = Field(None, description="of a table: the column of when; without it rows are oldest first")
    id: str | None = Field(None, description="of a table: the column of an item's id; without it the row's number")
    newest: int | None = Field(None, ge=1, description=f"of a table: rows of a user to ask at most; {NEWEST} if unsaid")
    split: Literal["users", "files", "time"] = Field(
        "users",
        description="users: all users by shares; files: train_* for tune and select, dev_* for confirm; time: known "
        "users and their new questions, by such files or by the dates of one set's questions",
    )
    shares: dict[str, Annotated[float, Field(gt=0, lt=1)]] | None = Field(
        None,
        description=f"share of users in each part, or of a user's questions; unsaid: {_percent(DEFAULT_SHARES)}, and "
        f"{_percent(LEARNING_SHARES)} with an adapter or a head",
    )

    @model_validator(mode="after")
    def _one_source(self) -> DataSpec:
        if sum(place is not None for place in (self.path, self.table, self.files)) != 1:
            raise ValueError("give one of path (on the command line: --data PATH), table and files")
        given = [name for name in COLUMNS if getattr(self, name) is not None]
        if self.path is not None and given:
            raise ValueError(f"{given[0]} names a column, and path is no table; give table: PATH")
        if (self.table or given) and (missing := [name for name in COLUMNS[:3] if getattr(self, name) is None]):
            raise ValueError(f"a table needs {', '.join(COLUMNS[:3])}: which column is {missing[0]}?")
        if self.table is not None and self.split == "files":
            raise ValueError("split: files reads train and dev files; with a table give users or time")
        if self.shares is not None and (set(self.shares) != set(PARTS) or abs(sum(self.shares.values()) - 1) > 1e-9):
            raise ValueError(f"shares must name tune, select and confirm and add up to 1, but are {self.shares}")
        return self

    @property
    def columns(self) -> Columns | None:
        """A table's columns; None where the data are no table."""
        if self.user is None or self.text is None:
            return None
        return Columns.of(self.model_dump())


class ModelSpec(_Strict):
    """Which model scores the labels, and how it is loaded."""

    path: str = Field(description="demo, demo-null, minilm, smollm2, a folder, a GGUF file, or a hub id owner/name")
    revision: str | None = Field(
        None, description="branch, tag or commit of a hub model; the study keeps to the commit that it began with"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    blocks: str | None = Field(None, description="path of the list of its blocks, where its length does not tell it")
    chat: bool = Field(False, description="ask by the model's chat template, for a reply that ends its turn")
    retriever: str | None = Field(
        None,
        description="a sentence encoder that finds similar items for a causal model, whose own states rank badly: "
        "minilm, a folder, or a hub id; the study keeps to the commit that it began with",
    )


class PromotionSpec(_Strict):
    """The gates of a promotion."""

    alpha: float = Field(0.05, gt=0, lt=1, description="total error rate that one confirm set may spend")
    min_gain: float = Field(0.0, ge=0, description="smallest gain worth deploying, in the first optimised metric")
    margins: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={}, description="further goal -> how much worse it may be; without one, no significant loss"
    )
    beat_references: bool = Field(True, description="refuse where an answer without a model does better")
    refit: bool | None = Field(
        None,
        description="learn what was chosen from tune and select users together, before confirm users test it; without "
        "a word, where no adapter has to be trained for it",
    )
    personal: bool = Field(
        False, description="refuse a gain that is not shown to be more than with another user's history"
    )


class StudySpec(_Strict):
    """A study: data, model, chain, what to optimise under which constraints, and with what budget."""

    name: str = Field(json_schema_extra={"pattern": ALLOWED})
    data: DataSpec
    model: ModelSpec
    task: Task | None = Field(
        None, description="what is asked and how: a name, a YAML file or a mapping; without it the data say it"
    )
    chain: tuple[str, ...] | None = Field(
        None,
        description="stages in their order: prompt, adapter, steering, head, calibration; or route alone",
        min_length=1,
    )
    objective: Literal["calibration", "report_calibration", "steering", "retrieval", "adapter"] | None = Field(
        None, description="a chain by its earlier name; calibration where neither is given"
    )
    start_from: str | tuple[str, ...] | None = Field(
        None,
        description="a study of the same storage; its best values are fixed in the stages that both begin with. Of a "
        "route: two studies and more, between whose best chains it chooses",
    )
    optimize: dict[str, Literal["maximize", "minimize"]] = Field(default={"accuracy": "maximize"}, min_length=1)
    constraints: dict[str, str] = Field(default={}, description='for example entropy: ">= 0.6"')
    sampler: Literal["tpe", "nsga2", "nsga3", "gp", "qmc", "random", "grid", "brute"] = "tpe"
    pruner: Literal["none", "median", "percentile", "halving", "hyperband", "wilcoxon", "dominated"] = "none"
    trials: int = Field(100, ge=1, description="finished trials in all, those of earlier runs included")
    timeout_s: float | None = Field(None, gt=0, description="stop asking for trials after this many seconds")
    seed: int = Field(0, ge=0)
    space: dict[str, Value | list[Value] | dict[str, Value]] = Field(
        default={}, description="overrides: a value fixes, a list gives choices, {low, high} gives a range"
    )
    warm_start: bool = Field(False, description="begin with the optima of the exact solvers")
    storage: str | None = Field(
        None, description="database URL of an Optuna storage; default: studies.db in the home folder"
    )
    tracking: str | None = Field(None, description='MLflow URI; default: mlflow.db in the home folder; "none": off')
    promotion: PromotionSpec = PromotionSpec()

    @field_validator("name")
    @classmethod
    def _allowed(cls, value: str) -> str:
        try:
            return study_name(value)
        except UsageError as error:
            raise ValueError(str(error)) from None

    @field_validator("optimize", "constraints")
    @classmethod
    def _known_metrics(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name in value:
            if name not in DIRECTIONS:
                raise ValueError(f"no metric {name!r}{_nearest(name, DIRECTIONS)}")
        return value

    @field_validator("space", mode="before")
    @classmethod
    def _told_values(cls, raw: Any) -> Any:
        for name, value in raw.items() if isinstance(raw, dict) else ():
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            if wrong := [one for one in inner if not isinstance(one, bool | float | int | str) or one == ""]:
                got = reprlib.repr(wrong[0])
                raise ValueError(f"{name}: a value, a list of values or {{low, high}} is wanted, but got {got}")
        return raw

    @field_validator("task", mode="before")
    @classmethod
    def _read_task(cls, value: Any) -> Any:
        try:
            return None if value is None else load_task(value)
        except UsageError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _one_chain(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("chain") is not None or raw.get("objective") is not None:
            return raw
        return {**raw, "objective": "calibration"}

    @model_validator(mode="after")
    def _consistent(self) -> StudySpec:
        if self.chain is not None and self.objective is not None:
            raise ValueError(f"give chain or objective, not both; objective {self.objective} is {self.space_of.chain}")
        self._check_chain()
        for name, direction in self.optimize.items():
            if name not in EITHER_WAY and direction != DIRECTIONS[name]:
                raise ValueError(f"optimize: {name} improves when it is {DIRECTIONS[name]}d, so {direction} is no goal")
        for name, text in self.constraints.items():
            bound = parse_constraint(name, text).bound
            if name in SHARES and not 0 <= bound <= 1:
                raise ValueError(f"constraints: {name} is a share, from 0 to 1, and {text!r} is outside")
        first, *further = self.optimize
        for name in self.promotion.margins:
            if name not in further:
                raise ValueError(
                    f"promotion.margins: {name!r} is no further goal of this study; "
                    f"those are {', '.join(further) or 'none'}, and promotion.min_gain is for {first}"
                )
        if self.pruner == "wilcoxon" and first not in MEANS:
            raise ValueError(
                f"pruner: wilcoxon compares users by one of {', '.join(MEANS)}, and {first} is no such mean"
            )
        if self.pruner not in ("none", "dominated") and len(self.optimize) > 1:
            raise ValueError("pruner: Optuna cannot prune with several metrics to optimise; set pruner: dominated")
        return self

    def _check_chain(self) -> None:
        if self.chain is not None:
            try:
                ordered(self.chain)
            except UsageError as error:
                raise ValueError(str(error).removeprefix("chain: ")) from None
        elif self.start_from is not None:
            raise ValueError("start_from needs chain: an objective has no stages to begin with")
        if self.start_from is not None and (self.chain == ("route",)) != (len(self.starts) > 1):
            raise ValueError("start_from: a route chooses between two studies and more; other chains start from one")

    @property
    def starts(self) -> tuple[str, ...]:
        """The studies that this one starts from."""
        return (self.start_from,) if isinstance(self.start_from, str) else tuple(dict.fromkeys(self.start_from or ()))

    @property
    def space_of(self) -> ChainSpace:
        """The space of the chain, by its names."""
        return alias_space(self.objective) if self.objective is not None else chain_space(self.chain or ())

    @property
    def shares(self) -> Mapping[str, float]:
        """Of users, in each part: those that are given, else what suits the chain."""
        learns = any(stage(name).learns for name in self.space_of.chain)
        return self.data.shares or (LEARNING_SHARES if learns else DEFAULT_SHARES)

    def with_shares(self, shares: Mapping[str, float]) -> StudySpec:
        """With these where none are given."""
        given = self.data.shares or dict(shares)
        return self.model_copy(update={"data": self.data.model_copy(update={"shares": given})})

    @property
    def method(self) -> str:
        """The chain in words."""
        return self.objective or " + ".join(self.chain or ())

    def parsed_constraints(self) -> list[Constraint]:
        """The constraints in a fixed order."""
        return [parse_constraint(name, self.constraints[name]) for name in sorted(self.constraints)]

    def identity(self) -> dict[str, Any]:
        """What must not change when the study is resumed. Data and model are known by content, not by place."""
        found = self.model_dump(mode="json", exclude=dict.fromkeys(RESUMABLE, True) | PLACES)
        found["data"] = {k: v for k, v in found["data"].items() if k not in COLUMNS or v is not None}
        found["data"]["shares"] = dict(self.shares)
        if self.task is not None:
            found["task"] = self.task.model_dump(mode="json", exclude_defaults=True)
        return {key: value for key, value in found.items() if key not in ONE_OF or value is not None}


def _nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """A hint: the nearest known word, or all of them."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; allowed are {', '.join(known)}"


def presets() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_spec(name_or_path: str, changes: Mapping[str, Any] | None = None) -> StudySpec:
    """The spec of a preset or a YAML file, with some top-level keys replaced; UsageError where it is wrong."""
    path = PRESETS / f"{name_or_path}.yaml" if name_or_path in presets() else Path(name_or_path)
    if not path.is_file():
        raise UsageError(f"{name_or_path!r} is neither a file nor a preset{_nearest(name_or_path, presets())}")
    raw = read_mapping(path, "a spec")
    changed = {**raw, **(changes or {})}
    if changes and "data" in changes and isinstance(raw.get("data"), dict):
        kept = {key: value for key, value in raw["data"].items() if key not in PLACES["data"]}
        given = dict(changes["data"])
        if raw["data"].get("table") is not None and "path" in given:
            given["table"] = given.pop("path")
        changed["data"] = {**kept, **given}
    return parse_spec(changed, str(path))


def parse_spec(raw: Mapping[str, Any], source: str) -> StudySpec:
    """Check a raw mapping; UsageError naming the source, the key and what is allowed."""
    try:
        return StudySpec.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "spec"
        if first["type"] == "extra_forbidden":
            problem = f"unknown key{_nearest(str(first['loc'][-1]), _keys_at(first['loc'][:-1]))}"
        else:
            problem = first["msg"].removeprefix("Value error, ")
            found = first["input"]
            if first["type"] not in ("missing", "value_error"):
                problem += f", but got {reprlib.repr(found)}"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UsageError(f"{source}: {key}: {problem}{more}") from None


def _keys_at(place: tuple[int | str, ...]) -> list[str]:
    models: dict[tuple[int | str, ...], type[BaseModel]] = {
        (): StudySpec,
        ("data",): DataSpec,
        ("data", "files"): SplitFiles,
        ("model",): ModelSpec,
        ("promotion",): PromotionSpec,
    }
    return list(models[place].model_fields)
