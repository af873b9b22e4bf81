"""Runs that are stopped: killed anywhere, interrupted, their checkpoints damaged. They end as if nothing had been."""

import json
import os
import random
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, train
from datasets import Dataset
from prepared import Prepared
from test_training import fails, read
from transformers import EarlyStoppingCallback, TrainerCallback

from modeling_rnnsent import RNNSentConfig, RNNSentForSequenceClassification
from modeling_rnnsent.arguments import RNNSentTrainingArguments
from modeling_rnnsent.checkpoints import check_checkpoint, find_checkpoint, finish_checkpoint, list_checkpoints
from modeling_rnnsent.errors import InputError
from modeling_rnnsent.padding import PaddingCollator
from modeling_rnnsent.training import RNNSentTrainer

RESUME = "--resume_from_checkpoint=last"
# Dropout, a schedule, gradient accumulation, an evaluation that chooses, texts without labels and n-grams: everything
# that has a state. Three epochs of 13 steps; checkpoints between epochs and within them.
EVERYTHING = (
    *SMALL,
    "--num_train_epochs=3",
    "--gradient_accumulation_steps=2",
    "--learning_rate=0.01",
    "--lr_scheduler_type=cosine",
    "--word_dropout=0.3",
    "--classifier_dropout=0.3",
    "--bidirectional",
    "--pooling=max_mean",
    "--ngram_order=2",
    "--virtual_adversarial_weight=1",
    "--train_sampling_strategy=group_by_length",
    "--eval_strategy=steps",
    "--eval_steps=5",
    "--save_strategy=steps",
    "--save_steps=5",
    "--save_total_limit=2",
    "--load_best_model_at_end",
    "--metric_for_best_model=loss",
    "--early_stopping_patience=3",
    "--disable_tqdm=true",
)


@pytest.fixture(scope="module")
def flags(reviews, tmp_path_factory):
    texts = tmp_path_factory.mktemp("texts") / "texts.txt"
    texts.write_text("a film about people\nthe story was great and touching\nhated the town\n" * 20)
    files = [f"--{name}_file={reviews / name}.csv" for name in ("train", "validation", "test")]
    return [*files, f"--unlabeled_file={texts}", *EVERYTHING]


