"""The page in Chromium, if there is one: no error, no request, no planted script, nothing wider than the screen."""

from __future__ import annotations

import pytest
from chromium import PROGRAM, browser

import robust_jax as rj

pytestmark = pytest.mark.skipif(not PROGRAM, reason="there is no Chromium")


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    return rj.report(folders).save(tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("width, dark", [(1280, False), (390, True)])
def test_the_page_is_shown_as_it_should_be(page, shown, width, dark):
    shown.open(page, width, dark)
    told = [event for event in shown.events if event["method"] in
            ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")]  # fmt: skip
    assert told == []
    requests = [e["params"]["request"]["url"] for e in shown.events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    assert shown.value("document.title") == "Robustness of one <i> and two"
    assert shown.value("document.documentElement.scrollWidth") <= width
    assert shown.value("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    back = shown.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, back[4:-1].split(","))) < 200) == dark


def test_the_page_can_be_printed(page, shown):
    shown.open(page, 1280)
    pdf = shown.pdf()
    assert pdf.startswith(b"%PDF") and 1 < pdf.count(b"/Type /Page\n") + pdf.count(b"/Type/Page") < 20
