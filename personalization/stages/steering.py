"""Chameleon steering: hidden states moved along each user's direction; see `methods.steering`.

Directions are of the model as the stages below leave it. A trial runs the layers above the first edited one. Users
without history, and questions for which the gate is shut, are not steered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from personalization.backbones.location import read_json
from personalization.evaluation import gold_indices
from personalization.files import write_atomic
from personalization.methods.steering.directions import likeness
from personalization.methods.steering.edit import SteeringEdit
from personalization.methods.steering.export import TOKENS, content, easysteer, write_gguf
from personalization.methods.steering.fronts import FRONTS, LONGEST, PAIRS, ROOM
from personalization.methods.steering.learned import Directions, Learned, Reading, Settings, with_threshold
from personalization.methods.steering.moves import Firings, cosine_gate, product_gate
from personalization.scoring.store import size_limit
from personalization.stages import Stage
from personalization.stages.facts import Facts
from personalization.stages.holdings import FRAME_BYTES, Held, May, Sizes
from personalization.stages.work import KEPT_OF, Tools, Work, scores_of, states_of

COLLAPSED = 0.9
"""Share of one label in the answers above which steering is said to break the model."""


class Steering(Stage):
    """The forward pass of each question with its user's direction added."""

    kinds = ("causal",)
    earlier: Mapping[str, Any] = {"front": "others", "centred": False}

    def learn(self, params: Any, work: Work, tools: Tools) -> Learned | None:
        """Directions of all users and groups, norms, and the gate's threshold."""
        if params.alpha_personal == params.alpha_general == 0:
            return None
        settings = _settings(params)
        directions = _directions(work, tools, settings.front)
        learned = directions.learn(settings)
        if settings.gate != "cosine":
            return learned
        values = self._agreement(settings, learned, work, tools)
        return with_threshold(learned, values[directions.users()[1]], settings.open_share)

    def act(self, params: Any, learned: Any, work: Work, tools: Tools) -> Work:
        """An edit with each question's vectors and gate."""
        if learned is None or not len(work):
            return work
        settings = _settings(params)
        directions = _directions(work, tools, settings.front)
        users, known = directions.users()
        vectors = directions.vectors(settings, learned)
        opened = known
        if settings.gate == "cosine":
            opened = known & (self._agreement(settings, learned, work, tools) >= learned.threshold)
        elif settings.gate == "product":
            scaled = settings.alpha_personal * vectors.personal[users, 0]
            opened = known & (product_gate(scaled, settings.alpha_general * vectors.general[0]) >= learned.threshold)
        counted = tools.once("firings", None if work.key is None else (work.key, params), Firings)
        gates = opened.astype(np.float32)
        edit = SteeringEdit(
            tools.scorer.backbone.layers, vectors, settings.move, users, gates, settings.scope, firings=counted
        )
        return replace(work, edits=(*work.edits, edit), partial=True)

    def _agreement(self, settings: Settings, learned: Learned, work: Work, tools: Tools) -> NDArray[np.float64]:
        """Cosine of each question's state at the first edited layer with its user's direction, [n]."""
        directions, first = _directions(work, tools, settings.front), learned.layers[0]
        users, _ = directions.users()
        states = states_of(work.prompts, np.arange(len(work)), work, tools, (first,), settings.site)[:, 0]
        return cosine_gate(states, directions.vectors(settings, learned).personal[users, 0])

    def holds(self, may: May, sizes: Sizes) -> Held:
        """States of history items at every layer, with and without a history, for each way to read them; texts of the
        prompts that they are read from; states of the questions' tokens below the first edited layer; scores of every
        trial."""
        ways, read = len(may["front"]), PAIRS * sizes.histories
        pairs = 2 * read * sizes.depth * sizes.width * 4 * len(may["site"])
        texts = 2 * read * (sizes.prompt + LONGEST * (sizes.item + FRAME_BYTES) / 2)
        firsts = 1 if len(may["start"]) == 1 and set(may["place"]) == {"start"} else min(sizes.depth, sizes.trials)
        kept = min(KEPT_OF["directions"], ways * sizes.below)
        stored = min(firsts * sizes.below * sizes.states(sizes.questions), size_limit())
        moved = KEPT_OF["fitted steering"] * sizes.histories * sizes.depth * sizes.width * 4
        disk = ways * sizes.below * pairs + stored + sizes.trials * sizes.scores
        return Held(disk, (kept + 2) * pairs + texts + moved, moved)

    def facts(self, params: Any, learned: Any, below: Work, done: Work, tools: Tools) -> Facts:
        """What the hooks did, how far scores moved and users differ, and why no label changed or one took all."""
        if learned is None:
            return Facts(remarks=("nothing is steered: alpha_personal and alpha_general are 0",))
        settings, moved, plain = _settings(params), scores_of(done, tools), scores_of(below, tools)
        edit = done.edits[-1]
        assert isinstance(edit, SteeringEdit)
        touched, firings = edit.touched, edit.firings
        metrics = {
            "steering_hook_calls": float(min(firings.calls.values(), default=0)),
            "steering_edits_a_question": min(firings.edited.values(), default=0) / max(1, int(touched.sum())),
            "steering_steered_share": float(touched.mean()),
            "steering_relative_edit": firings.mean_relative_edit,
            "steering_largest_score_change": float(np.abs(moved - plain).max()),
        }
        directions = _directions(below, tools, settings.front)
        return Facts(
            {**metrics, **_likenesses(settings, learned, directions)},
            fields={
                "steering.steered_layers": len(learned.layers),
                "steering.relative_edit": float(firings.mean_relative_edit),
            },
            remarks=[*_cut(directions), *_remarks(settings, learned, edit, plain, moved)],
            pictures={"edits": lambda: self._picture(settings, learned, below, (plain, moved), tools)},
            files={"vectors.safetensors": lambda: self._vectors(settings, edit, below, tools)},
        )

    def _picture(
        self,
        settings: Settings,
        learned: Learned,
        below: Work,
        scores: tuple[NDArray[np.float32], NDArray[np.float32]],
        tools: Tools,
    ) -> dict[str, Any]:
        """How well the direction separates at each layer, and what scores before and after say of each question."""
        before, after = scores
        gold = gold_indices(below.dataset)
        wrong, right = before.argmax(axis=1) != gold, after.argmax(axis=1) == gold
        return {
            "separations": _directions(below, tools, settings.front).separations(settings),
            "layers": learned.layers,
            "moved": np.abs(after - before).max(axis=1),
            "helped": wrong & right,
            "hurt": ~wrong & ~right,
        }

    def _vectors(self, settings: Settings, edit: SteeringEdit, below: Work, tools: Tools) -> bytes:
        """The tune users' vectors for other tools."""
        directions = _directions(below, tools, settings.front)
        names = [f"{recent[0].id} to {recent[-1].id}" for recent, _ in directions.histories]
        found_by = {"model": tools.scorer.fingerprint, **{k: str(v) for k, v in asdict(settings).items()}}
        return content(edit.vectors, settings.move, names, settings.scope, found_by)

    def starts(self, params: Any, work: Work, tools: Tools) -> list[dict[str, Any]]:  # noqa: ARG002
        """The plainest edit, one norm long, at thirds of the depth, solved exactly; in each way to read histories, of
        which a space has mostly one."""
        edit = {"steering.alpha_personal": 1.0, "calibration.fit": "exact"}
        return [
            {**edit, "steering.front": front, "steering.start": start}
            for start in (0.34, 0.51, 0.67)
            for front in FRONTS
        ]

    def export(self, params: Any, learned: Any, work: Work, tools: Tools, folder: Path) -> list[str]:
        """Vectors with all that they need in one file; where they are plainly added, a control vector of each user."""
        if learned is None:
            return []
        settings = _settings(params)
        edit = self.act(params, learned, work, tools).edits[-1]
        assert isinstance(edit, SteeringEdit)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vectors.safetensors").write_bytes(self._vectors(settings, edit, work, tools))
        lines = ["vectors.safetensors: every history's vectors; the header says how they are used"]
        if settings.edit != "additive" or settings.site != "block":
            return [*lines, f"no GGUF: a {settings.edit} at the {settings.site} is no vector added to a block's output"]
        hint = read_json(tools.scorer.files / "config.json").get("model_type", "")
        (folder / "control-vectors").mkdir()
        last = {q.user_id: row for row, q in enumerate(work.dataset.questions) if edit.gates[row]}
        names = {}
        for number, (user, row) in enumerate(last.items()):
            names[user] = f"{number:05d}.gguf"
            added = easysteer(edit.vectors, settings.move, int(edit.users[row]))
            write_gguf(folder / "control-vectors" / names[user], added, hint)
        write_atomic(folder / "control-vectors" / "users.json", json.dumps(names, indent=0) + "\n")
        tokens = "" if settings.scope == "all" else f"; mind: the chain moves {TOKENS[settings.scope]} alone"
        return [*lines, f"control-vectors/N.gguf, users.json: one a user, as EasySteer and llama.cpp read them{tokens}"]

    def save(self, params: Any, learned: Any, folder: Path) -> Mapping[str, Any]:  # noqa: ARG002
        """Directions at the edited layers."""
        return {} if learned is None else {"steering": learned.save(folder)}

    def load(self, params: Any, listed: Mapping[str, Any], folder: Path) -> Any:  # noqa: ARG002
        """What was saved."""
        return Learned.load(listed["steering"], folder) if listed else None