@pytest.fixture(scope="module")
def undisturbed(flags, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    train(*flags, f"--output_dir={output}")
    return output, read(output / "train_results.json")["total_runtime"]


def same(first: Path, second: Path):
    """Whether two finished runs have the same weights, bit for bit, and the same results."""
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    # Read in a run's history: the checkpoint that was best, and all evaluations.
    states = [read(folder / "trainer_state.json") for folder in (first, second)]
    assert states[0]["best_global_step"] == states[1]["best_global_step"]
    evaluations = [
        [(row["step"], row["eval_loss"]) for row in state["log_history"] if "eval_loss" in row] for state in states
    ]
    assert evaluations[0] == evaluations[1]


def start(*flags) -> Prepared:
    return Prepared(["train.py", *map(str, flags)], ROOT)


def until(condition, process: Prepared, seconds: float = 120):
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail("".join(process.communicate()))
        time.sleep(0.005)


@pytest.mark.parametrize(("strategy", "number"), [("group_by_length", signal.SIGINT), ("random", signal.SIGTERM)])
def test_interrupted_run_saves_says_how_to_go_on_and_ends_the_same(strategy, number, flags, undisturbed, tmp_path):
    flags = [*flags, f"--train_sampling_strategy={strategy}"]
    whole = undisturbed[0]
    if strategy == "random":
        whole = tmp_path / "whole"
        train(*flags, f"--output_dir={whole}")
    output = tmp_path / "run"
    process = start(*flags, f"--output_dir={output}")
    until(output.exists, process)
    began = time.monotonic()
    until(lambda: (output / "checkpoint-15").exists(), process)  # within the second epoch
    seconds = time.monotonic() - began
    process.send_signal(number)
    printed = "".join(process.communicate())
    assert process.returncode == 128 + number and "Traceback" not in printed
    last = list_checkpoints(output)[-1]
    assert f"\nerror: interrupted: {last} is saved" in printed and "--resume_from_checkpoint last" in printed
    check_checkpoint(last)
    if strategy == "random":
        assert "add --resume_from_checkpoint last to go on" in fails(*flags, f"--output_dir={output}")
    train(*flags, f"--output_dir={output}", RESUME)
    same(output, whole)
    results = read(output / "train_results.json")
    assert results["total_runtime"] >= seconds + results["train_runtime"]  # of both parts
    assert not (output / ".lock").exists() and not (output / ".unfinished").exists()


def test_interrupted_before_the_first_step_leaves_nothing_or_that_step(flags, tmp_path):
    output = tmp_path / "run"
    process = start(*flags, f"--output_dir={output}")
    until(lambda: "fitting" in process.streams[1].read_text(), process)  # past the lock, before the first step
    process.send_signal(signal.SIGINT)
    printed = "".join(process.communicate())
    assert process.returncode == 130 and "error: interrupted: " in printed and "Traceback" not in printed
    # A library may have swallowed the interruption: then the first step is the last, and is saved.
    if "there is no checkpoint yet" in printed:
        assert not output.exists()
    else:
        assert [path.name for path in list_checkpoints(output)] == ["checkpoint-1"]


def make_arguments(folder: Path, **settings) -> RNNSentTrainingArguments:
    """Two epochs of four steps."""
    settings = {"per_device_train_batch_size": 4, "num_train_epochs": 2, **settings}
    return RNNSentTrainingArguments(output_dir=str(folder), report_to=[], disable_tqdm=True, **settings)


def make_trainer(arguments: RNNSentTrainingArguments, *callbacks) -> RNNSentTrainer:
    rows = Dataset.from_dict({"input_ids": [[2, 3], [4, 5, 6]] * 8, "labels": [0, 1] * 8})
    model = RNNSentForSequenceClassification(RNNSentConfig(vocab_size=7, embedding_size=4, hidden_size=4))
    data = {"train_dataset": rows, "eval_dataset": rows, "data_collator": PaddingCollator(0)}
    return RNNSentTrainer(model, arguments, **data, callbacks=list(callbacks))


class Stop(TrainerCallback):
    """A signal at an event of a step, the first time."""

    def __init__(self, event: str, step: int):
        self.step, self.is_over = step, False
        setattr(self, event, self.happen)

    def happen(self, args, state, control, **kwargs):
        if state.global_step == self.step and not self.is_over:
            self.is_over = True
            signal.raise_signal(signal.SIGINT)


def test_interrupted_trainer_goes_on_in_the_same_process(tmp_path):
    arguments = make_arguments(tmp_path)
    trainer = make_trainer(arguments, Stop("on_step_begin", 2))
    with pytest.raises(KeyboardInterrupt, match="checkpoint-3 is saved"):
        trainer.train()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert trainer.state.global_step == 8
    # Another one that has its own intervals, and a callback that the first had not.
    arguments = replace(
        arguments,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        dataloader_drop_last=True,
        per_device_eval_batch_size=5,
    )
    trainer = make_trainer(arguments, EarlyStoppingCallback(2))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    evaluated = [row["step"] for row in trainer.state.log_history if "eval_loss" in row]
    assert evaluated == [4, 6, 8] and (tmp_path / "checkpoint-6").exists()
    assert len(trainer.predict(trainer.eval_dataset).predictions) == 16  # none is dropped


IN_STEPS = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
@pytest.mark.parametrize("event", ["on_step_begin", "on_step_end", "on_evaluate", "on_save"])
def test_interrupted_in_the_last_step_its_evaluation_or_its_save_it_stops_there(event, strategy, tmp_path):
    settings = {**IN_STEPS, "eval_steps": 2, "save_steps": 2, "logging_steps": 1}
    if strategy == "epoch":  # a checkpoint is due before the evaluation, which is still to come then
        settings |= {"eval_strategy": "epoch", "load_best_model_at_end": False}
    arguments = make_arguments(tmp_path, **settings)
    trainer = make_trainer(arguments, Stop(event, 8 - (event == "on_step_begin")))
    if (event, strategy) == ("on_evaluate", "epoch"):
        trainer.train()  # to its end: no checkpoint has this evaluation
        return
    with pytest.raises(KeyboardInterrupt, match="checkpoint-8 is saved"):
        trainer.train()
    trainer = make_trainer(arguments)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert [row["step"] for row in trainer.state.log_history if "eval_loss" in row] == (
        [4, 8] if strategy == "epoch" else [2, 4, 6, 8]
    )


def test_interrupted_where_checkpoints_of_later_steps_lie_it_keeps_the_one_just_written(tmp_path):
    arguments = make_arguments(tmp_path, **IN_STEPS, eval_steps=2, save_steps=2, learning_rate=1e-12)
    make_trainer(arguments).train()
    for step in (6, 8):  # the disk has changed them
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").unlink()
    arguments = replace(arguments, save_total_limit=1)
    with pytest.raises(KeyboardInterrupt, match="checkpoint-5 is saved"):
        make_trainer(arguments, Stop("on_step_begin", 4)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    check_checkpoint(str(tmp_path / "checkpoint-5"))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-5"]  # the best one, too


def test_a_run_over_within_an_epoch_takes_no_step_more_and_its_directory_may_have_moved(tmp_path):
    """With a learning rate of nothing the first evaluation is the best."""
    settings = {**IN_STEPS, "eval_steps": 1, "save_steps": 1, "learning_rate": 1e-12, "max_steps": 3}
    make_trainer(make_arguments(tmp_path / "run", **settings)).train()
    (tmp_path / "run").rename(tmp_path / "moved")
    trainer = make_trainer(make_arguments(tmp_path / "moved", **settings))
    trainer.train(resume_from_checkpoint=str(tmp_path / "moved" / "checkpoint-3"))
    assert trainer.state.global_step == 3 and not (tmp_path / "moved" / "checkpoint-4").exists()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-1")


def test_checkpoint_of_the_model_alone_is_none_to_go_on_from(flags, tmp_path):
    flags = [*flags, f"--output_dir={tmp_path / 'run'}", "--save_only_model=true"]
    process = start(*flags)
    until((tmp_path / "run" / "checkpoint-10").exists, process)
    process.send_signal(signal.SIGINT)
    printed = "".join(process.communicate())
    assert process.returncode == 130 and "with --save_only_model it is no checkpoint to go on from" in printed
    last = list_checkpoints(tmp_path / "run")[-1]
    with pytest.raises(InputError, match="it has no optimizer to go on with"):
        check_checkpoint(str(last))
    arguments = RNNSentTrainingArguments(output_dir=str(tmp_path / "run"), resume_from_checkpoint="last")
    assert find_checkpoint(arguments) is None  # from the start


@pytest.mark.slow
def test_killed_anywhere_and_taken_up_again_ends_the_same(flags, undisturbed, tmp_path):
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 2**32))
    kills = int(os.environ.get("KILLS", 4))
    print(f"KILL_SEED={seed} KILLS={kills}")
    generator = random.Random(seed)
    whole, seconds = undisturbed
    for kill in range(kills):
        output = tmp_path / f"run-{kill}"
        resume = []
        for _ in range(generator.randint(1, 3)):
            process = start(*flags, f"--output_dir={output}", *resume)
            if generator.random() < 0.5:  # anywhere: importing, reading, fitting, within a step, at the end
                time.sleep(generator.uniform(0, seconds))
            else:  # while a checkpoint is written
                wanted = generator.randint(1, 8)
                seen = set()
                while process.poll() is None and len(seen) < wanted:
                    with suppress(FileNotFoundError):  # it was moved to its place while it was listed
                        seen |= set(output.glob(".unfinished/checkpoint-*/*"))
            process.kill()
            process.communicate()
            for checkpoint in list_checkpoints(output):
                check_checkpoint(str(checkpoint))
            resume = [RESUME]
        train(*flags, f"--output_dir={output}", RESUME)
        same(output, whole)


