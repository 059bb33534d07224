"""YAML as users write it."""

from datetime import date

import pytest
import yaml

from personalization.errors import UsageError
from personalization.mappings import Kept, Saying, Told, read_mapping


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: not YAML: the key 'a' stands already in line 1"),
        ("top:\n  - {x: 1, 'x': 2}\n", "line 2: not YAML: the key 'x' stands already in line 2"),
        ("m: {1: a, 1.0: b}", "line 1: not YAML: the key '1.0' stands already in line 1"),
        ("day: 2020-13-45", "cannot be read: month must be in 1..12"),
        ("deep: " + "[" * 5000, "cannot be read: maximum recursion depth"),
    ],
)
@pytest.mark.parametrize("loader", [Kept, Told])
def test_what_cannot_be_read_is_named_by_its_line(tmp_path, text, said, loader):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_mapping(path, "a spec", loader)
    assert str(caught.value).startswith(f"{path}: {said}")


def test_merged_keys_may_be_said_again():
    text = "base: &b {x: 1, y: 2}\nmore: &m {<<: *b, x: 3}\nlast: {<<: [*m, *b], y: 4}\nday: 2020-01-02\n"
    more = {"x": 3, "y": 2}
    found = {"base": {"x": 1, "y": 2}, "more": more, "last": {"x": 3, "y": 4}, "day": date(2020, 1, 2)}
    assert yaml.load(text, Told) == yaml.load(text, Kept) == found


@pytest.mark.parametrize("text", ["1e-4", "1E5", "-2e+3", ".5e1", "2.e3", "+1e4", "1.5e-3"])
def test_a_number_with_an_exponent_is_one_and_as_a_text_it_is_quoted(text):
    assert yaml.load(text, Told) == float(text)
    for written, loader in ((yaml.dump(text, Dumper=Saying), Told), (yaml.safe_dump(text), Kept)):
        assert yaml.load(written, loader) == text


@pytest.mark.parametrize("text", ["1e", "e5", "1e5x", "0x1e5g", "1_0e5", "a1e5"])
def test_other_texts_stay_texts(text):
    assert yaml.load(text, Told) == text
