"""
`rnnsent predict --input`: a file or data set of any size to a file of labels, in order, resumable, over many processes.

Windows of texts go to the processes in turn. Each writes the results of its windows to a file of its own beside the
output, which at the end are merged into it; what they hold when a run is stopped is not computed again.
"""

import csv
import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers.utils.hub import resolve_revision

from .bulk import WINDOW_CHARACTERS, WINDOW_SIZE, BulkClassifier, in_windows
from .data import stream_texts
from .errors import InputError
from .files import TEXT_FORMATS
from .launching import from_main_process, usable_cores
from .locking import exclusive
from .scoring import load_scorer, rounded

OUTPUT_FORMATS = (".jsonl", ".csv")
_MODEL_FILES = ("*.json", "*.safetensors", "*.onnx*")


def predict_to_file(
    model: str,
    input: str,
    output: str,
    text_column_name: str = "text",
    dataset_config_name: str | None = None,
    split: str | None = None,
    overwrite: bool = False,
    num_threads: int | None = None,
    bf16: bool = False,
) -> int:
    """
    Classifies every text of a file or data set; rows of `output` stand in the order of the input.

    Started by `accelerate launch` or `torchrun`, every process takes its share; each uses its own GPU where there are
    any. Started again after it was stopped, it goes on.

    Args:
        model (`str`): Directory or Hub id of a trained model, or directory of an exported one.
        input (`str`): A .txt (one text a line), .csv, .tsv, .json, .jsonl or .parquet file, or a data set: a name on
            the Hub or a local folder.
        output (`str`): File to write, .jsonl or .csv: label and score of every text (multi-label: every label's score;
            regression: the value).
        text_column_name (`str`, *optional*, defaults to `"text"`): Column that holds the text.
        dataset_config_name (`str`, *optional*): Configuration of a data set.
        split (`str`, *optional*): Split of a data set. None: `"test"`.
        overwrite (`bool`, *optional*, defaults to `False`): Replace `output`, and whatever was left beside it by a run
            that was stopped and had another input or model.
        num_threads (`int`, *optional*): CPU cores of a process. None: this machine's, shared between its processes.
        bf16 (`bool`, *optional*, defaults to `False`): Whether the model computes in bfloat16: see [`load_scorer`].

    Returns:
        `int`: number of rows written.

    Raises:
        InputError: where the model, the input, the column or the output cannot be used, or another run is writing it.
    """
    # Without `cpu`, accelerate takes several processes of a machine without GPUs for as many single ones.
    # By itself torch would have processes wait half an hour at most for the slowest one, and for the merging.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))
    path = Path(output)
    if path.suffix.lower() not in OUTPUT_FORMATS:
        raise InputError(f"--output {output!r}: the name must end in {' or '.join(OUTPUT_FORMATS)}.")
    if path.exists() and not overwrite:
        raise InputError(f"--output {output!r} exists: add --overwrite to replace it, or name another.")
    if not path.parent.is_dir():
        raise InputError(f"--output {output!r}: there is no directory {str(path.parent)!r}.")
    if path.exists() and Path(input).exists() and path.samefile(input):
        raise InputError(f"--output {output!r} is the input, whose texts would be lost: name another.")
    commit = from_main_process(lambda: _find_commit(input))
    texts = stream_texts(input, text_column_name, split, dataset_config_name, commit)
    scorer = load_scorer(model, state.device, bf16)
    cores = num_threads or max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    part = _Part(path, state.process_index, state.num_processes)
    settings = _describe(model, input, path, split, text_column_name)
    settings |= {"dataset_config_name": dataset_config_name, "bf16": bf16, "commits": [scorer.commit, commit]}
    lock = path.with_name(f"{path.name}.lock-{state.process_index}")
    with exclusive(lock, f"another run is writing --output {output!r}: wait for its end."):
        with state.main_process_first():
            part.open(settings, overwrite)
        try:
            _run(BulkClassifier(scorer, cores), texts, part, state)
        finally:
            part.close()
        state.wait_for_everyone()
        number = 0
        if state.is_main_process:
            number = _merge(path, state.num_processes, scorer.config)
        state.wait_for_everyone()
    return number


def _find_commit(source: str) -> str | None:
    """Of a data set on the Hub: one that changes while it is classified would be out of step with its answers."""
    is_file = Path(source).suffix.lower() in TEXT_FORMATS
    return None if is_file else getattr(resolve_revision(source, repo_type="dataset"), "resolved", None)


def _run(classify: BulkClassifier, texts: Iterable[str], part: "_Part", state: PartialState):
    own = (
        window for index, window in enumerate(in_windows(texts)) if index % state.num_processes == state.process_index
    )
    done = sum(1 for _ in islice(own, part.num_windows))
    progress = tqdm(
        desc="Classifying", unit=" texts", disable=not state.is_local_main_process, initial=done * WINDOW_SIZE
    )
    with progress:
        for rows in classify.windows(own):
            part.write(written(rows, classify.scorer.config))
            progress.update(len(rows))