def damage(path: Path, generator: random.Random, how: str):
    content = bytearray(path.read_bytes())
    if how == "cut":
        del content[generator.randrange(len(content)) :]
    else:
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(bytes(content))


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(flags, undisturbed, tmp_path):
    output, generator = tmp_path / "run", random.Random(0)
    process = start(*flags, f"--output_dir={output}")
    until(lambda: (output / "checkpoint-25").exists(), process)
    process.kill()
    process.communicate()
    before, last = list_checkpoints(output)[-2:]
    files = sorted(last.iterdir())
    assert {path.name for path in files} >= {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
    for path in files:
        content = path.read_bytes()
        for how in ("cut", "flipped", "missing"):
            if how == "missing":
                path.unlink()
            else:
                damage(path, generator, how)
            with pytest.raises(InputError, match=f"the checkpoint {last} is not whole: ") as found:
                check_checkpoint(str(last))
            # A flipped bit in the list of digests speaks of the file it is the digest of, or of a name it made up.
            assert path.name in str(found.value) or path.name == "digests.json"
            path.write_bytes(content)
    check_checkpoint(str(last))
    damage(last / "optimizer.pt", generator, "flipped")
    assert "optimizer.pt is not what was written" in fails(
        *flags, f"--output_dir={output}", f"--resume_from_checkpoint={last}"
    )
    arguments = RNNSentTrainingArguments(output_dir=str(output), resume_from_checkpoint="last")
    assert find_checkpoint(arguments) == str(before)
    result = train(*flags, f"--output_dir={output}", RESUME)
    assert f"{last} is not whole" in result.stderr and "The one before it is tried" in result.stderr
    same(output, undisturbed[0])


def test_a_checkpoint_whose_best_one_is_damaged_is_not_used(tmp_path):
    for step, best in ((5, 5), (10, 5), (15, 10)):
        folder = tmp_path / ".unfinished" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        state = {"best_model_checkpoint": f"elsewhere/checkpoint-{best}"}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        (folder / "run_settings.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(step))
        finish_checkpoint(folder, tmp_path / folder.name)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-10", "checkpoint-15"]
    damage(tmp_path / "checkpoint-10" / "model.safetensors", random.Random(0), "flipped")
    arguments = RNNSentTrainingArguments(output_dir=str(tmp_path), resume_from_checkpoint="last")
    assert find_checkpoint(arguments) == str(tmp_path / "checkpoint-5")
    damage(tmp_path / "checkpoint-5" / "model.safetensors", random.Random(0), "cut")
    assert find_checkpoint(arguments) is None  # from the start


def test_checkpoints_of_another_program_are_left_alone(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "model.safetensors").write_bytes(b"theirs")
    for settings in ({}, {"resume_from_checkpoint": "last"}, {"overwrite_output_dir": True}):
        with pytest.raises(InputError, match="holds other files than a run's, 'checkpoint-5' for one"):
            find_checkpoint(RNNSentTrainingArguments(output_dir=str(tmp_path), **settings))


def test_killed_while_it_is_tested_it_trains_nothing_again(flags, tmp_path):
    """The last checkpoint, not the best one, is what a run ends with; that alone is left when all is done."""
    flags = [*flags, "--save_total_limit=1", "--learning_rate=1e-12", "--early_stopping_patience=9"]
    output = tmp_path / "run"
    process = start(*flags, f"--output_dir={output}")
    until((output / "eval_results.json").exists, process)
    process.kill()
    process.communicate()
    assert [path.name for path in list_checkpoints(output)] == ["checkpoint-5", "checkpoint-39"]
    result = train(*flags, f"--output_dir={output}", RESUME)
    assert "'grad_norm'" not in result.stdout and read(output / "train_results.json")["epoch"] == 3
    assert [path.name for path in list_checkpoints(output)] == ["checkpoint-5"]
    train(*flags, f"--output_dir={tmp_path / 'whole'}")
    same(output, tmp_path / "whole")


def test_finished_run_is_left_as_it_is(undisturbed, flags):
    output = undisturbed[0]
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(output.rglob("*"))}
    for passing in ((), ("--metric_for_best_model=eval_loss", "--logging_steps=7")):  # the same, said otherwise
        result = train(*flags, f"--output_dir={output}", RESUME, *passing)
        assert "holds a finished run: there is nothing to go on with" in result.stdout
    # What is asked for is not there.
    assert "holds a finished run: add" in fails(*flags, f"--output_dir={output}", RESUME, "--learning_rate=0.02")
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(output.rglob("*"))}


