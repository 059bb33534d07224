import json

import pytest

from personalization.errors import DataError
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


def test_every_file_is_written_and_figures_are_pictures(tmp_path, evaluations):
    write_report(tmp_path, *evaluations, note="Measured on the tune users.", extra={"history.png": b"x"})
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"significance.json", "impact.json", "confusion_matrix.png", "reliability.png", "history.png"}
    assert (tmp_path / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    assert "tune users" in (tmp_path / "summary.md").read_text()


def test_damaged_predictions_name_the_record(tmp_path):
    (tmp_path / "predictions.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(DataError, match="record 1"):
        read_summary(tmp_path)
