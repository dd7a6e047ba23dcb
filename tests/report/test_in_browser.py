"""The report as people see it: in Chromium, without network, light and dark, on a phone."""

import pytest
from browser import PHONE, browser, needs_chromium
from report.conftest import SAMPLES, as_results

from fedit_app.report import write_report

pytestmark = [pytest.mark.integration, needs_chromium]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.mark.parametrize("name", ["completed", "full", "hostile", "unstarted"])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [PHONE, 1280])
def test_a_report_is_readable_anywhere_and_asks_for_nothing(page, tmp_path, name, dark, width):
    file = tmp_path / "report.html"
    write_report(as_results(SAMPLES[name]()), file)
    page.said.clear()
    page.asked.clear()
    page.open(file.as_uri(), width, dark)
    assert page.too_wide <= 0
    assert page.contrast("h1") > 7 and page.contrast(".note, .lead") > 4.5
    assert page.said == [] and page.asked == [file.as_uri()]


def test_a_vector_file_for_a_paper_is_drawn_by_itself(page, tmp_path):
    write_report(as_results(SAMPLES["completed"]()), tmp_path / "report.html")
    page.said.clear()
    page.open((tmp_path / "paper" / "score.svg").as_uri())
    assert page.value("document.documentElement.getBBox().width") > 300
    assert "Slot (0 = before any edit)" in page.value("document.documentElement.textContent")
    assert page.said == []
