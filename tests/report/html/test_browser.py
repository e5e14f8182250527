"""The page as a reader has it: sorted, pointed at, switched, on a phone, in the dark, by keyboard.

One headless Chromium for all of it, that of the system; without one these tests are skipped. Where
``NMOE_BROWSER=required`` is set, as ``.ci/run`` does, that is a failure.
"""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from nmoe_flower.config import Config
from nmoe_flower.files import write_json, write_text
from nmoe_flower.recipes import find_study
from nmoe_flower.report import read_rounds
from nmoe_flower.report.html import write_page
from nmoe_flower.report.html.charts import heat_map
from nmoe_flower.report.html.page import to_html
from nmoe_flower.report.html.parts import (
    Maps,
    Page,
    PageSection,
    Said,
    SortableTable,
    TableCell,
    TableColumn,
    number_cell,
)
from nmoe_flower.results import FORMAT_VERSION
from nmoe_flower.study import Study, findings_of, write_webpage

pytestmark = pytest.mark.published

ATTACK = "</script><img src=x onerror=alert(1)>"
PUBLISHED = Path(__file__).parents[3] / "results"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium with an empty profile."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    api = None
    if found:
        try:
            from playwright import sync_api as api
        except ImportError:
            found = None
    if not found:
        missing = f"needs the package playwright and one of {', '.join(NAMES)} on the PATH"
        if os.environ.get("NMOE_BROWSER") == "required":
            pytest.fail(f"NMOE_BROWSER=required: {missing}")
        pytest.skip(missing)
    with api.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=found, headless=True, args=ARGUMENTS
        )
        context.set_default_timeout(10_000)
        yield context
        context.close()


@pytest.fixture
def opened(browser):
    """Open a file in a new tab; what it says on the console or asks of the network is kept."""
    tabs = []

    def open_(path, *, width=1100, scheme="light", motion="reduce"):
        tab = browser.new_page()
        tab.said = []
        tab.on("console", lambda message: tab.said.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: tab.said.append(str(error)))
        tab.on("dialog", lambda dialog: (tab.said.append("dialog"), dialog.dismiss()))
        tab.on("request", lambda request: tab.said.append(request.url))
        tab.set_viewport_size({"width": width, "height": 800})
        tab.emulate_media(color_scheme=scheme, reduced_motion=motion)
        tab.goto(path.as_uri())
        tabs.append(tab)
        return tab

    yield open_
    for tab in tabs:
        urls = [text for text in tab.said if not text.startswith("file:")]
        assert urls == []  # no word on the console, nothing asked of the network
        tab.close()


@pytest.fixture(scope="module")
def run_page(tmp_path_factory):
    """The page of a published run."""
    path = tmp_path_factory.mktemp("page") / "run.html"
    return write_page([PUBLISHED / "fedce" / "long" / "seed-0"], path)


@pytest.fixture(scope="module")
def policies_page(tmp_path_factory):
    """The page of several configurations, two seeds each."""
    path = tmp_path_factory.mktemp("page") / "policies.html"
    return write_page(sorted((PUBLISHED / "paper-2-figure-3").glob("*/seed-*")), path)


@pytest.fixture(scope="module")
def study_page(tmp_path_factory):
    """The page of a published study."""
    study = Study.load(find_study("paper-table-1"))
    path = tmp_path_factory.mktemp("page") / "study.html"
    return write_webpage(findings_of(study, PUBLISHED), path)


@pytest.fixture(scope="module")
def made_up_page(tmp_path_factory):
    """Odd values and names, every one of them somewhere."""
    columns = [TableColumn("Name", words=True), TableColumn("Value"), TableColumn("Size")]
    columns += [TableColumn("wide", group="ours, and wide")] * 20
    values = [0.5, None, 0.125, -0.25, float("nan"), 1.0]
    rows = [
        [TableCell(name), number_cell(value, signed=True), number_cell(size, digits=0),
         *[TableCell("0.5", "± 0.25", "n = 2", about=ATTACK)] * 20]
        for name, value, size in zip(
            ["b10", "b9", ATTACK, "a", "'\"&<", "c"], values, [1e6, 950, 12_000, 0, 5, None],
            strict=True,
        )
    ]  # fmt: skip
    names = [ATTACK, "\"'&<>`", "{v}"]
    matrix = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3]]
    drawn = heat_map(
        matrix, title=ATTACK, said="Nothing pointed at.", say="{r} asks {c}: {v}",
        row_title="Row", column_title="Column", rows=names, columns=names, own=True,
    )  # fmt: skip
    sections = [
        PageSection("table", "Table", [SortableTable(ATTACK, columns, rows, [ATTACK])]),
        PageSection("map", ATTACK, [Maps([drawn], "Share", [ATTACK])]),
    ]
    path = tmp_path_factory.mktemp("page") / "made-up.html"
    write_text(path, to_html(Page(ATTACK, ATTACK, [Said(ATTACK, ATTACK)], (), sections)))
    return path


