"""The page in a real browser: it opens from disk without errors, filters, shows images, and is accessible."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from lumen_hpc.config.schema import Evaluate
from lumen_hpc.report import figures
from lumen_hpc.report.assemble import report
from lumen_hpc.report.identity import Identity
from tests.report import pretend

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no `chromium` on the PATH: the page goes unseen here")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def open_page(browser):
    """Opens a report; what the page complains of, or asks the network for, fails the test."""
    complaints, contexts = [], []

    def opened(folder, **options):
        # Playwright's `wait_for_function` calls eval, which the page's policy forbids; tests of the policy keep it.
        context = browser.new_context(**{"bypass_csp": True} | options)
        contexts.append(context)
        context.set_default_timeout(120_000)  # a machine under load answers late
        page = context.new_page()
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:")) else complaints.append(request.url),
        )
        page.goto((folder / "index.html").as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def shown(page) -> int:
    return int(re.match(r"\d+", page.locator("#count").inner_text())[0])


def test_it_opens_from_disk_and_shows_every_section(written, open_page):
    page = open_page(written, bypass_csp=False)
    assert page.locator("h1").inner_text() == "pretended"
    assert page.locator("tr.principal th").first.inner_text() == "LUMEN (tiny NVILA)"
    for section in ("results", "controls", "findings", "slices", "training", "language", "costs", "cases", "run"):
        assert page.locator(f"#{section}").is_visible(), section
    assert page.locator("figure svg[role=img]").count() >= 7
    assert "FT + rule" in page.locator("#results").inner_text()
    page.get_by_text("Settings that differ from their defaults").click()
    assert "train.learning_rate 0.001" in page.locator("#run").inner_text().replace("\t", " ")


def test_no_two_elements_share_an_id(written, open_page):
    ids = open_page(written).evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))


def test_filters_narrow_the_cases_and_clearing_brings_them_back(written, open_page):
    page = open_page(written)
    rows = json.loads(page.locator("#data").text_content())["rows"]
    assert shown(page) == len(rows) == 120
    page.select_option("[name=type]", "difference")
    expected = [row for row in rows if row["type"] == "difference"]
    assert shown(page) == len(expected) > 0
    page.select_option("[name=finding]", "edema")
    expected = [row for row in expected if "edema" in row["findings"]]
    assert shown(page) == len(expected) > 0
    page.select_option("[name=model]", "nvila")
    page.select_option("[name=outcome]", "wrong")
    expected = [
        row for row in expected if any(a["model"] == "nvila" and a["outcome"] == "wrong" for a in row["answers"])
    ]
    assert shown(page) == len(expected) > 0
    page.fill("[name=words]", "no such words anywhere")
    assert shown(page) == 0
    assert "No case fits" in page.locator("#case").inner_text()
    page.get_by_role("button", name="Clear").click()
    page.wait_for_function("document.getElementById('count').textContent.startsWith('120 ')")
    assert page.locator("[name=model]").input_value() == "lumen"


def test_a_case_shows_both_images_its_answers_and_scores(written, open_page):
    page = open_page(written)
    page.select_option("[name=type]", "difference")
    images = page.locator("#case img")
    assert images.count() == 2
    images.first.scroll_into_view_if_needed()
    page.wait_for_function("[...document.querySelectorAll('#case img')].every((image) => image.naturalWidth >= 64)")
    text = page.locator("#case").inner_text()
    for expected in (
        "Reference image",
        "Main image",
        "between the images",
        "Reference answer",
        "LUMEN",
        "FT + rule",
        "change F1",
    ):
        assert expected in text, expected


def test_cases_where_one_model_is_right_and_another_wrong_are_a_filter(written, open_page):
    page = open_page(written)
    rows = json.loads(page.locator("#data").text_content())["rows"]
    outcome = [{answer["model"]: answer["outcome"] for answer in row["answers"]} for row in rows]
    for label, better, worse in (
        ("LUMEN (tiny NVILA) right, tiny NVILA-FT wrong", "lumen", "ft"),
        ("tiny NVILA-FT right, LUMEN (tiny NVILA) wrong", "ft", "lumen"),
    ):
        page.select_option("[name=compare]", label=label)
        assert shown(page) == sum((each.get(better), each.get(worse)) == ("right", "wrong") for each in outcome)
    page.select_option("[name=compare]", "")
    assert shown(page) == len(rows)


def test_an_image_says_its_view_and_date_and_opens_larger(written, open_page):
    page = open_page(written)
    page.select_option("[name=type]", "difference")
    assert re.search(r"Main image\s*(PA|AP), 2150-08-10 23:55", page.locator("#case").inner_text())
    page.locator("#case .larger").last.click()
    canvas = page.locator("#viewer canvas")
    page.wait_for_function("document.getElementById('viewer').open")
    assert canvas.count() == 2
    first = "document.querySelector('#viewer canvas')"
    grey = (
        "(() => { const one = document.createElement('canvas').getContext('2d', { willReadFrequently: true }); "
        f"one.drawImage({first}, 512, 512, 1, 1, 0, 0, 1, 1); return one.getImageData(0, 0, 1, 1).data[0]; }})()"
    )
    pixels = f"{first}.toDataURL()"
    before, plain = page.evaluate(pixels), page.evaluate(grey)
    assert 0 < plain < 255

    def slide(name: str, value: int) -> None:
        page.locator(f"#viewer [name={name}]").fill(str(value))

    slide("level", 255)
    slide("window", 1)
    assert page.evaluate(grey) == 0  # below the window
    slide("level", 0)
    assert page.evaluate(grey) == 255
    page.locator("#viewer [name=reset]").click()
    assert page.evaluate(pixels) == before
    canvas.first.focus()
    for key in ("+", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
        assert page.evaluate(pixels) != before
    page.keyboard.press("0")
    assert page.evaluate(pixels) == before
    assert [(each["id"], each["nodes"][0]["html"]) for each in Axe().run(page).response["violations"]] == []
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()


def test_zoom_keeps_the_middle_and_an_image_never_leaves_its_pane(written, open_page):
    page = open_page(written)
    page.select_option("[name=type]", "difference")
    page.locator("#case .larger").last.click()
    page.wait_for_function("document.getElementById('viewer').open")
    canvas = page.locator("#viewer canvas").first
    # Where the middle of the pane lies in the image [pixels of the pane at zoom 1], from the last drawing.
    page.evaluate(
        """() => { const draw = CanvasRenderingContext2D.prototype.drawImage;
        CanvasRenderingContext2D.prototype.drawImage = function (image, x, y, w, h) {
          if (this.canvas.isConnected) window.middle = [(512 - x) / w, (512 - y) / h].map((each) => each.toFixed(4));
          return draw.call(this, image, x, y, w, h); }; }"""
    )
    for key in ("+", "ArrowLeft", "ArrowUp"):
        canvas.press(key)
    before = page.evaluate("window.middle")
    assert before != ["0.5000", "0.5000"]
    canvas.press("+")
    page.locator("#viewer [name=zoom]").fill("4")
    assert page.evaluate("window.middle") == before
    for _ in range(100):
        canvas.press("ArrowRight")
    assert page.evaluate("window.middle")[0] == "0.0000"  # half of the pane still shows the image


def test_findings_have_sensitivity_and_specificity_and_directions_a_table(written, inputs, open_page):
    page = open_page(written)
    page.evaluate("document.querySelectorAll('#findings details').forEach((each) => { each.open = true; })")
    text = page.locator("#findings").inner_text()
    assert "Sensitivity" in text and "pleural effusion" in text and "asked for" in text and "listed" in text
    table = page.locator("#findings table.confusion").first
    assert table.locator("thead th").all_inner_texts() == [
        "Reference", "worse", "better", "mixed", "same", "not read", "n",
    ]  # fmt: skip
    counted = [int(cell) for cell in table.locator("td.n").all_inner_texts()]
    assert 0 < sum(counted) <= sum(record["meta"]["type"] == "difference" for record in inputs.records)


def test_few_questions_carry_a_warning(tmp_path, open_page):
    report(pretend.inputs(patients=6), Evaluate(bootstrap=20, permutations=20), 0, tmp_path)
    page = open_page(tmp_path)
    assert "stand on fewer than 30 questions" in page.locator("#results").inner_text()
    assert page.locator("#t1 ~ .scroll .flag").first.inner_text().startswith("n = ")


def test_tables_fit_a_laptop_and_each_column_says_its_n(written, inputs, open_page):
    page = open_page(written, viewport={"width": 1280, "height": 800})
    cut = "[...document.querySelectorAll('#results .scroll')].filter((each) => each.scrollWidth > each.clientWidth)"
    assert page.evaluate(f"{cut}.length") == 0
    differences = sum(record["meta"]["type"] == "difference" for record in inputs.records)
    heading = page.locator("#t1 ~ .scroll thead tr:last-child th").first.inner_text()
    assert heading.split("\n") == ["BLEU-4", f"n = {differences}"]


def test_the_curves_name_each_model_once_and_validation_once(written, open_page):
    """A long legend is cut off at the figure's edge, and numbers of many decades would overlap."""
    rows = [{"step": k, "loss": 10.0 ** (1 - k), "validation_loss": 1.0 if k == 3 else None} for k in range(6)]
    figure = figures.training({"ft": rows, "lumen": rows}, {"ft": "NVILA-FT", "lumen": "LUMEN of a long name"})
    page = open_page(written)
    texts = page.evaluate(
        """(svg) => { const box = document.createElement("div"); box.innerHTML = svg; document.body.append(box);
        const right = box.querySelector("svg").getBoundingClientRect().right;
        return [...box.querySelectorAll("text")].map((e) => [e.textContent, e.getBoundingClientRect().right < right]);
        }""",
        figure,
    )
    assert all(inside for _, inside in texts)
    names = [text for text, _ in texts]
    assert [names.count(name) for name in ("NVILA-FT", "LUMEN of a long name", "on validation records")] == [1, 1, 1]
    assert {"10", "1", "0.1"} < set(names) and not {"0.5", "0.05", "0.2"} & set(names)