def test_other_settings_do_not_go_on_from_a_checkpoint_unless_it_is_overwritten(flags, undisturbed, tmp_path):
    output = tmp_path / "run"
    process = start(*flags, f"--output_dir={output}")
    until(lambda: (output / "checkpoint-10").exists(), process)
    process.kill()
    process.communicate()
    line = fails(*flags, f"--output_dir={output}", RESUME, "--learning_rate=0.02")
    assert "is of a run with learning_rate=0.01, this one has learning_rate=0.02" in line
    other = [*flags, f"--output_dir={output}", RESUME, "--overwrite_output_dir", "--learning_rate=0.02"]
    train(*other, "--max_steps=3")  # starts again, since what lies there is another run
    assert read(output / "trainer_state.json")["global_step"] == 3
    # The same run, told to overwrite and to go on, goes on.
    process = start(*flags, f"--output_dir={output}", "--overwrite_output_dir")
    until(lambda: (output / "checkpoint-10").exists(), process)
    process.kill()
    process.communicate()
    result = train(*flags, f"--output_dir={output}", "--overwrite_output_dir", RESUME)
    same(output, undisturbed[0])
    assert "holds no checkpoint" not in result.stderr


def test_other_data_does_not_go_on_from_a_checkpoint(reviews, tmp_path):
    data, output = tmp_path / "train.csv", tmp_path / "run"
    shutil.copy(reviews / "train.csv", data)
    flags = [*SMALL, f"--train_file={data}", "--validation_size=0.1", "--save_strategy=steps", "--save_steps=2"]
    flags += ["--max_vocab_size=20", f"--output_dir={output}"]
    train(*flags, "--max_steps=2")
    (output / "train_results.json").unlink()  # as if it had been stopped
    flags += ["--max_steps=4", RESUME]
    held = data.read_text()
    data.write_text(held + "town " * 5000 + ",0\n")  # as many words, in another order
    assert "checkpoint-2 is of other data: texts or labels have changed" in fails(*flags)
    for label in (2, 1):  # a class more, and a label that is another
        data.write_text(held.replace(",0\n", f",{label}\n", 1))
        assert "checkpoint-2 is of other data" in fails(*flags)
    data.write_text(held)
    train(*flags)
    assert read(output / "trainer_state.json")["global_step"] == 4