def column(tab, number, table="#t1"):
    return tab.eval_on_selector_all(
        f"{table} tbody tr:not([hidden]) > :nth-child({number})",
        "cells => cells.map(c => c.firstChild.textContent)",
    )


def head(tab, number, table="#t1"):
    return tab.locator(f"{table} thead tr:last-child th:nth-child({number})")


def named(tab, caption):
    """The table below that heading: what stands above it depends on what was measured."""
    heading = tab.get_by_role("heading", name=caption, exact=True)
    return "#" + heading.get_attribute("id").removesuffix("-name")


# --- tables ---


def test_numbers_sort_by_value_and_what_is_missing_stays_last(opened, made_up_page):
    tab = opened(made_up_page)
    head(tab, 2).get_by_role("button").click()
    minus, dash = "\N{MINUS SIGN}", "\N{EN DASH}"
    assert column(tab, 2) == ["+1.000", "+0.500", "+0.125", f"{minus}0.250", dash, dash]
    assert head(tab, 2).get_attribute("aria-sort") == "descending"
    head(tab, 2).get_by_role("button").click()
    assert column(tab, 2) == [f"{minus}0.250", "+0.125", "+0.500", "+1.000", dash, dash]
    assert head(tab, 2).get_attribute("aria-sort") == "ascending"
    head(tab, 3).get_by_role("button").click()
    assert column(tab, 3) == ["1,000,000", "12,000", "950", "5", "0", dash]
    assert head(tab, 2).get_attribute("aria-sort") == "none"


def test_words_sort_as_people_do_by_keyboard_too(opened, made_up_page):
    tab = opened(made_up_page)
    head(tab, 1).get_by_role("button").focus()
    tab.keyboard.press("Enter")
    assert column(tab, 1)[-4:] == ["a", "b9", "b10", "c"]
    assert head(tab, 1).get_attribute("aria-sort") == "ascending"
    tab.keyboard.press("Space")
    assert column(tab, 1)[:4] == ["c", "b10", "b9", "a"]
    assert "sorted by Name, descending" in tab.locator("#t1-said").text_content()


def test_a_column_is_called_by_its_group_too(opened, study_page):
    """For whoever hears the page, twelve are named "ours"."""
    tab = opened(study_page)
    table = named(tab, "Local test")
    groups = tab.locator(f"{table} thead tr.g th").all_text_contents()
    assert len(set(groups)) == len(groups) > 3
    for group in (groups[0], groups[-1]):
        button = tab.locator(table).get_by_role("button", name=f"{group}: ours", exact=True)
        button.click()
        said = tab.locator(f"{table}-said").text_content()
        assert said == f"sorted by {group}: ours, descending"
    names = tab.eval_on_selector_all(
        f"{table} thead button", "all => all.map(e => e.ariaLabel || e.textContent)"
    )
    assert len(set(names)) == len(names)


def test_means_sort_with_their_spread_beside_them(opened, policies_page):
    tab = opened(policies_page)
    head(tab, 3).get_by_role("button").click()
    numbers = [float(text) for text in tab.eval_on_selector_all(
        "#t1 tbody td:nth-child(3)", "c => c.map(x => x.textContent.split('±')[0])"
    )]  # fmt: skip
    assert numbers == sorted(numbers, reverse=True)
    assert len(set(numbers)) > 5


def test_a_long_table_shows_the_rows_that_are_asked_for(opened, run_page):
    tab = opened(run_page)
    tab.get_by_label("Only rows with").first.fill("Prior FED")
    assert column(tab, 1) == ["federated + prior", "FedAvg + prior"]
    assert "2 of 19 rows" in tab.locator("#t1-said").text_content()


