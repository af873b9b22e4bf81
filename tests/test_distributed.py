"""Several processes: real ones, by `torchrun` and `accelerate launch`, on one machine and on two."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pandas
import psutil
import pytest
import torch
from conftest import ROOT, SMALL, TIMEOUT, run, train
from prepared import Prepared
from safetensors.torch import load_file
from sklearn import metrics
from test_models import make, make_batch
from test_recovery import until
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoTokenizer, pipeline

from modeling_rnnsent import RNNSentForCausalLM, RNNSentForSequenceClassification
from modeling_rnnsent.checkpoints import check_checkpoint, list_checkpoints, locked
from modeling_rnnsent.sampling import EpochSampler

CORES = min(len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False) or os.cpu_count())


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def torchrun(*flags) -> list[str]:
    """The command that starts two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    return [*command, f"--master_port={free_port()}", "train.py", *map(str, flags)]


def train_in_two(*flags, status: int = 0) -> str:
    """Runs `train.py` in two processes, told of each other as `torchrun` does; what they print, or their errors."""
    known = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = ["train.py", *map(str, flags)]
    processes = [Prepared(command, ROOT, RANK=rank, LOCAL_RANK=rank, **known) for rank in ("0", "1")]
    printed = [process.communicate(TIMEOUT) for process in processes]
    assert [process.returncode for process in processes] == [status, status], printed
    return "".join(error if status else output for output, error in printed)


def accelerate_launch(*flags) -> list[str]:
    return [sys.executable, "-m", "accelerate.commands.launch", *map(str, flags)]


def results(folder, split="test"):
    return {
        key.removeprefix(f"{split}_"): value
        for key, value in json.loads((folder / f"{split}_results.json").read_text()).items()
        if not key.endswith(("runtime", "per_second"))
    }


@pytest.fixture(scope="module")
def odd(tmp_path_factory, reviews):
    """Files of which no number of rows is divisible by two processes' batches."""
    folder = tmp_path_factory.mktemp("odd")
    flags = []
    for name, rows in (("train", 203), ("validation", 51), ("test", 77)):
        pandas.read_csv(reviews / f"{name}.csv").head(rows).to_csv(folder / f"{name}.csv", index=False)
        flags.append(f"--{name}_file={folder / name}.csv")
    return folder, flags


def test_two_processes_report_what_one_finds(odd, tmp_path):
    folder, files = odd
    # A batch in one process that is evaluated in parts, beside one in the other that is not.
    frame = pandas.read_csv(folder / "validation.csv")
    frame.loc[0, "text"] = " ".join(["the story was great and touching"] * 1600)
    frame.to_csv(tmp_path / "validation.csv", index=False)
    files = [files[0], f"--validation_file={tmp_path / 'validation.csv'}", files[2]]
    flags = ["configuration/default.yaml", *files, *SMALL, "--per_device_eval_batch_size=8", "--num_train_epochs=2"]
    printed = train_in_two(*flags, "--learning_rate=0.01", f"--output_dir={tmp_path / 'run'}")
    # One process says what there is to say, and alone prepares what all read.
    for line in ("Three examples:", "fitting ", "n-grams alone:"):
        assert printed.count(line) == 1, printed
    found = results(tmp_path / "run")
    frame = pandas.read_csv(folder / "test.csv")
    answers = pipeline("text-classification", model=str(tmp_path / "run"), top_k=None)(list(frame["text"]))
    scores = np.array([next(part["score"] for part in answer if part["label"] == "1") for answer in answers])
    guesses = scores > 0.5
    assert found["samples"] == 77
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(frame["label"], guesses), abs=1e-9)
    assert found["f1"] == pytest.approx(metrics.f1_score(frame["label"], guesses), abs=1e-9)
    assert found["roc_auc"] == pytest.approx(metrics.roc_auc_score(frame["label"], scores), abs=1e-6)
    assert found["loss"] == pytest.approx(metrics.log_loss(frame["label"], scores), abs=1e-4)
    # And the same model goes through one process: every metric of validation and test is the same.
    again = [f"--model_name_or_path={tmp_path / 'run'}", "--learning_rate=1e-12", "--num_train_epochs=1"]
    again += ["--ngram_order=3", f"--ngram_weight={read_config(tmp_path / 'run')['ngram_weight']}"]
    train(*files, *again, *SMALL, "--per_device_eval_batch_size=8", f"--output_dir={tmp_path / 'one'}")
    for split in ("eval", "test"):
        one, two = (results(tmp_path / name, split) for name in ("one", "run"))
        assert one.keys() - {"epoch"} == two.keys() - {"epoch"}
        for key in one.keys() - {"epoch"}:
            assert one[key] == pytest.approx(two[key], abs=1e-6), key


