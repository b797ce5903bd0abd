"""The status page in a browser, over a daemon that is in use.

One browser for all. A console that says anything, a policy that is violated, and an exception fail every test.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import axe_core_python
import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from refgenfs.web.admission import SESSION
from tests.faults.world import TIMEOUT, Site
from tests.fuse.test_metrics import free_port
from tests.support.browser import chromium, prefer, resize
from tests.support.faulty_origin import Fault
from tests.support.mounted import Mounted
from tests.support.shelf import Shelf, digest_of, make_shelf

pytestmark = [pytest.mark.needs_fuse, pytest.mark.slow]

AXE = Path(axe_core_python.__file__).with_name("axe.min.js").read_text()
RATE = 1_500_000  # bytes a second and connection, so that a pull can be watched
VIEWS = ("#overview", "#catalog", "#catalog?q=hg38", "#cache", "#asset?key=hg38/bwa_index")
HOSTILE = "<img src=x onerror=alert(1)>'\"&amp;"


class Browser:
    """What a test does with the page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.at = ""

    def open(self, at: str, path: str = "") -> None:
        """Load the page anew."""
        self.at = at
        self.driver.get("about:blank")
        self.driver.get(at + path)
        self.until(lambda: self.text("#link-text") == "live" or self.has("#token"), "the page is live")

    def go(self, fragment: str) -> None:
        """Follow a link within the page."""
        self.run("location.hash = arguments[0]", fragment)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        """Return what an element shows."""
        found = self.run("return document.querySelector(arguments[0])?.innerText", selector)
        return str(found or "").strip()

    def texts(self, selector: str) -> list[str]:
        """Return what all such elements show."""
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText.trim())"
        return list(self.run(script, selector))

    def has(self, selector: str) -> bool:
        """Say whether there is such an element."""
        return bool(self.run("return Boolean(document.querySelector(arguments[0]))", selector))

    def until(self, condition: Callable[[], object], what: str, seconds: float = 45) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + seconds
        while not self._holds(condition):
            assert time.monotonic() < deadline, f"{what}\n{self.text('body')[:3000]}\n{self.said()}"
            time.sleep(0.05)

    def _holds(self, condition: Callable[[], object]) -> bool:
        try:
            return bool(condition())
        except WebDriverException:  # a page is being left for another
            return False

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def focused(self) -> str:
        """Return the text, or the name, of what has the focus."""
        script = "return e.getAttribute('aria-label') || e.innerText || e.id || e.tagName"
        return str(self.run(f"const e = document.activeElement; {script}")).strip()

    def said(self) -> list[str]:
        """Return what the console said since it was last asked, but for requests that failed."""
        return [row["message"] for row in self.driver.get_log("browser") if row["source"] != "network"]


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def browser(driver: Any) -> Iterator[Browser]:
    resize(driver, 1280, 900)
    prefer(driver, "light")
    driver.delete_all_cookies()
    driver.get_log("browser")
    yield Browser(driver)
    said = Browser(driver).said()
    driver.get("about:blank")
    assert not said


def port_of(site: Site) -> str:
    return str(site.at)  # type: ignore[attr-defined]


