"""Many texts at once, and exported models, against the pipeline on one text after the other."""

import csv
import json
import os
import shutil
import signal
import string
import subprocess
import sys
import time
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pandas
import psutil
import pytest
import torch
from conftest import RNNSENT, ROOT, TIMEOUT, run
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import Prepared
from test_data import write
from transformers import pipeline

from modeling_rnnsent import RNNSentConfig, RNNSentForSequenceClassification, encoding
from modeling_rnnsent import bulk as bulk_module
from modeling_rnnsent.bulk import BulkClassifier
from modeling_rnnsent.encoding import WordEncoder
from modeling_rnnsent.exporting import export_model, exported_pipeline
from modeling_rnnsent.scoring import OnnxScorer, TorchScorer, load_scorer
from modeling_rnnsent.tokenization import build_tokenizer

WORDS = ["a", "bad", "good", "great", "dull", "film", "plot", "actor", "the", "and", ":)", "was", "not", "it", "is"]
TOKENIZER = build_tokenizer([" ".join(WORDS)])
PUNCTUATION_TOKENIZER = build_tokenizer([" ".join([*WORDS, *string.punctuation])], keep_punctuation=True)
TOKENIZERS = (TOKENIZER, PUNCTUATION_TOKENIZER)
MIXED = "ünder οδος οδοσ i i̇ strasse straße é good film a dull x :d :) , … - <"
MIXED_TOKENIZERS = [build_tokenizer([MIXED], keep_punctuation=keep) for keep in (False, True)]
ENCODERS, MIXED_ENCODERS = (list(map(WordEncoder, tokenizers)) for tokenizers in (TOKENIZERS, MIXED_TOKENIZERS))


def make_texts(number, longest=60, seed=0):
    generator = np.random.default_rng(seed)
    texts = [" ".join(generator.choice(WORDS, generator.integers(1, longest))) for _ in range(number)]
    return ["", "<br />", "Ünseen wörds 火", *texts][:number]


def make_model(folder, **settings):
    torch.manual_seed(0)
    settings = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}, **settings}
    config = RNNSentConfig(vocab_size=len(TOKENIZER), embedding_size=8, hidden_size=6, **settings)
    model = RNNSentForSequenceClassification(config).eval()
    if model.ngrams is not None:
        torch.nn.init.normal_(model.ngrams.scores)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return model


def expected_scores(folder, texts):
    """One text at a time, by the stock pipeline."""
    classify = pipeline("text-classification", model=str(folder), top_k=None)
    names = list(classify.model.config.id2label.values())
    rows = [{answer["label"]: answer["score"] for answer in classify([text])[0]} for text in texts]
    return np.array([[row[name] for name in names] for row in rows])


@pytest.mark.parametrize("exported", [False, True], ids=["torch", "onnx"])
@pytest.mark.parametrize(
    "settings",
    [
        {"classifier_head": "sigmoid"},
        {"bidirectional": True, "pooling": "max_mean"},
        {"bidirectional": True, "pooling": "max_mean", "ngram_order": 3, "ngram_buckets": 64, "temperature": 1.7},
        {"problem_type": "multi_label_classification", "cell_type": "gru", "ngram_order": 2, "ngram_presence": False},
        {"num_labels": 1, "problem_type": "regression", "id2label": {0: "value"}, "label2id": {"value": 0}},
    ],
    ids=["sigmoid", "both directions", "n-grams", "multi-label", "regression"],
)
def test_bulk_gives_what_the_pipeline_gives_in_the_same_order(tmp_path, settings, exported, monkeypatch):
    make_model(tmp_path / "model", **settings)
    texts = make_texts(150)
    expected = expected_scores(tmp_path / "model", texts)
    name = str(tmp_path / "model")
    if exported:
        pytest.importorskip("onnxruntime")
        name = str(tmp_path / "onnx")
        export_model(str(tmp_path / "model"), name)
    monkeypatch.setattr(bulk_module, "CPU_BATCH_TOKENS", 200)  # many batches
    threads = torch.get_num_threads()
    rows = np.stack(list(BulkClassifier(load_scorer(name), num_threads=2)(iter(texts))))
    np.testing.assert_allclose(rows.reshape(expected.shape), expected, atol=1e-5)
    assert torch.get_num_threads() == threads


