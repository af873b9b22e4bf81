"""The console script as people and pipes use it."""

import html
import json
import os
import pty
import re
import shutil
import signal
import subprocess
from importlib.metadata import version
from statistics import NormalDist

import numpy as np
import pandas
import pytest
from conftest import RNNSENT, SMALL, TIMEOUT, run, train
from markdown_it import MarkdownIt
from PIL import Image
from safetensors.torch import load_file, save_file
from test_models import make
from transformers import pipeline

from modeling_rnnsent import RNNSentForCausalLM
from modeling_rnnsent.card import show_mistakes
from modeling_rnnsent.explaining import Explainer
from modeling_rnnsent.metrics import calibration_error, fit_temperature, mean_loss
from modeling_rnnsent.showing import wilson_margins

TEXTS = ["a wonderful film", "dull and boring", "", "the story was touching"]


def test_predict_reads_lines_and_prints_json(book_run):
    printed = run(RNNSENT, "predict", book_run, "--json", input="\n".join(TEXTS) + "\n").stdout
    rows = [json.loads(line) for line in printed.splitlines()]
    classify = pipeline("text-classification", model=str(book_run))
    for text, row in zip(TEXTS, rows, strict=True):
        (expected,) = classify([text])
        assert row["text"] == text and row["label"] == expected["label"]
        assert row["score"] == pytest.approx(expected["score"], abs=1e-5)
    lines = run(RNNSENT, "predict", book_run, input="a wonderful film\r\ndull").stdout.splitlines()
    assert [line.split("\t")[2] for line in lines] == ["a wonderful film", "dull"]
    # A line is a text, whatever stands in it, and in UTF-8, whatever the system's own encoding is.
    text = "a wonderful\nfilm\t\U0001f600"
    for command in ("predict", "explain"):
        first, *_ = run(RNNSENT, command, book_run, text, PYTHONIOENCODING="latin-1").stdout.splitlines()
        assert first.split("\t")[2:] == ["a wonderful film \U0001f600"]


def test_texts_may_stand_before_and_after_options(book_run):
    printed = [
        run(RNNSENT, "predict", book_run, *words).stdout
        for words in (("--json", "- good", "dull"), ("- good", "--json", "dull"), ("- good", "dull", "--json"))
    ]
    assert printed[0].count("\n") == 2 and len(set(printed)) == 1
    result = run(RNNSENT, "predict", book_run, "good", "--jsn", "dull", check=False)
    assert result.returncode == 2 and "unrecognized arguments: --jsn (did you mean --json?)" in result.stderr
    assert run(RNNSENT, "--version").stdout.split() == ["rnnsent", version("rnnsent")]


def test_what_is_no_classifier_is_named(tmp_path):
    result = run(RNNSENT, "predict", tmp_path, "good", check=False)
    assert result.returncode == 1 and "there is no config.json in that directory" in result.stderr
    make(RNNSentForCausalLM).save_pretrained(tmp_path)
    for command in ("predict", "explain"):
        result = run(RNNSENT, command, tmp_path, "good", check=False)
        assert result.returncode == 1 and "holds RNNSentForCausalLM, which is no classifier" in result.stderr