def test_what_one_process_cannot_do_is_an_error_of_both(odd, tmp_path):
    flags = ["configuration/default.yaml", *odd[1], *SMALL, f"--output_dir={tmp_path / 'run'}"]
    errors = train_in_two(*flags, f"--teacher_name_or_path={tmp_path / 'nothing'}", status=1)
    assert errors.count("error: teacher_name_or_path: cannot load") == 2 and "Traceback" not in errors, errors
    with locked(str(tmp_path / "run")):
        errors = train_in_two(*flags, status=1)
    assert errors.count("error: another run is writing into the output directory") == 2, errors
    assert "Traceback" not in errors, errors


def test_a_machine_without_the_data_ends_the_run_on_all(odd, tmp_path):
    (tmp_path / "0").mkdir()
    shutil.copy(odd[0] / "train.csv", tmp_path / "0")
    # Each is its machine's first process.
    known = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in ("0", "1"):
        flags = [f"--train_file={tmp_path / rank / 'train.csv'}", *SMALL, f"--output_dir={tmp_path / 'run'}"]
        processes.append(Prepared(["train.py", *flags], ROOT, RANK=rank, LOCAL_RANK="0", **known))
    for process in processes:
        errors = process.communicate()[1]
        assert process.returncode == 1 and "1/train.csv': there is no such file" in errors, errors


def test_the_best_model_is_that_of_the_first_machine_on_all(odd, tmp_path):
    """Machines need no directory in common: what the others measure their share with is what the first one saves."""
    known = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    flags = [*odd[1], *SMALL, "--learning_rate=0.5", "--num_train_epochs=6", "--metric_for_best_model=loss"]
    flags += ["--lr_scheduler_type=constant"]  # so the last is not the best
    flags += ["--eval_strategy=epoch", "--save_strategy=epoch", "--load_best_model_at_end"]
    processes = []
    for rank in ("0", "1"):
        command = ["train.py", *flags, f"--output_dir={tmp_path / rank}"]
        processes.append(Prepared(command, ROOT, RANK=rank, LOCAL_RANK="0", **known))
    assert [process.communicate() and process.returncode for process in processes] == [0, 0]
    state = json.loads((tmp_path / "0" / "trainer_state.json").read_text())
    assert state["best_global_step"] < state["global_step"]
    frame = pandas.read_csv(odd[0] / "test.csv")
    answers = pipeline("text-classification", model=str(tmp_path / "0"), top_k=None)(list(frame["text"]))
    scores = np.array([next(part["score"] for part in answer if part["label"] == "1") for answer in answers])
    assert results(tmp_path / "0")["loss"] == pytest.approx(metrics.log_loss(frame["label"], scores), abs=1e-4)


def test_another_number_of_processes_does_not_go_on_from_a_checkpoint(odd, tmp_path):
    """Its steps are of as many texts more or less, and an epoch has another number of them."""
    flags = [*odd[1], *SMALL, "--max_steps=2", "--save_strategy=steps", "--save_steps=1"]
    flags += [f"--output_dir={tmp_path / 'run'}", "--resume_from_checkpoint=last"]
    train(*flags)
    (tmp_path / "run" / "train_results.json").unlink()  # as if it had been stopped
    errors = train_in_two(*flags, status=1)
    assert errors.count("is of a run with num_processes=1, this one has num_processes=2") == 2, errors


