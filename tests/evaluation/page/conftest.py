"""Two workdirs that tests read, and never change."""

from __future__ import annotations

import json

import pytest
from made_up import EVIL, evaluate, trained


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Two workdirs, the first with two evaluations; never changed."""
    root = tmp_path_factory.mktemp("runs")
    one, two = trained(root / "one <i>"), trained(root / "two")
    warnings = [f"more_steps: {EVIL} breaks 7 of 64 images more: it has not converged. Use more steps"]
    evaluate(one, "test", 0, warnings)
    evaluate(one, "test-seed_1", 1)
    evaluate(two, "test", 2)
    return [one, two]


@pytest.fixture(scope="session")
def reports(folders):
    """The contents of evaluation.json, in the order of the page."""
    return [json.loads(path.read_text()) for folder in folders for path in sorted(folder.rglob("evaluation.json"))]
