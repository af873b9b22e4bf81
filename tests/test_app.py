"""The page, driven in headless Chromium as people would."""

import os
import re
import shutil
import subprocess
import sys
import urllib.request

import pandas
import pytest
from conftest import ROOT, run
from test_distributed import free_port
from test_models import make
from transformers import pipeline

from modeling_rnnsent import RNNSentForCausalLM

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]
TEXT = "a wonderful film about dull people"


@pytest.fixture(scope="module")
def address(book_run, tmp_path_factory):
    """The page, started in a directory whose `runs/` holds the trained model under two names, and a language model."""
    folder = tmp_path_factory.mktemp("app")
    for name in ("first", "second"):
        shutil.copytree(book_run, folder / "runs" / name)
    make(RNNSentForCausalLM).save_pretrained(folder / "runs" / "language")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, ROOT / "app.py", f"--port={port}"],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if "Running on" in line:
            break
    assert urllib.request.urlopen(f"http://127.0.0.1:{port}").status == 200
    yield f"http://127.0.0.1:{port}"
    process.kill()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    page = open_page(browser, address)
    yield page
    page.close()


def open_page(browser, address):
    page = browser.new_page(viewport={"width": 1100, "height": 1000}, accept_downloads=True)
    page.goto(address)
    page.wait_for_selector("#text textarea")
    return page


def upload(page, path):
    page.get_by_role("tab", name="A file").click()
    page.set_input_files("#file input[type=file]", str(path))
    page.locator("#file a[download]").first.wait_for()  # what has come can be had back


def answer(page) -> tuple[str, list[str]]:
    """The label shown, and the words that are coloured."""
    page.wait_for_selector("#answer .output-class")
    page.wait_for_selector("#reading canvas, #reading svg")
    return page.inner_text("#answer .output-class").strip(), page.inner_text("#words").split("\n")


def test_typing_gives_the_models_answer_words_and_a_plot(page, book_run):
    page.fill("#text textarea", TEXT)
    page.click("#classify")
    label, shown = answer(page)
    (expected,) = pipeline("text-classification", model=str(book_run))([TEXT])
    assert label == expected["label"]
    assert re.search(rf"{round(100 * expected['score'])}\s*%", page.inner_text("#answer"))
    assert [word for word in TEXT.split() if word in " ".join(shown)] == TEXT.split()
    page.get_by_text("A dull film with a great ending.").last.click()  # an example is answered at once
    page.locator("#words").get_by_text("ending").wait_for()


def test_the_plot_is_of_the_text_whose_answer_it_shows(page, book_run):
    classify = pipeline("text-classification", model=str(book_run), trust_remote_code=True)
    texts = ["a wonderful story", "dull boring awful waste", "great great film", "the worst plot"]
    answers = [classify(text)[0]["label"] for text in texts]
    assert len(set(answers)) == 2
    for text, label in zip(texts, answers):
        page.fill("#text textarea", text)
        page.click("#classify")
        page.locator("#reading").get_by_text(f"“{label}”").wait_for()
        for number, word in enumerate(text.split(), start=1):
            page.locator("#reading").get_by_text(f"{number} {word}", exact=True).wait_for()


def test_keyboard_alone_is_enough_and_there_is_a_choice_of_models(page):
    page.focus("#text textarea")
    page.keyboard.type(TEXT)
    for _ in range(5):  # from the text to the button
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "classify":
            break
    assert page.evaluate("document.activeElement.id") == "classify"
    page.keyboard.press("Enter")
    assert answer(page)[0] in ("0", "1")
    page.get_by_label("Model").click()
    options = [option.inner_text().split()[-1] for option in page.get_by_role("option").all()]
    assert sorted(options) == ["runs/first", "runs/second"]


def test_an_error_is_a_sentence(page):
    page.click("#classify")
    page.get_by_text("Write or paste a text first.").wait_for()
    page.get_by_role("tab", name="A file").click()
    page.click("#classify-file")
    page.get_by_text("Choose a file first.").wait_for()


def test_a_file_is_classified_and_downloaded(page, book_run, reviews, tmp_path):
    upload(page, reviews / "test.csv")
    page.click("#classify-file")
    page.get_by_text("80 texts classified").wait_for()
    with page.expect_download() as download:
        page.click("#labels a[download]")
    download.value.save_as(tmp_path / "labels.csv")
    found = pandas.read_csv(tmp_path / "labels.csv")
    texts = list(pandas.read_csv(reviews / "test.csv")["text"])
    expected = pipeline("text-classification", model=str(book_run))(texts)
    assert list(found["text"]) == texts
    assert list(found["label"].astype(str)) == [answer["label"] for answer in expected]
    page.fill("#column textarea, #column input", "review")
    page.click("#classify-file")
    page.get_by_text("'test.csv' has no column 'review'").wait_for()


def test_a_large_files_progress_is_shown(page, tmp_path):
    (tmp_path / "texts.txt").write_text(f"{TEXT}\n" * 60_000)
    upload(page, tmp_path / "texts.txt")
    page.click("#classify-file")
    page.locator(".progress-bar").first.wait_for()
    page.get_by_text("60,000 texts classified").wait_for()


def test_two_users_at_once_get_their_own_answers(browser, address):
    pages = [open_page(browser, address) for _ in range(2)]
    for page, text in zip(pages, ("wonderful touching film", "awful boring film")):
        page.fill("#text textarea", text)
    for page in pages:
        page.click("#classify")
    labels = [answer(page)[0] for page in pages]
    assert labels == ["1", "0"]
    for page in pages:
        page.close()


def test_two_users_files_at_once_are_told_apart(browser, address, tmp_path):
    pages, files = [open_page(browser, address) for _ in range(2)], []
    for index, (page, text) in enumerate(zip(pages, ("wonderful touching film", "awful boring film"))):
        files.append(tmp_path / f"texts{index}.txt")
        files[-1].write_text(f"{text}\n" * (3000 + index))
        upload(page, files[-1])
    for page in pages:
        page.click("#classify-file")
    for index, page in enumerate(pages):
        page.get_by_text(f"{3000 + index:,} texts classified").wait_for()
        with page.expect_download() as download:
            page.click("#labels a[download]")
        download.value.save_as(tmp_path / "labels.csv")
        found = pandas.read_csv(tmp_path / "labels.csv")
        assert len(found) == 3000 + index and set(found["label"]) == {1 - index}
        page.close()


def test_a_phones_width_is_enough(page):
    page.set_viewport_size({"width": 360, "height": 740})
    page.fill("#text textarea", TEXT)
    page.click("#classify")
    answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_without_a_model_it_says_which_command_to_run(tmp_path):
    result = run(sys.executable, ROOT / "app.py", check=False, cwd=tmp_path)
    assert result.returncode == 1 and "accelerate launch train.py configuration/default.yaml" in result.stderr
    assert "Traceback" not in result.stderr