def read_config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text-classification", "language-modeling"])
def test_accumulated_and_shared_batches_give_the_update_of_a_large_one(task, odd, tmp_path):
    flags = [*odd[1][: 3 if task == "text-classification" else 2], *SMALL, f"--task={task}", "--optim=sgd"]
    flags += ["--lr_scheduler_type=constant", "--learning_rate=0.5", "--max_steps=12", "--max_grad_norm=0"]
    sides = {"large": (train, 16, 1), "accumulated": (train, 4, 4), "shared": (train_in_two, 4, 2)}
    weights = {}
    for name, (start, batch_size, accumulation) in sides.items():
        settings = [f"--per_device_train_batch_size={batch_size}", f"--gradient_accumulation_steps={accumulation}"]
        start(*flags, *settings, f"--output_dir={tmp_path / name}")
        weights[name] = load_file(tmp_path / name / "model.safetensors")
    # 203 texts: the 13th step would be the first that has fewer.
    for name in ("accumulated", "shared"):
        for key, value in weights["large"].items():
            torch.testing.assert_close(weights[name][key], value, rtol=1e-4, atol=1e-5, msg=f"{name}: {key}")


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_language_models_loss_is_the_mean_over_tokens(bidirectional, odd, tmp_path):
    flags = [*odd[1][:2], *SMALL, "--task=language-modeling", f"--bidirectional={bidirectional}", "--max_steps=4"]
    flags += ["--max_length=12", "--per_device_eval_batch_size=8"]
    train_in_two(*flags, f"--output_dir={tmp_path / 'two'}")
    model = RNNSentForCausalLM.from_pretrained(tmp_path / "two")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "two")
    losses = []
    for text in pandas.read_csv(odd[0] / "validation.csv")["text"]:
        ids = tokenizer(text)["input_ids"]
        for start in range(0, len(ids), 12):
            piece = torch.tensor([ids[start : start + 12]])
            outputs = model.rnnsent(piece).last_hidden_state.split(model.config.hidden_size, dim=-1)
            for states, targets in ((outputs[0][:, :-1], piece[:, 1:]), (outputs[-1][:, 1:], piece[:, :-1]))[
                : len(outputs)
            ]:
                logits = model.lm_head(states)
                losses.append(torch.nn.functional.cross_entropy(logits[0], targets[0], reduction="none"))
    found, expected = results(tmp_path / "two", "eval"), float(torch.cat(losses).detach().mean())
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(expected), rel=1e-4)


