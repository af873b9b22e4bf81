"""Embeddings that start from word vectors: of a file, against gensim's own reading, and trained on the texts."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, train
from gensim.models import KeyedVectors
from safetensors.torch import load_file
from test_training import fails
from torch.nn.functional import normalize
from transformers import AutoTokenizer

from modeling_rnnsent import RNNSentConfig, RNNSentForSequenceClassification
from modeling_rnnsent.errors import InputError
from modeling_rnnsent.tokenization import build_tokenizer
from modeling_rnnsent.vectors import check_vectors, set_vectors

WORDS = ["film", "great", "dull", "elsewhere"]


@pytest.fixture
def vectors():
    found = KeyedVectors(4)
    found.add_vectors(WORDS, np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32))
    return found


@pytest.fixture
def tokenizer():
    return build_tokenizer(["a great film", "a dull film", "a story"])


def make_model(tokenizer, **settings):
    torch.manual_seed(0)
    config = RNNSentConfig(vocab_size=len(tokenizer), hidden_size=3, **{"embedding_size": 4, **settings})
    return RNNSentForSequenceClassification(config)


@pytest.mark.parametrize("file", ["v.txt", "v.vec.gz", "v.bin", "glove.txt"])
def test_words_get_the_vectors_of_a_file(file, vectors, tokenizer, tmp_path):
    path = str(tmp_path / file)
    vectors.save_word2vec_format(path, binary=file == "v.bin", write_header=file != "glove.txt")
    model = make_model(tokenizer, initializer_range=0.1)
    before = model.get_input_embeddings().weight.detach().clone()
    assert set_vectors(model, path, tokenizer, []) == pytest.approx(3 / 5)
    after = model.get_input_embeddings().weight.detach()
    ids = tokenizer.convert_tokens_to_ids(WORDS[:3])
    expected = torch.from_numpy(vectors[WORDS[:3]])
    torch.testing.assert_close(after[ids], 0.1 * expected / expected.square().mean().sqrt(), rtol=1e-4, atol=1e-6)
    others = [index for index in range(len(tokenizer)) if index not in ids]
    assert torch.equal(after[others], before[others]) and not after[tokenizer.pad_token_id].any()


def test_trained_vectors_know_words_by_their_company():
    # Two topics of a hundred words each: what stands in the same texts is alike.
    generator, topics = random.Random(0), [[f"{topic}{index}" for index in range(100)] for topic in "ab"]
    texts = [" ".join(generator.choices(topics[index % 2], k=20)) for index in range(3000)]
    tokenizer = build_tokenizer(texts)
    model, again, other = (make_model(tokenizer, embedding_size=16) for _ in range(3))
    assert set_vectors(model, "word2vec", tokenizer, texts, seed=1) == 1.0
    set_vectors(again, "word2vec", tokenizer, texts, seed=1)
    set_vectors(other, "word2vec", tokenizer, texts, seed=2)
    weights = [part.get_input_embeddings().weight.detach() for part in (model, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    rows = [normalize(weights[0][tokenizer.convert_tokens_to_ids(topic)]) for topic in topics]
    alike, apart = (rows[0] @ rows[0].T).mean(), (rows[0] @ rows[1].T).mean()
    assert alike > apart + 0.3


def test_words_far_on_in_a_text_are_trained_on():
    """gensim itself leaves out what is beyond 10,000 words."""
    generator, topics = random.Random(0), [[f"{topic}{index}" for index in range(100)] for topic in "ab"]
    first = [f"word{index}" for index in range(2000)]  # so many that none is left out as a frequent one
    parts = [(generator.choices(first, k=10_000), generator.choices(topics[index % 2], k=9_000)) for index in range(6)]
    texts = [" ".join(part + rest) for part, rest in parts]
    tokenizer = build_tokenizer(texts)
    model = make_model(tokenizer, embedding_size=16)
    set_vectors(model, "word2vec", tokenizer, texts, seed=1)
    weight = model.get_input_embeddings().weight.detach()
    rows = [normalize(weight[tokenizer.convert_tokens_to_ids(topic)]) for topic in topics]
    assert (rows[0] @ rows[0].T).mean() > (rows[0] @ rows[1].T).mean() + 0.3


def test_what_cannot_be_used_is_said(vectors, tokenizer, tmp_path):
    path = str(tmp_path / "v.txt")
    vectors.save_word2vec_format(path)
    with pytest.raises(InputError, match="4 elements, embedding_size is 5"):
        set_vectors(make_model(tokenizer, embedding_size=5), path, tokenizer, [])
    with pytest.raises(InputError, match="none of the"):
        set_vectors(make_model(build_tokenizer(["x y"])), path, build_tokenizer(["x y"]), [])
    with pytest.raises(InputError, match="needs an embedding"):
        set_vectors(make_model(tokenizer, input_encoding="one_hot"), path, tokenizer, [])
    with pytest.raises(InputError, match="no such file"):
        set_vectors(make_model(tokenizer), str(tmp_path / "other.vec"), tokenizer, [])
    pickled = tmp_path / "v.kv"
    vectors.save(str(pickled))
    with pytest.raises(InputError, match="name ends in .txt"):
        set_vectors(make_model(tokenizer), str(pickled), tokenizer, [])
    (tmp_path / "broken.bin").write_bytes(b"4 4\nfilm \x00")
    with pytest.raises(InputError, match="not readable"):
        set_vectors(make_model(tokenizer), str(tmp_path / "broken.bin"), tokenizer, [])
    lines = Path(path).read_text().splitlines()
    for name, content, said in (
        ("cut.txt", "\n".join(lines[:-1]), "3 words where its first line says 4"),
        ("short.txt", "\n".join([*lines[:-1], "elsewhere 1 2"]), "line 5 has 2 elements, not 4"),
        ("letters.txt", "film a b c d\n", "could not convert string to float: 'a'"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=f"{name}' is not readable: {said}"):
            set_vectors(make_model(tokenizer), str(tmp_path / name), tokenizer, [])


def test_text_files_need_no_gensim_and_may_hold_words_with_spaces(monkeypatch, tokenizer, tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text(", 9 9 9 9\n. . film 1 1 1 1\nfilm 1 2 3 4\nfilm 5 5 5 5\n\x85 1 1 1 1\n")
    monkeypatch.setitem(sys.modules, "gensim", None)
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    model = make_model(tokenizer, initializer_range=1.0)
    assert set_vectors(model, str(path), tokenizer, []) == pytest.approx(1 / 5)
    row = model.get_input_embeddings().weight.detach()[tokenizer.convert_tokens_to_ids("film")]
    torch.testing.assert_close(row, torch.tensor([1.0, 2, 3, 4]) / 7.5**0.5)


def test_run_starts_from_vectors(reviews, vectors, tmp_path):
    path = tmp_path / "v.txt"
    vectors.save_word2vec_format(str(path))
    files = [f"--{name}_file={reviews / name}.csv" for name in ("train", "validation")]
    flags = [*SMALL, "--embedding_size=4", *files, f"--word_vectors={path}", "--num_train_epochs=1"]
    # With no step to speak of, the saved embedding is the one that the run started from.
    result = train(*flags, "--learning_rate=1e-12", "--initializer_range=0.5", f"--output_dir={tmp_path / 'run'}")
    assert "of the vocabulary start from word vectors" in result.stdout
    weight = load_file(tmp_path / "run" / "model.safetensors")["rnnsent.embeddings.weight"]
    assert f"word_vectors: {path}" in (tmp_path / "run" / "recipe.yaml").read_text()
    ids = AutoTokenizer.from_pretrained(tmp_path / "run").convert_tokens_to_ids(WORDS[:3])
    expected = torch.from_numpy(vectors[WORDS[:3]])
    torch.testing.assert_close(weight[ids], 0.5 * expected / expected.square().mean().sqrt(), rtol=1e-4, atol=1e-6)
    line = fails(*flags, f"--model_name_or_path={tmp_path / 'run'}", f"--output_dir={tmp_path / 'other'}")
    assert "give one of them" in line


def test_vectors_that_cannot_be_had_are_said_before_the_texts_are_read(monkeypatch, reviews, tmp_path):
    (tmp_path / "faulty.csv").write_text("neither,nor\n1,2\n")
    flags = [*SMALL, f"--train_file={tmp_path / 'faulty.csv'}", f"--output_dir={tmp_path / 'run'}"]
    assert "column" in fails(*flags)
    assert "no such file" in fails(*flags, f"--word_vectors={tmp_path / 'missing.vec'}")
    assert not (tmp_path / "run").exists()
    monkeypatch.setitem(sys.modules, "gensim", None)
    with pytest.raises(InputError, match="pip install gensim"):
        check_vectors("word2vec")


def test_run_goes_on_when_its_vectors_are_gone(reviews, vectors, tmp_path):
    path, output = tmp_path / "v.txt", tmp_path / "run"
    vectors.save_word2vec_format(str(path))
    flags = [*SMALL, "--embedding_size=4", f"--train_file={reviews / 'train.csv'}", f"--word_vectors={path}"]
    flags += ["--max_steps=4", "--save_strategy=steps", "--save_steps=2", f"--output_dir={output}"]
    train(*flags)
    whole = load_file(output / "model.safetensors")
    path.unlink()
    (output / "train_results.json").unlink()  # as where the run was stopped before its end
    train(*flags, f"--resume_from_checkpoint={output / 'checkpoint-2'}")
    again = load_file(output / "model.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
