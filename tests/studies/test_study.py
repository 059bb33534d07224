"""A study opened again."""

import pytest

from personalization.errors import UsageError
from studies.study import find_study, open_study, stored_spec


def test_a_study_keeps_to_the_commit_of_the_hub_that_it_began_with(tmp_path, spec_of, hub):
    spec = spec_of(model={"path": "owner/name"})
    first = open_study(spec, tmp_path)
    assert first.record["revision"] == hub.commit(1)
    hub.push(2)
    again = open_study(spec, tmp_path)
    assert again.record == {**first.record, "later_versions": []}
    assert again.scorer.files.name == hub.commit(1)
    assert open_study(stored_spec(find_study("small", tmp_path, None)), tmp_path).scorer.files.name == hub.commit(1)
    assert open_study(spec_of(name="new", model={"path": "owner/name"}), tmp_path).record["revision"] == hub.commit(2)
    with pytest.raises(UsageError, match=r"spec.model.revision: None -> main"):
        open_study(spec_of(model={"path": "owner/name", "revision": "main"}), tmp_path)


def test_shares_that_are_not_said_are_those_that_the_study_began_with(tmp_path, spec_of, small_data):
    unsaid = spec_of(data={"path": str(small_data)})
    shares = {"tune": 0.4, "select": 0.2, "confirm": 0.4}
    first = open_study(spec_of(data={"path": str(small_data), "shares": shares}), tmp_path)
    again = open_study(unsaid, tmp_path)
    assert again.record["data"] == first.record["data"]
    assert again.spec.shares == shares != unsaid.shares
    with pytest.raises(UsageError, match="spec.data.shares.tune: 0.4 -> "):
        open_study(spec_of(data={"path": str(small_data), "shares": unsaid.shares}), tmp_path)


def test_a_model_on_this_machine_is_at_no_commit(tmp_path, spec_of):
    assert open_study(spec_of(), tmp_path).record["revision"] is None