def test_code_of_another_model_is_not_run(tmp_path):
    """Nor is it asked on standard input, where the texts come from, whether it may be."""
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    config = {"model_type": "stranger", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for command in ("predict", "explain"):
        result = run(RNNSENT, command, tmp_path, check=False, input="y\nyes\n1\n")
        assert result.returncode == 1 and "holds a model of type 'stranger', not 'rnnsent'" in result.stderr
    assert not (tmp_path / "was_run").exists()


def test_a_model_that_lacks_weights_gives_no_answer(book_run, tmp_path):
    shutil.copytree(book_run, tmp_path / "model")
    weights = load_file(book_run / "model.safetensors")
    del weights["classifier.out_proj.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    result = run(RNNSENT, "predict", tmp_path / "model", "good", check=False)
    assert result.returncode == 1 and "is not whole: its weights lack classifier.out_proj.weight." in result.stderr


def test_closed_streams_and_terminals_of_few_signs(book_run):
    shell = f"{RNNSENT} predict {book_run} 'a film \U0001f600' >&- && {RNNSENT} predict {book_run} good 2>&-"
    result = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == 0 and not result.stderr and result.stdout.endswith("\tgood\n")
    main, terminal = pty.openpty()
    command = [RNNSENT, "predict", book_run, "a film \U0001f600"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    assert subprocess.run(command, stdout=terminal, env=environment, timeout=TIMEOUT).returncode == 0
    assert os.read(main, 1000).decode().endswith("a film \\U0001f600\r\n")


def test_predict_answers_each_line_as_it_comes(book_run):
    process = subprocess.Popen([RNNSENT, "predict", str(book_run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for text in TEXTS:
        process.stdin.write(text.encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline().decode().rstrip("\n").split("\t")[2] == text  # before the next is written
    process.stdin.close()
    assert process.wait(TIMEOUT) == 0


def test_predict_ends_quietly_when_its_reader_does(book_run):
    command = f"yes 'a wonderful film' | {RNNSENT} predict {book_run} | head -n 3; echo ${{PIPESTATUS[1]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    *lines, status = result.stdout.splitlines()
    assert len(lines) == 3 and status == "141" and result.stderr == ""


def test_predict_names_a_line_that_is_not_utf8(book_run):
    command = [RNNSENT, "predict", str(book_run)]
    result = subprocess.run(command, input=b"good\nb\xffd\n", capture_output=True, timeout=120)
    assert result.returncode == 1 and b"error: line 2 of standard input is not UTF-8" in result.stderr


def test_explain_prints_columns_json_and_colours(book_run):
    text = "the film was dull"
    lines = run(RNNSENT, "explain", book_run, text, "--leave_one_out", "--reading").stdout.splitlines()
    assert lines[0].split("\t")[2] == text and "contribution (log-odds)" in lines[1]
    assert [line.split()[-1] for line in lines[2:6]] == text.split()
    answer = json.loads(run(RNNSENT, "explain", book_run, text, "--json", "--label=0").stdout)
    assert answer["label"] == "0" and [word["word"] for word in answer["words"]] == text.split()
    assert max(answer["words"], key=lambda word: word["contribution"])["word"] == "dull"
    assert [text[word["start"] : word["end"]] for word in answer["words"]] == text.split()
    parent, child = pty.openpty()  # a terminal gets colours
    subprocess.run([RNNSENT, "explain", str(book_run), text], stdout=child, check=True, timeout=120)
    shown = os.read(parent, 10000).decode()
    red, green, blue = map(int, re.search(r"\033\[30;48;2;(\d+);(\d+);(\d+)mdull\033\[0m", shown).groups())
    assert red > max(green, blue)  # for the answer, as in the page
    result = run(RNNSENT, "explain", book_run, text, "--label=9", check=False)
    assert result.returncode == 1 and "no label '9', only ['0', '1']" in result.stderr


@pytest.mark.parametrize(("right", "number"), [(50, 50), (0, 3), (37, 80)])
def test_intervals_are_wilsons(right, number):
    down, up = wilson_margins(right, number)
    share, z = right / number, NormalDist().inv_cdf(0.975)
    for end in (share - down, share + up):  # where the distance is z deviations of what is there
        assert abs(share - end) == pytest.approx(z * (end * (1 - end) / number) ** 0.5, abs=1e-9)
    assert 0 <= share - down < share + up <= 1


def test_compare_shows_results_and_differences(book_run, reviews, tmp_path):
    other = tmp_path / "other"
    files = [f"--{name}_file={reviews / name}.csv" for name in ("train", "validation", "test")]
    train(*files, *SMALL, "--num_train_epochs=1", f"--output_dir={other}")
    rows = run(RNNSENT, "compare", book_run, other, "--json", "--picture", tmp_path / "both.png").stdout.splitlines()
    first, second = map(json.loads, rows)
    measured = json.loads((book_run / "test_results.json").read_text())
    assert first["accuracy"] == measured["test_accuracy"] and first["texts"] == 80 and second["run"] == str(other)
    assert first["settings"]["hidden_size"] == 64 and second["settings"]["hidden_size"] == 16
    assert "split_seed" not in first["settings"]  # the same in both
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.width > 300
    table = run(RNNSENT, "compare", book_run, other).stdout
    assert "hidden_size" in table and f"{measured['test_accuracy']:.4f}" in table
    result = run(RNNSENT, "compare", book_run, tmp_path, check=False)
    assert result.returncode == 1 and "holds no finished run" in result.stderr


@pytest.mark.parametrize("command", ["predict", "explain", "evaluate", "compare", "export", "tune"])
def test_every_command_shows_an_example(command):
    result = run(RNNSENT, command, "--help")
    assert f"example: rnnsent {command} " in result.stdout
    assert run(RNNSENT, command, check=False).returncode == 2
    if command != "tune":  # which hands flags on to train.py
        refused = run(RNNSENT, command, "x", "y", "--no_such_flag", check=False)
        assert refused.returncode == 2 and refused.stderr.startswith(f"usage: rnnsent {command} ")


def test_the_trainer_lists_its_flags_with_their_defaults():
    printed = train("--help").stdout
    assert printed.startswith("usage: train.py ")
    for flag in ("--train_file", "--cell_type", "--hidden_size", "--learning_rate", "--push_to_hub", "--ngram_order"):
        assert f"  {flag} " in printed
    assert "{rnn,lstm,gru}" in printed and "--vocab_size" not in printed  # which the tokenizer decides


def test_interrupted_command_has_its_status(book_run):
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [RNNSENT, "predict", str(book_run)],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # pytest-xdist's workers ignore it
    )
    process.stdin.write(b"dull\n")
    process.stdin.flush()
    assert process.stdout.readline()  # it has started
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130 and b"Traceback" not in process.stderr.read()


def test_model_card_has_the_mistakes_and_calibrated_scores(reviews, tmp_path):
    # A fifth of the labels are wrong: no model can be sure, and some answers must be mistakes.
    generator = np.random.default_rng(0)
    for name in ("train", "validation", "test"):
        frame = pandas.read_csv(reviews / f"{name}.csv")
        flipped = generator.random(len(frame)) < 0.2
        frame.loc[flipped, "label"] = 1 - frame.loc[flipped, "label"]
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    files = [f"--{name}_file={tmp_path / name}.csv" for name in ("train", "validation", "test")]
    output = tmp_path / "run"
    train(*files, *SMALL, "--pooling=max", "--num_train_epochs=12", "--learning_rate=0.02", f"--output_dir={output}")
    config = json.loads((output / "config.json").read_text())
    assert config["temperature"] > 1.05  # it had learned the wrong ones by heart, too sure of itself
    answers = pipeline("text-classification", model=str(output))(frame_texts(tmp_path / "test.csv"))
    scores = np.array([answer["score"] for answer in answers])
    right = np.array([int(answer["label"]) for answer in answers]) == pandas.read_csv(tmp_path / "test.csv")["label"]
    measured = json.loads((output / "test_results.json").read_text())
    assert measured["test_calibration_error"] == pytest.approx(calibration_error(scores, right), abs=1e-3)
    assert calibration_error(scores, right) < calibration_error(uncalibrated(output, tmp_path / "test.csv"), right)
    card = (output / "README.md").read_text()
    mistakes = re.findall(r"`(\d)` with ([\d.]+)%, right is `(\d)`:", card)
    assert len(mistakes) == 5 and all(said != right for said, _, right in mistakes)
    shown = [float(score) for _, score, _ in mistakes]
    assert shown == sorted(shown, reverse=True) and shown[0] == pytest.approx(100 * scores[~right].max(), abs=0.06)
    assert re.search(r"> .*<b>\w+</b>", card) and "![Reliability diagram](reliability.png)" in card
    for name in ("reliability.png", "roc.png"):
        with Image.open(output / name) as picture:
            assert picture.width > 300


def test_mistakes_are_shown_as_they_stand(book_run):
    """Rendered, a text has its own words, whatever a reader of Markdown may take its marks for."""
    render = MarkdownIt().render
    texts = ["It was a film!The ending!!!Great,bad", "1. A *dull* film ~~not~~ &lt;good", "> I - said", "...", "- bad"]
    lines = show_mistakes(Explainer.from_pretrained(str(book_run)), texts, ["0"] * len(texts))
    shown = render("\n".join(lines))
    assert "<b>" in shown
    quoted = re.findall(r"<blockquote>\s*<p>(.*?)</p>\s*</blockquote>", shown)
    assert [html.unescape(re.sub("</?b>", "", text)) for text in quoted] == texts


def uncalibrated(model, file):
    classify = pipeline("text-classification", model=str(model))
    classify.model.config.temperature = 1.0
    return np.array([answer["score"] for answer in classify(frame_texts(file))])


def frame_texts(path):
    return list(pandas.read_csv(path)["text"])


def test_temperature_has_the_lowest_loss_and_calibration_error_is_its_definition():
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(4000, 3))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([generator.choice(3, p=row) for row in shares])
    temperature = fit_temperature(2.5 * logits, labels, "single_label_classification")
    assert temperature == pytest.approx(2.5, rel=0.1)
    lowest = mean_loss(2.5 * logits / temperature, labels, "single_label_classification")
    for other in (0.9 * temperature, 1.1 * temperature):
        assert lowest < mean_loss(2.5 * logits / other, labels, "single_label_classification")
    assert fit_temperature(logits[:, :1], labels, "regression") == 1.0
    few = np.array([[2.0, 0.0], [0.0, 2.0], [0.4, 0.0]] * 7)  # none of them wrong
    assert 0.2 < fit_temperature(few, few.argmax(axis=1), "single_label_classification") < 1
    scores, right = np.array([0.95, 0.95, 0.55, 0.55]), np.array([1, 0, 1, 1])
    # Two bins of half the texts: |0.95 - 0.5| and |0.55 - 1|.
    assert calibration_error(scores, right) == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)


def test_nothing_to_read_is_said(book_run):
    parent, child = pty.openpty()
    result = subprocess.run([RNNSENT, "predict", str(book_run)], stdin=child, capture_output=True, timeout=120)
    assert result.returncode == 1 and b"give texts, or one a line on standard input" in result.stderr
