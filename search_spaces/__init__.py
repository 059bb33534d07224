"""What may vary: names, ranges, decoding. No torch, no model.

A space module holds, for one stage, a frozen `Params` whose defaults change nothing (`BASELINE`), `SPACE` (name ->
Optuna distribution; static; `parameters` declares both at once), `complexity(params)` (how far from doing nothing;
smaller is simpler), and where wanted `READ` (when a parameter is read at all; see `conditions`), `ONLY` (parameter, or
parameter=choice -> the one kind of backbone that reads it), `ON_REQUEST` (parameters, as in `SPACE`, that are searched
only where a spec names them), `OPEN` (parameter -> the pattern of further choices that a spec may give), `MOST`
(parameter -> the largest number that means something) and `canonical(values)` (equal settings become equal). To add
one: write the file, list it in `SPACES`.

A chain's space is made of those of its stages (`chain_space`): names are `stage.param`, or `param` where no other stage
of the chain has it. An objective of earlier versions is a chain under other names (`aliases`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from importlib import import_module
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.conditions import Needed, fits, in_words, is_read, unlike
from search_spaces.overrides import Override, replaced

SPACES: dict[str, Any] = {
    "route": "search_spaces.route",
    "prompt": "search_spaces.prompt",
    "adapter": "search_spaces.adapter",
    "steering": "search_spaces.steering",
    "head": "search_spaces.head",
    "calibration": "search_spaces.calibration",
}
"""stage -> module of its space, or an object with the same names."""

Distributions = Mapping[str, BaseDistribution]
ALWAYS: Sequence[Mapping[str, Needed]] = ({},)
"""When a parameter without conditions is read."""


def space_of(stage: str) -> Any:
    """The space of a stage."""
    found = SPACES[stage]
    return import_module(found) if isinstance(found, str) else found


@dataclass(frozen=True)
class ChainParams(Mapping[str, Any]):
    """Stage -> its parameters. Hashable."""

    stages: tuple[tuple[str, Any], ...]

    def __getitem__(self, stage: str) -> Any:
        return dict(self.stages)[stage]

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self.stages))

    def __len__(self) -> int:
        return len(self.stages)

    def get_value(self, name: str) -> Any:
        """Of a parameter by full name; None where its stage is not in the chain."""
        stage, _, own = name.partition(".")
        return getattr(self[stage], own) if stage in self else None

    def changed(self, **values: Any) -> ChainParams:
        """With other values of the calibration's, or of `stage__param`."""
        found = dict(self.stages)
        for name, value in values.items():
            stage, _, own = name.rpartition("__")
            found[stage or "calibration"] = replace(found[stage or "calibration"], **{own: value})
        return ChainParams(tuple(found.items()))

    def with_stage(self, stage: str, params: Any) -> ChainParams:
        """With other parameters of one stage."""
        return ChainParams(tuple((name, params if name == stage else own) for name, own in self.stages))

    def full(self) -> dict[str, Any]:
        """Every value by its full name."""
        return {f"{stage}.{name}": value for stage, own in self.stages for name, value in asdict(own).items()}

    def flat(self) -> dict[str, Any]:
        """Every value by its name in this chain, JSON-able."""
        full = self.full()
        return {short: full[name] for name, short in short_names(list(self)).items()}


def short_names(chain: Sequence[str]) -> dict[str, str]:
    """Full name -> the name in this chain."""
    own = {stage: _own(stage) for stage in chain}
    every = [name for names in own.values() for name in names]
    return {
        f"{stage}.{name}": name if every.count(name) == 1 else f"{stage}.{name}"
        for stage, names in own.items()
        for name in names
    }


def _own(stage: str) -> list[str]:
    """A stage's parameters."""
    return [found.name for found in fields(space_of(stage).Params)]


def _told(full: str, table: str) -> Any:
    """What a table of a space says of a parameter; None where it, or the whole table, is missing."""
    stage, _, own = full.partition(".")
    return getattr(space_of(stage), table, {}).get(own)


def _suits(full: str, kind: str) -> bool:
    """Whether a kind of backbone reads a parameter, or `parameter=choice`."""
    return _told(full, "ONLY") in (None, kind)


@dataclass(frozen=True)
class Name:
    """What one searched name stands for: parameters by full name, each with what a value of it means there."""

    targets: tuple[str, ...]
    distribution: BaseDistribution
    meaning: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)

    def values(self, value: Any) -> dict[str, Any]:
        """Full name -> value."""
        return {full: self.meaning.get(full, lambda v: v)(value) for full in self.targets}


