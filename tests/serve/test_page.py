"""The page in a real Chromium: ask, stream, hover, compare, choose layers, share, errors, a very large picture.

Runs where Playwright finds a browser: its own (`playwright install chromium`), or one of the system's.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_served import scene

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.slow
SYSTEM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a window."""
    with playwright.sync_playwright() as driver:
        own = Path(driver.chromium.executable_path)
        path = str(own) if own.is_file() else next(filter(None, map(shutil.which, SYSTEM)), None)
        if path is None:
            pytest.skip("there is no Chromium: run `playwright install chromium`")
        found = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def two(tiny: tuple[str, Any, Any]) -> Iterator[str]:
    """A server of two models; the second has a name that a careless page would run."""
    from agevlm.serve.server import in_background

    with in_background([tiny, ("<img src=x onerror=alert(1)>", *tiny[1:])]) as (url, _):
        yield url


@pytest.fixture
def page(browser: Any, two: str) -> Iterator[Any]:
    """The page, open; nothing may have been complained about or asked of another host when it closes."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    opened = context.new_page()
    complaints: list[str] = []
    asked: set[str] = set()
    opened.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: (complaints.append("a dialog"), dialog.dismiss()))
    opened.on("request", lambda request: asked.add(request.url.split("/")[2] if "://" in request.url else "data"))
    opened.goto(two)
    opened.wait_for_selector(".suggestions button")
    opened.complaints = complaints
    yield opened
    assert asked - {"data"} == {two.removeprefix("http://")}
    assert complaints == []
    context.close()


WATCH = """() => {
  const send = document.querySelector("#send");
  window.began = false;
  new MutationObserver(() => { window.began ||= send.classList.contains("stop"); }).observe(send, { attributes: true });
}"""


def ask(page: Any, question: str) -> None:
    """Ask, and wait for the whole answer. It may be there before anybody looks: a watcher remembers that it began."""
    page.evaluate(WATCH)
    page.fill("#question", question)
    page.press("#question", "Enter")
    for _ in range(1500):
        if page.evaluate("window.began"):
            break
        page.wait_for_timeout(20)
    assert page.evaluate("window.began")
    page.wait_for_selector("#send:not(.stop)", timeout=60_000)


def lit(page: Any, stage: int = 0) -> int:
    """How many pixels of a stage's heat map are not clear."""
    return page.evaluate(
        "number => { const c = document.querySelectorAll('.stage canvas')[number];"
        " return c.getContext('2d').getImageData(0, 0, c.width, c.height)"
        ".data.filter((v, i) => i % 4 == 3 && v > 40).length }",
        stage,
    )  # fmt: skip


def test_ask_stream_hover_and_compare(page: Any) -> None:
    ask(page, "what is in the picture?")
    answers = page.locator(".answer p")
    assert answers.count() == 2
    assert answers.nth(0).inner_text() == answers.nth(1).inner_text() == "a blue anchor is left of an orange tree."
    assert lit(page, 0) > 100  # the first word of the answer is shown at once, for both models
    assert lit(page, 1) > 100
    page.locator(".answer button.word", has_text="tree").first.hover()
    page.wait_for_selector("figcaption:has-text('“tree”')")
    assert page.locator(".stage.looking").count() == 2
    page.mouse.move(5, 400)
    page.wait_for_selector("figcaption:has-text('“blue”')")  # back to the one that is pinned
    page.keyboard.press("Escape")
    assert page.locator(".stage.looking").count() == 0


def test_a_word_about_what_is_not_there_is_marked(page: Any) -> None:
    ask(page, "is there a fish?")
    word = page.locator(".question button.word.absent")
    assert word.inner_text().startswith("fish")
    assert int(word.locator("sup").inner_text().split()[0]) > 50
    assert page.locator(".stage.nowhere").count() == 2
    assert lit(page) == 0
    ask(page, "is there a tree?")
    assert page.locator(".turn:last-child .absent").count() == 0


def test_the_keyboard_is_enough(page: Any) -> None:
    ask(page, "what is in the picture?")
    page.locator(".answer button.word").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "anchor"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"


def test_layer_and_head_change_the_map(page: Any) -> None:
    ask(page, "where is the tree?")
    before = page.evaluate("document.querySelector('.stage canvas').toDataURL()")
    with page.expect_response("**/v1/looks"):
        page.select_option("#layer", "0")
    with page.expect_response("**/v1/looks"):
        page.select_option("#head", "2")
    page.wait_for_timeout(1500)
    assert page.evaluate("document.querySelector('.stage canvas').toDataURL()") != before
    assert page.locator("button.word[aria-pressed=true]").count() == 1


def test_a_shared_file_stands_by_itself(page: Any, browser: Any, tmp_path: Path) -> None:
    ask(page, "is there a fish?")
    with page.expect_download() as saved:
        page.click("#share")
    file = tmp_path / "shared.html"
    saved.value.save_as(file)
    alone = browser.new_page(offline=True)
    complaints: list[str] = []
    alone.on("console", lambda message: complaints.append(message.text))
    alone.on("pageerror", lambda error: complaints.append(str(error)))
    alone.goto(file.as_uri())
    assert alone.locator(".answer p").first.inner_text() == "no"
    assert alone.locator(".question .absent").count() == 1
    assert alone.locator(".stage img").first.evaluate("image => image.naturalWidth") == 384
    assert complaints == []


def test_a_picture_of_20_megapixels_and_a_file_that_is_none(page: Any) -> None:
    buffer = io.BytesIO()
    scene(3).resize((5200, 4000), Image.Resampling.NEAREST).save(buffer, "JPEG")
    page.set_input_files("#file", {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()})
    page.wait_for_selector(".stage img[alt='large.jpg']")
    ask(page, "what is in the picture?")
    assert page.locator(".answer[data-state=done]").count() == 2
    page.set_input_files("#file", {"name": "none.png", "mimeType": "image/png", "buffer": b"nothing"})
    assert page.locator(".notice").inner_text() == "none.png is no picture that the browser can read."


def test_names_and_texts_are_text(page: Any) -> None:
    ask(page, "<script>alert(1)</script> <b>what</b> is there?")
    assert page.locator(".question").inner_text() == "<script>alert(1)</script> <b>what</b> is there?"
    assert page.locator(".question b, .models img, .answer img").count() == 0


def test_an_error_is_told_where_the_answer_would_stand(page: Any) -> None:
    ask(page, "fish " * 700)
    assert "context" in page.locator(".failed").first.inner_text()
    page.complaints.clear()  # Chromium itself notes the status 400


def test_a_phone_shows_all_of_it(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 780})
    ask(page, "is there a fish?")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for selector in (".stage", "#question", "#send", "#share"):
        box = page.locator(selector).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["y"] + box["height"] <= 780