def test_prediction_shows_the_reference_image_alone(written, open_page):
    page = open_page(written)
    page.select_option("[name=type]", "prediction")
    [caption] = page.locator("#case figcaption").all_inner_texts()
    assert caption.startswith("Reference image")


def test_arrow_keys_move_through_the_list_and_pages_turn(written, open_page):
    page = open_page(written)
    first = page.locator("#list button").first
    first.focus()
    page.keyboard.press("ArrowDown")
    second = page.locator("#list button").nth(1)
    assert second.get_attribute("aria-current") == "true"
    assert first.get_attribute("aria-current") is None
    assert second.get_attribute("data-id") in page.locator("#case").inner_text()
    page.get_by_role("button", name="Later").click()
    assert page.locator("#where").inner_text() == "51–100 of 120"


def test_the_list_is_one_stop_of_the_tab_key(written, open_page):
    page = open_page(written)
    for later in (False, True):
        if later:
            page.get_by_role("button", name="Later").click()
        [stop] = page.locator("#list button[tabindex='0']").all()
        stop.focus()
        page.keyboard.press("ArrowDown")
        assert page.locator("#list button[tabindex='0']").get_attribute("aria-current") == "true"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('#list')") is None


def test_filters_that_back_brings_back_are_those_of_the_list(written, open_page):
    page = open_page(written)
    page.select_option("[name=type]", "difference")
    narrowed = shown(page)
    page.goto("about:blank")
    page.go_back()
    kind = page.locator("[name=type]").input_value()
    page.wait_for_function(
        "count => document.getElementById('count').textContent.startsWith(`${count} `)",
        arg=narrowed if kind else 120,
    )


