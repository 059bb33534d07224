import numpy as np
import pytest

from personalization.backbones.cached import CachedScorer
from personalization.scoring.store import key_of, stored_table

TABLE = np.arange(6, dtype=np.float32).reshape(2, 3)


def fail():
    raise AssertionError("computed although it was stored")


def test_a_table_is_computed_once(tmp_path):
    assert stored_table(tmp_path, "k", lambda: (TABLE, 2))[1] == 2
    table, truncated = stored_table(tmp_path, "k", fail)
    assert (table == TABLE).all()
    assert truncated == 2


@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_flipped_byte_is_named_and_the_table_computed_anew(tmp_path, place):
    stored_table(tmp_path, "k", lambda: (TABLE, 0))
    path = tmp_path / "k.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="k.safetensors is damaged"):
        table, _ = stored_table(tmp_path, "k", lambda: (TABLE + 1, 0))
    assert (table == TABLE + 1).all()
    assert (stored_table(tmp_path, "k", fail)[0] == TABLE + 1).all()


def test_a_truncated_or_foreign_file_is_computed_anew(tmp_path):
    for content in (b"", b"junk", b"\x08" + b"\0" * 7 + b"{}      "):
        (tmp_path / "k.safetensors").write_bytes(content)
        with pytest.warns(UserWarning, match="damaged"):
            stored_table(tmp_path, "k", lambda: (TABLE, 0))


def test_key_sees_every_part():
    parts = {"model": "a", "prompts": ["p"], "dtype": "float32"}
    keys = {key_of(parts), *(key_of({**parts, name: "other"}) for name in parts)}
    assert len(keys) == 4


def test_a_second_scorer_reads_what_the_first_scored_and_loads_no_model(tmp_path, tiny_model):
    first = CachedScorer(str(tiny_model), tmp_path)
    scores = first.label_logprobs(["a film\nanswer:"], [" comedy\n", " action\n"])
    second = CachedScorer(str(tiny_model), tmp_path)
    assert (second.label_logprobs(["a film\nanswer:"], [" comedy\n", " action\n"]) == scores).all()
    assert "backbone" not in vars(second)
    assert len(list(tmp_path.iterdir())) == 1
    long = "a film " * 400 + "\nanswer:"
    first.label_logprobs([long], [" comedy\n"])
    second.label_logprobs([long], [" comedy\n"])
    assert (first.truncated, second.truncated) == (1, 1)