def test_the_papers_cells_sort_and_are_found_beside_ours(opened, study_page):
    tab = opened(study_page)
    table = named(tab, "Local test")
    place = 2 + 6 + 2  # variant, gate; six of the IID setting; ours at tau = 0.5, the paper's
    before = column(tab, place, table)
    head(tab, place, table).get_by_role("button").click()
    told = [text for text in column(tab, place, table) if text != "\N{EN DASH}"]
    values = list(map(float, told))
    assert values == sorted(values, reverse=True)
    assert len(values) > 5
    assert sorted(before) == sorted(column(tab, place, table))
    tab.get_by_label("Only rows with").first.fill("fedsc fedgate prior")
    assert list(zip(column(tab, 1, table), column(tab, 2, table), strict=True)) == [
        ("FedSC", "FedGate + prior"), ("FedSC, long", "FedGate + prior"),
    ]  # fmt: skip


# --- charts ---


def test_a_heat_map_tells_the_number_under_the_pointer(opened, run_page):
    tab = opened(run_page)
    results = json.loads((PUBLISHED / "fedce/long/seed-0/results.json").read_text("utf-8"))
    share = results["routing"]["rolling/local"][3][5]
    figure = tab.locator("#routing figure").first
    drawing = figure.locator("svg.map")
    drawing.scroll_into_view_if_needed()
    place = drawing.evaluate("""svg => {
        const d = svg.dataset, p = new DOMPoint(+d.left + 5.5 * d.cell, +d.top + 3.5 * d.cell)
            .matrixTransform(svg.getScreenCTM()); return [p.x, p.y]; }""")
    before = figure.locator(".read").text_content()
    tab.mouse.move(*place)
    told = figure.locator(".read").text_content()
    assert told.startswith("Client 3 asks expert 5 for ")
    assert float(re.search(r"([\d.]+) %", told)[1]) == pytest.approx(100 * share, abs=0.006)
    tab.mouse.move(5, 5)
    assert figure.locator(".read").text_content() == before


def test_a_heat_map_is_walked_by_arrow_keys(opened, run_page):
    tab = opened(run_page)
    figure = tab.locator("#partition figure").first
    tab.keyboard.press("Tab")  # so that focus is the keyboard's
    figure.locator("svg.map").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowUp", "ArrowUp"):
        tab.keyboard.press(key)
    told = figure.locator(".read").text_content()
    assert re.match(r"Client 0 holds [\d,]+ samples of class automobile, of 2,500 in all\.", told)
    tab.keyboard.press("End")
    assert "of class truck" in figure.locator(".read").text_content()
    tab.keyboard.press("Escape")
    assert "samples" in figure.locator(".read").text_content()
    assert figure.locator(".read").get_attribute("aria-live") == "polite"


def test_a_studys_page_tells_who_holds_what_under_the_pointer(opened, study_page):
    tab = opened(study_page)
    figure = tab.locator("#partition figure").first
    tab.keyboard.press("Tab")
    figure.locator("svg.map").focus()
    tab.keyboard.press("Home")
    assert re.match(
        r"Client 0 holds [\d,]+ samples of class airplane, of 2,500 in all\.",
        figure.locator(".read").text_content(),
    )


def test_names_in_a_map_are_text_and_no_pattern(opened, made_up_page):
    tab = opened(made_up_page)
    tab.keyboard.press("Tab")
    tab.locator("svg.map").focus()
    tab.keyboard.press("End")
    assert tab.locator("#map .read").text_content() == f"{ATTACK} asks {{v}}: 25.0 %"
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowDown")
    assert tab.locator("#map .read").text_content() == "{v} asks {v}: 33.33 %"


def test_the_axis_is_switched(opened, run_page):
    tab = opened(run_page)
    group = tab.get_by_role("group", name="Horizontal axis")
    shown = tab.locator("#rounds .panel.on svg.lines").first
    assert shown.get_attribute("data-title") == "round"
    group.get_by_role("button", name="Bytes").click()
    assert shown.get_attribute("data-unit") == "MB"
    assert group.get_by_role("button", name="Bytes").get_attribute("aria-pressed") == "true"
    assert group.get_by_role("button", name="Rounds").get_attribute("aria-pressed") == "false"
    assert tab.locator("#rounds .panel:visible").count() == 1


def test_a_line_tells_its_value_where_it_is_pointed_at(opened, run_page):
    tab = opened(run_page)
    records = read_rounds(PUBLISHED / "fedce/long/seed-0/rounds.jsonl")
    tests = [r for r in records if r["stage"] == "extractor-test"]
    figure = tab.locator("#rounds .panel.on figure").first
    drawing = figure.locator("svg.lines")
    last = figure.locator(".key b").text_content()
    tab.keyboard.press("Tab")
    drawing.focus()
    tab.keyboard.press("Home")
    first = tests[0]
    assert figure.locator(".key b").text_content() == f"{first['metrics']['accuracy-local']:.3f}"
    assert figure.locator(".read").text_content() == f"at round {first['round']}"
    drawing.blur()
    assert figure.locator(".key b").text_content() == last
    box = drawing.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert re.fullmatch(r"at round [\d,]+", figure.locator(".read").text_content())


