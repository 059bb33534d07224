"""From what was asked for to the studies of the arms."""

import json

import pytest

from personalization.data.splits import DEFAULT_SHARES
from personalization.errors import UsageError
from search_spaces import chain_space
from studies.auto.arms import ARMS, Scene, together, wanted
from studies.auto.plan import Plan, bounds, data_of, listed, name_of
from studies.samplers import holds

KINDS = ("causal", "encoder")
SCENE = {kind: Scene(kind, 100, 800, 200.0, 150.0, 10.0, 30.0, float(kind == "encoder")) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_arm_and_every_pair_is_a_study(kind):
    arms = wanted(kind, (), mix_users=True)
    pairs = [both for one in arms for other in arms if (both := together(one, other)) is not None]
    plan = Plan("n", {"data": {"path": "demo"}, "model": {"path": "demo"}}, 1)
    for arm in (*arms, *pairs):
        spec = plan.spec_of(arm, kind)
        assert chain_space(arm.chain).overridden(kind, spec.space)
        assert arm.passes(SCENE[kind]) >= 0
        assert arm.answering(SCENE[kind]) >= 0
        assert spec.shares == DEFAULT_SHARES  # the users of every other arm
        assert spec.start_from is None  # the baseline of a pair is the model itself, too
        assert (arm.start_from is not None) == ("+" in arm.name)


def test_a_race_has_a_name_that_a_study_may_have():
    with pytest.raises(UsageError, match=r"no study can be called '../evil'"):
        Plan("../evil", {}, 1)


def test_a_pair_has_both_stages_and_keeps_what_the_lower_one_found():
    both = together(ARMS["lora"], ARMS["prompt"])
    assert both.chain == ("prompt", "adapter", "calibration")
    assert both.start_from == "prompt"
    assert both.passes(SCENE["causal"]) == ARMS["prompt"].passes(SCENE["causal"]) * ARMS["lora"].passes(SCENE["causal"])
    assert together(ARMS["lora"], ARMS["prefix"]) is None
    assert together(ARMS["calibration"], ARMS["prompt"]) is None
    assert together(ARMS["shared"], ARMS["similar"]) is None
    shared = together(ARMS["shared"], ARMS["head"])
    assert shared.chain == ("head", "calibration")
    assert shared.start_from == "head"
    assert shared.mixes
    assert shared.space["calibration"]["fit"] == "exact"


FIRST = [(arm, kind, point) for arm, kinds in listed().items() for kind, points in kinds.items() for point in points]


@pytest.mark.parametrize(("arm", "kind", "point"), FIRST, ids=[f"{arm} {kind}" for arm, kind, _ in FIRST])
def test_a_first_trial_lies_in_the_space_of_its_arm_and_every_value_is_read(arm, kind, point):
    rooms = chain_space(ARMS[arm].chain)
    space = rooms.overridden(kind, ARMS[arm].space_for(kind))
    searched = {known.targets[0]: name for name, known in rooms.names.items()}
    raw = {searched[full]: value for full, value in point.items()}
    for name, value in raw.items():
        assert name in space, name
        assert holds(name, space[name], value), name
    fixed = {name: found.choices[0] for name, found in space.items() if len(getattr(found, "choices", "--")) == 1}
    idle = rooms.idle({**fixed, **raw})
    assert not idle & set(raw)
    left = space.keys() - fixed.keys() - raw.keys() - idle
    assert {name for name in left if not rooms.names[name].targets[0].startswith("calibration.")} == set()


def test_stages_that_may_not_be_used_are_not_raced():
    assert {arm.name for arm in wanted("causal", ("prompt",), True)} == {
        "calibration",
        "similar",
        "shared",
        "own",
        "prompt",
    }
    assert "shared" not in {arm.name for arm in wanted("causal", (), mix_users=False)}
    assert "prompt" not in {arm.name for arm in wanted("encoder", (), True)}


def test_bounds_are_read():
    assert bounds(["entropy>=0.6", "top1_share <= 0.5"]) == {"entropy": ">= 0.6", "top1_share": "<= 0.5"}
    with pytest.raises(UsageError, match="entropy>=0.6"):
        bounds(["entropy"])
    with pytest.raises(UsageError, match="entropy has a bound already"):
        bounds(["entropy>=0.6", "entropy <= 2"])


def test_data_tell_how_they_are_split(tmp_path):
    for part in ("train", "dev"):
        (tmp_path / f"{part}_questions.json").write_text(json.dumps([]))
    assert data_of(str(tmp_path), tmp_path)["data"]["split"] == "files"
    (tmp_path / "dev_questions.json").unlink()
    assert "split" not in data_of(str(tmp_path), tmp_path)["data"]
    assert data_of("demo", tmp_path) == {"data": {"path": "demo"}}
    with pytest.raises(UsageError, match="no such file"):
        data_of(str(tmp_path / "nothing"), tmp_path)


def test_a_race_is_over_the_table_that_it_began_with(tmp_path):
    rows = "".join(f"u{i % 8},a text {i},{'ab'[i % 2]}\n" for i in range(64))
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.csv").write_text(f"user,text,label\n{rows}")
    one, other = str(tmp_path / "one" / "t.csv"), str(tmp_path / "other" / "t.csv")
    found = data_of(one, tmp_path)
    assert data_of(one, tmp_path) == found
    with pytest.raises(UsageError, match=f"--data {other}: the race auto-t is over {one}, as .* give another --name"):
        data_of(other, tmp_path)
    assert data_of(other, tmp_path, "another")["data"] == {**found["data"], "table": other}


@pytest.mark.parametrize("minutes", [0, -1, float("inf"), float("nan"), 1e12])
def test_minutes_that_cannot_be_meant_are_refused(minutes):
    with pytest.raises(UsageError, match=r"--minutes .* give more than 0 and at most 525,600, a year"):
        Plan("race", {"data": {"path": "demo"}}, minutes)


def test_a_spec_lends_its_data_and_task(tmp_path):
    spec = tmp_path / "s.yaml"
    spec.write_text("name: s\ndata: {path: x}\ntask: LaMP_2\nmodel: {path: demo}\n")
    assert data_of(str(spec), tmp_path) == {"data": {"path": "x"}, "task": "LaMP_2"}
    spec.write_text("name: s\n")
    with pytest.raises(UsageError, match="section data"):
        data_of(str(spec), tmp_path)
    assert name_of("/a/b c.csv") == "auto-b-c"
