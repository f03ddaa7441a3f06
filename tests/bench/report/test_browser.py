"""report.html in a real browser: nothing on the console, nothing from the network, and it fits a phone."""

import pytest

from rdfa.bench import report
from tests.bench.fakes import MACHINE
from tests.bench.report import browser
from tests.bench.report.test_report import ROWS

pytestmark = pytest.mark.skipif(browser.PROGRAM is None, reason="Chromium is not installed: apt-get install chromium")


def test_the_report_is_silent_asks_for_nothing_and_fits_a_phone(tmp_path):
    report.write(tmp_path / "report", MACHINE, ROWS)
    path = tmp_path / "report" / "report.html"
    with browser.Page(path, tmp_path / "profile") as page:
        width = page.evaluate("document.documentElement.scrollWidth")
        images = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
        picture = page.screenshot()
    assert page.console == []
    asked = [url for url in page.requests if not url.startswith("data:")]
    assert asked == [path.as_uri()]
    assert width <= browser.PHONE["width"]  # tables scroll by themselves
    assert images and all(images)
    (tmp_path / "screenshot.png").write_bytes(picture)
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


def test_the_test_sees_what_it_looks_for(tmp_path):
    page_with_faults = tmp_path / "page.html"
    page_with_faults.write_text(
        "<title>x</title><img src='http://127.0.0.1:9/no.png'><script>console.error('oh'); nothing.there</script>"
    )
    with browser.Page(page_with_faults, tmp_path / "profile") as page:
        pass
    assert any("oh" in line for line in page.console)
    assert any("nothing is not defined" in line for line in page.console)
    assert "http://127.0.0.1:9/no.png" in page.requests