def test_torch_keeps_its_threads_between_answers(tmp_path):
    make_model(tmp_path)
    texts = [["a good film"] * 10] * 3
    classify = BulkClassifier(load_scorer(str(tmp_path)), num_threads=2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, second = classify.windows(iter(texts)), classify.windows(iter(texts))
        for answers in (first, second, first, second):  # each begins, and goes on, while the other is under way
            next(answers)
            assert torch.get_num_threads() == 2
        first.close()
        assert len(list(second)) == 1 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_texts_are_taken_as_they_are_needed(tmp_path):
    make_model(tmp_path)
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield "a good film"

    results = BulkClassifier(load_scorer(str(tmp_path)))(endless())
    next(results)
    assert taken <= 3 * bulk_module.WINDOW_SIZE
    results.close()
    with pytest.raises(ValueError, match=r"row 2: a text must be a string, got NoneType None"):
        list(BulkClassifier(load_scorer(str(tmp_path)))(["a", None]))


@pytest.mark.parametrize("pooling", ["last", "max_mean", "attention"])
def test_long_text_is_read_in_pieces(tmp_path, pooling, monkeypatch):
    model = make_model(tmp_path, pooling=pooling, cell_type="gru")
    row = np.random.default_rng(0).integers(2, len(TOKENIZER), 1000)
    scorer = TorchScorer(model, TOKENIZER)
    whole = scorer([row, row[:10]])
    monkeypatch.setattr("modeling_rnnsent.scoring.PIECE_TOKENS", 64)
    sizes = []
    model.rnnsent.recurrence.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape[1]))
    np.testing.assert_allclose(scorer([row, row[:10], row[:0]])[:2], whole, atol=1e-5)
    assert max(sizes) == 64


FEW_TEXTS, MANY_TEXTS = {"_ARROW_FROM": 1 << 18}, {"_ARROW_FROM": 0}
MANY_TEXTS_IN_CHUNKS = MANY_TEXTS | {"_CHUNK_CHARACTERS": 20}


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(st.characters(codec="ascii"), max_size=60),
            st.text(st.sampled_from("aAdp_9:;=-()<>/! .\n\t\x0b\x1c\x00'"), max_size=40),
            st.text(max_size=30),
            st.sampled_from(["<unk> <pad>", "a <br/> b", ":-) ;d =P a:del", "<unk", "x<pad>y"]),
        ),
        max_size=5,
    )
)
def test_fast_encoding_is_the_tokenizers_own(texts):
    for tokenizer, encode in zip(TOKENIZERS, ENCODERS):
        expected = tokenizer(texts)["input_ids"] if texts else []
        for ways in FEW_TEXTS, MANY_TEXTS, MANY_TEXTS_IN_CHUNKS:
            with patch.multiple(encoding, **ways):
                assert [row.tolist() for row in encode(texts)] == [list(row) for row in expected]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(["good", "FILM", "a", "<br />", "<a", "b>", ":-)", "x\n", "dull,"])
        | st.sampled_from(
            ["Ünder", "ΟΔΟΣ", "οδοσ.", "İ", "STRASSE", "Straße", "…", "\xa0", "\u3000good", "<é", "é>", "é:-D"]
        )
        | st.text(max_size=3),
        max_size=60,
    )
)
def test_fast_encoding_of_text_that_is_ascii_in_most_places(pieces):
    text = " ".join(pieces)
    for tokenizer, encode in zip(MIXED_TOKENIZERS, MIXED_ENCODERS):
        for ways in FEW_TEXTS, MANY_TEXTS:
            with patch.multiple(encoding, **ways):
                assert encode([text])[0].tolist() == tokenizer(text)["input_ids"]