# --- looks ---


@pytest.mark.parametrize("page", ["run_page", "policies_page", "study_page", "made_up_page"])
def test_no_page_scrolls_sideways_on_a_phone(opened, request, page):
    tab = opened(request.getfixturevalue(page), width=360)
    for width in (360, 320):
        tab.set_viewport_size({"width": width, "height": 740})
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        wide = tab.evaluate("""() => [...document.querySelectorAll('body *')].filter(e =>
            !e.closest('.scroll, .skip, svg') && e.getBoundingClientRect().right > innerWidth + 1
        ).map(e => e.outerHTML.slice(0, 80))""")
        assert wide == []


def test_light_and_dark_follow_the_system_and_the_button(opened, run_page):
    colour = "getComputedStyle(document.body).backgroundColor"
    tab = opened(run_page, scheme="dark")
    assert tab.evaluate(colour) == "rgb(20, 23, 27)"
    tab.get_by_role("button", name="Light theme").click()
    assert tab.evaluate(colour) == "rgb(255, 255, 255)"
    tab.get_by_role("button", name="Dark theme").click()
    assert tab.evaluate(colour) == "rgb(20, 23, 27)"
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate(colour) == "rgb(255, 255, 255)"
    scrolling = "getComputedStyle(document.documentElement).scrollBehavior"
    assert tab.evaluate(scrolling) == "auto"
    other = opened(run_page, scheme="light", motion="no-preference")
    assert other.evaluate(colour) == "rgb(255, 255, 255)"
    assert other.evaluate(scrolling) == "smooth"


def test_paper_shows_what_is_folded(opened, policies_page):
    tab = opened(policies_page)
    shut = "document.querySelectorAll('details:not([open])').length"
    before = tab.evaluate(shut)
    assert before > 0
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate(shut) == 0
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate(shut) == before


@pytest.mark.parametrize("page", ["run_page", "policies_page", "study_page", "made_up_page"])
def test_no_table_is_wider_than_its_paper(opened, request, page):
    """On A4 less its margins, upright and turned, at 96 px an inch."""
    tab = opened(request.getfixturevalue(page))
    tab.emulate_media(media="print")
    for tables, width in ((".table:not(.wide) table", 182), (".wide table", 273)):
        tab.set_viewport_size({"width": int(width / 25.4 * 96), "height": 800})
        wide = tab.evaluate(
            """tables => [...document.querySelectorAll(tables)].filter(e => e.scrollWidth >
            document.querySelector('main').clientWidth).map(e => [e.id, e.scrollWidth])""",
            tables,
        )
        assert wide == []


def test_paper_is_turned_for_wide_tables_alone(opened, study_page):
    printed = opened(study_page).pdf(format="A4")
    pages = re.findall(rb"/MediaBox \[0 0 (\d+)[.\d]* (\d+)", printed)
    turned = [int(across) > int(down) for across, down in pages]
    assert any(turned)
    assert not all(turned)
    assert {int(max(sides, key=int)) for sides in pages} <= {841, 842, 843}  # and nothing is shrunk


# --- everybody ---


BASICS = """() => {
    const faults = [], all = (query) => [...document.querySelectorAll(query)];
    const named = (e) => e.getAttribute('aria-label') || e.textContent.trim() ||
        (e.getAttribute('aria-labelledby') || '').split(' ')
            .map((id) => document.getElementById(id)?.textContent).join('').trim();
    const levels = all('h1, h2, h3, h4').map((e) => Number(e.tagName[1]));
    if (levels.filter((l) => l === 1).length !== 1 || levels[0] !== 1) faults.push('one h1, first');
    if (levels.some((l, i) => i && l > levels[i - 1] + 1)) faults.push('a level is left out');
    for (const e of all('button, a, [role=img], [role=region], [role=group], nav, table'))
        if (!named(e)) faults.push('no name: ' + e.outerHTML.slice(0, 80));
    for (const e of all('input')) if (!e.labels.length) faults.push('no label: ' + e.outerHTML);
    for (const e of all('button')) if (e.type !== 'button') faults.push('submits: ' + e.outerHTML);
    for (const e of all('th')) if (!e.scope) faults.push('no scope: ' + e.outerHTML.slice(0, 80));
    const ids = all('[id]').map((e) => e.id);
    if (new Set(ids).size < ids.length) faults.push('an id twice');
    for (const e of all('a[href^="#"]')) if (!document.querySelector(e.getAttribute('href')))
        faults.push('leads nowhere: ' + e.outerHTML);
    for (const e of all('[aria-labelledby]')) {
        const id = e.getAttribute('aria-labelledby');
        if (!document.getElementById(id)) faults.push('no such id: ' + id);
    }
    if (!document.documentElement.lang || !document.title) faults.push('language or title');
    if (all('[tabindex]').some((e) => e.tabIndex > 0)) faults.push('tab order');
    if (all('svg text').some((e) => /NaN|undefined|None/.test(e.textContent))) faults.push('NaN');
    if (/NaN|undefined/.test(all('path').map((e) => e.getAttribute('d')).join())) faults.push('d');
    return faults; }"""