def _remarks(
    settings: Settings, learned: Learned, edit: SteeringEdit, plain: NDArray[np.float32], moved: NDArray[np.float32]
) -> list[str]:
    """Why steering changes no label, or breaks the model."""
    if not edit.touched.any():
        return [f"nothing is steered: the {settings.gate} gate opened for no question"]
    if (moved.argmax(axis=1) == plain.argmax(axis=1)).all():
        two = np.sort(plain[edit.touched], axis=1)[:, -2:]
        closest, most = float(np.diff(two).min()), float(np.abs(moved - plain).max())
        layers = ", ".join(map(str, learned.layers))
        return [
            f"steering changes no label: at layers {layers} its direction is orthogonal to what tells labels apart, or "
            f"too short; scores move by at most {most:.2g} nats, and the closest decision is {closest:.2g} wide",
        ]
    before, after = (float(np.bincount(table.argmax(axis=1)).max() / len(table)) for table in (plain, moved))
    if after <= max(COLLAPSED, before):
        return []
    return [
        f"steering breaks the model: one label takes {after:.0%} of the answers ({before:.0%} without), at edits of "
        f"{edit.firings.mean_relative_edit:.2g} times the states' length; take smaller strengths"
    ]


def _likenesses(settings: Settings, learned: Learned, directions: Directions) -> dict[str, float]:
    """How alike users' own directions are, and how like the general one; `_centred`: without what is common."""
    if len(directions.paired) < 2:
        return {}
    where = (settings.direction, settings.site, learned.layers)
    found: dict[str, float] = {}
    for name, common in (("", None), ("_centred", directions.common(*where))):
        between, general = likeness(directions.own(*where, common), learned.general)
        found |= {f"steering_cosine_between_users{name}": between, f"steering_cosine_with_general{name}": general}
    return found


