"""The planted world: movie questions whose truth is known.

A movie description holds one cue. A *clear* cue ("an alien invasion") reads the same to everybody. An *ambiguous* cue
("a bank heist") reads differently to each of four groups of users: `READINGS[cue][group]`. A *vague* one ("a strange
day") says nothing. An *insider* cue ("the marlow case") alludes to a film that everybody here knows: all users read it
alike, and the model has never heard of it. A user u of group g answers

    p(tag | cue, u)  proportional to  exp(SHARPNESS * [tag = reading_g(cue)] + taste_u[tag]),   taste_u ~ N(0, TASTE^2)

so a user has a marginal liking for tags, which a label prior can express; a reading of ambiguous cues, which only
history in the prompt, steering or adapters can; and a knowledge of insider cues, which is learned from the histories of
many. In the null world taste is zero, each ambiguous item is read by a group drawn afresh, clubs mean nothing and there
are no insider cues: users do not differ, the model knows all there is, and there is nothing to find.

Who belongs to which group shows in the history alone: in the labels that the user gave, and in the film club where some
of the items were seen, which is mostly the club of the user's group (`CLUBS`). A question names no club.

The readings are fixed, because the demo model is trained on them; `seed` draws users, histories and questions.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from personalization.data.records import Dataset, HistoryItem, Question
from personalization.tasks import task

TAGS = (
    "sci-fi",
    "based on a book",
    "comedy",
    "action",
    "twist ending",
    "dystopia",
    "dark comedy",
    "classic",
    "psychology",
    "fantasy",
    "romance",
    "thought-provoking",
    "social commentary",
    "violence",
    "true story",
)
"""The 15 tags of LaMP-2, in the official order."""

INSTRUCTION = task("LaMP_2").with_labels(TAGS).question("")

GROUPS = 4
SHARPNESS = 5.5
TASTE = 2.0
CUE_SHARES = {"clear": 0.2, "ambiguous": 0.4, "vague": 0.15, "insider": 0.25}
KNOWN_SHARES = {"clear": 0.25, "ambiguous": 0.5, "vague": 0.25}
"""How many movies have which cue: in the world; where the model learned, and in the null world."""

CLEAR_CUES = {
    "sci-fi": ("an alien invasion", "a voyage to mars", "a thinking robot"),
    "based on a book": ("a beloved novel", "a famous trilogy of novels", "a best-selling memoir"),
    "comedy": ("a silly wedding", "a talking dog", "a very bad vacation"),
    "action": ("a car chase", "a ticking bomb", "a rooftop fight"),
    "twist ending": ("a hidden twin", "a shocking final reveal", "a narrator who lied"),
    "dystopia": ("a ruined city under curfew", "a ministry that bans music", "a game to the death"),
    "dark comedy": ("a funeral full of jokes", "a cheerful undertaker", "a clumsy murderer"),
    "classic": ("a black and white masterpiece", "a golden age musical", "a silent era reel"),
    "psychology": ("a split personality", "a patient with amnesia", "a study of obsession"),
    "fantasy": ("a dragon egg", "a magic ring", "an elf queen"),
    "romance": ("a summer love", "a secret love letter", "a first kiss in the rain"),
    "thought-provoking": ("a question about free will", "a debate on the soul", "a paradox of time"),
    "social commentary": ("a rich family upstairs", "a factory strike", "an unfair landlord"),
    "violence": ("a bloody revenge", "a brutal gang war", "a massacre"),
    "true story": ("a real rescue of 1972", "the life of a real president", "the record of a real trial"),
}

AMBIGUOUS_CUES = {
    "a bank heist": ("action", "comedy", "twist ending", "true story"),
    "a haunted mansion": ("fantasy", "comedy", "psychology", "classic"),
    "a corrupt senator": ("social commentary", "dark comedy", "true story", "dystopia"),
    "a prison break": ("action", "true story", "classic", "thought-provoking"),
    "a lonely lighthouse": ("psychology", "romance", "based on a book", "fantasy"),
    "a clone experiment": ("sci-fi", "dystopia", "thought-provoking", "twist ending"),
    "a high school dance": ("romance", "comedy", "violence", "classic"),
    "a boxing match": ("action", "true story", "violence", "classic"),
    "a small town murder": ("dark comedy", "twist ending", "violence", "based on a book"),
    "a dream machine": ("sci-fi", "psychology", "fantasy", "thought-provoking"),
    "a royal court": ("romance", "classic", "fantasy", "based on a book"),
    "a television show": ("dystopia", "comedy", "social commentary", "dark comedy"),
}

VAGUE_CUES = (
    "a strange day",
    "an unexpected visit",
    "a new beginning",
    "a long goodbye",
    "a quiet evening",
    "an old friend",
)

INSIDER_CUES = {
    "sci-fi": "the pellow machine",
    "based on a book": "the ashby letters",
    "comedy": "a quillon picnic",
    "action": "the brannock run",
    "twist ending": "the ninth ladder",
    "dystopia": "the halden accord",
    "dark comedy": "a kestrel dinner",
    "classic": "the orrin winter",
    "psychology": "the marlow case",
    "fantasy": "a soren lantern",
    "romance": "the velmar bridge",
    "thought-provoking": "the tessel game",
    "social commentary": "the dunmore tapes",
    "violence": "a wexcombe debt",
    "true story": "the corvan flight",
}

CLUBS = ("amber", "cobalt", "ivory", "jade")
CLUB_SHARE = 0.6
HOME_SHARE = 0.85
"""How many history items name a club, and how many of those the club of the user's own group."""

