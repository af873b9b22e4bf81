"""The terms beside the labelled loss, against their formulas, and runs that use them."""

import json

import numpy as np
import pytest
import torch
import yaml
from conftest import SMALL, make_reviews, train
from datasets import Dataset
from test_models import make, make_batch
from test_training import fails
from torch import nn

from modeling_rnnsent import RNNSentForSequenceClassification
from modeling_rnnsent.arguments import RNNSentTrainingArguments
from modeling_rnnsent.bulk import BulkClassifier
from modeling_rnnsent.errors import InputError
from modeling_rnnsent.objectives import Objectives, perturbation, unlabeled_batches, watched
from modeling_rnnsent.padding import PaddingCollator
from modeling_rnnsent.scoring import load_scorer
from modeling_rnnsent.training import RNNSentTrainer


def make_objectives(model, tmp_path, **settings):
    return Objectives(RNNSentTrainingArguments(output_dir=str(tmp_path), **settings), model)


def make_trained(**settings):
    settings = {"pooling": "max_mean", "bidirectional": True, "initializer_range": 0.5, **settings}
    model = make(RNNSentForSequenceClassification, **settings).train()
    with torch.no_grad():  # as a language model leaves it whose output layer shares it
        model.rnnsent.embeddings.weight[model.config.pad_token_id] = 5
    return model


def logits_at(model, batch, embeddings):
    return model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).logits


def size_of_step(model, batch, epsilon):
    """epsilon times the root mean square of the elements of the words' embeddings."""
    embeddings = model.rnnsent.embeddings(batch["input_ids"])[batch["attention_mask"].bool()]
    return epsilon * embeddings.square().mean().sqrt()


