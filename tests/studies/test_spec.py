import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalization.data.splits import DEFAULT_SHARES, LEARNING_SHARES
from personalization.errors import ChamtuneError, UsageError
from studies.constraints import parse_constraint
from studies.spec import RESUMABLE, StudySpec, load_spec, parse_spec, presets

MINIMAL = {"name": "s", "data": {"path": "demo"}, "model": {"path": "demo"}}


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid_and_named_after_their_file(name):
    assert load_spec(name, {"data": {"path": "lamp"}} if name.startswith("news") else {}).name == name


def test_the_presets_are_there():
    demos = [
        "demo",
        "demo-adapter",
        "demo-groups",
        "demo-null",
        "demo-null-adapter",
        "demo-null-steering",
        "demo-pareto",
        "demo-steering",
    ]
    assert presets() == [*demos, "news", "news-head", "retrieval-demo", "sweep-global", "sweep-steering", "sweep-user"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimise": {}}, "optimise: unknown key; did you mean 'optimize'?"),
        ({"model": {"path": "demo", "dype": "x"}}, "model.dype: unknown key; did you mean 'dtype'?"),
        ({"optimize": {"acuracy": "maximize"}}, "no metric 'acuracy'; did you mean 'accuracy'?"),
        ({"constraints": {"entropy": ">= 1e400"}}, "'>= 1e400' is no bound"),
        ({"constraints": {"entropy": ">= 1.2.3"}}, "'>= 1.2.3' is no bound"),
        ({"tracking": ""}, "tracking: String should have at least 1 character"),
        ({"model": {"path": ""}}, "model.path: String should have at least 1 character"),
        ({"constraints": {"entropy": "> 0.6"}}, '"> 0.6" is no bound'.replace('"> 0.6"', "'> 0.6'")),
        ({"sampler": "tpee"}, "sampler: Input should be 'tpe', 'nsga2'"),
        ({"trials": 0}, "trials: Input should be greater than or equal to 1, but got 0"),
        ({"data": {}}, "data: give one of path (on the command line: --data PATH), table and files"),
        ({"data": {"path": "x", "shares": {"tune": 0.5, "select": 0.2, "confirm": 0.2}}}, "add up to 1"),
        ({"pruner": "median", "optimize": {"accuracy": "maximize", "nll": "minimize"}}, "cannot prune"),
        ({"pruner": "wilcoxon", "optimize": {"entropy": "maximize"}}, "entropy is no such mean"),
        ({"optimize": {"nll": "maximize"}}, "nll improves when it is minimized, so maximize is no goal"),
        ({"optimize": {"accuracy": "minimize"}}, "accuracy improves when it is maximized, so minimize is no goal"),
        ({"constraints": {"helped": ">= 30"}}, "helped is a share, from 0 to 1"),
        ({"promotion": {"margins": {"nll": 0.1}}}, "'nll' is no further goal of this study"),
        ({"name": "../escape"}, "name: no study can be called '../escape'; allowed are 1 to 100 letters"),
        ({"name": "chamtune.looks"}, "name: no study can be called 'chamtune.looks', where the evidence"),
        ({"model": {}}, "model.path: Field required"),
        ({"name": [["x"] * 9] * 9}, "[['x', 'x', 'x', 'x', 'x', 'x', ...], ["),
        ({"trials": True}, "trials: cannot be true"),
        ({"promotion": {"alpha": False}}, "promotion.alpha: cannot be false"),
        ({"space": {"beta": None}}, "space: beta: a value, a list of values or {low, high} is wanted, but got None"),
        ({"space": {"beta": [1, {}]}}, "space: beta: a value, a list of values or {low, high} is wanted, but got {}"),
        ({"space": {"beta": ""}}, "space: beta: a value, a list of values or {low, high} is wanted, but got ''"),
    ],
)
def test_a_wrong_spec_is_one_line(changes, message):
    with pytest.raises(UsageError) as caught:
        parse_spec({**MINIMAL, **changes}, "my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "line 1: not YAML"), ("- a", "this is a list"), ("!!python/object/apply:os.system [ls]", "not YAML")],
)
def test_a_file_that_is_no_spec_is_one_line(tmp_path, text, message):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_spec(str(path))


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'demo-null'"):
        load_spec("demo-nul")


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*StudySpec.model_fields, "junk"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda c: st.lists(c, max_size=2) | st.dictionaries(st.text(max_size=5), c, max_size=2),
            max_leaves=4,
        ),
    )
)
def test_any_mapping_is_a_spec_or_one_error(raw):
    try:
        parse_spec(raw, "x")
    except ChamtuneError as error:
        assert "\n" not in str(error)


def test_every_key_but_the_budget_is_part_of_the_identity():
    objective = parse_spec(MINIMAL, "x").identity()
    chain = parse_spec(
        {**MINIMAL, "chain": ["prompt", "calibration"], "start_from": "other", "task": "LaMP_2"}, "x"
    ).identity()
    assert set(StudySpec.model_fields) - {*objective, *chain} == set(RESUMABLE)
    assert objective["objective"] == "calibration"
    assert not {"chain", "start_from", "task"} & set(objective)


@pytest.mark.parametrize(
    ("how", "shares"),
    [
        ({}, DEFAULT_SHARES),
        ({"chain": ["prompt", "steering", "calibration"]}, DEFAULT_SHARES),
        ({"chain": ["prompt", "head"]}, LEARNING_SHARES),
        ({"chain": ["adapter", "calibration"]}, LEARNING_SHARES),
        ({"objective": "retrieval"}, DEFAULT_SHARES),
        ({"objective": "adapter"}, LEARNING_SHARES),
    ],
)
def test_what_learns_from_tune_users_has_more_of_them_unless_shares_are_given(how, shares):
    spec = parse_spec({**MINIMAL, **how}, "x")
    assert spec.shares == spec.identity()["data"]["shares"] == shares
    own = {"tune": 0.2, "select": 0.2, "confirm": 0.6}
    assert parse_spec({**MINIMAL, **how, "data": {"path": "demo", "shares": own}}, "x").shares == own


def test_schema_is_json_with_descriptions():
    schema = json.loads(json.dumps(StudySpec.model_json_schema()))
    assert schema["additionalProperties"] is False
    assert "value fixes" in schema["properties"]["space"]["description"]


def test_constraint_violations_compare():
    low, high = parse_constraint("entropy", ">= 0.6"), parse_constraint("top1_share", "<=0.55")
    assert low.violation(0.3) == pytest.approx(0.5)
    assert high.violation(0.55) == 0
    assert high.violation(0.5) < 0 < high.violation(0.6)
