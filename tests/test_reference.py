import importlib.util
from pathlib import Path

MAKER = Path(__file__).parents[1] / "docs" / "make_reference.py"


def test_the_reference_is_that_of_the_code():
    spec = importlib.util.spec_from_file_location("make_reference", MAKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page()