def test_overwriting_run_that_is_killed_at_once_leaves_the_model_and_can_be_begun_again(flags, undisturbed, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(undisturbed[0], output)
    process = start(*flags, f"--output_dir={output}", "--overwrite_output_dir")
    until(lambda: not (output / "train_results.json").exists(), process)
    process.kill()
    process.communicate()
    assert (output / "model.safetensors").read_bytes() == (undisturbed[0] / "model.safetensors").read_bytes()
    train(*flags, f"--output_dir={output}", "--overwrite_output_dir")
    same(output, undisturbed[0])


def test_early_stopping_counts_on_after_a_stop(flags, tmp_path):
    """With a learning rate of nothing the second evaluation is no better, and the third ends the run."""
    stopped = [*flags, "--learning_rate=1e-12", "--early_stopping_patience=2"]
    train(*stopped, f"--output_dir={tmp_path / 'whole'}")
    output = tmp_path / "run"
    process = start(*stopped, f"--output_dir={output}")
    until(lambda: (output / "checkpoint-10").exists(), process)
    process.kill()
    process.communicate()
    train(*stopped, f"--output_dir={output}", RESUME)
    assert read(output / "trainer_state.json")["global_step"] == 15
    same(output, tmp_path / "whole")


def test_second_run_into_the_same_directory_is_refused(flags, undisturbed, tmp_path):
    output = tmp_path / "run"
    process = start(*flags, f"--output_dir={output}")
    until(lambda: "fitting" in process.streams[1].read_text(), process)  # past the lock, before the first step
    process.send_signal(signal.SIGSTOP)  # so that it is not over before the second has started
    assert "another run is writing into the output directory" in fails(*flags, f"--output_dir={output}")
    assert "another run is writing into the output directory" in fails(*flags, f"--output_dir={output}", RESUME)
    process.send_signal(signal.SIGCONT)
    process.communicate()
    assert process.returncode == 0
    same(output, undisturbed[0])