def _describe(model: str, input: str, output: Path, split: str | None, column: str) -> dict:
    """What results must have in common to belong together."""
    settings = {"model": model, "input": input, "split": split, "text_column_name": column}
    settings["window"] = [WINDOW_SIZE, WINDOW_CHARACTERS]
    for name, folder_holds in (("model", _MODEL_FILES), ("input", ("**/*",))):
        path = Path(settings[name])
        files = [path] if path.is_file() else [file for kind in folder_holds for file in path.glob(kind)]
        files = [file for file in files if file.is_file() and not file.name.startswith(output.name)]  # nor its parts
        stats = [(str(file.relative_to(path)), file.stat()) for file in sorted(files)]
        held = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        settings[f"{name}_files"] = hashlib.sha256(held.encode()).hexdigest()
    return settings


class _Part:
    """
    The results of one process's windows: one line a window, a JSON list of rows.

    Args:
        output (`Path`): The file that all parts become.
        index (`int`): This process.
        number (`int`): How many processes there are.
    """

    def __init__(self, output: Path, index: int, number: int):
        self.output, self.index, self.number = output, index, number
        self.path = part_path(output, index, number)
        self.num_windows = 0

    def open(self, settings: dict, overwrite: bool):
        """Takes up what is there, if it belongs to the same input and model, and drops what was cut off."""
        header = json.dumps(settings)
        parts = list(self.output.parent.glob(f"{glob.escape(self.output.name)}.part-*-of-*"))
        strangers = [path for path in parts if not path.name.endswith(f"-of-{self.number}")]
        if overwrite:
            for path in parts if self.index == 0 else ():
                if path in strangers or _first_line(path) != header:
                    path.unlink()
        elif strangers:
            raise InputError(
                f"{strangers[0]} holds results of a run with another number of processes: start as many again to go "
                "on, or add --overwrite to begin anew."
            )
        kept = 0
        if self.path.exists():
            with open(self.path, "rb") as file:
                first = file.readline()
                for line in file:
                    if line.endswith(b"\n"):
                        kept += len(line)
                        self.num_windows += 1
            if self.num_windows:  # else there is nothing to lose, whatever it was to be
                if first.decode() != header + "\n":
                    raise InputError(
                        f"{self.path} holds results of another input, model or precision, or of what they were "
                        "before: add --overwrite to begin anew."
                    )
                kept += len(first)
            os.truncate(self.path, kept)
        # Every system's lines end alike: `kept` was counted so.
        self.file = open(self.path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115 (closed by `close`)
        if kept == 0:
            self.file.write(header + "\n")
            self.file.flush()

    def write(self, rows: list):
        self.file.write(json.dumps(rows) + "\n")
        self.file.flush()

    def close(self):
        self.file.close()


def _first_line(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.readline().rstrip("\n")


def part_path(output: Path, index: int, number: int) -> Path:
    return output.with_name(f"{output.name}.part-{index}-of-{number}")


def _merge(output: Path, number: int, config) -> int:
    """The parts as one file in the order of the input; they are removed."""
    paths = [part_path(output, index, number) for index in range(number)]
    if len(set(map(_first_line, paths))) > 1:
        raise InputError(f"{paths[0]} and the others are not of one model: add --overwrite to begin anew.")
    unfinished, rows_written = output.with_name(output.name + ".unfinished"), 0
    with open(unfinished, "w", encoding="utf-8", newline="") as file:
        write = result_writer(file, output.suffix.lower(), config)
        for rows in _in_turns([_windows(path) for path in paths]):
            for row in rows:
                write(row)
            rows_written += len(rows)
    os.replace(unfinished, output)
    for path in paths:
        path.unlink()
    return rows_written


def _windows(path: Path) -> Iterator[list]:
    with open(path, encoding="utf-8") as file:
        next(file)
        yield from map(json.loads, file)


def _in_turns(parts: list[Iterator[list]]) -> Iterator[list]:
    while True:
        for part in parts:
            window = next(part, None)
            if window is None:
                return
            yield window


def written(rows: np.ndarray, config) -> list:
    """Of answers what is written: of one class a text its number and probability, else all probabilities, or values."""
    if config.problem_type in ("regression", "multi_label_classification"):
        return rounded(rows)
    return list(zip(rows.argmax(axis=1).tolist(), np.round(rows.max(axis=1), 6).tolist()))


def result_writer(file, suffix: str, config, with_text: bool = False):
    """A function that writes one text's result (see [`written`]), and the text beside it if that is wanted."""
    names = [config.id2label[index] for index in range(config.num_labels)]

    def fields(row) -> dict:
        if config.problem_type == "multi_label_classification":
            return {"labels": dict(zip(names, row))}
        best, score = (0, row) if config.problem_type == "regression" else row
        return {"label": names[best], "score": score}

    if suffix == ".jsonl":
        return lambda row, **text: file.write(json.dumps({**fields(row), **text}, ensure_ascii=False) + "\n")
    are_several = config.problem_type == "multi_label_classification"
    table = csv.writer(file)  # by place: a label may be called "text"
    table.writerow([*(names if are_several else ["label", "score"]), *(["text"] if with_text else [])])
    return lambda row, **text: table.writerow([*(row if are_several else fields(row).values()), *text.values()])
