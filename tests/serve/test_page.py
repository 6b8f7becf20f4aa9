"""The page in a real Chromium: ask, stream, hover, compare, choose layers, share, errors, keys, phones, large pictures.

Runs where Playwright finds a browser: its own (`playwright install chromium`), or one of the system's.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
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


def models(page: Any) -> list[dict[str, Any]]:
    """What the server says of its models."""
    return page.request.get(f"{page.url}v1/models").json()["data"]


def told(page: Any, *answers: str, **made_up: float | None) -> None:
    """From now on each model in turn is said to answer this; words other than "a", "and", "no" have maps.

    `made_up` says by word which share of attention found no place: of a word of the question for the first model alone.
    One that is None was not learned.
    """
    names = [one["id"] for one in models(page)]

    def diagonal(share: float) -> list[list[list[float]]]:
        return [[[share * (place == number) for place in range(4)] for number in range(4)]]

    def words(text: str, where: str, first: bool) -> list[dict[str, Any]]:
        spans = [span for span in re.finditer(r"\w+", text) if span[0] not in ("a", "and", "no", "is", "there")]
        lost = [made_up.get(span[0], 0.0) if first or where == "answer" else 0.0 for span in spans]
        return [
            {"word": span[0], "where": where, "start": span.start(), "end": span.end(), "made_up": share}
            | {"learned": share is not None, "maps": [] if share is None else diagonal((1 - share) / 4)}
            for span, share in zip(spans, lost, strict=True)
        ]

    def fulfil(route: Any) -> None:
        asked = route.request.post_data_json
        first, text = asked["model"] == names[0], answers[names.index(asked["model"]) % len(answers)]
        question = asked["messages"][0]["content"][1]["text"]
        found = words(question, "question", first) + words(text, "answer", first)
        chunk = {"choices": [{"delta": {"content": text}, "finish_reason": "stop", "attention": found}]}
        body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
        route.fulfill(body=body, content_type="text/event-stream")

    page.route("**/v1/chat/completions", fulfil)


def looked(page: Any, made_up: float, *, waits: bool = False) -> list[Any]:
    """From now on "fish" has this share where it is looked anew. Gives what is asked, which may wait for `fulfil()`."""
    held: list[Any] = []

    def hold(route: Any) -> None:
        question = route.request.post_data_json["messages"][0]["content"][1]["text"]
        span = re.search("fish|tree", question)
        assert span
        share = made_up if span[0] == "fish" else 0.0
        word = {"word": span[0], "where": "question", "start": span.start(), "end": span.end(), "made_up": share}
        words = [word | {"learned": None, "maps": [[[(1 - share) / 4] * 2] * 2]}]
        fulfil = partial(route.fulfill, json={"words": words})
        held.append(SimpleNamespace(question=question, asked=route.request.post_data_json, fulfil=fulfil))
        if not waits:
            fulfil()

    page.route("**/v1/looks", hold)
    return held


def until(page: Any, is_so: Callable[[], Any]) -> None:
    """Wait until something is so."""
    for _ in range(500):
        if is_so():
            return
        page.wait_for_timeout(20)
    raise AssertionError


def example(page: Any) -> str:
    """The picture on the stages, and that it is the example which is marked."""
    (title,) = set(page.locator(".stage img").evaluate_all("images => images.map(image => image.alt)"))
    assert page.locator(".examples [aria-current=true]").get_attribute("title") == title
    return title


def inside(page: Any, selector: str) -> None:
    """What is selected is seen: all of it is within the window."""
    box, window = page.locator(selector).bounding_box(), page.viewport_size
    assert box["width"] > 0
    assert box["x"] >= 0
    assert box["y"] >= 0
    assert box["x"] + box["width"] <= window["width"]
    assert box["y"] + box["height"] <= window["height"]


def fits(page: Any) -> bool:
    """Whether every caption is shown whole, within its stage."""
    return page.locator(".stage").evaluate_all(
        "stages => stages.every(stage => { const caption = stage.querySelector('figcaption');"
        " return caption.scrollWidth <= caption.clientWidth && caption.scrollHeight <= caption.clientHeight"
        " && caption.getBoundingClientRect().bottom <= stage.getBoundingClientRect().bottom })"
    )


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
    assert page.locator("button.word[aria-pressed=true]").all_inner_texts() == ["blue", "blue"]
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


def test_a_word_that_was_not_learned_has_no_figure(page: Any, browser: Any, tmp_path: Path) -> None:
    told(page, "no", unicorn=None)
    ask(page, "is there a unicorn?")
    word, captions = page.locator(".question button.word"), page.locator("figcaption span")
    notice = "did not learn “unicorn”, so its answer means nothing"
    read = "looked at the bright parts when it read “unicorn”"
    assert word.inner_text() == "unicorn"
    assert word.get_attribute("title") == f"tiny {notice}"
    assert captions.all_inner_texts() == [notice, read]
    assert page.locator(".absent:not(.sample), .nowhere").count() == 0
    assert lit(page, 0) == 0 < lit(page, 1)
    page.keyboard.press("Escape")
    word.hover()
    assert captions.all_inner_texts() == [notice, read]
    alone = browser.new_page(offline=True)
    alone.goto(shared(page, tmp_path).as_uri())
    assert alone.locator("figcaption span").all_inner_texts() == [notice, read]


def test_a_kind_of_question_that_was_never_asked_is_said_and_shared(
    page: Any, browser: Any, tiny: tuple[str, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny[1].config, "known_questions", ["presence"])
    ask(page, "how many fish are there?")
    notice = "“is there a …?” and was hardly ever asked this, so its answer means nothing"
    assert [notice in text for text in page.locator(".strange").all_inner_texts()] == [True, True]
    alone = browser.new_page(offline=True)
    alone.goto(shared(page, tmp_path).as_uri())
    assert alone.locator(".strange").count() == 2
    ask(page, "is there a fish?")
    assert page.locator(".strange").count() == 2
    monkeypatch.setattr(tiny[1].config, "known_words", ["boat", "dog"])
    assert page.locator("#dotted").count() == 0  # with the welcome it went
    page.reload()
    page.wait_for_selector("#dotted:has-text('dotted ones the model did not learn')")
    scene().save(tmp_path / "own.png")
    page.set_input_files("#file", tmp_path / "own.png")
    page.wait_for_selector(".suggestions button:has-text('Is there a dog in the picture?')")


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
        page.select_option("#layer", "1")
    with page.expect_response("**/v1/looks"):
        page.select_option("#head", "2")
    page.wait_for_timeout(1500)
    assert page.evaluate("document.querySelector('.stage canvas').toDataURL()") != before
    assert page.locator("button.word[aria-pressed=true]").count() == 1


def shared(page: Any, tmp_path: Path) -> Path:
    """The conversation as a file."""
    with page.expect_download() as saved:
        page.click("#share")
    file = tmp_path / "shared.html"
    saved.value.save_as(file)
    return file


def test_a_shared_file_stands_by_itself(page: Any, browser: Any, tmp_path: Path) -> None:
    ask(page, "is there a fish?")
    file = shared(page, tmp_path)
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
    page.wait_for_selector(".notice")
    assert page.locator(".notice").inner_text() == "none.png is no picture that the browser can read."


def test_names_and_texts_are_text(page: Any) -> None:
    ask(page, "<script>alert(1)</script> <b>what</b> is there?")
    assert page.locator(".question").inner_text() == "<script>alert(1)</script> <b>what</b> is there?"
    assert page.locator(".question b, .models img, .answer img").count() == 0


def test_an_error_is_told_where_the_answer_would_stand(page: Any) -> None:
    ask(page, "fish " * 700)
    assert "context" in page.locator(".failed").first.inner_text()
    page.complaints.clear()  # Chromium itself notes the status 400


@pytest.mark.parametrize(("width", "height"), [(390, 780), (320, 568), (640, 360)])
def test_a_phone_shows_all_of_it(page: Any, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    ask(page, "is there a fish?")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.scrollHeight") <= height
    for selector in (".stage", "#question", "#send", "#share"):
        box = page.locator(selector).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height
    assert page.locator(".bar h1").evaluate("title => title.scrollWidth <= title.clientWidth")  # else it is under Layer
    assert page.locator(".stage img").first.bounding_box()["height"] > 80
    assert page.locator("#turns").bounding_box()["height"] > 100


def test_the_stage_goes_back_to_the_picture_that_is_asked(page: Any) -> None:
    told(page, "a tree")
    ask(page, "is there a tree?")
    first = example(page)
    page.locator(".examples button").nth(3).click()
    page.wait_for_function("title => document.querySelector('.stage img').alt != title", arg=first)
    fourth = example(page)
    page.locator(".answer button.word").first.hover()
    assert page.locator(".stage img").first.get_attribute("alt") == first
    page.mouse.move(5, 400)
    assert example(page) == fourth
    page.locator(".answer button.word").first.click()  # who goes on with an old word goes on with its picture
    page.mouse.move(5, 400)
    assert example(page) == first
    page.keyboard.press("Escape")
    assert example(page) == first


def test_an_answer_does_not_put_another_picture_back(page: Any) -> None:
    first, held = example(page), []
    page.route("**/v1/chat/completions", lambda route: held.append(route))
    page.fill("#question", "is there a tree?")
    page.press("#question", "Enter")
    page.locator(".examples button").nth(3).click()
    page.wait_for_function("title => document.querySelector('.stage img').alt != title", arg=first)
    fourth = example(page)
    for route in held:
        route.continue_()
    page.wait_for_selector("#send:not(.stop)", timeout=60_000)
    assert len(held) == page.locator(".answer[data-state=done]").count() == 2
    assert example(page) == fourth
    assert page.locator(".stage.looking, button.word[aria-pressed=true]").count() == 0


def test_a_notice_is_seen_and_stays(page: Any) -> None:
    told(page, "a tree and a tree and a tree")
    for _ in range(6):
        ask(page, "is there a tree?")
    page.clock.install()
    page.set_input_files("#file", {"name": "none.png", "mimeType": "image/png", "buffer": b"nothing"})
    page.wait_for_selector(".notice:has-text('none.png is no picture')")
    page.clock.fast_forward(10_000)
    inside(page, ".notice[role=alert]")
    page.locator(".examples button").nth(3).click()
    page.wait_for_selector(".notice", state="hidden")


def test_without_examples_the_page_speaks_of_ones_own_picture(page: Any) -> None:
    assert "example" in page.locator("#welcome").inner_text()
    assert page.locator("#dotted").is_hidden()  # `tiny` does not say what it learned
    page.route("**/examples", lambda route: route.fulfill(json=[]))
    page.reload()
    page.wait_for_selector(".stage.empty")
    assert page.locator("#examples").is_hidden()
    assert "of your own." in page.locator("#welcome").inner_text()
    assert "example" not in page.locator("#welcome").inner_text()
    told(page, "a tree")
    page.fill("#question", "is there a tree?")
    page.press("#question", "Enter")
    page.wait_for_selector(".notice")
    assert page.locator(".notice").inner_text() == "First choose a picture."
    assert page.input_value("#question") == "is there a tree?"
    buffer = io.BytesIO()
    scene(3).save(buffer, "PNG")
    page.set_input_files("#file", {"name": "own.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    page.locator(".suggestions button").first.click()
    page.wait_for_selector(".answer[data-state=done]")
    assert lit(page) > 100


def test_a_wrong_key_is_told_and_escape_gives_none(browser: Any, tiny: tuple[str, Any, Any]) -> None:
    from agevlm.serve.server import Settings, in_background

    with in_background([tiny], Settings(port=0, key="right")) as (url, _):
        context = browser.new_context()
        opened = context.new_page()
        opened.goto(url)
        opened.wait_for_selector("#key-dialog[open]")
        assert opened.locator("#key-wrong").is_hidden()
        opened.fill("#key", "wrong")
        opened.press("#key", "Enter")
        opened.wait_for_selector("#key-wrong")
        opened.fill("#key", "right")
        opened.press("#key", "Escape")
        opened.wait_for_selector(".notice:has-text('without its key')")
        assert opened.locator(".stage").count() == 0
        opened.fill("#question", "is there a fish?")
        opened.press("#question", "Enter")
        opened.wait_for_selector("#key-dialog[open]")
        assert opened.locator("#key-wrong").is_hidden()
        opened.fill("#key", "right")
        opened.press("#key", "Enter")
        opened.wait_for_selector(".answer[data-state=done]", timeout=60_000)
        context.close()


def test_a_server_that_is_gone_is_told(page: Any) -> None:
    told(page, "a tree")
    ask(page, "is there a tree?")
    gone = ".notice:has-text('The server does not answer.')"
    for part, act in (
        ("**/*.css", lambda: page.click("#share")),
        ("**/examples/*.png", lambda: page.locator(".examples button").nth(2).click()),
        ("**/v1/looks", lambda: page.select_option("#layer", "1")),
    ):
        page.route(part, lambda route: route.abort())
        act()
        page.wait_for_selector(gone)
        page.locator(".examples button").first.click()  # is there already
        page.wait_for_selector(gone, state="hidden")
    assert all(said.startswith("Failed to load resource") for said in page.complaints)  # by Chromium, not by the page
    page.complaints.clear()


def test_two_models_are_compared_word_by_word(page: Any) -> None:
    told(page, "a red anchor", "a blue anchor and a tree", fish=0.9)
    ask(page, "is there a fish?")
    captions = page.locator("figcaption span")
    assert page.locator("button.word[aria-pressed=true]").all_inner_texts() == ["anchor", "anchor"]
    assert page.locator(".stage.looking").count() == 2
    assert page.locator(".question sup").inner_text() == "90 % tiny"
    page.locator(".answer button.word", has_text="tree").hover()
    assert captions.all_inner_texts() == ["did not say “tree”", "looked at the bright parts when it said “tree”"]
    assert lit(page, 0) == 0
    page.locator(".question button.word").hover()
    none = "found no place for “fish”: 90 % of its attention was not on the picture"
    assert captions.all_inner_texts() == [none, "looked at the bright parts when it read “fish”"]
    page.locator(".question button.word").click()
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 780})
        assert page.locator(".stage.nowhere").count() == 1
        assert fits(page)
    page.locator(".answer button.word", has_text="tree").click()  # one caption is short, the other one long
    for width in (1280, 390, 320):
        page.set_viewport_size({"width": width, "height": 780})
        assert fits(page)
        one, other = (page.locator(".stage img").nth(number).bounding_box() for number in range(2))
        for side in ("y", "width", "height"):
            assert other[side] == pytest.approx(one[side], abs=0.5)


BRIGHTEST = """() => {
  const map = document.querySelector(".stage canvas");
  const copy = new OffscreenCanvas(map.width, map.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(map, 0, 0);
  const { data } = copy.getImageData(0, 0, map.width, map.height);
  return data.reduce((most, value, at) => (at % 4 == 3 ? Math.max(most, value) : most), 0);
}"""


def test_a_word_that_found_no_place_glows_less(page: Any) -> None:
    told(page, "a tree and a boat and a cup", boat=0.6, cup=0.2)
    ask(page, "is there a tree?")
    glow = []
    for word in ("tree", "boat", "cup"):
        page.locator(".answer button.word", has_text=word).first.hover()
        page.wait_for_selector(f"figcaption:has-text('{word}')")
        glow.append(page.evaluate(BRIGHTEST))
    assert glow[0] > 3 * glow[1] > 0
    assert glow[0] > glow[2] > glow[1]
    cup = "looked at the bright parts when it said “cup”; 20 % of its attention was not on the picture"
    assert page.locator("figcaption span").first.inner_text() == cup


def test_another_layer_is_that_of_every_turn(page: Any) -> None:
    told(page, "no", fish=0.9)
    ask(page, "is there a fish?")
    ask(page, "is there a tree?")
    fish = page.locator(".turn").first.locator("button.word")
    assert fish.inner_text() == "fish90 % tiny"
    held = looked(page, 0.7, waits=True)
    page.select_option("#layer", "1")
    until(page, lambda: len(held) == 2)
    assert [one.question for one in held] == ["is there a tree?"] * 2  # the newest first, of both models
    assert {one.asked["model"] for one in held} == {one["id"] for one in models(page)}
    assert fish.inner_text() == "fish"  # no figure of another layer
    assert page.locator("button.word.old").count() == 2
    for one in held[:2]:
        one.fulfil()
    until(page, lambda: len(held) == 4)
    assert [one.asked["layers"] for one in held] == [[1]] * 4
    for one in held[2:]:
        one.fulfil()
    page.wait_for_selector(".question button:has-text('70 %')")
    assert page.locator("button.word.old").count() == 0
    page.select_option("#head", "2")
    until(page, lambda: len(held) == 6)
    page.select_option("#head", "")  # is there already, so what was begun is given up
    page.wait_for_selector(".question button:has-text('70 %')")
    for one in held[4:]:
        one.fulfil()
    fish.hover()
    page.wait_for_selector("figcaption:has-text('“fish”: 70 %')")
    page.select_option("#layer", "")
    page.wait_for_selector(".question button:has-text('90 %')")
    assert len(held) == 6


def test_a_shared_file_is_of_one_layer_and_head_and_names_them(page: Any, browser: Any, tmp_path: Path) -> None:
    told(page, "no", fish=0.9)
    ask(page, "is there a fish?")
    ask(page, "is there a tree?")
    alone = browser.new_page(offline=True)
    alone.goto(shared(page, tmp_path).as_uri())
    assert "90 %" in alone.locator(".question sup").inner_text()
    assert alone.locator(".of").count() == 0
    assert "layer" not in alone.title()
    page.route("**/v1/looks", lambda route: route.abort())
    page.select_option("#layer", "1")
    page.select_option("#head", "0")
    page.wait_for_selector(".notice:has-text('The server does not answer.')")
    page.complaints.clear()  # Chromium itself notes what is gone
    page.unroute("**/v1/looks")
    looked(page, 0.7)
    alone.goto(shared(page, tmp_path).as_uri())
    assert alone.locator(".of").inner_text() == "Maps and figures are of layer 1, head 0."
    assert alone.title().endswith(" · layer 1, head 0")
    assert "70 %" in alone.locator(".question sup").first.inner_text()


def test_a_question_that_is_too_long_is_told_and_kept(page: Any) -> None:
    page.focus("#question")
    page.keyboard.insert_text("fish " * 1000)
    page.press("#question", "Enter")
    page.wait_for_selector(".notice:has-text('4,999 characters')")
    assert page.input_value("#question") == "fish " * 1000
    assert page.locator(".turn").count() == 0


def test_each_question_stands_by_itself_is_said(page: Any) -> None:
    inside(page, ".alone")
    assert "by itself" in page.locator(".alone").inner_text()


def test_after_a_suggestion_the_keyboard_goes_on_in_the_question(page: Any) -> None:
    told(page, "a tree")
    suggested = page.locator(".suggestions button").all_inner_texts()
    assert all(question[0].isupper() and question[-1] == "?" for question in suggested)  # as a person writes
    page.focus(".suggestions button")
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer[data-state=done]")
    assert page.locator(".question").inner_text() == suggested[0]
    page.wait_for_selector("#send:not(.stop)")
    assert page.evaluate("document.activeElement.id") == "question"


@pytest.fixture
def phone(browser: Any, two: str) -> Iterator[Callable[[int, int], Any]]:
    """Opens the page on a phone of a given size."""
    contexts = []

    def opened(width: int, height: int) -> Any:
        contexts.append(
            browser.new_context(viewport={"width": width, "height": height}, has_touch=True, is_mobile=True)
        )
        found = contexts[-1].new_page()
        found.goto(two)
        found.wait_for_selector(".suggestions button")
        return found

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize(("width", "height"), [(390, 780), (390, 664), (360, 640)])
def test_a_phone_welcomes_whole(phone: Callable[[int, int], Any], width: int, height: int) -> None:
    page = phone(width, height)
    words = page.locator("#welcome").inner_text().lower()
    assert "tap a word" in words
    assert not re.search("hover|drop|paste|click", words)
    assert page.locator("#turns").evaluate("turns => turns.scrollHeight <= turns.clientHeight")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".choice").all_inner_texts()[0].startswith("Layer")
    for selector in ("#layer-choice span", "#head-choice span", "#theme", ".alone"):
        inside(page, selector)


def test_a_tap_keeps_the_map_that_is_shown(phone: Callable[[int, int], Any]) -> None:
    page = phone(390, 780)
    told(page, "a tree")
    ask(page, "is there a tree?")
    word = page.locator(".answer button.word[aria-pressed=true]").first
    word.tap()
    assert page.locator(".stage.looking").count() == 2
    word.tap()
    assert page.locator(".stage.looking").count() == 0


def test_a_shared_file_has_each_answer_under_its_picture(page: Any, browser: Any, tmp_path: Path) -> None:
    told(page, "a tree", "no", tree=0.7)
    ask(page, "is there a tree?")
    file = shared(page, tmp_path)
    alone = browser.new_page(offline=True)
    alone.goto(file.as_uri())
    assert alone.locator("figcaption span").all_inner_texts()[1] == "did not say “tree”"
    for width in (1280, 390):
        alone.set_viewport_size({"width": width, "height": 780})
        assert alone.evaluate("document.documentElement.scrollWidth") <= width
        for number in range(2):
            stage, image, answer = (
                alone.locator(part).nth(number).bounding_box() for part in (".stage", ".stage img", ".answer")
            )
            assert answer["y"] >= stage["y"] + stage["height"]
            assert abs(answer["x"] - stage["x"]) < 2
            assert stage["height"] < image["height"] + 90