def test_a_comparison_is_read_whole(written, open_page):
    """The names of the models begin alike; the chosen pair must be told from the others."""
    page = open_page(written)
    narrow, wide = page.evaluate(
        """() => { const select = document.querySelector("[name=compare]"), width = select.offsetWidth;
        select.style.maxWidth = "none"; return [width, select.offsetWidth]; }"""
    )
    assert narrow == wide


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_fault(written, open_page, scheme, width):
    page = open_page(written, color_scheme=scheme, viewport={"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    violations = Axe().run(page).response["violations"]
    assert [(each["id"], each["impact"], each["nodes"][0]["html"]) for each in violations] == []


def test_dark_is_dark_and_the_button_overrides_it(written, open_page):
    page = open_page(written, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('figure svg text')).fill"
    dark, pale = page.evaluate(background), page.evaluate(ink)
    page.locator("#theme").click()
    assert page.locator("#theme").inner_text() == "Theme: light"
    assert page.evaluate(background) != dark
    assert page.evaluate(ink) != pale  # the figures follow


def test_what_is_printed_is_dark_on_light(written, open_page):
    page = open_page(written, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    for theme in ("light", "dark", ""):
        page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 39, 51)", theme


def test_no_table_is_cut_on_paper(written, open_page):
    """On A4 and letter across, less the margin; what scrolls on a screen is lost on paper."""
    page = open_page(written, viewport={"width": 980, "height": 700})
    assert "size: landscape" in page.locator("style").text_content()
    page.emulate_media(media="print")
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    wide = """[...document.querySelectorAll('.scroll')].filter((each) => each.offsetParent)
        .map((each) => [each.getAttribute('aria-labelledby') ?? each.getAttribute('aria-label'), each.scrollWidth])"""
    assert [each for each in page.evaluate(wide) if each[1] > 980] == []


def test_a_narrow_screen_scrolls_tables_not_the_page(written, open_page):
    page = open_page(written, viewport={"width": 320, "height": 600})
    page.evaluate(
        """() => { document.querySelectorAll("details").forEach((each) => { each.open = true; });
        const long = "<li><code>a_setting.with_a_name=and_a_value_of_some_length</code>";
        document.querySelector(".notes").innerHTML += long; }"""
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.select_option("[name=type]", "difference")
    page.locator("#case .larger").last.click()
    page.wait_for_function("document.getElementById('viewer').open")
    larger = "document.querySelector('#viewer canvas').clientWidth / document.querySelector('#case img').clientWidth"
    assert page.evaluate(larger) > 1.5
    assert page.evaluate("document.querySelector('#viewer').scrollWidth") <= 320


def test_without_scripts_the_numbers_are_still_there(written, open_page):
    page = open_page(written, java_script_enabled=False)
    assert page.locator("table.results").count() == 2
    assert "needs JavaScript" in page.locator("noscript").inner_text() or page.get_by_text("needs JavaScript").count()


def test_twenty_thousand_cases_stay_usable(written, open_page, tmp_path):
    page_text = (written / "index.html").read_text()
    start = page_text.index('id="data">') + len('id="data">')
    end = page_text.index("</script>", start)
    data = json.loads(page_text[start:end])
    rows = data["rows"]
    data["rows"] = [row | {"id": f"{k}"} for k in range(20_000 // len(rows) + 1) for row in rows][:20_000]
    for k, row in enumerate(data["rows"]):
        row["id"] = f"case-{k}"
    (tmp_path / "index.html").write_text(page_text[:start] + json.dumps(data).replace("<", "\\u003c") + page_text[end:])
    page = open_page(tmp_path)
    assert shown(page) == 20_000
    # What keeps it usable: the document holds one page of the list, whatever the number of cases.
    assert page.locator("#list button").count() == 50
    page.fill("[name=words]", "case-19999")
    assert shown(page) == 1
    page.get_by_role("button", name="Clear").click()
    page.wait_for_function("document.getElementById('count').textContent.startsWith('20000 ')")
    for _ in range(3):
        page.get_by_role("button", name="Later").click()
    assert page.locator("#where").inner_text() == "151–200 of 20000"


def test_restricted_data_leaves_no_image_and_no_text_in_the_page(tmp_path, open_page):
    inputs = pretend.inputs(patients=6)
    report(inputs, Evaluate(bootstrap=20, permutations=20, images=False), 0, tmp_path)
    html = (tmp_path / "index.html").read_text()
    assert "data:image" not in html
    for record in inputs.records:
        assert record["meta"]["long_answer"] not in html or len(record["meta"]["long_answer"]) < 12
    assert "what has changed" not in html
    for name in ("edema", "consolidation", "cardiomegaly"):
        assert name not in html
    page = open_page(tmp_path, bypass_csp=False)
    assert "left out by" in page.locator("#cases").inner_text()
    assert shown(page) > 0


def test_two_judges_agreement_is_shown_beside_the_canaries(tmp_path, open_page):
    inputs = pretend.inputs(patients=4)
    for rows in inputs.scores.values():
        rows += [row | {"judge": "second"} for row in rows if not row.get("canary")]
    report(inputs, Evaluate(bootstrap=20, permutations=20), 0, tmp_path)
    text = open_page(tmp_path).locator("#language").inner_text()
    assert "pretended and second scored the same" in text and "within one point 1.000" in text


def test_a_text_cannot_break_out_of_the_page(tmp_path, open_page):
    evil = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>"
    names = {"run": {"name": evil, "seed": "0"}, "settings": {"train.base": evil}, "exposure": evil}
    inputs = pretend.inputs(patients=3, **names, identity=Identity(deviations=(f"`train.base` is {evil}",)))
    for rows in inputs.answers.values():
        rows[:] = [row | {"answer": evil} if not row.get("control") else row for row in rows]
    report(inputs, Evaluate(bootstrap=20, permutations=20), 0, tmp_path)
    page = open_page(tmp_path)
    assert page.title() == f"{evil} · LUMEN report"
    for place in ("h1", "#case", "#results", "#run"):
        assert evil in page.locator(place).text_content(), place
    assert page.locator("img[src=x]").count() == 0
