"""One race of arms: begun or gone on with, run for its minutes, and the leader promoted.

Arms are ordinary studies, NAME.ARM, in one storage. First every arm that can be afforded has a slice, in the order of
what it costs, as measured with this model on this machine; two that lead are put together as soon as nothing cheaper
waits. Then the time goes where `allocation` says. No arm is believed on users that it learned from: tune users are
answered by what did not learn from them, and where that cannot be had, select users alone judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from personalization.errors import ChamtuneError, UsageError
from personalization.files import locked
from studies.auto import pooling, routing
from studies.auto.allocation import Standing, following, hopeless, leader, mean_gain
from studies.auto.arms import ARMS, NOT_AFFORDED, PROMISING, TRAINED, Arm, Scene, wanted
from studies.auto.clock import Journal, TimeUp, ended_after, spoken_time
from studies.auto.costs import epochs_of, measured, training_cost
from studies.auto.ending import SPARE, promote_leader, promoting_s
from studies.auto.judging import Entry, Judge, first_lift, judge, judged, measure, own_trials, rival, unmeasured
from studies.auto.pairing import PAIRED, pair, pairs
from studies.auto.plan import Plan, fixed_by, queue_first
from studies.carried import carried_said, carry
from studies.runner import Stopped, StopRequest, Watcher, catch_up, stop_on_signal, tend, work_on
from studies.study import OpenStudy, ended_trials, find_study, open_study, stored_spec
from studies.verdict.deployments import stands
from tracking.spool import OFF, Spool

HALF, GRACE, LATE = 0.5, 1.3, 0.9
"""Share of the time left that a slice may take, times of it after which its running trial is interrupted, and the share
where nothing else is left to do."""
TOO_FEW = "are too few to score the tune users once; give more with --minutes. What was scored is kept"
FAILED, BEHIND = "failed", "out: cannot overtake"

Say = Callable[[str], None]


@dataclass
class Race:
    """A race in progress.

    `say` is told what happens, a line each; `judges` [U]: users whom arms are judged on, with `sizes`, their questions;
    `kept_s`: seconds kept for arms that hold others; `arms`: those that may be raced, cheapest first, of which some are
    `waiting`; `offered`: names of all that were offered a slice; `share` of the time left that a slice may take.
    """

    plan: Plan
    home: Path
    watcher: Watcher = field(default_factory=Watcher)
    say: Say = lambda _: None
    entries: dict[str, Entry] = field(default_factory=dict)
    scene: Scene | None = None
    judges: list[Judge] = field(default_factory=list)
    sizes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    kept_s: float = 0.0
    arms: list[Arm] = field(default_factory=list)
    waiting: list[Arm] = field(default_factory=list)
    offered: set[str] = field(default_factory=set)
    share: float = HALF

    def __post_init__(self) -> None:
        self.journal = Journal(self.home / "auto" / f"{self.plan.name}.json")
        self.limit_s = 60 * self.plan.minutes

    def run(self, out: Path) -> dict[str, Any] | None:
        """Race, then promote the leader to `out`: what promotion said, None where no arm beats the baseline.

        Stopped by a signal; the same command goes on. UsageError where another process runs this race.
        """
        stands(out)  # a place that is taken is said now, not when the time is spent
        with locked(self.journal.path.with_suffix(".lock"), self._refuse):
            return self._run(out)

    def _refuse(self) -> None:
        raise UsageError(
            f"the race {self.plan.name} is run by another process; wait for it, stop it, or give another --name"
        )

    def _run(self, out: Path) -> dict[str, Any] | None:
        with stop_on_signal() as request, self.journal.ticking():
            try:
                with ended_after(self._whole_s):
                    self._begin(request)
                    while (entry := self._following()) is not None or self._late(request):
                        if entry is not None:
                            self._slice(entry, request)
                    routing.route(self, request)
                    pooling.pool(self, request)
            except TimeUp:
                if self.scene is None:
                    raise UsageError(f"{self.plan.minutes:g} minutes {TOO_FEW}") from None
                self.say("the time of the race is over")
            except KeyboardInterrupt:
                if request.signal is None:
                    raise
                raise Stopped(request.signal) from None
            finally:
                self.journal.note()
                self._spool()
            return promote_leader(self, out)

    @property
    def base(self) -> OpenStudy:
        """The study whose data and model all arms share."""
        return next(iter(self.entries.values())).opened

    @property
    def left_s(self) -> float:
        """Seconds left for the race, without what promotion will take, and promising arms that hold others."""
        return self.limit_s - self.journal.spent_s - promoting_s(self) - self.kept_s

    @property
    def may_route(self) -> bool:
        """Whether one more arm may hold others."""
        return not self.plan.stages or routing.NAME in self.plan.stages

    @property
    def remaining_s(self) -> float:
        """Seconds left of all."""
        return max(0.0, self.limit_s - self.journal.spent_s)

    def best(self) -> Entry | None:
        """The arm that is ahead, of those that gain at all, if any do; None while none has a feasible trial."""
        standings = [entry.standing for entry in self.entries.values() if entry.standing is not None]
        gaining = [standing for standing in standings if np.nansum(standing.gains) > 0]
        return self.entries[leader(gaining or standings, self.sizes).name] if standings else None

    @property
    def _whole_s(self) -> float:
        """Seconds of the race if promoting took no longer than it must. UsageError where none are left."""
        if self.remaining_s <= 0:
            raise UsageError(
                f"the {self.plan.minutes:g} minutes of {self.plan.name} are spent; give more with --minutes, or "
                "another --name to race anew"
            )
        return max(HALF * self.remaining_s, self.remaining_s - promoting_s(self))

    # the beginning

    def _begin(self, request: StopRequest) -> None:
        """Open the first arm, measure what a pass costs, and give every arm that can be afforded its first slice."""
        for name in self.plan.like:
            find_study(name, self.home, self.plan.spec.get("storage"))
        first = self._open(ARMS["calibration"], request)
        asked = Counter(own for own, _ in judged(self.base))
        self.judges, self.sizes = list(asked), np.array(list(asked.values()))
        self.scene = measured(first.opened)
        arms = wanted(self.scene.kind, self.plan.stages, self.plan.mix_users)
        if trained := [self.plan.study_of(arm.name) for arm in arms if "adapter" in arm.chain]:
            training = training_cost(first.opened)
            epochs = epochs_of(first.opened, trained, training.epochs_within(HALF * self.left_s))
            self.scene = self.scene._replace(training_s=training.seconds(epochs), epochs=epochs)
        self.arms = sorted(arms, key=self._cost)
        self.say(self._announced(self.arms))
        self._reopen(request)
        self.waiting = [arm for arm in self.arms if arm.name not in self.offered]
        while at_hand := [*self.waiting[:1], *pairs(self)]:
            arm = self._rather(min(at_hand, key=self._cost))
            self.waiting = [other for other in self.waiting if other is not arm]
            self.enter(arm, request)

    def _reopen(self, request: StopRequest) -> None:
        """The arms that were begun before the race was interrupted, in their order, of those that may be raced now."""
        for name, kept in list(self.journal.content["arms"].items()):
            arm = next((arm for arm in self.arms if arm.name == name), None) or pair(self, *name.split("+"))
            if arm is not None and (kept["slices"] or own_trials(self.base, self.plan.study_of(name))):
                self.enter(arm, request)

    @property
    def _seen_scene(self) -> Scene:
        assert self.scene is not None
        return self.scene

    def _cost(self, arm: Arm) -> float:
        """Seconds that an arm's first trial takes, about."""
        return arm.passes(self._seen_scene) * self._seen_scene.pass_s

    def _share_of(self, arm: Arm) -> float:
        """Of the time left, what a slice of this arm may take, as estimated."""
        return max(self.share, LATE / SPARE) if arm.name in PROMISING[self._seen_scene.kind] else self.share

    def _rather(self, arm: Arm) -> Arm:
        """This arm, or the cheapest promising one where one of them fits now and would not after this arm any more."""
        left, after = LATE * self.left_s, LATE * (self.left_s - self._cost(arm))
        led = [other for other in self.waiting if other.name in PROMISING[self._seen_scene.kind]]
        led = [other for other in led if SPARE * self._cost(other) <= left]
        return led[0] if any(after < SPARE * self._cost(other) for other in led) else arm

    def _announced(self, arms: Sequence[Arm]) -> str:
        scene, epochs = self._seen_scene, self._seen_scene.epochs or TRAINED["epochs"]
        costs = ", ".join(f"{arm.name} {spoken_time(self._cost(arm))}" for arm in arms)
        fewer = f"; trainings have {epochs} of {TRAINED['epochs']} epochs" if epochs < TRAINED["epochs"] else ""
        whole = f"a pass over the {scene.questions} tune questions takes about {spoken_time(scene.pass_s)} here"
        return f"{whole}; the first trial of each arm, about: {costs}{fewer}"

    # arms

    def enter(self, arm: Arm, request: StopRequest) -> None:
        """Open an arm and give it its first slice, unless a first trial would take too much of what is left."""
        self.offered.add(arm.name)
        kept = self.journal.arm(arm.name)
        kept["says"], kept["fate"] = arm.says, None
        if not kept["slices"] and (killed := own_trials(self.base, self.plan.study_of(arm.name))):
            seconds = sum(trial.duration.total_seconds() for trial in killed if trial.duration)
            kept["slices"].append({"trials": len(killed), "seconds": round(seconds, 2), "cut": False})
        if not kept["slices"]:
            cost, share = self._cost(arm), self._share_of(arm)
            if cost > max(0.0, share * self.left_s):
                left = f"more than {share:.0%} of the {spoken_time(self.left_s)} left"
                left = left if self.left_s > 0 else "and no time is left"
                self.out(arm.name, f"{NOT_AFFORDED}: a first trial takes about {spoken_time(cost)}, {left}")
                return
        try:
            entry = self._open(arm, request)
            self._begin_like(entry)
            queue_first(entry.opened, arm.name, self._seen_scene.kind)
            if kept["slices"]:
                tend(entry.opened)
                measure(entry, self.base)
                judge(entry, self.base, self.judges, self.journal.arm(entry.arm.name))
            else:
                self._slice(entry, request)
        except Stopped:
            raise
        except ChamtuneError as error:
            self.out(arm.name, f"{FAILED}: {error}")

    def _open(self, arm: Arm, request: StopRequest) -> Entry:
        if arm.name not in self.entries:
            opening = True

            def progress(done: int, total: int) -> None:
                self.watcher.scoring(done, total)
                if opening and request.by is not None:
                    raise Stopped(request.by)

            beside = self.base if self.entries else None
            embedder = "causal" if beside is None else beside.scorer.embedder.kind
            spec = self.plan.spec_of(arm, embedder, self._fixed(arm))
            below = None if arm.start_from is None else self.entries[arm.start_from]
            self.entries[arm.name] = Entry(arm, open_study(spec, self.home, progress, beside), below=below)
            opening = False
        return self.entries[arm.name]

    def _fixed(self, arm: Arm) -> dict[str, Any]:
        """What the arm below found in its stages, by full name, as it was when this one was begun; alone, the epochs of
        an adapter that the time allows."""
        if arm.start_from is None:
            return {"adapter.epochs": self._seen_scene.epochs} if "adapter" in arm.chain else {}
        kept, below = self.journal.arm(arm.name), self.entries[arm.start_from]
        if "fixed" not in kept:
            assert below.params is not None
            kept["fixed"] = fixed_by(below.params, arm, below.opened.scorer.kind)
        fixed: dict[str, Any] = kept["fixed"]
        return fixed

    def _begin_like(self, entry: Entry) -> None:
        """Queue what won in studies of other data or models with the same chain, or keep what was measured, once."""
        for name in self.plan.like:
            other = find_study(name, self.home, entry.opened.spec.storage)
            if stored_spec(other).space_of.chain == entry.arm.chain:
                self.say(f"{entry.arm.name}: {carried_said(carry(entry.opened, other))}")

    def _following(self) -> Entry | None:
        """The arm that goes on; notes those that are out."""
        if self.left_s <= 0:
            return None
        self.kept_s = routing.kept_s(self) + pooling.kept_s(self)
        standings = [self._standing(entry) for entry in self.entries.values() if entry.standing is not None]
        if not standings:
            return self._begun()
        best = leader(standings, self.sizes)
        for standing in standings:
            if hopeless(standing, best, self.sizes):
                self.out(standing.name, f"{BEHIND} {best.name} any more")
            elif str(self.journal.arm(standing.name)["fate"]).startswith(BEHIND):
                self.journal.arm(standing.name)["fate"] = None
        found = following(standings, self.sizes)
        return None if found is None else self.entries[found.name]

    def _standing(self, entry: Entry) -> Standing:
        """How an arm stands; as one with nothing left to try where a further trial would be interrupted."""
        assert entry.standing is not None
        trials = sum(one["trials"] for one in self.journal.arm(entry.arm.name)["slices"])
        fits = entry.standing.seconds <= trials * self._most_s(entry.arm)
        return entry.standing if fits else replace(entry.standing, done=True)

    def _most_s(self, arm: Arm) -> float:
        """Seconds after which the running trial of a slice that begins now is interrupted."""
        return max(1.0, min(GRACE * self._share_of(arm), 1.0) * self.left_s)

    def _first_lifts(self) -> list[float]:
        """What the first slice of each arm brought that had more than one trial in it."""
        first = [kept["slices"][0] for kept in self.journal.content["arms"].values() if kept["slices"]]
        return [one["lift"] for one in first if one["trials"] > 1 and "lift" in one]

    def _late(self, request: StopRequest) -> bool:
        """With nothing else left to do: begin the cheapest arm that takes more than half of the time left, and no more
        than is left, or go on with one whose first trial was interrupted; whether there was one."""
        self.share = LATE
        put_together = [entry.arm for entry in self.entries.values() if entry.arm.start_from is not None]
        for arm in (*self.arms, *put_together):
            entry, kept = self.entries.get(arm.name), self.journal.arm(arm.name)
            if self._cost(arm) > LATE * self.left_s or str(kept["fate"]).startswith(FAILED):
                continue
            if entry is None:
                self.enter(arm, request)
                if arm.name in self.entries:
                    return True
            elif entry.standing is None and kept["slices"] and kept["slices"][-1]["cut"]:
                self._slice(entry, request)
                return True
        return False

    def _begun(self) -> Entry | None:
        """While no arm has a result: the first one, if its time was over before its first trial was."""
        entry = next(iter(self.entries.values()))
        slices = self.journal.arm(entry.arm.name)["slices"]
        return entry if slices and slices[-1]["cut"] else None

    def out(self, name: str, why: str) -> None:
        kept = self.journal.arm(name)
        if kept["fate"] != why:
            kept["fate"] = why
            self.say(f"{name}: {why}")

    def _slice(self, entry: Entry, request: StopRequest) -> None:
        """Give an arm a slice of time; one that fails gets no further one."""
        try:
            self._run_slice(entry, request)
        except Stopped:
            raise
        except ChamtuneError as error:
            self.journal.arm(entry.arm.name)["done"] = True
            entry.standing = None if entry.standing is None else replace(entry.standing, done=True)
            self.out(entry.arm.name, f"{FAILED}: {error}")

    def _ended(self, arm: Arm, work: Callable[[], object]) -> bool:
        """Do what belongs to a slice of an arm; whether it came to its end in the time that a slice may take."""
        try:
            with ended_after(self._most_s(arm)):
                work()
        except TimeUp:
            return False
        return True

    def _run_slice(self, entry: Entry, request: StopRequest) -> None:
        """Run an arm to twice its trials, or to the end of its time; at first to an equal part for all that wait."""
        kept = self.journal.arm(entry.arm.name)
        slices, before = kept["slices"], len(ended_trials(entry.opened.study))
        total = min(entry.arm.most, max(entry.arm.first, 2 * before))
        seconds = max(self._share_of(entry.arm) * self.left_s, 1.0)
        equal = self.left_s / (1 + len(self.waiting) + PAIRED) if not slices else seconds
        given = max(min(seconds, equal), 1.0)
        spec = entry.opened.spec.model_copy(update={"trials": total, "timeout_s": given})
        started, best = self.journal.spent_s, rival(entry, self.best())
        opened = replace(entry.opened, spec=spec)
        cut = not self._ended(entry.arm, lambda: work_on(opened, self.watcher, request, None, best))
        done = len(ended_trials(entry.opened.study))
        if request.by is not None and done == before:  # nothing was tried: it is as if the slice had not begun
            raise Stopped(request.by)
        cut |= done == before and self.journal.spent_s - started >= given
        was = None if entry.standing is None else mean_gain(entry.standing, self.sizes)
        slices.append({"trials": done - before, "seconds": round(self.journal.spent_s - started, 2), "cut": cut})
        if request.by is not None:
            raise Stopped(request.by)
        cut |= not self._ended(entry.arm, lambda: measure(entry, self.base))
        slices[-1] |= {"seconds": round(self.journal.spent_s - started, 2), "cut": cut}
        judge(entry, self.base, self.judges, kept)
        now = 0.0 if entry.standing is None else mean_gain(entry.standing, self.sizes)
        lift = now - was if was is not None else first_lift(entry, self._first_lifts())
        slices[-1] |= {"gain": round(now, 5), "lift": round(lift, 5), "at_s": round(self.journal.spent_s, 1)}
        kept["done"] = (done == before and not cut) or done >= entry.arm.most
        if entry.standing is not None:
            entry.standing = replace(entry.standing, lift=lift, done=kept["done"])
        self.journal.note()
        told = f"gain {now:+.3f} on users it did not learn from" if entry.standing else unmeasured(entry)
        spent = f"{spoken_time(self.journal.spent_s)} of {spoken_time(self.limit_s)}"
        self.say(f"{entry.arm.name}: {done} trials, {told}, {spent}")

    # the end

    def _spool(self) -> None:
        """Have every arm's trials ready for MLflow; a promotion sends those of its study, `chamtune sync` any."""
        for entry in self.entries.values():
            opened = entry.opened
            if opened.spec.tracking != OFF:
                catch_up(opened, Spool(opened.home, opened.spec.name, opened.record["id"]))