@pytest.mark.parametrize("page", ["run_page", "policies_page", "study_page", "made_up_page"])
def test_everything_has_a_name_and_headings_are_in_order(opened, request, page):
    assert opened(request.getfixturevalue(page)).evaluate(BASICS) == []


def test_the_first_tab_leads_past_the_head_and_focus_can_be_seen(opened, run_page):
    tab = opened(run_page)
    tab.keyboard.press("Tab")
    link = tab.locator(".skip")
    assert link.evaluate("e => e === document.activeElement")
    assert link.bounding_box()["x"] == 0
    tab.keyboard.press("Tab")
    theme = tab.locator(".theme")
    assert theme.evaluate("e => e === document.activeElement && e.matches(':focus-visible')")
    assert theme.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"


def test_the_command_is_copied_or_selected(opened, run_page):
    tab = opened(run_page)
    tab.locator(".copy").click()
    tab.get_by_role("button", name=re.compile("Copied|Selected")).wait_for()


def test_names_that_attack_are_shown_and_nothing_else(opened, made_up_page):
    tab = opened(made_up_page)
    assert tab.title() == ATTACK
    assert tab.locator("h1").text_content() == ATTACK
    assert tab.locator("img").count() == 0


def test_the_page_lets_no_other_script_run(opened, made_up_page, tmp_path):
    """Even if a name came through unescaped."""
    text = made_up_page.read_text(encoding="utf-8")
    path = tmp_path / "broken.html"
    path.write_text(text.replace("<main", "<script>document.title = 'taken'</script><main", 1))
    tab = opened(path)
    assert tab.title() == ATTACK
    assert any("Content Security Policy" in said for said in tab.said)
    tab.said.clear()


def test_without_scripts_everything_is_there(browser, run_page):
    """The three axes under each other, and no button that does nothing."""
    text = run_page.read_text(encoding="utf-8")
    path = run_page.with_name("plain.html")
    path.write_text(re.sub(r"<script>.*?</script>", "", text, flags=re.S), encoding="utf-8")
    tab = browser.new_page()
    tab.goto(path.as_uri())
    assert tab.locator("#rounds .panel:visible").count() == 3
    assert tab.locator(".theme:visible, .copy:visible, .axes:visible, .filter:visible").count() == 0
    tab.close()


def test_a_large_run_is_drawn_whole(opened, tmp_path):
    """50 clients and 100 classes: every cell is there, and answers."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "large"
    folder.mkdir()
    config = Config.parse({"data.num-clients": 50, "run.name": "large"})
    (folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    write_json(folder / "provenance.json", {"format-version": FORMAT_VERSION, "seed": 0})
    counts = rng.poisson(3, (50, 100)).tolist()
    row = {"extractor": "fedce", "gate": "federated", "test": "local", "clients": 50, "top_k": 1}
    results = {
        "rows": [{**row, "accuracy": 0.5, "per_client": {"accuracy": rng.random(50).tolist()}}],
        "routing": {"federated/local": rng.dirichlet(np.ones(50), 50).tolist()},
        "partition": {
            "train": counts,
            "test": counts,
            "classes": [f"class {i}" for i in range(100)],
        },
    }
    write_json(folder / "results.json", results)
    tab = opened(write_page([folder], tmp_path / "large.html"), width=360)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    assert tab.evaluate(BASICS) == []
    figure = tab.locator("#partition figure").first
    tab.keyboard.press("Tab")
    figure.locator("svg.map").focus()
    tab.keyboard.press("End")
    told = figure.locator(".read").text_content()
    assert told.startswith(f"Client 0 holds {counts[0][99]} samples of class class 99")
