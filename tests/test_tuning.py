"""`rnnsent tune`: a search as a process, stopped and gone on with, and the recipe that it writes."""

import json
import signal
import subprocess

import optuna
import pandas
import pytest
import yaml
from conftest import RNNSENT, ROOT, TIMEOUT, run, train

pytestmark = pytest.mark.slow


def ended(folder):
    study = optuna.load_study(study_name="rnnsent", storage=f"sqlite:///{folder / 'study.db'}")
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials)


def interrupt_after_the_first_trial(process):
    """What the search printed. Its own words are waited for: who opens a new study's file is one more to set it up."""
    printed = ""
    for line in process.stdout:
        printed += line
        if "Trial 0 finished" in line:
            process.send_signal(signal.SIGINT)
    return process.wait(TIMEOUT), printed


def test_search_is_taken_up_and_its_recipe_gives_the_best_run_again(reviews, tmp_path):
    output = tmp_path / "tuned"
    files = [f"--{name}_file={reviews / name}.csv" for name in ("train", "validation", "test")]
    # What the recipe says of its own data is not that of the files.
    start = tmp_path / "start.yaml"
    # What a run found out is not for other models, and a search uploads nothing.
    others = "text_column_name: review\ntemperature: 3.0\nngram_weight: 0.75\npush_to_hub: true\n"
    start.write_text((ROOT / "configuration" / "default.yaml").read_text() + others)
    command = [RNNSENT, "tune", start, f"--output={output}", "--minutes=5", "--trials=5"]
    command += [*files, "--embedding_size=16", "--num_threads=1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    status, printed = interrupt_after_the_first_trial(process)
    assert status == 130 and "the same command goes on" in printed and "Traceback" not in printed
    tried = ended(output)
    result = run(*command)
    # The training that was interrupted is none.
    assert 1 <= tried <= 5 == ended(output) and "5 trainings, the best with accuracy" in result.stdout
    assert "of the recurrent layers; the n-grams join" in result.stdout
    # Nothing is left to do, and the search says again what it found.
    best = json.loads(run(*command, "--json").stdout)
    assert best["trainings"] == 5 and best["recipe"] == str(output / "recipe.yaml")
    written = (output / "recipe.yaml").read_text()
    for other in (["--embedding_size=8"], ["--metric_for_best_model=loss"]):  # whose values are of another kind
        refused = run(*command, *other, check=False)
        assert refused.returncode == 1 and "holds a search with" in refused.stderr
    assert (output / "recipe.yaml").read_text() == written and not (output / "trials").exists()
    best = json.loads(run(*command, "--trials=6", "--json").stdout)  # of a search, nothing else on standard output
    assert best["trainings"] == ended(output) == 6
    study = optuna.load_study(study_name="rnnsent", storage=f"sqlite:///{output / 'study.db'}")
    recipe = yaml.safe_load((output / "recipe.yaml").read_text())
    assert {name: recipe[name] for name in study.best_params} == study.best_params == best["settings"]
    assert recipe["ngram_order"] == 3 and recipe["train_file"] == str(reviews / "train.csv")
    assert recipe["text_column_name"] == "text" and recipe.pop("push_to_hub") is True
    assert not recipe.keys() & {"temperature", "ngram_weight"}
    # Trainings of other batches are compared epoch by epoch.
    for trial in study.trials:
        assert set(trial.intermediate_values) <= {1, 2, 3, 4, 5, 6}
    assert "dataset_name" not in recipe and recipe["load_best_model_at_end"] and not (output / "trials").exists()
    # The best run's own evaluation comes again when the recipe is trained.
    flags = [f"--output_dir={tmp_path / 'run'}", "--num_threads=1", "--ngram_order=0", "--push_to_hub=false"]
    train(output / "recipe.yaml", *flags)
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    evaluations = [row["eval_accuracy"] for row in state["log_history"] if "eval_accuracy" in row]
    assert study.best_value == pytest.approx(max(evaluations))
    assert len(evaluations) > 1


def test_search_goes_on_after_a_training_that_diverges(reviews, tmp_path):
    output = tmp_path / "tuned"
    command = [RNNSENT, "tune", ROOT / "configuration" / "default.yaml", f"--output={output}", "--minutes=5"]
    command += [f"--{name}_file={reviews / name}.csv" for name in ("train", "validation")]
    result = run(*command, "--trials=2", "--learning_rate=1e38", "--logging_steps=1", check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "error: no training came to its end" in result.stderr and ended(output) == 2
    # What goes wrong within a training for another reason is said as ever.
    result = run(
        *command[:3],
        f"--output={tmp_path / 'other'}",
        *command[4:],
        "--lr_scheduler_type=cosine_with_min_lr",
        check=False,
    )
    assert result.returncode == 1 and "cosine_with_min_lr" in result.stderr and "came to its end" not in result.stderr


def test_batches_larger_than_the_data_are_given_up(reviews, tmp_path):
    frame = pandas.read_csv(reviews / "train.csv").head(40)
    frame.to_csv(tmp_path / "train.csv", index=False)
    flags = [f"--train_file={tmp_path / 'train.csv'}", f"--validation_file={reviews / 'validation.csv'}"]
    flags += ["--dataloader_drop_last=true", "--embedding_size=4", "--hidden_size=4", "--num_train_epochs=1"]
    flags += ["--num_threads=1", "--learning_rate=0.001"]
    recipe = ROOT / "configuration" / "default.yaml"
    for trials in (6, 12, 18, 24):  # going on until all three were drawn
        run(RNNSENT, "tune", recipe, f"--output={tmp_path / 'tuned'}", "--minutes=5", f"--trials={trials}", *flags)
        study = optuna.load_study(study_name="rnnsent", storage=f"sqlite:///{tmp_path / 'tuned' / 'study.db'}")
        assert len(study.trials) == trials
        assert not {"hidden_size", "learning_rate", "num_train_epochs"} & set(study.trials[-1].params)  # all flags
        states = {trial.params["per_device_train_batch_size"]: trial.state.name for trial in study.trials}
        if len(states) == 3:
            break
    # 40 texts are one batch of 32, and none of 64.
    assert states == {16: "COMPLETE", 32: "COMPLETE", 64: "PRUNED"}
    frame.iloc[::-1].to_csv(tmp_path / "train.csv", index=False)
    again = run(
        RNNSENT, "tune", recipe, f"--output={tmp_path / 'tuned'}", "--minutes=5", "--trials=6", *flags, check=False
    )
    assert again.returncode == 1 and "holds a search on other data" in again.stderr


def test_what_cannot_be_searched_is_said(tmp_path):
    for flags, message in (
        (["configuration/pretrain.yaml"], "no language model"),
        (["configuration/default.yaml", "--hiden_size=3"], "unknown flag --hiden_size"),
        (["configuration/default.yaml", "--minutes=0"], "must be positive"),
        (["configuration/default.yaml", "--tokenizer_name=runs/other"], "no tokenizer_name"),
        (["configuration/default.yaml", "--entropy_weight=1"], "no term for texts without labels"),
        (["configuration/default.yaml", "--gradient_checkpointing=true"], "not for recurrent ones"),
    ):
        result = run(RNNSENT, "tune", *flags, f"--output={tmp_path / 'tuned'}", check=False)
        assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "mine.txt").write_text("mine")
    result = run(RNNSENT, "tune", "configuration/default.yaml", f"--output={tmp_path}", check=False)
    assert result.returncode == 1 and "holds other files than a search's, 'trials' for one" in result.stderr
    assert (tmp_path / "trials" / "mine.txt").read_text() == "mine"


def test_metric_that_the_validation_texts_do_not_give_is_one_line(reviews, tmp_path):
    (tmp_path / "one_class.csv").write_text("text,label\na film,1\nanother,1\n")
    command = [RNNSENT, "tune", ROOT / "configuration" / "default.yaml", f"--output={tmp_path / 'tuned'}"]
    command += [
        "--minutes=5",
        f"--train_file={reviews / 'train.csv'}",
        f"--validation_file={tmp_path / 'one_class.csv'}",
    ]
    result = run(*command, "--metric_for_best_model=roc_auc", "--num_train_epochs=1", check=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "error: metric_for_best_model 'roc_auc' is not what the validation split gives" in result.stderr