@contextmanager
def shelf_with_page(folder: Path, *, more: str = "", **options: Any) -> Iterator[tuple[Shelf, Site]]:
    with make_shelf(folder, **options) as (shelf, site):
        port = free_port()
        site.at = f"http://127.0.0.1:{port}/"  # type: ignore[attr-defined]
        site.setup.extra = f'[web]\nlisten = "127.0.0.1:{port}"\n{more}'
        yield shelf, site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A mount with three genomes from a slow server, of which a little is resident; one of them is hostile."""
    with shelf_with_page(tmp_path_factory.mktemp("page"), rate=RATE) as (shelf, made):
        shelf.stock("hg38", 0.5)
        shelf.stock("mm39", 0.1)
        shelf.stock("dm6", 0.01)
        _make_hostile(shelf.genomes[digest_of("dm6")])
        shelf.publish()
        made.setup.limits = {"retry_for": "20s", "read_deadline": "20s", "lookup_deadline": "10s"}
        made.setup.sources = made.setup.sources.replace(TIMEOUT, "4s")
        with made.mount() as mounted:
            mounted.shell("cat $M/mm39/fasta/* > /dev/null")
            mounted.refgenfs("pin", "mm39/fasta")
            yield made


def _make_hostile(genome: dict[str, Any]) -> None:
    genome["genome_description"] = HOSTILE
    for asset in genome["assets"].values():
        asset["asset_description"] = f"{HOSTILE} <script>alert(2)</script>"


def pulling(mounted: Mounted, key: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "refgenfs", "pull", key]
    environ = {**mounted.environ, "REFGENFS_CONFIG": str(mounted.config)}
    return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# --- what it shows --------------------------------------------------------------------------------------


def test_it_loads_and_says_how_the_daemon_is(browser: Browser, site: Site) -> None:
    browser.open(port_of(site))
    shown = browser.text("body")
    assert str(site.m.path) in shown
    assert "refgenfs 0.1.0, up" in shown
    assert "Nothing waits" in browser.text(".findings")
    assert browser.texts("table th.source")[0].startswith("refgenomes")
    assert "answers" in shown
    status = site.m.status()
    assert browser.text("dl.figures dd").endswith("MB" if status["served"] >= 1e6 else "kB")
    assert browser.run("return document.querySelectorAll('.chart path').length") in (0, 3)


def test_numbers_move_and_transfers_are_seen_while_a_pull_runs(browser: Browser, site: Site) -> None:
    browser.open(port_of(site))
    fetched = browser.texts("dl.figures dd")
    pull = pulling(site.m, "hg38/bwa_index")
    try:
        browser.until(lambda: "hg38/bwa_index" in browser.text("section[aria-labelledby=h-on-its-way]"), "a transfer")
        row = "section[aria-labelledby=h-on-its-way] tbody tr"
        value = f"return Number(document.querySelector('{row} [role=progressbar]')?.ariaValueNow ?? -1)"
        browser.until(lambda: 0 < browser.run(value) < 100, "progress")
        first = browser.run(value)
        browser.until(lambda: browser.run(value) > first, "more of it")
        browser.until(lambda: "MB/s" in browser.text(row) or "kB/s" in browser.text(row), "a rate")
        assert "hg38.fa" in browser.text(row), "files go by the names that people know"
        browser.until(lambda: browser.texts("dl.figures dd") != fetched, "figures move")
        assert browser.run("return document.querySelectorAll('.chart path').length") == 3
    finally:
        assert pull.wait(60) == 0
    browser.until(lambda: "Nothing is on its way" in browser.text("section[aria-labelledby=h-on-its-way]"), "the end")


def test_it_tells_what_a_slow_read_waits_for(browser: Browser, site: Site) -> None:
    browser.open(port_of(site))
    site.m.shell("stat $M/hg38/fasta/*")  # names and sizes are known then
    site.origin.faults = [Fault("silent", "/files/*/fasta__*.fa")]
    reading = subprocess.Popen(
        ["timeout", "-s", "KILL", "60", "cat", f"{site.m.path}/hg38/fasta/hg38.fa"], stdout=subprocess.DEVNULL
    )
    try:
        waits = "section[aria-labelledby=h-who-waits-and-for-what] tbody"
        browser.until(lambda: "cat" in browser.text(waits), "a wait")
        assert "/hg38/fasta/hg38.fa" in browser.text(waits)
        assert "from refgenomes" in browser.text(waits)
        browser.until(lambda: "for bytes from refgenomes" in browser.text(".findings"), "why")
    finally:
        assert reading.wait(70) == 0
    browser.until(lambda: "root" in browser.text("section[aria-labelledby=h-users]"), "whose reads they are")


def test_the_history_outlives_a_reload(browser: Browser, site: Site) -> None:
    browser.open(port_of(site))
    browser.run("document.querySelector('.chart ~ details').open = true")
    browser.until(lambda: browser.texts(".chart ~ details tbody tr"), "rows")
    samples = len(browser.run("return fetch('api/history').then((one) => one.json())")["fine"])
    assert samples > 2
    browser.open(port_of(site), "#overview?range=day")
    assert browser.run("return document.querySelector('[data-range=day]').getAttribute('aria-pressed')") == "true"
    assert len(browser.run("return fetch('api/history').then((one) => one.json())")["fine"]) >= samples


def test_search_deep_links_and_the_back_button(browser: Browser, site: Site) -> None:
    browser.open(port_of(site), "#catalog?q=mm39%20bow")
    rows = "tbody th"
    browser.until(lambda: browser.texts(rows) == ["mm39/bowtie2_index"], "the search of the address")
    box = browser.driver.find_element(By.ID, "search")
    assert box.get_attribute("value") == "mm39 bow"
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys("FASTA sequences")
    browser.until(lambda: browser.texts(rows) == ["hg38/fasta", "mm39/fasta"], "all words, in any case")
    assert browser.run("return location.hash") == "#catalog?q=FASTA+sequences"
    assert "2 assets of 15" in browser.text("main")
    browser.driver.find_element(By.LINK_TEXT, "hg38/fasta").click()
    browser.until(lambda: "samtools faidx" in browser.text("main"), "the line to copy")
    assert f"samtools faidx {site.m.path}/hg38/fasta/hg38.fa chr1:1-10000" in browser.text("main")
    assert browser.run("return document.title") == "hg38/fasta – refgenfs"
    browser.until(lambda: "hg38.fa.fai" in browser.text("tbody"), "files")
    assert "3.00 MB" in browser.text("tbody")
    browser.driver.back()
    browser.until(lambda: browser.texts(rows) == ["hg38/fasta", "mm39/fasta"], "back to the search")
    browser.go("#catalog?q=no%20such%20thing")
    browser.until(lambda: "Nothing matches" in browser.text("main"), "an empty answer that says what to do")
    browser.go("#asset?key=hg38/nothing")
    browser.until(lambda: "has no asset" in browser.text("main"), "an asset that there is not")


def test_the_cache_by_asset(browser: Browser, site: Site) -> None:
    browser.open(port_of(site), "#cache")
    browser.until(lambda: "mm39/fasta" in browser.text("tbody"), "rows")
    pinned = browser.run("return [...document.querySelectorAll('.tile.pinned')].map((one) => one.title)")
    assert len(pinned) == 1
    assert pinned[0].startswith("mm39/fasta: ")
    assert ", all pinned" in pinned[0]
    areas = browser.run(
        "return [...document.querySelectorAll('.tile')].map((one) => one.offsetWidth * one.offsetHeight)"
    )
    assert sum(areas) == pytest.approx(
        browser.run("const t = document.querySelector('.tiles'); return t.offsetWidth * t.offsetHeight"), rel=0.1
    )
    held = {row["key"]: row["resident"] for row in site.m.call("cache_info")["contents"]}
    assert "mm39/fasta:default" in held
    browser.driver.find_element(By.XPATH, "//th/button[text()='Asset']").click()
    assert browser.run("return location.hash") == "#cache?sort=key"
    names = browser.texts("tbody th")
    assert names == sorted(names)


# --- for everybody --------------------------------------------------------------------------------------


def test_the_keyboard_is_enough(browser: Browser, site: Site) -> None:
    browser.open(port_of(site))
    seen = []
    for _ in range(7):
        browser.press(Keys.TAB)
        seen.append(browser.focused())
    assert seen[:5] == ["Skip to the content", "Overview", "Catalog", "Cache", "Theme: auto"]
    browser.press("/")
    browser.until(lambda: browser.focused() == "search", "the search")
    browser.press("hg38 bwa")
    browser.until(lambda: browser.texts("tbody th") == ["hg38/bwa_index"], "one row")
    browser.press(Keys.ARROW_DOWN)
    assert browser.focused() == "hg38/bwa_index"
    outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "what has the focus is seen to have it"
    browser.press(Keys.ENTER)
    browser.until(lambda: "bwa mem" in browser.text("main"), "the asset")
    assert browser.run("return document.activeElement.id") == "main", "reading goes on in what was opened"
    browser.press(Keys.TAB)
    assert browser.focused() == "Catalog"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_barrier_in_any_view(browser: Browser, site: Site, scheme: str) -> None:
    prefer(browser.driver, scheme)
    browser.open(port_of(site))
    browser.run(AXE)
    for view in VIEWS:
        browser.go(view)
        time.sleep(0.6)
        found = browser.driver.execute_async_script(
            "const done = arguments[0]; axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', "
            "'best-practice']}).then((all) => done(all.violations.map((one) => "
            "[one.impact, one.id, one.nodes.map((node) => node.html + ' ' + node.failureSummary)])))"
        )
        assert not [one for one in found if one[0] in ("serious", "critical", "moderate")], view


def test_both_colours_and_the_switch(browser: Browser, site: Site) -> None:
    browser.open(port_of(site))

    def brightness() -> int:
        colour = browser.run("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    light = brightness()
    prefer(browser.driver, "dark")
    assert brightness() < light / 3
    theme = browser.driver.find_element(By.ID, "theme")
    theme.click()
    assert (theme.text, brightness()) == ("Theme: light", light)
    theme.click()
    browser.open(port_of(site))
    prefer(browser.driver, "light")
    assert browser.text("#theme") == "Theme: dark", "it is remembered"
    assert brightness() < light / 3
    browser.run("localStorage.clear()")


@pytest.mark.parametrize("width", [320, 768, 1920])
def test_nothing_is_cut_off_at_any_width(browser: Browser, site: Site, width: int) -> None:
    resize(browser.driver, width, 800)
    browser.open(port_of(site))
    for view in VIEWS:
        browser.go(view)
        time.sleep(0.4)
        wide = browser.run("return document.documentElement.scrollWidth")
        assert wide <= width, view


# --- when things go wrong -------------------------------------------------------------------------------


def test_a_daemon_that_ends_is_noticed_and_found_again(browser: Browser, tmp_path: Path) -> None:
    with shelf_with_page(tmp_path) as (shelf, made):
        shelf.stock("mm39", 0.02)
        with made.mount() as mounted:
            browser.open(port_of(made), "#catalog?q=fasta")
            browser.until(lambda: browser.texts("tbody th") == ["mm39/fasta"], "rows")
            assert mounted.stop() == 0
            browser.until(lambda: "not reached since" in browser.text("#link-text"), "the page says so")
            assert re.search(r"not reached since \d\d:\d\d:\d\d", browser.text("#gone"))
            assert browser.texts("tbody th") == ["mm39/fasta"], "what was known stays"
            assert browser.text("#said") == "The daemon does not answer."
        with made.mount():
            browser.until(lambda: browser.text("#link-text") == "live", "it comes back by itself")
            assert not browser.run("return document.querySelector('#gone').checkVisibility()")
            assert browser.text("#said") == "The daemon answers again."


def test_a_source_that_is_away_is_named_with_since_when_and_what_still_works(
    browser: Browser, tmp_path: Path
) -> None:
    with shelf_with_page(tmp_path) as (shelf, made):
        shelf.stock("mm39", 0.02)
        with made.mount() as mounted:
            mounted.shell("cat $M/mm39/fasta/mm39.fa > /dev/null")
            browser.open(port_of(made))
            made.stop_origin()
            mounted.shell("cat $M/mm39/bwa_index/mm39.fa.bwt > /dev/null 2>&1 || true")
            browser.until(lambda: "Source refgenomes does not answer" in browser.text(".findings"), "the finding")
            assert re.search(r"Since \d\d:\d\d:\d\d, for \d", browser.text(".findings"))
            assert "What is resident of it is read as ever" in browser.text(".findings")
            errors = browser.text("section[aria-labelledby=h-recent-errors]")
            assert "no connection" in errors
            assert "bwa_index__default" in errors, "what was asked for"
            assert browser.text("#said").startswith("Source refgenomes does not answer")


def test_names_from_a_hostile_origin_are_text(browser: Browser, site: Site) -> None:
    browser.open(port_of(site), "#catalog?q=dm6")
    browser.until(lambda: len(browser.texts("tbody tr")) == 5, "rows")
    assert HOSTILE in browser.text("tbody")
    browser.go(f"#asset?key={HOSTILE}")
    browser.until(lambda: "has no asset; write genome/asset" in browser.text("main"), "a no")
    browser.go("#asset?key=dm6/fasta")
    browser.until(lambda: HOSTILE in browser.text("dl.facts"), "the description")
    assert not browser.has("main img, main script")


# --- many, and whose ------------------------------------------------------------------------------------


def test_ten_thousand_assets_are_searched_as_they_are_typed(browser: Browser, tmp_path: Path) -> None:
    with shelf_with_page(tmp_path) as (shelf, made):
        shelf.name_many(100, 100)
        with made.mount():
            browser.open(port_of(made), "#catalog")
            browser.until(lambda: "10,000 assets" in browser.text("main"), "the catalog")
            assert len(browser.texts("tbody tr")) == 100
            searched, rendered = [], []
            box = browser.driver.find_element(By.ID, "search")
            for typed in ("species", "0", "42", " b", "wa"):
                box.send_keys(typed)
                searched.append(float(browser.run("return document.querySelector('#view > div').dataset.searched")))
                rendered.append(float(browser.run("return document.querySelector('#view > div').dataset.rendered")))
            assert "25 assets of 10,000" in browser.text("main")
            print(f"searches took {statistics.median(searched)} ms, with their rows {statistics.median(rendered)} ms")
            # as many plain looks at as much text
            plain = browser.run(
                "const rows = Array.from({length: 10000}, (_, at) => `species${at} `.repeat(20));"
                "const began = performance.now(); let found = 0;"
                "for (let i = 0; i < 10; i += 1) for (const row of rows) found += row.includes(`none${i}`);"
                "return (performance.now() - began) / 10"
            )
            assert statistics.median(searched) < 20 * plain + 1
            browser.go("#catalog?page=100")
            browser.until(lambda: "9,901 to 10,000 of 10,000" in browser.text("main"), "the last page")


def _give(browser: Browser, token: str) -> None:
    browser.until(lambda: browser.driver.find_element(By.ID, "token").is_displayed(), "the form is painted")
    browser.driver.find_element(By.ID, "token").send_keys(token, Keys.ENTER)


def test_a_token_is_asked_for_in_the_browser(browser: Browser, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret-token")
    token.chmod(0o600)
    with shelf_with_page(tmp_path, more=f'token_file = "{token}"\n') as (shelf, made):
        shelf.stock("mm39", 0.02)
        port = port_of(made).rsplit(":", 1)[1].strip("/")
        made.setup.extra = made.setup.extra.replace("127.0.0.1", "0.0.0.0")  # noqa: S104
        with made.mount() as mounted:
            browser.open(port_of(made))
            assert browser.has("#token")
            assert browser.run("return document.querySelector('h1').offsetHeight") < 40  # its name is on one line
            browser.run(AXE)
            _give(browser, "wrong")
            browser.until(lambda: "That is not the token" in browser.text("main"), "a no")
            _give(browser, "s3cret-token")
            browser.until(lambda: browser.text("#link-text") == "live", "the page")
            (cookie,) = browser.driver.get_cookies()
            assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == (f"refgenfs_{port}", True, "Strict")
            assert "s3cret" not in json.dumps(cookie)
            assert time.time() < cookie["expiry"] <= time.time() + SESSION + 1
            assert "s3cret" not in browser.driver.current_url + browser.driver.page_source
            browser.driver.find_element(By.CSS_SELECTOR, "#logout button").click()
            browser.until(lambda: browser.has("#token"), "logged out")
            assert "s3cret" not in mounted.log_text()
