"""What was asked for: data, a model, minutes; from it the spec of each arm's study, and what an arm tries first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from personalization.data.lamp import question_files
from personalization.data.splits import DEFAULT_SHARES
from personalization.data.table import is_table
from personalization.errors import UsageError
from personalization.mappings import read_mapping
from personalization.stages import STAGES
from search_spaces import ChainParams, chain_space
from studies.auto.arms import Arm
from studies.data import WORLDS
from studies.names import study_name
from studies.recovery import POINT, enqueue
from studies.scaffold import begin, slug
from studies.spec import StudySpec, parse_spec
from studies.study import OpenStudy
from studies.verdict.selection import refuse_untestable

FILE_SHARES = {"tune": 0.6, "select": 0.2, "confirm": 0.2}
"""Of train files: three quarters of their users tune; dev files confirm."""
BOUNDS = ("<=", ">=")
MOST_MINUTES = 60 * 24 * 365
FIRST = Path(__file__).with_name("first.yaml")
"""Settings that won in our own studies."""


@dataclass(frozen=True)
class Plan:
    """What was asked for. `spec`: data, model, task, optimize, constraints, ... as in a study's spec; `stages`: those
    that may be used, none given: all; `mix_users`: whether a user may be answered from other users' items; `like`:
    studies whose best settings are tried first by the arms with their chain."""

    name: str
    spec: Mapping[str, Any]
    minutes: float
    stages: tuple[str, ...] = ()
    mix_users: bool = True
    like: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        study_name(self.name)
        refuse_untestable(f"the race {self.name}", self.spec.get("optimize", ()))
        if not 0 < self.minutes <= MOST_MINUTES:
            raise UsageError(f"--minutes {self.minutes:g}: give more than 0 and at most {MOST_MINUTES:,}, a year")
        for name in self.stages:
            if name not in STAGES:
                raise UsageError(f"--stage {name}: there is no such stage; there are {', '.join(STAGES)}")

    def spec_of(self, arm: Arm, embedder: str, fixed: Mapping[str, Any] | None = None) -> StudySpec:
        """The study of an arm, whose users are those of every other arm. `embedder`: the kind of what embeds texts;
        `fixed`: what was found in the arm's lower stages, by full name; the baseline stays the model itself."""
        raw: dict[str, Any] = {
            "sampler": "tpe",
            "warm_start": True,
            **self.spec,
            "data": {"shares": DEFAULT_SHARES, **self.spec["data"]},
            "name": self.study_of(arm.name),
            "chain": list(arm.chain),
            "space": {**arm.space_for(embedder), **(fixed or {})},
            "trials": arm.most,
        }
        return parse_spec(raw, f"auto {self.name}")

    def study_of(self, arm: str) -> str:
        """The name of an arm's study."""
        return f"{self.name}.{arm.replace('+', '_')}"


def fixed_by(params: ChainParams, arm: Arm, kind: str) -> dict[str, Any]:
    """What parameters of an arm below say of the stages of this one, by full name, but for the calibration."""
    found, space = params.full(), chain_space(arm.chain)
    names = [space.names[name].targets[0] for name in space.distributions(kind)]
    return {name: found[name] for name in names if name in found and not name.startswith("calibration.")}


@cache
def listed() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """arm -> kind of model -> settings by full name, that are tried first."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = yaml.safe_load(FIRST.read_text(encoding="utf-8"))
    return found


def queue_first(opened: OpenStudy, arm: str, kind: str) -> None:
    """Queue the settings of an arm, each once; what they leave open is the sampler's."""
    known = [trial.user_attrs.get(POINT) for trial in opened.study.get_trials(deepcopy=False)]
    searched = {known.targets[0]: name for name, known in opened.rooms.names.items()}
    for settings in listed().get(arm, {}).get(kind, []):
        point = {searched[full]: value for full, value in settings.items()}
        if point not in known:
            enqueue(opened.study, point)


def data_of(place: str, home: Path, race: str | None = None) -> dict[str, Any]:
    """`data`, and where it is known `task`, of a spec: from a spec, a table whose columns tell themselves, a planted
    world or LaMP files. UsageError where it is none of these, or `race` began with another table."""
    path = Path(place)
    if path.suffix in (".yaml", ".yml"):
        return _of_spec(path)
    if place in WORLDS:
        return {"data": {"path": place}}
    if path.is_file() and is_table(path):
        return _of_table(path, home / "auto", race or name_of(place))
    if not path.exists():
        raise UsageError(f"--data {place}: there is no such file; give a table, LaMP files, a spec, or {WORLDS[0]}")
    both = path.is_dir() and all(len(question_files(path, part)) == 1 for part in ("train", "dev"))
    return {"data": {"path": place, **({"split": "files", "shares": FILE_SHARES} if both else {})}}


def _of_table(table: Path, folder: Path, race: str) -> dict[str, Any]:
    """From the spec that the race began with, made where there is none."""
    spec = folder / f"{study_name(race)}.yaml"
    if not spec.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            begin(str(table), {}, folder, race)
        except UsageError as error:
            told = f"{error}. `chamtune init {table}` takes them, and --data the spec that it writes"
            raise UsageError(told) from None
    found = _of_spec(spec)
    before = found["data"].get("table", "none")
    if Path(before).resolve() != table.resolve():
        raise UsageError(
            f"--data {table}: the race {race} is over {before}, as {spec} says; give another --name, or correct the "
            "path there if the table has moved"
        )
    return found


def _of_spec(path: Path) -> dict[str, Any]:
    try:
        raw = read_mapping(path, "a spec")
    except UsageError as error:
        raise UsageError(f"--data {error}") from None
    if "data" not in raw:
        raise UsageError(f"--data {path}: a spec has a section data; this one has none")
    return {key: raw[key] for key in ("data", "task", "promotion") if key in raw}


def bounds(texts: Sequence[str]) -> dict[str, str]:
    """metric -> bound, from texts such as "entropy>=0.6"."""
    found = {}
    for text in texts:
        sign = next((sign for sign in BOUNDS if sign in text), None)
        if sign is None:
            raise UsageError(f'--constraint {text}: write for example "entropy>=0.6" or "top1_share<=0.55"')
        metric, _, bound = text.partition(sign)
        if metric.strip() in found:
            raise UsageError(f"--constraint {text}: {metric.strip()} has a bound already; give one a metric")
        found[metric.strip()] = f"{sign} {bound.strip()}"
    return found


def name_of(place: str) -> str:
    """A name for a race over these data."""
    return f"auto-{slug(place)}".rstrip("-")
