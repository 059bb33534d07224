"""Where a model lies, and which state of it."""

import pytest

from personalization.backbones.cached import CachedScorer
from personalization.backbones.location import locate_model
from personalization.errors import DataError, UnavailableError, UsageError


def test_a_hub_model_is_read_at_its_revision(hub):
    hub.branches["v1"] = hub.commit(1)
    hub.push(2)
    assert locate_model("owner/name").name == hub.commit(2)
    assert locate_model("owner/name", "v1").name == locate_model("owner/name", hub.commit(1)).name == hub.commit(1)
    with pytest.raises(UnavailableError, match=r"'owner/name' at revision 'v9' cannot be fetched: no owner/name$"):
        locate_model("owner/name", "v9")


def test_one_scorer_reads_one_commit(hub, tmp_path):
    scorer = CachedScorer("owner/name", tmp_path)
    assert scorer.commit == hub.commit(1)
    before = scorer.fingerprint
    hub.push(2)
    assert str(scorer.backbone.model.config.name_or_path).endswith(hub.commit(1))
    assert CachedScorer("owner/name", tmp_path).fingerprint != before
    assert CachedScorer("owner/name", tmp_path, revision=hub.commit(1)).fingerprint == before


def test_a_model_on_this_machine_has_no_revision(tiny_model, tmp_path):
    assert CachedScorer(str(tiny_model), tmp_path).commit is None
    for name in ("demo", str(tiny_model)):
        with pytest.raises(UsageError, match="no hub model, and has no revision 'main'; remove model.revision"):
            locate_model(name, "main")


def test_a_mistyped_folder_is_not_asked_for_at_the_hub(hub, tmp_path, monkeypatch):
    (tmp_path / "owner" / "nema").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="'owner/name' is no folder, but owner is one and holds nema; .* e.g. main"):
        locate_model("owner/name")
    assert locate_model("owner/name", "main").name == hub.commit(1)
    with pytest.raises(DataError, match="'a/b/c' is no folder; give a folder, a hub id owner/name, or one of demo"):
        locate_model("a/b/c")