@pytest.mark.slow
def test_two_machines_train_one_model(odd, tmp_path):
    flags = [*odd[1], *SMALL, "--max_steps=10", "--save_strategy=no"]
    port, processes = free_port(), []
    for machine in range(2):
        command = accelerate_launch(
            "--config_file=configuration/accelerate/multi_machine.yaml",
            "--num_processes=2",
            f"--machine_rank={machine}",
            f"--main_process_port={port}",
            "train.py",
            *flags,
            f"--output_dir={tmp_path / 'two'}",
        )
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "Three examples:" in printed[0] and "Three examples:" not in printed[1]
    launch = accelerate_launch("--multi_gpu", "--num_processes=2", f"--main_process_port={free_port()}")
    assert "asked for" not in run(*launch, "train.py", *flags, f"--output_dir={tmp_path / 'one'}").stderr
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_interrupted_run_of_two_processes_goes_on_to_the_same_end(odd, tmp_path):
    flags = [*odd[1], *SMALL, "--num_train_epochs=4", "--save_steps=3", "--word_dropout=0.3", "--disable_tqdm=true"]
    flags += ["--train_sampling_strategy=group_by_length"]
    train_in_two(*flags, f"--output_dir={tmp_path / 'whole'}")
    output = tmp_path / "run"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        torchrun(*flags, f"--output_dir={output}"),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until((output / "checkpoint-9").exists, process)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=TIMEOUT)[1]
    last = list_checkpoints(output)[-1]
    assert f"error: interrupted: {last} is saved" in printed, printed
    check_checkpoint(str(last))
    run(*torchrun(*flags, f"--output_dir={output}", "--resume_from_checkpoint=last"))
    first, second = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", output))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_fewer_processes_than_asked_for_is_said(odd, tmp_path):
    launch = accelerate_launch("--cpu")
    flags = ["train.py", *odd[1], *SMALL, "--max_steps=2"]
    result = run(*launch, "--num_processes=2", *flags, f"--output_dir={tmp_path / 'two'}")
    assert "asked for 2 processes and started 1" in result.stderr and "--multi_gpu --num_processes 2" in result.stderr
    config = tmp_path / "config.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n"
    )
    result = run(*launch, f"--config_file={config}", *flags, f"--output_dir={tmp_path / 'file'}")
    assert "asked for 2 processes and started 1" in result.stderr
    result = run(*launch, "--num_processes=1", *flags, f"--output_dir={tmp_path / 'one'}")
    assert "asked for" not in result.stderr


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        (("--cpu",), {}, CORES),
        (("--cpu", "--num_cpu_threads_per_process", 1), {}, 1),
        (("--multi_gpu", "--num_processes", 2), {}, max(1, CORES // 2)),
        (("--cpu",), {"OMP_NUM_THREADS": "1"}, 1),
    ],
    ids=["nothing said", "flag", "two processes", "environment"],
)
def test_threads_are_all_cores_or_what_was_said(options, environment, expected, tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, torch\n"
        "from modeling_rnnsent.arguments import RNNSentTrainingArguments\n"
        "from modeling_rnnsent.launching import use_threads\n"
        f"use_threads(RNNSentTrainingArguments({str(tmp_path)!r}, report_to='none'))\n"
        "os.write(1, f'{torch.get_num_threads()}\\n'.encode())\n"  # a line at once, whoever else writes one
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    printed = run(*accelerate_launch(*options, script), PYTHONPATH=str(ROOT), **environment).stdout
    assert int(printed.split()[-1]) == expected


@pytest.mark.slow
def test_bfloat16_trains_to_the_same_accuracy(odd, tmp_path, monkeypatch):
    """Where the device multiplies in it, said either way; elsewhere all stays in float32 and no bit changes."""
    flags = [*odd[1], *SMALL, "--pooling=max", "--num_train_epochs=6", "--learning_rate=0.02"]
    weights = []
    # `accelerate launch --mixed_precision bf16` says it in the environment.
    for more, precision in (([], "no"), (["--bf16"], "no"), ([], "bf16")):
        output = tmp_path / str(len(weights))
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        train(*flags, *more, f"--output_dir={output}")
        assert results(output)["accuracy"] > 0.9
        weights.append(load_file(output / "model.safetensors"))
    plain, *others = weights
    if torch.accelerator.is_available():
        return
    changes = torch.cpu._is_avx512_bf16_supported()
    for other in others:
        assert any(not torch.equal(plain[name], other[name]) for name in plain | other) == changes
        assert all(torch.equal(others[0][name], other[name]) for name in plain | other)


@pytest.fixture(scope="module")
def process_group():
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    "settings",
    [
        *({"cell_type": cell, "pooling": "max_mean", "bidirectional": True} for cell in ("rnn", "lstm", "gru")),
        *({"pooling": pooling} for pooling in ("last", "max", "mean", "attention")),
        {"recurrence": "output", "cell_type": "rnn"},
        {"input_encoding": "one_hot", "num_hidden_layers": 2},
        {"classifier_hidden_size": 4, "classifier_head": "sigmoid", "num_labels": 2},
        {"ngram_order": 2, "ngram_buckets": 64, "bidirectional": True, "merge_mode": "mul"},
        {"weight_dropout": 0.3, "num_hidden_layers": 2, "hidden_dropout": 0.2},
    ],
    ids=str,
)
def test_every_parameter_takes_part(settings, process_group):
    model = DistributedDataParallel(make(RNNSentForSequenceClassification, **settings).train())
    batch = {**make_batch([5, 3, 1]), "labels": torch.tensor([0, 1, 0])}
    for _ in range(2):  # the second step would find that the first had left a parameter out
        model(**batch).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_parameter_of_a_language_model_takes_part(bidirectional, process_group):
    settings = {"tie_word_embeddings": True, "sampled_softmax_size": 8, "bidirectional": bidirectional}
    model = DistributedDataParallel(make(RNNSentForCausalLM, **settings).train())
    batch = make_batch([5, 3, 1])
    for _ in range(2):
        model(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_batches_of_processes_are_about_equally_long():
    lengths = np.random.default_rng(0).lognormal(5, 0.7, 5003).astype(int).tolist()
    sampler = EpochSampler(len(lengths), seed=1, lengths=lengths, batch_size=4 * 8)
    order = list(sampler)
    assert sorted(order) == list(range(5003))
    longest = [max(lengths[row] for row in order[start : start + 8]) for start in range(0, 5003 // 32 * 32, 8)]
    steps = np.array(longest).reshape(-1, 4)  # what four processes pad their batches to
    assert np.mean(steps.max(axis=1) / steps.mean(axis=1)) < 1.06
    # Lengths of steps that follow each other have nothing to do with each other.
    assert abs(np.corrcoef(steps[:-1].mean(axis=1), steps[1:].mean(axis=1))[0, 1]) < 0.2
    sampler.set_epoch(1)
    assert list(sampler) != order
    again = EpochSampler(len(lengths), seed=1, lengths=lengths, batch_size=32)
    again.set_epoch(1)
    assert list(again) == list(sampler)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are listed under /proc")
def test_no_thread_of_the_connection_is_left_at_the_end(tmp_path):
    """One that frees a tensor after the interpreter's end aborts a process that had done everything."""
    script = tmp_path / "connect.py"
    script.write_text(
        "import os, torch\n"
        "from torch import distributed\n"
        "from torch.nn.parallel import DistributedDataParallel\n"
        "from modeling_rnnsent.launching import process_group\n"
        "def threads():\n"
        "    return [open(f'/proc/self/task/{task}/comm').read() for task in os.listdir('/proc/self/task')]\n"
        "def work():\n"
        f"    address = 'tcp://127.0.0.1:{free_port()}'\n"
        "    distributed.init_process_group('gloo', init_method=address, rank=0, world_size=1)\n"
        "    model = DistributedDataParallel(torch.nn.Linear(2, 1))\n"
        "    model(torch.ones(1, 2)).sum().backward()\n"
        "    model.itself = [model]\n"
        "    assert any('gloo' in name for name in threads())\n"
        "with process_group():\n"
        "    work()\n"
        "assert not any('gloo' in name for name in threads()), threads()\n"
    )
    run(sys.executable, script, PYTHONPATH=str(ROOT))


def test_processes_wait_for_the_main_one_longer_than_for_one_another(tmp_path):
    script = tmp_path / "wait.py"
    script.write_text(
        "import os, time\n"
        "from datetime import timedelta\n"
        "from pathlib import Path\n"
        "from torch import distributed\n"
        "from modeling_rnnsent.launching import from_main_process, process_group\n"
        "here = Path(__file__).parent\n"
        "(here / os.environ['RANK']).touch()\n"
        "while not (here / '0').exists() or not (here / '1').exists():\n"  # imports take more than two seconds
        "    time.sleep(0.01)\n"
        'distributed.init_process_group("gloo", timeout=timedelta(seconds=2))\n'
        "with process_group():\n"
        "    rank = distributed.get_rank()\n"
        "    told = from_main_process(lambda: time.sleep(5) or [rank, 'told'])\n"
        "    os.write(1, f'{rank} was {told}\\n'.encode())\n"
    )
    command = torchrun()
    command[command.index("train.py")] = str(script)
    printed = run(*command, PYTHONPATH=str(ROOT)).stdout
    assert "0 was [0, 'told']" in printed and "1 was [0, 'told']" in printed