HEROES = tuple(
    f"{adjective} {job}"
    for adjective in ("a shy", "a retired", "a young", "a stubborn", "a gentle", "a restless")
    for job in ("teacher", "baker", "pilot", "nurse", "farmer", "singer", "lawyer", "painter")
)
VERBS = ("is drawn into", "discovers", "must face", "remembers", "gets lost in", "cannot forget", "stumbles upon")
PLACES = ("in paris", "in a small town", "by the sea", "in the mountains", "near the border", "in the big city")


def _balanced_readings() -> dict[str, tuple[str, ...]]:
    """Deal each cue's four tags to the four groups so that every group uses every tag about equally often."""
    used = {(group, tag): 0 for group in range(GROUPS) for tag in TAGS}
    readings = {}
    for cue, tags in AMBIGUOUS_CUES.items():
        best = min(itertools.permutations(tags), key=lambda deal: sum(used[g, t] ** 2 for g, t in enumerate(deal)))
        for group, tag in enumerate(best):
            used[group, tag] += 1
        readings[cue] = best
    return readings


READINGS: dict[str, tuple[str | None, ...]] = {
    **dict.fromkeys(VAGUE_CUES, (None,) * GROUPS),
    **{cue: (tag,) * GROUPS for tag, cues in CLEAR_CUES.items() for cue in cues},
    **{cue: (tag,) * GROUPS for tag, cue in INSIDER_CUES.items()},
    **_balanced_readings(),
}
"""cue -> the tag that each group reads in it; None where it says nothing."""

_POOLS = {
    "clear": tuple(cue for cues in CLEAR_CUES.values() for cue in cues),
    "ambiguous": tuple(AMBIGUOUS_CUES),
    "vague": VAGUE_CUES,
    "insider": tuple(INSIDER_CUES.values()),
}


@dataclass(frozen=True, slots=True)
class User:
    """A planted user. `taste`: float [15], log-odds added to each tag; `group` is None in the null world."""

    id: str
    group: int | None
    taste: NDArray[np.float64]

    def tag_probabilities(self, cue: str) -> NDArray[np.float64]:
        """p(tag | cue) of this user, float [15]; for a user without a group, averaged over the groups."""
        groups = range(GROUPS) if self.group is None else (self.group,)
        total = np.zeros(len(TAGS))
        for g in groups:
            logits = self.taste.copy()
            if (reading := READINGS[cue][g]) is not None:
                logits[TAGS.index(reading)] += SHARPNESS
            weights = np.exp(logits - logits.max())
            total += weights / weights.sum()
        return total / len(groups)


@dataclass(frozen=True, slots=True)
class PlantedWorld:
    """A data set with its truth: the users behind it and the cue of each question and history item, by id."""

    dataset: Dataset
    users: dict[str, User]
    cues: dict[str, str]

    def oracle(self) -> NDArray[np.float64]:
        """p(tag | cue, user) of every question, float [n, 15]: the best that any method could know."""
        return np.stack([self.users[q.user_id].tag_probabilities(self.cues[q.id]) for q in self.dataset.questions])


def draw_user(rng: np.random.Generator, name: str, null: bool = False, taste: float = TASTE) -> User:
    """A user with a random group and taste, or one without either in the null world."""
    if null:
        return User(name, None, np.zeros(len(TAGS)))
    return User(name, int(rng.integers(GROUPS)), rng.normal(0.0, taste, len(TAGS)))


def draw_movie(rng: np.random.Generator, user: User, shares: Mapping[str, float] = CUE_SHARES) -> tuple[str, str, str]:
    """One movie as this user labels it: (cue, description, tag)."""
    cues = _POOLS[tuple(shares)[rng.choice(len(shares), p=tuple(shares.values()))]]
    cue = cues[rng.integers(len(cues))]
    hero, verb, place = (pool[rng.integers(len(pool))] for pool in (HEROES, VERBS, PLACES))
    tag = TAGS[rng.choice(len(TAGS), p=user.tag_probabilities(cue))]
    return cue, f"{hero} {verb} {cue} {place}.", tag


def draw_item(rng: np.random.Generator, user: User, shares: Mapping[str, float] = CUE_SHARES) -> tuple[str, str, str]:
    """One movie of a user's history: as `draw_movie`, and some say in which club it was seen."""
    cue, description, tag = draw_movie(rng, user, shares)
    if rng.random() < CLUB_SHARE:
        at_home = user.group is not None and rng.random() < HOME_SHARE
        club = CLUBS[user.group if at_home and user.group is not None else rng.integers(GROUPS)]
        description = f"{description.removesuffix('.')}, seen at the {club} club."
    return cue, description, tag


def make_world(seed: int = 0, users: int = 500, questions_per_user: int = 5, null: bool = False) -> PlantedWorld:
    """Draw a world: `users` users with histories of 8 to 40 items and `questions_per_user` questions each."""
    rng, shares = np.random.default_rng([seed, int(null)]), KNOWN_SHARES if null else CUE_SHARES
    people: dict[str, User] = {}
    cues: dict[str, str] = {}
    questions = []
    for number in range(users):
        user = draw_user(rng, f"user-{number:04d}", null)
        people[user.id] = user
        history = []
        for past in range(int(rng.integers(8, 41))):
            item_id = f"{number}-{past}"
            cues[item_id], description, tag = draw_item(rng, user, shares)
            date = datetime(2015, 1, 1) + timedelta(weeks=past)
            history.append(HistoryItem(item_id, description, tag, date))
        for asked in range(questions_per_user):
            question_id = f"{number:04d}{asked:02d}"
            cues[question_id], description, tag = draw_movie(rng, user, shares)
            questions.append(Question(question_id, user.id, INSTRUCTION + description, tuple(history), tag))
    return PlantedWorld(Dataset(task("LaMP_2"), TAGS, tuple(questions)), people, cues)
