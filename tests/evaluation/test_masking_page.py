"""docs/masking.md says of every planted and every honest model what the probe said."""

import json

import pytest

from benchmarks.masking import honest, page, planted
from benchmarks.masking.probe import names

KINDS = planted.KINDS | planted.LATER


@pytest.fixture(scope="module")
def found():
    return json.loads((page.DOCS / "results" / "masking.json").read_text())


def test_every_planted_kind_is_told_by_its_sign(found):
    assert found["planted"].keys() == KINDS.keys()
    for name, kind in KINDS.items():
        told = names(found["planted"][name]["warnings"])
        assert kind.sign in told if kind.sign else not told, name


def test_no_honest_model_is_accused(found):
    assert found["honest"].keys() == honest.MODELS.keys()
    assert [name for name, case in found["honest"].items() if case["warnings"]] == []


def test_the_tables_of_the_page_are_those_of_the_results():
    text = (page.DOCS / "masking.md").read_text()
    assert page.filled(text) == text