def test_fast_encoding_of_many_texts():
    texts = [f"{text} {number} :-) <br /> d\u00e9j\u00e0 vu." for number, text in enumerate(make_texts(3000))]
    assert sum(map(len, texts)) > encoding._ARROW_FROM
    for tokenizer in TOKENIZER, PUNCTUATION_TOKENIZER:
        assert WordEncoder(tokenizer).is_ours
        assert [row.tolist() for row in WordEncoder(tokenizer)(texts)] == tokenizer(texts)["input_ids"]


def test_fast_encoding_leaves_other_tokenizers_alone():
    other = build_tokenizer([" ".join(WORDS)])
    other.add_special_tokens({"cls_token": "[CLS]"})
    texts = ["a good [CLS] film", "Great :)"]
    assert [row.tolist() for row in WordEncoder(other)(texts)] == other(texts)["input_ids"]


def rnnsent(*arguments, launcher=()):
    if not launcher:
        return run(RNNSENT, *arguments, check=False)
    return run(sys.executable, *launcher, "-m", "modeling_rnnsent.cli", *arguments, check=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A trained directory and a CSV file of several windows, with what the pipeline says of each row."""
    folder = tmp_path_factory.mktemp("corpus")
    make_model(folder / "model", bidirectional=True)
    texts = make_texts(300, seed=1) * 40
    with open(folder / "texts.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "review"])
        table.writerows([index, text or " "] for index, text in enumerate(texts))
    scores = expected_scores(folder / "model", texts[:300])
    return folder, np.tile(scores, (40, 1))


def check_rows(path, scores, atol=1e-5):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["label"] for row in rows] == [("neg", "pos")[best] for best in scores.argmax(1)]
    np.testing.assert_allclose([row["score"] for row in rows], scores.max(1), atol=atol)


@contextmanager
def started(part, *command, launcher=()):
    """A run that has begun to write `part`; it is killed in the end, if it still runs."""
    if launcher or "HF_ENDPOINT" in os.environ:  # which is read when a library is imported
        command = [sys.executable, *launcher, "-m", "modeling_rnnsent.cli", *map(str, command)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    else:
        process = Prepared([RNNSENT, *map(str, command)], ROOT)
    try:
        limit = time.monotonic() + 120
        while time.monotonic() < limit and not (part.exists() and part.read_text().count("\n") >= 1):
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True) if launcher else ():
                child.kill()
            process.kill()
            process.communicate()


def leave_one_window(part, *command, launcher=()):
    """What a killed run leaves: the header, a window (of answers that no model gives), and a line that was cut."""
    with started(part, *command, launcher=launcher):
        pass
    header = part.read_text().split("\n")[0]
    part.write_text(header + "\n" + json.dumps([[1, 0.75]] * bulk_module.WINDOW_SIZE) + "\n" + "[[0, 0.")


@pytest.mark.parametrize("launcher", [(), ("-m", "torch.distributed.run", "--nproc_per_node", "2")], ids=["one", "two"])
def test_file_is_classified_in_order_and_taken_up_where_it_was_stopped(corpus, tmp_path, launcher):
    folder, scores = corpus
    output = tmp_path / "labels.jsonl"
    command = ["predict", folder / "model", "--input", folder / "texts.csv", "--output", output]
    command += ["--text_column_name", "review", "--num_threads", 1]
    number = 2 if launcher else 1
    done = rnnsent(*command, launcher=launcher)
    assert done.returncode == 0, done.stderr
    check_rows(output, scores)
    assert "12,000 texts classified" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["labels.jsonl"]
    again = rnnsent(*command)
    assert (
        again.returncode == 1
        and again.stderr == f"error: --output '{output}' exists: add --overwrite to replace it, or name another.\n"
    )

    # The window's own results are kept, as the wrong ones written here show.
    leave_one_window(tmp_path / f"labels.jsonl.part-0-of-{number}", *command, "--overwrite", launcher=launcher)
    resumed = rnnsent(*command, "--overwrite", launcher=launcher)
    assert resumed.returncode == 0, resumed.stderr
    scores = scores.copy()
    scores[: bulk_module.WINDOW_SIZE] = (0.25, 0.75)
    check_rows(output, scores)


def test_a_parquet_file_among_others_that_lacks_the_column_is_said(corpus, tmp_path):
    folder, _ = corpus
    for number, column in enumerate(("text", "review")):
        (tmp_path / "data").mkdir(exist_ok=True)
        pandas.DataFrame({column: ["a good film"] * 5}).to_parquet(tmp_path / "data" / f"test-{number}.parquet")
    done = rnnsent("predict", folder / "model", "--input", tmp_path / "data", "--output", tmp_path / "labels.jsonl")
    assert done.returncode == 1 and "has no column 'text'" in done.stderr and "['review']" in done.stderr


def test_windows_of_long_texts_are_smaller():
    texts = ["a good film"] * 5 + ["b" * bulk_module.WINDOW_CHARACTERS] + ["very dull"] * (bulk_module.WINDOW_SIZE + 1)
    windows = list(bulk_module.in_windows(texts))
    assert [len(window) for window in windows] == [6, bulk_module.WINDOW_SIZE, 1] and sum(windows, []) == texts


def test_a_small_value_keeps_its_digits(tmp_path):
    model = make_model(tmp_path, num_labels=1, problem_type="regression", id2label={0: "value"}, label2id={"value": 0})
    torch.nn.init.zeros_(model.classifier.out_proj.weight)
    torch.nn.init.constant_(model.classifier.out_proj.bias, 3.2e-7)
    model.save_pretrained(tmp_path)
    (tmp_path / "texts.txt").write_text("a good film\n")
    assert rnnsent("predict", tmp_path, "a good film").stdout == "value\t3.2e-07\ta good film\n"
    done = rnnsent("predict", tmp_path, "--input", tmp_path / "texts.txt", "--output", tmp_path / "values.jsonl")
    assert done.returncode == 0 and json.loads((tmp_path / "values.jsonl").read_text()) == {
        "label": "value",
        "score": 3.2e-7,
    }


def test_two_runs_do_not_write_one_output(corpus, tmp_path):
    folder, scores = corpus
    output = tmp_path / "labels.jsonl"
    command = ["predict", folder / "model", "--input", folder / "texts.csv", "--output", output]
    command += ["--text_column_name", "review", "--num_threads", 1]
    with started(tmp_path / "labels.jsonl.part-0-of-1", *command) as process:
        process.send_signal(signal.SIGSTOP)
        second = rnnsent(*command)
        process.send_signal(signal.SIGCONT)
        assert second.returncode == 1 and f"another run is writing --output '{output}'" in second.stderr
        process.communicate(TIMEOUT)
        assert process.returncode == 0
    check_rows(output, scores)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.jsonl"]


@pytest.mark.parametrize("changed", ["texts of a folder", "temperature", "precision", "nothing"])
def test_results_are_taken_up_unless_something_has_changed(corpus, tmp_path, changed):
    folder, _ = corpus
    model, data = tmp_path / "model", tmp_path / "data"
    output = data / "labels[1].jsonl"
    shutil.copytree(folder / "model", model)
    data.mkdir()
    texts = make_texts(40, seed=2)[3:] * 200
    pandas.DataFrame({"text": texts}).to_csv(data / "test.csv", index=False)
    command = ["predict", model, "--input", data, "--output", output, "--num_threads", 1]
    leave_one_window(data / "labels[1].jsonl.part-0-of-1", *command)
    if changed == "nothing":  # the output stands among the input's files
        assert rnnsent(*command).returncode == 0
        taken_up = np.tile(expected_scores(model, texts[:37]), (200, 1))
        taken_up[: bulk_module.WINDOW_SIZE] = (0.25, 0.75)
        return check_rows(output, taken_up)
    if changed == "temperature":
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "temperature": 2.0}))
    elif changed == "precision":
        command.append("--bf16")
    else:
        texts = [*texts[::-1], texts[-1]]
        pandas.DataFrame({"text": texts}).to_csv(data / "test.csv", index=False)
    refused = rnnsent(*command)
    assert refused.returncode == 1 and "holds results of another input, model or precision" in refused.stderr
    assert rnnsent(*command, "--overwrite").returncode == 0
    expected = np.tile(expected_scores(model, texts[:37]), (201, 1))[: len(texts)]
    check_rows(output, expected, atol=0.01 if changed == "precision" else 1e-5)


def test_file_errors_are_one_line(corpus, tmp_path):
    folder, _ = corpus
    (tmp_path / "holes.jsonl").write_text('{"text": ["a"]}\n{"text": ["b"]}\n')
    output = tmp_path / "out.csv"

    def fails(*flags):
        result = rnnsent("predict", folder / "model", *flags)
        *_, last = result.stderr.splitlines()
        assert result.returncode == 1 and last.startswith("error: ") and "Traceback" not in result.stderr
        return last

    given = ("--input", folder / "texts.csv", "--output")
    assert "has no column 'text' (text_column_name), only ['id', 'review']" in fails(*given, output)
    assert "the name must end in .jsonl or .csv" in fails(*given, tmp_path / "out.txt")
    assert "there is no directory" in fails(*given, tmp_path / "none" / "out.csv")
    assert "there is no such file" in fails("--input", tmp_path / "none.csv", "--output", output)
    assert "row 1: 'text' holds ['a'], which is no text" in fails(
        "--input", tmp_path / "holes.jsonl", "--output", output
    )
    assert "--input goes with --output" in fails("--input", folder / "texts.csv")
    assert "--output goes with --input" in fails("a text", "--output", output)
    assert "--split goes with --input" in fails("a text", "--split", "train")
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    same = ("--input", tmp_path / "texts.jsonl", "--output", tmp_path / "texts.jsonl", "--overwrite")
    assert "is the input, whose texts would be lost" in fails(*same)
    assert (tmp_path / "texts.jsonl").read_text() == '{"text": "a"}\n'


def test_results_for_another_number_of_processes_are_kept_unless_overwritten(corpus, tmp_path):
    folder, _ = corpus
    (tmp_path / "texts.txt").write_text("a good film\n")
    part = tmp_path / "labels.jsonl.part-0-of-2"
    part.write_text("{}\n[[0, 0.5]]\n")
    command = ("predict", folder / "model", "--input", tmp_path / "texts.txt", "--output", tmp_path / "labels.jsonl")
    refused = rnnsent(*command)
    assert refused.returncode == 1 and f"{part} holds results of a run with another number of" in refused.stderr
    assert rnnsent(*command, "--overwrite").returncode == 0 and not part.exists()
    check_rows(tmp_path / "labels.jsonl", expected_scores(folder / "model", ["a good film"]))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_a_missing_text_is_one_without_words(suffix, corpus, tmp_path):
    folder, _ = corpus
    path, frame = tmp_path / f"texts{suffix}", pandas.DataFrame({"id": [1, 2, 3]})
    frame["text"] = ["a good film", None, "very dull"]
    write(frame, path)
    command = ("predict", folder / "model", "--input", path, "--output", tmp_path / "labels.jsonl")
    assert "3 texts classified" in rnnsent(*command).stdout
    expected = expected_scores(folder / "model", ["a good film", "", "very dull"])
    check_rows(tmp_path / "labels.jsonl", expected)


def test_a_failed_run_without_results_does_not_bar_the_next(corpus, tmp_path):
    folder, _ = corpus
    path, output = tmp_path / "texts.jsonl", tmp_path / "labels.jsonl"
    path.write_text('{"text": "a"}\n' * 2000 + '{"text": ["a"]}\n')
    command = ("predict", folder / "model", "--input", path, "--output", output)
    assert rnnsent(*command).returncode == 1
    path.write_text('{"text": "a"}\n{"text": "a good film"}\n')
    result = rnnsent(*command)
    assert result.returncode == 0 and "2 texts classified" in result.stdout, result.stderr
    check_rows(output, expected_scores(folder / "model", ["a", "a good film"]))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_what_is_written_of_every_kind_of_label(problem_type, suffix, tmp_path):
    names = ["value"] if problem_type == "regression" else ["fun", "sad", "label"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    model = make_model(tmp_path / "model", problem_type=problem_type, **labels)
    texts, output = ["a good film", "very dull"], tmp_path / f"out{suffix}"
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    done = rnnsent("predict", tmp_path / "model", "--input", tmp_path / "texts.txt", "--output", output)
    assert done.returncode == 0, done.stderr
    with open(output, newline="") as file:
        rows = list(csv.DictReader(file) if suffix == ".csv" else map(json.loads, file))
    logits = torch.cat([model(torch.tensor([TOKENIZER(text)["input_ids"]])).logits for text in texts]).detach()
    if problem_type == "multi_label_classification":
        found = [row if suffix == ".csv" else row.pop("labels") for row in rows]
        assert all(list(row) == names for row in found) and (suffix == ".csv" or rows == [{}, {}])
        scores, expected = [[float(row[name]) for name in names] for row in found], logits.sigmoid()
    else:
        assert all(list(row) == ["label", "score"] for row in rows)
        expected, best = (logits if problem_type == "regression" else logits.softmax(dim=1)).max(dim=1)
        assert [row["label"] for row in rows] == [names[index] for index in best]
        scores = [float(row["score"]) for row in rows]
    np.testing.assert_allclose(scores, expected, atol=2e-6)


@pytest.mark.parametrize(
    "cell_type, bidirectional, pooling, ngram_order",
    [
        ("lstm", False, "max_mean", 0),
        ("lstm", True, "last", 3),
        ("gru", False, "last", 0),
        ("gru", True, "max_mean", 1),
        ("rnn", False, "attention", 0),
        ("rnn", True, "max", 0),
    ],
)
def test_exported_graph_equals_the_model_at_every_shape(tmp_path, cell_type, bidirectional, pooling, ngram_order):
    pytest.importorskip("onnxruntime")
    settings = {"cell_type": cell_type, "bidirectional": bidirectional, "pooling": pooling, "ngram_order": ngram_order}
    model = make_model(tmp_path / "model", num_hidden_layers=2, ngram_buckets=512, **settings)
    result = export_model(str(tmp_path / "model"), str(tmp_path / "onnx"))
    assert result["largest_difference"] < 1e-5
    ours, theirs = TorchScorer(model, TOKENIZER), OnnxScorer(str(tmp_path / "onnx"))
    generator = np.random.default_rng(2)
    for batch, longest in ((1, 1), (1, 2), (1, 900), (2, 1), (3, 11), (33, 70), (8, 400)):
        rows = [generator.integers(0, len(TOKENIZER), length) for length in generator.integers(0, longest + 1, batch)]
        rows[0] = generator.integers(0, len(TOKENIZER), longest)
        np.testing.assert_allclose(theirs(rows), ours(rows), atol=1e-5)


def test_exported_directory_runs_alone_as_the_pipeline_does(tmp_path):
    pytest.importorskip("onnxruntime")
    make_model(tmp_path / "model", classifier_head="sigmoid", cell_type="rnn", nonlinearity="relu")
    done = rnnsent("export", tmp_path / "model", tmp_path / "onnx")
    assert done.returncode == 0 and done.stdout.startswith(f"{tmp_path / 'onnx'}: 0.0 MB, logits within"), done.stderr
    texts = make_texts(20)
    expected = pipeline("text-classification", model=str(tmp_path / "model"))
    exported = exported_pipeline(str(tmp_path / "onnx"))
    for options in ({}, {"top_k": None}, {"batch_size": 4}):
        for ours, theirs in zip(exported(texts, **options), expected(texts, **options)):
            for one, other in zip(*([answers] if isinstance(answers, dict) else answers for answers in (ours, theirs))):
                assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=1e-5)
    shown = rnnsent("predict", tmp_path / "onnx", "a good film")
    assert shown.returncode == 0 and shown.stderr == "", shown.stderr
    again = rnnsent("export", tmp_path / "model", tmp_path / "onnx")
    assert again.returncode == 1 and "is not empty: name another" in again.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_half_precision_are_exported_in_full(tmp_path, dtype):
    pytest.importorskip("onnxruntime")
    make_model(tmp_path / "model").to(dtype).save_pretrained(tmp_path / "model")
    assert export_model(str(tmp_path / "model"), str(tmp_path / "onnx"))["largest_difference"] < 1e-5
    whole = RNNSentForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float32)
    rows = [np.array([3, 4, 5]), np.array([6])]
    ours = TorchScorer(whole, TOKENIZER)(rows)
    np.testing.assert_allclose(OnnxScorer(str(tmp_path / "onnx"))(rows), ours, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_hidden_layers": 2, "bidirectional": True, "pooling": "max_mean"},
        {"pooling": "mean"},
        {"cell_type": "gru", "pooling": "attention"},
        {"num_labels": 1, "problem_type": "regression", "id2label": {0: "value"}, "label2id": {"value": 0}},
    ],
    ids=["both directions", "mean", "gru", "regression"],
)
def test_bfloat16_answers_are_close(tmp_path, settings, monkeypatch):
    """To those of the same model in float32, and the very same where the CPU does not multiply in bfloat16."""
    make_model(tmp_path, **settings)
    texts = make_texts(100)
    whole, half = (
        np.stack(list(BulkClassifier(load_scorer(str(tmp_path), bf16=bf16))(texts))) for bf16 in (False, True)
    )
    np.testing.assert_allclose(half, whole, atol=0.01)
    assert np.array_equal(half, whole) != torch.cpu._is_avx512_bf16_supported()
    monkeypatch.setattr("modeling_rnnsent.scoring.PIECE_TOKENS", 16)  # with the state carried, if there is one
    np.testing.assert_allclose(
        np.stack(list(BulkClassifier(load_scorer(str(tmp_path), bf16=True))(texts))), whole, atol=0.01
    )


def test_large_values_are_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    one = {"id2label": {0: "value"}, "label2id": {"value": 0}, "problem_type": "regression"}
    model = make_model(tmp_path / "model", **one)
    with torch.no_grad():
        model.classifier.out_proj.weight.mul_(1e5)
        model.classifier.out_proj.bias.fill_(250_000)
    model.save_pretrained(tmp_path / "model")
    export_model(str(tmp_path / "model"), str(tmp_path / "onnx"))
    texts = make_texts(20)
    answers = exported_pipeline(str(tmp_path / "onnx"))(texts, function_to_apply="none")
    values = pipeline("text-classification", model=str(tmp_path / "model"))(texts, function_to_apply="none")
    assert [answer["score"] for answer in answers] == pytest.approx([value["score"] for value in values], rel=1e-5)


def test_int8_export_is_close(tmp_path):
    pytest.importorskip("onnxruntime")
    make_model(tmp_path / "model")
    whole = export_model(str(tmp_path / "model"), str(tmp_path / "onnx"))
    small = export_model(str(tmp_path / "model"), str(tmp_path / "int8"), quantize=True)
    assert 1e-6 < small["largest_difference"] < 0.1 and whole["largest_difference"] < 1e-5


def test_int8_is_smaller(tmp_path):
    pytest.importorskip("onnxruntime")
    config = RNNSentConfig(vocab_size=len(TOKENIZER), embedding_size=64, hidden_size=256)
    RNNSentForSequenceClassification(config).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    sizes = []
    for flags in ((), ("--int8",)):
        result = rnnsent("export", tmp_path / "model", tmp_path / f"onnx{len(sizes)}", "--json", *flags)
        files = [path.stat().st_size for path in (tmp_path / f"onnx{len(sizes)}").glob("*.onnx*")]
        sizes.append(json.loads(result.stdout)["megabytes"])
        assert sizes[-1] == pytest.approx(sum(files) / 1e6, rel=0.05)
    assert sizes[1] < 0.4 * sizes[0]


def test_what_cannot_be_exported_is_refused_with_the_reason(tmp_path):
    make_model(tmp_path / "model", cell_type="rnn", recurrence="output")
    with pytest.raises(ValueError, match='recurrence="output", which cannot be exported: ONNX has no layer'):
        export_model(str(tmp_path / "model"), str(tmp_path / "onnx"))
    assert not (tmp_path / "onnx").exists()