def test_adversarial_loss_is_at_the_steepest_step(tmp_path):
    model = make_trained()
    batch = {**make_batch([6, 3, 5]), "labels": torch.tensor([0, 1, 1])}
    objectives = make_objectives(model, tmp_path, adversarial_weight=0.5, adversarial_epsilon=2.0)
    with watched(objectives.embedding) as outputs:
        clean = model(**batch).loss
        clean.backward()
    (term,) = objectives.terms(model, lambda: model(**batch).loss, batch["attention_mask"], outputs[0], None)
    embeddings = model.rnnsent.embeddings(batch["input_ids"]).detach().requires_grad_()
    loss = nn.functional.cross_entropy(logits_at(model, batch, embeddings), batch["labels"])
    (gradient,) = torch.autograd.grad(loss, embeddings)
    steps = size_of_step(model, batch, 2.0) * gradient / gradient.norm(dim=(1, 2), keepdim=True)
    expected = nn.functional.cross_entropy(logits_at(model, batch, embeddings + steps), batch["labels"])
    torch.testing.assert_close(term, 0.5 * expected)
    assert expected > clean and not steps[1, 3:].any()
    model.zero_grad()
    term.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.testing.assert_close(model(**batch).loss, clean)  # nothing is left hooked


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_virtual_adversarial_term_is_what_a_text_is_most_sensitive_to(problem_type, tmp_path):
    settings = {"problem_type": problem_type, "num_labels": 1 if problem_type == "regression" else 3}
    model = make_trained(**settings)
    batch = make_batch([6, 3, 5])
    objectives = make_objectives(model, tmp_path, virtual_adversarial_weight=1.0, adversarial_epsilon=0.5)
    (term,) = objectives.terms(model, None, None, None, batch)

    def change(steps):
        before = logits_at(model, batch, embeddings).detach()
        after = logits_at(model, batch, embeddings + steps)
        if problem_type == "regression":
            return (after - before).square().mean()
        kind = torch.distributions.Categorical if settings["num_labels"] == 3 else None
        if problem_type == "multi_label_classification":
            kind = torch.distributions.Bernoulli
        divergence = torch.distributions.kl_divergence(kind(logits=before), kind(logits=after))
        return divergence.mean() if divergence.dim() == 2 else divergence.sum() / len(before)  # as the labelled loss

    embeddings = model.rnnsent.embeddings(batch["input_ids"]).detach()
    random = torch.randn(100, *embeddings.shape) * batch["attention_mask"].unsqueeze(-1)
    length = size_of_step(model, batch, 0.5)
    others = [change(length * step / step.norm(dim=(1, 2), keepdim=True)).item() for step in random]
    assert max(others) < term.item() and term.item() > 2 * np.mean(others)
    gradients = torch.autograd.grad(term, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    assert sum(float(gradient.abs().sum()) for gradient in gradients if gradient is not None) > 0


def test_scaled_gradients_lead_the_same_way(tmp_path):
    model, batch = make_trained(), {**make_batch([6, 3, 5]), "labels": torch.tensor([0, 1, 1])}
    weights = {"adversarial_weight": 1.0, "virtual_adversarial_weight": 1.0, "entropy_weight": 1.0}
    objectives, found = make_objectives(model, tmp_path, **weights), []
    for scaler in (None, torch.amp.GradScaler("cpu")):
        torch.manual_seed(0)
        with watched(objectives.embedding) as outputs:
            loss = model(**batch).loss
            (loss if scaler is None else scaler.scale(loss)).backward()
        mask, again = batch["attention_mask"], lambda: model(**batch).loss
        terms = objectives.terms(model, again, mask, outputs[0], make_batch([4, 7]), scaler)
        found.append(torch.stack([term.detach() for term in terms]))
    assert len(found[0]) == 3
    torch.testing.assert_close(*found)


def test_same_dropout_in_every_pass(tmp_path):
    model = make_trained(embedding_dropout=0.5, classifier_dropout=0.5, word_dropout=0.3)
    objectives = make_objectives(model, tmp_path, virtual_adversarial_weight=1.0, adversarial_epsilon=1e-6)
    batch = make_batch([6, 3, 5])
    assert not torch.allclose(model(**batch).logits, model(**batch).logits)
    (term,) = objectives.terms(model, None, None, None, batch)
    assert abs(float(term.detach())) < 1e-6


@pytest.mark.parametrize("accumulation", [1, 3])
def test_adversarial_pass_is_the_labelled_one_again_but_for_the_step(accumulation, tmp_path):
    """Without a step to speak of the term is the labelled loss: the update is that of twice the learning rate."""
    rows = make_batch([6, 3, 5, 4, 7])
    rows = {"input_ids": [row[row > 0].tolist() for row in rows["input_ids"]], "labels": [0, 1, 1, 0, 1]}

    def weights_after(rate, **settings):
        arguments = RNNSentTrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=2 if accumulation > 1 else 5,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            learning_rate=rate,
            lr_scheduler_type="constant",
            max_grad_norm=0,
            label_smoothing_factor=0.1,
            train_sampling_strategy="sequential",
            report_to="none",
            **settings,
        )
        model = make_trained(embedding_dropout=0.5, classifier_dropout=0.5, word_dropout=0.3)
        collator = PaddingCollator(model.config.pad_token_id)
        trainer = RNNSentTrainer(model, arguments, train_dataset=Dataset.from_dict(rows), data_collator=collator)
        torch.manual_seed(0)
        trainer.train()
        return model.state_dict()

    without = weights_after(0.2)
    found = weights_after(0.1, adversarial_weight=1.0, adversarial_epsilon=1e-5)
    torch.testing.assert_close(found, without, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(without["classifier.out_proj.weight"], make_trained().classifier.out_proj.weight)


def test_a_step_is_as_long_where_gradients_are_tiny():
    embeddings, mask = torch.randn(2, 3, 4), torch.ones(2, 3)
    direction = torch.randn(2, 3, 4)
    expected = perturbation(direction, embeddings, mask, 2.0)
    torch.testing.assert_close(perturbation(direction * 1e-30, embeddings, mask, 2.0), expected)
    assert not perturbation(torch.zeros(2, 3, 4), embeddings, mask, 2.0).any()


def test_entropy_and_distillation_by_their_formulas(tmp_path):
    model = make_trained()
    batch = make_batch([6, 3])
    teacher = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    probabilities = model(**batch).logits.softmax(-1)
    settings = {"entropy_weight": 0.5, "teacher_name_or_path": ["somebody"], "distillation_weight": 2.0}
    objectives = make_objectives(model, tmp_path, **settings)
    (term,) = objectives.terms(model, None, None, None, {**batch, "labels": teacher})
    entropy = torch.distributions.Categorical(probabilities).entropy().mean()
    torch.testing.assert_close(term, 0.5 * entropy - 2.0 * (teacher * probabilities.log()).sum(-1).mean())


def test_terms_of_several_labels_weigh_as_much_as_their_loss(tmp_path):
    model = make_trained(num_labels=5, problem_type="multi_label_classification")
    batch = make_batch([6, 3])
    teacher = torch.rand(2, 5)
    labelled = model(**batch, labels=teacher).loss
    objectives = make_objectives(model, tmp_path, teacher_name_or_path=["somebody"])
    (term,) = objectives.terms(model, None, None, None, {**batch, "labels": teacher})
    torch.testing.assert_close(term, labelled)
    objectives = make_objectives(model, tmp_path, entropy_weight=1.0)
    (term,) = objectives.terms(model, None, None, None, batch)
    probabilities = model(**batch).logits.sigmoid()
    torch.testing.assert_close(term, torch.distributions.Bernoulli(probabilities).entropy().mean())


def test_a_value_has_no_entropy(tmp_path):
    with pytest.raises(InputError, match="entropy_weight is for classes"):
        make_objectives(make_trained(num_labels=1, problem_type="regression"), tmp_path, entropy_weight=1.0)


def test_several_gpus_of_one_process_are_refused(tmp_path):
    arguments = RNNSentTrainingArguments(output_dir=str(tmp_path), entropy_weight=1.0)
    arguments._n_gpu = 2
    with pytest.raises(InputError, match="a process for every GPU, got 2 GPUs in one: .* --num_processes 2"):
        RNNSentTrainer(make_trained(), arguments, train_dataset=Dataset.from_dict({"input_ids": [[2]], "labels": [0]}))


def test_unlabeled_batches_are_the_same_again_shared_out_and_taken_up():
    rows = [list(range(2, 2 + length)) for length in np.random.default_rng(0).integers(1, 30, 53)]
    dataset = Dataset.from_dict({"input_ids": rows, "length": [len(row) for row in rows]})

    def batches(count, **settings):
        found = unlabeled_batches(dataset, PaddingCollator(0), 8, seed=3, **settings)
        return [next(found)["input_ids"] for _ in range(count)]

    first = batches(14)
    seen = sorted(int((row > 0).sum()) for batch in first[:7] for row in batch)
    assert seen == sorted(map(len, rows))  # every text once a round
    assert any(not torch.equal(one, other) for one, other in zip(first[:7], first[7:]))
    for start, step in ((0, 1), (5, 1), (0, 2), (1, 2)):
        for expected, found in zip(first[start::step], batches(4, start=start, step=step)):
            assert torch.equal(expected, found)


DATA = ("--validation_size=0.2", "--test_size=0.2", "--num_train_epochs=2", *SMALL)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    make_reviews(240).to_csv(folder / "train.csv", index=False)
    (folder / "more.txt").write_text("\n".join(text or "film" for text in make_reviews(300, seed=9)["text"]))
    return folder


@pytest.fixture(scope="module")
def language_model(texts):
    result = train(
        "configuration/pretrain.yaml",
        f"--train_file={texts / 'more.txt'}",
        "--validation_size=0.1",
        "--min_frequency=1",
        "--max_length=20",
        "--sampled_softmax_size=64",
        "--learning_rate=0.01",
        "--warmup_steps=5",
        "--num_train_epochs=4",
        *SMALL,
        f"--output_dir={texts / 'lm'}",
    )
    assert "of the vocabulary start from word vectors" in result.stdout
    return texts / "lm"


@pytest.mark.slow
def test_language_model_learns_and_starts_a_classifier(language_model, texts):
    results = json.loads((language_model / "eval_results.json").read_text())
    assert results["eval_perplexity"] == pytest.approx(np.exp(results["eval_loss"])) and results["eval_perplexity"] < 20
    assert "pipeline_tag: feature-extraction" in (language_model / "README.md").read_text()
    train(
        "configuration/default.yaml",
        f"--model_name_or_path={language_model}",
        f"--train_file={texts / 'train.csv'}",
        f"--unlabeled_file={texts / 'more.txt'}",
        "--adversarial_weight=1",
        "--virtual_adversarial_weight=1",
        "--entropy_weight=1",
        *DATA,
        f"--output_dir={texts / 'mixed'}",
    )
    results = json.loads((texts / "mixed" / "test_results.json").read_text())
    assert results["test_accuracy"] > 0.9
    recipe = yaml.safe_load((texts / "mixed" / "recipe.yaml").read_text())
    assert recipe["virtual_adversarial_weight"] == 1 and 0 <= recipe["ngram_weight"] <= 1
    model = RNNSentForSequenceClassification.from_pretrained(texts / "mixed")
    assert model.config.ngram_weight == recipe["ngram_weight"] and model.ngrams.scores.any()


@pytest.mark.slow
def test_recipes_from_language_models_run_as_they_are(language_model, texts):
    """But for the data and how much of it: `imdb.yaml` teaches `imdb_best.yaml`, with document vectors."""
    start = [f"--model_name_or_path={language_model}", f"--train_file={texts / 'train.csv'}", "--test_size=0.2"]
    start += ["--num_threads=1"]
    unlabeled = f"--unlabeled_file={texts / 'more.txt'}"
    few = ["--max_steps=20", "--eval_steps=5", "--save_steps=5", "--warmup_steps=5"]
    for recipe, flags in (
        ("imdb", []),
        ("imdb_best", [unlabeled, "--teacher_name_or_path", texts / "imdb", "doc2vec"]),
        ("few_labels", [unlabeled, "--max_train_samples=100", *few]),
    ):
        train(f"configuration/{recipe}.yaml", *start, *flags, f"--output_dir={texts / recipe}")
        assert json.loads((texts / recipe / "test_results.json").read_text())["test_accuracy"] > 0.9
        config = RNNSentForSequenceClassification.from_pretrained(texts / recipe).config
        assert config.bidirectional and config.pooling == "max_mean"


@pytest.mark.slow
def test_teacher_is_learned_from_texts_without_labels(language_model, texts):
    train(
        "configuration/default.yaml", f"--train_file={texts / 'train.csv'}", *DATA, f"--output_dir={texts / 'teacher'}"
    )
    train(
        "configuration/default.yaml",
        f"--train_file={texts / 'train.csv'}",
        f"--unlabeled_file={texts / 'more.txt'}",
        f"--teacher_name_or_path={texts / 'teacher'}",
        *DATA,
        "--max_train_samples=16",  # of its own it would not learn much
        "--learning_rate=0.01",
        "--num_train_epochs=100",
        f"--output_dir={texts / 'student'}",
    )
    more = make_reviews(200, seed=11)["text"].tolist()
    answers = [list(BulkClassifier(load_scorer(str(texts / name)))(more)) for name in ("teacher", "student")]
    teacher, student = (np.array(part)[:, 1] > 0.5 for part in answers)
    assert np.mean(teacher == student) > 0.9
    line = fails(
        "configuration/default.yaml",
        f"--train_file={texts / 'train.csv'}",
        f"--teacher_name_or_path={language_model}",
        *DATA,
        f"--output_dir={texts / 'other'}",
    )
    assert "teacher" in line and "no classifier" in line


def test_what_does_not_go_together_is_refused(texts):
    assert "adversarial_epsilon must be" in fails(f"--train_file={texts / 'train.csv'}", "--adversarial_epsilon=0")
    flags = [f"--train_file={texts / 'more.txt'}", "--entropy_weight=1", f"--output_dir={texts / 'refused'}"]
    line = fails("configuration/pretrain.yaml", *flags, *SMALL)
    assert "entropy_weight" in line and "language-modeling" in line