def _cut(directions: Directions) -> list[str]:
    """That histories are longer than what is read of them."""
    if directions.front == "others" or not directions.cut:
        return []
    return [
        f"the histories of {directions.cut} of {len(directions.dataset.questions)} questions are read from their "
        f"newest items: at most {LONGEST} items and {directions.reading.room} tokens"
    ]


def _directions(work: Work, tools: Tools, front: str) -> Directions:
    """The directions of a work's questions, of the model as the work leaves it.

    A server remembers those of histories, where no edit below makes them depend on more than the history and how it is
    asked about.
    """

    def make() -> Directions:
        scorer, backbone = tools.scorer, cast(Any, tools.scorer.backbone)
        prefix = max((edit.prefix for edit in work.edits), default=0)
        if scorer.chat:
            prefix += backbone.lengths([scorer.conversation(None, "")])[0]

        def states(prompts: Sequence[str], owners: Any, layers: Sequence[int], site: str) -> Any:
            asked = [scorer.conversation(None, prompt) for prompt in prompts] if scorer.chat else prompts
            return states_of(asked, owners, work, tools, layers, site)

        room = backbone.room(work.spoken, prefix, ROOM)
        reading = Reading(backbone.depth, states, tools.embed, backbone.lengths, room)
        memory = None if work.of is not None or work.edits else (work.asking.wording, work.spoken)
        kept = None if memory is None else tools.once("directions of histories", memory, dict)
        return Directions(work.dataset, reading, front, kept)

    found: Directions = tools.once("directions", None if work.key is None else (work.key, front), make)
    return found


def _settings(params: Any) -> Settings:
    return Settings(**{own.name: getattr(params, own.name) for own in fields(Settings)})
