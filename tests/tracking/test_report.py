import json
import struct

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from sklearn import metrics as sk

from personalization.errors import DataError
from personalization.evaluation import Evaluation
from tracking.figures import _family_with, confusion_matrix, pareto
from tracking.report import read_predictions, read_summary, write_report


def test_summary_is_the_same_from_all_three_sources(tmp_path, evaluations):
    write_report(tmp_path, *evaluations, note="Measured on test users.")
    sources = []
    tables = []
    for name in ("summary.csv", "summary.md", "predictions.jsonl"):
        found = read_summary(tmp_path)
        sources.append(found.source)
        tables.append(found.rows)
        (tmp_path / name).unlink()
    assert sources == ["summary.csv", "summary.md", "predictions.jsonl"]
    for table in tables[1:]:
        for first, other in zip(tables[0], table, strict=True):
            assert first[0] == other[0]
            assert first[1:] == pytest.approx(other[1:], abs=2e-5)
    with pytest.raises(DataError, match="none of summary.csv"):
        read_summary(tmp_path)


def test_predictions_round_trip(tmp_path, evaluations):
    write_report(tmp_path, *evaluations, note="n")
    baseline, candidate = read_predictions(tmp_path / "predictions.jsonl")
    assert (candidate.predicted == evaluations[1].predicted).all()
    assert baseline.metrics == pytest.approx(evaluations[0].metrics, abs=1e-5)
    first = json.loads((tmp_path / "predictions.jsonl").read_text().splitlines()[0])
    assert first["changed"] == (first["prediction"] != first["baseline_prediction"])


@pytest.mark.draws
def test_every_file_is_written_and_figures_are_pictures(tmp_path, evaluations):
    users = evaluations[0].users[0]
    groups = {
        "groups": {user: number % 3 for number, user in enumerate(users)},
        "histories": {user: "none" if number < 2 else "some" for number, user in enumerate(users)},
    }
    write_report(tmp_path, *evaluations, note="Measured on the tune users.", extra={"history.png": b"x"}, groups=groups)
    found = json.loads((tmp_path / "breakdown.json").read_text())
    candidate = evaluations[1]
    assert set(found["groups"]) == {"0", "1", "2"}
    assert sum(row["n"] for row in found["groups"].values()) == len(candidate.gold)
    new = [place for place, user in enumerate(candidate.user_ids) if user in users[:2]]
    assert found["histories"]["none"] == {
        "n": len(new),
        "baseline_accuracy": evaluations[0].correct[new].mean(),
        "accuracy": candidate.correct[new].mean(),
    }
    recalls = sk.recall_score(candidate.gold, candidate.predicted, average=None, zero_division=0)
    f1 = sk.f1_score(candidate.gold, candidate.predicted, average=None, zero_division=0)
    for column, row in enumerate(found["labels"].values()):
        assert row["recall"] == pytest.approx(recalls[column])
        assert row["f1"] == pytest.approx(f1[column])
    right = sum(row["accuracy"] * row["n"] for row in found["users"].values())
    assert right == pytest.approx(candidate.correct.sum())
    for title in ("group", "history"):
        assert f"| {title} | n | baseline accuracy | accuracy |" in (tmp_path / "breakdown.md").read_text()
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"significance.json", "impact.json", "confusion_matrix.png", "reliability.png", "history.png"}
    assert (tmp_path / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    assert "tune users" in (tmp_path / "summary.md").read_text()


def test_damaged_predictions_name_the_record(tmp_path):
    (tmp_path / "predictions.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(DataError, match="record 1"):
        read_summary(tmp_path)


@pytest.mark.draws
@pytest.mark.parametrize("k", [60, 1000])
def test_a_confusion_matrix_of_many_labels_stays_small(k):
    rng = np.random.default_rng(0)
    log_probs = np.log(rng.dirichlet(np.ones(k), 50))
    ids = tuple(map(str, range(50)))
    many = Evaluation(tuple(f"label {i}" for i in range(k)), ids, ids, rng.integers(0, k, 50), log_probs, [""] * 50)
    width, height = struct.unpack(">II", confusion_matrix(many)[16:24])
    assert max(width, height) < (1600 if k > 60 else 4000)


@pytest.fixture
def in_japanese():
    """An evaluation whose labels matplotlib's own font has no letters for."""
    ids = tuple(map(str, range(4)))
    log_probs = np.log([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]])
    return Evaluation(("請求", "配送"), ids, ids, np.array([0, 1, 0, 1]), log_probs, [""] * 4)


@pytest.mark.draws
def test_letters_that_no_font_has_are_said_once_and_the_figure_is_made(in_japanese, monkeypatch, caplog):
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    _family_with.cache_clear()
    for _ in range(2):
        assert confusion_matrix(in_japanese).startswith(b"\x89PNG")
    (told,) = caplog.messages
    assert told.startswith("no font of this machine has 求請送配;")
    _family_with.cache_clear()


@pytest.mark.draws
def test_letters_come_from_a_font_that_has_them(in_japanese, monkeypatch, tmp_path):
    """A font made of matplotlib's own, whose letters A to D stand where these four do."""
    font = TTFont(font_manager.findfont("DejaVu Sans"))
    letters = dict(zip("求請送配", "ABCD", strict=True))
    for table in (table for table in font["cmap"].tables if table.format in (4, 12)):
        table.cmap.update({ord(new): table.cmap[ord(old)] for new, old in letters.items()})
    for record in font["name"].names:
        record.string = record.toUnicode().replace("DejaVu Sans", "Borrowed Letters")
    font.save(tmp_path / "borrowed.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    paths = [str(tmp_path / "broken.ttf"), str(tmp_path / "borrowed.ttf")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist])
    figures = []
    for found in ([], paths):
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda found=found: found)
        _family_with.cache_clear()
        figures.append(confusion_matrix(in_japanese))
    assert _family_with("求請送配") == "Borrowed Letters"
    assert figures[0] != figures[1]
    _family_with.cache_clear()


@pytest.mark.parametrize(("goals", "panels"), [(2, 1), (3, 3), (4, 6), (5, 10)])
def test_each_two_goals_have_a_panel_of_all_trials(monkeypatch, goals, panels):
    monkeypatch.setattr("tracking.figures._png", lambda axes: axes.figure)
    names, points = [f"goal {i}" for i in range(goals)], np.arange(7.0 * goals).reshape(7, goals)
    found = pareto(names, points, [True] * 6 + [False], [True] + [False] * 6)
    drawn = {(axes.get_xlabel(), axes.get_ylabel()) for axes in found.axes}
    assert len(drawn) == len(found.axes) == panels
    assert {len(group.get_offsets()) for axes in found.axes for group in axes.collections} == {1, 5}