@dataclass(frozen=True)
class ChainSpace:
    """The space of a chain. `names`: those that are searched; `fixed`: full name -> value that cannot be searched."""

    chain: tuple[str, ...]
    names: Mapping[str, Name]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def spaces(self) -> dict[str, Any]:
        """Stage -> its space."""
        return {stage: space_of(stage) for stage in self.chain}

    @cached_property
    def BASELINE(self) -> ChainParams:
        """The parameters that change nothing."""
        return self.decode({})

    def starting_from(self, values: Mapping[str, Any]) -> ChainSpace:
        """The space with these values, by full name, fixed."""
        left = {name: known for name, known in self.names.items() if not set(known.targets) <= set(values)}
        return replace(self, names=left, fixed={**self.fixed, **values}) if values else self

    def decode(self, raw: Mapping[str, Any]) -> ChainParams:
        """Parameters from a trial's raw values; what has no effect is at its baseline, so that equal ones are equal."""
        given = {full: v for name, value in raw.items() for full, v in self.names[name].values(value).items()}
        return self.of_full(given)

    def of_full(self, given: Mapping[str, Any]) -> ChainParams:
        """The same from values by full name."""
        baseline = self._baseline_values
        if unknown := set(given) - set(baseline):
            raise ValueError(f"{min(unknown)}: no such parameter; stages are {', '.join(self.chain)}")
        values = {**self._still, **given}
        for _ in range(len(values)):
            before = dict(values)
            for stage, space in self.spaces.items():
                if hasattr(space, "canonical"):
                    own = {name: values[f"{stage}.{name}"] for name in _own(stage)}
                    values |= {f"{stage}.{name}": value for name, value in space.canonical(own).items()}
            for full, alternatives in self.read.items():
                if not is_read(alternatives, partial(self._value, values)):
                    values[full] = baseline[full]
            if values == before:
                break
        return ChainParams(
            tuple(
                (stage, space.Params(**{name: values[f"{stage}.{name}"] for name in _own(stage)}))
                for stage, space in self.spaces.items()
            )
        )

    def of_flat(self, values: Mapping[str, Any]) -> ChainParams:
        """Parameters from what `ChainParams.flat` gave, here or in an earlier version."""
        full = {short: name for name, short in short_names(self.chain).items()}
        if set(values) <= set(full):
            return self.of_full({full[name]: value for name, value in values.items()})
        return self.decode({name: value for name, value in values.items() if name in self.names})

    def raw(self, full: Mapping[str, Any]) -> dict[str, Any]:
        """Searched names from values by full name; of several meanings, the one that is not at its baseline."""
        return {name: self._raw(known, full) for name, known in self.names.items()}

    def idle(self, raw: Mapping[str, Any]) -> set[str]:
        """The searched names that nothing reads at a point of raw values."""
        value_of = partial(self._value, self.decode(raw).full())
        when = {name: [self.read.get(full, ALWAYS) for full in known.targets] for name, known in self.names.items()}
        return {name for name, told in when.items() if not any(is_read(one, value_of) for one in told)}

    def _raw(self, known: Name, full: Mapping[str, Any]) -> Any:
        if known.meaning:
            wanted = {target: full[target] for target in known.targets}
            choices = getattr(known.distribution, "choices", ())
            return next(choice for choice in choices if known.values(choice) == wanted)
        moved = [full[target] for target in known.targets if full[target] != self._baseline_values[target]]
        return moved[0] if moved else full[known.targets[0]]

    @cached_property
    def _baseline_values(self) -> dict[str, Any]:
        return {f"{s}.{n}": getattr(space.BASELINE, n) for s, space in self.spaces.items() for n in _own(s)}

    @cached_property
    def _still(self) -> dict[str, Any]:
        """What every parameter is where nothing is searched."""
        return {**self._baseline_values, **self.fixed}

    @cached_property
    def read(self) -> dict[str, Sequence[Mapping[str, Needed]]]:
        """Full name -> when it is read (`conditions`), of those that are not always, all names in full."""

        def in_full(stage: str, one: Mapping[str, Needed]) -> dict[str, Needed]:
            return {other if "." in other else f"{stage}.{other}": needed for other, needed in one.items()}

        return {
            f"{stage}.{name}": [in_full(stage, one) for one in alternatives]
            for stage, space in self.spaces.items()
            for name, alternatives in getattr(space, "READ", {}).items()
        }

    def _value(self, values: Mapping[str, Any], full: str) -> Any:
        """Of a parameter that a condition names; one of a stage that is not here has its baseline."""
        if full in values:
            return values[full]
        stage, _, own = full.partition(".")
        return getattr(space_of(stage).BASELINE, own)

    def reachable(self, chosen: Distributions) -> dict[str, dict[str, list[Any]]]:
        """Stage -> parameter -> its values: of a range of fractions its ends, of what is fixed the one it has."""
        values: dict[str, list[Any]] = {}
        for name, found in chosen.items():
            for value in _values(found):
                for full, meant in self.names[name].values(value).items():
                    values.setdefault(full, []).append(meant)
        fixed = {full: [value] for full, value in self._still.items()}
        return {stage: {own: {**fixed, **values}[f"{stage}.{own}"] for own in _own(stage)} for stage in self.chain}

    def complexity(self, params: ChainParams) -> float:
        """The sum of the stages'."""
        return float(sum(space_of(stage).complexity(own) for stage, own in params.stages))

    def distributions(self, kind: str, on_request: bool = False) -> dict[str, BaseDistribution]:
        """What a kind of backbone reads: name -> distribution; `on_request`: also what only a spec asks for."""
        found = {}
        for name, known in self.names.items():
            if not on_request and _told(known.targets[0], "ON_REQUEST") is not None:
                continue
            if not any(_suits(full, kind) for full in known.targets):
                continue
            distribution = known.distribution
            if isinstance(distribution, CategoricalDistribution):
                distribution = CategoricalDistribution(
                    [
                        choice
                        for choice in distribution.choices
                        if all(_suits(f"{full}={value}", kind) for full, value in known.values(choice).items())
                    ]
                )
            found[name] = distribution
        return found

    def overridden(self, kind: str, overrides: Mapping[str, Override]) -> dict[str, BaseDistribution]:
        """The distributions with some replaced, and without those that no choice left reads.

        A value fixes one, a list gives choices, a dict gives a range: `low` and `high`, perhaps `log` or `step`. Names
        may be short or full. ValueError for an unknown parameter, two names of one, or a value that does not fit.
        """
        result = self.distributions(kind, on_request=True)
        meant = {given: self._searched(given, result) for given in overrides}
        if twice := [given for given, name in meant.items() if list(meant.values()).count(name) > 1]:
            raise ValueError(f"space: {' and '.join(twice)} are one parameter; keep one of them")
        named = {meant[given]: value for given, value in overrides.items()}
        result = {**self.distributions(kind), **{name: result[name] for name in named}}
        for name, override in named.items():
            try:
                full = self.names[name].targets[0]
                result[name] = replaced(result[name], override, _told(full, "OPEN"), _told(full, "MOST"))
            except (TypeError, ValueError) as error:
                raise ValueError(f"space.{name}: {override!r} does not fit: {error}") from None
        return self._needed(result, named)

    def _searched(self, given: str, known: Collection[str]) -> str:
        """The searched name that a spec's key means."""
        if given in known:
            return given
        meant = [name for name in known if given in self.names[name].targets and len(self.names[name].targets) == 1]
        if meant:
            return meant[0]
        several = [name for name in known if name.endswith(f".{given}")]
        if several:
            raise ValueError(f"space.{given}: which one? Give {' or '.join(several)}")
        raise ValueError(f"space.{given}: no such parameter; this chain has, with this model, {', '.join(known)}")

    def _needed(self, chosen: dict[str, BaseDistribution], named: Collection[str]) -> dict[str, BaseDistribution]:
        while True:
            idle = [name for name in chosen if name not in named and not self._possible(name, chosen)]
            if not idle:
                return chosen
            chosen = {name: found for name, found in chosen.items() if name not in idle}

    def _possible(self, name: str, chosen: Distributions) -> list[Mapping[str, Needed]]:
        """The alternatives, in all its meanings, in which some values of the other parameters let this one be read."""
        alternatives = [one for full in self.names[name].targets for one in self.read.get(full, ALWAYS)]
        return [one for one in alternatives if all(self._may_be(other, told, chosen) for other, told in one.items())]

    def _may_be(self, full: str, needed: Needed, chosen: Distributions) -> bool:
        for name, found in chosen.items():
            known = self.names[name]
            if full in known.targets:
                if not isinstance(found, CategoricalDistribution):
                    return True
                return any(fits(known.values(choice)[full], needed) for choice in found.choices)
        return fits(self._value(self._still, full), needed)

    def read_when(self, name: str, chosen: Distributions) -> str:
        """What others of the `chosen` must be for this one to be read, in words; nothing where it always is, or where
        no values of them let it be."""
        told = [" and ".join(self._words(one, chosen)) for one in self._possible(name, chosen)]
        return "" if "" in told else ", or ".join(dict.fromkeys(told))

    def _words(self, one: Mapping[str, Needed], chosen: Distributions) -> Iterator[str]:
        """The conditions of an alternative that are not sure to hold."""
        for full, needed in one.items():
            if self._may_be(full, unlike(needed), chosen):
                name = next(name for name in chosen if full in self.names[name].targets)
                if isinstance(needed, tuple):
                    needed = tuple(one for one in needed if self._may_be(full, (one,), chosen))
                yield f"{name} {in_words(needed)}"


def chain_space(chain: Sequence[str]) -> ChainSpace:
    """The space of a chain of stages."""
    names = {}
    for full, short in short_names(chain).items():
        stage, _, own = full.partition(".")
        space = space_of(stage)
        known = {**getattr(space, "ON_REQUEST", {}), **space.SPACE}
        if own in known:
            names[short] = Name((full,), known[own])
    return ChainSpace(tuple(chain), names)


def _values(found: BaseDistribution) -> list[Any]:
    if isinstance(found, CategoricalDistribution):
        return list(found.choices)
    assert isinstance(found, IntDistribution | FloatDistribution)
    return list(range(found.low, found.high + 1)) if isinstance(found, IntDistribution) else [found.low, found.high]
