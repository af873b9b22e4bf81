"""A saved model as a function from rows of ids to logits, in torch or exported to ONNX, and these as probabilities."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import resolve_revision

from .configuration_rnnsent import RNNSentConfig
from .errors import InputError, loading
from .modeling_rnnsent import RNNSentForSequenceClassification
from .padding import pad
from .recurrence_rnnsent import multiplies_in_bfloat16

ONNX_FILE = "model.onnx"
CLASSIFIER = RNNSentForSequenceClassification.__name__
# A text is read in pieces of so many tokens where the model can carry its state.
PIECE_TOKENS = 16384


class TorchScorer:
    """
    Logits by the model itself.

    Args:
        model ([`RNNSentForSequenceClassification`]): On a CPU or a GPU, where it stays.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The model's own.
        bf16 (`bool`, *optional*, defaults to `False`): Whether layers compute in bfloat16, faster and a little less
            exactly, where the device multiplies in it (AVX-512 BF16, AMX, a GPU). Elsewhere float32 stays.
        commit (`str`, *optional*): Of a model on the Hub, the commit that it is.
    """

    def __init__(
        self,
        model: RNNSentForSequenceClassification,
        tokenizer: PreTrainedTokenizerBase,
        bf16: bool = False,
        commit: str | None = None,
    ):
        self.model, self.tokenizer, self.config, self.commit = model.eval(), tokenizer, model.config, commit
        self.on_cpu = model.device.type == "cpu"
        self.bf16 = bf16 and multiplies_in_bfloat16(model.device.type)
        model.rnnsent.recurrence.flatten_parameters()  # in inference mode, in which it answers, it is too late

    def __call__(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Ids of one text and more to logits `(len(rows), num_labels)`, float32."""
        with torch.inference_mode(), torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16):
            return self._answer(rows)

    def _answer(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        if max(map(len, rows)) > PIECE_TOKENS and not self.config.bidirectional:
            return np.concatenate([self._read_in_pieces(row) for row in rows])
        input_ids, attention_mask = (torch.from_numpy(part) for part in pad(rows, self.config.pad_token_id))
        mask = None if bool(attention_mask.all()) else attention_mask.to(self.model.device)
        return self._to_numpy(self.model(input_ids.to(self.model.device), attention_mask=mask).logits)

    def _read_in_pieces(self, row: np.ndarray) -> np.ndarray:
        """One long text, its state carried from piece to piece, in memory that does not grow with it."""
        state = None
        for start in range(0, max(1, len(row)), PIECE_TOKENS):
            input_ids, attention_mask = pad([row[start : start + PIECE_TOKENS]], self.config.pad_token_id)
            inputs = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}
            inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
            output = self.model(**inputs, state=state, use_cache=True)
            state = output.state
        return self._to_numpy(output.logits)

    @staticmethod
    def _to_numpy(logits: torch.Tensor) -> np.ndarray:
        return logits.float().cpu().numpy()


class OnnxScorer:
    """
    Logits by ONNX Runtime, from a directory that `rnnsent export` wrote.

    Args:
        folder (`str`): The directory.
        num_threads (`int`, *optional*, defaults to 1): Threads of one call. Calls may run beside each other.
    """

    on_cpu, commit = True, None

    def __init__(self, folder: str, num_threads: int = 1):
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise InputError(f"{folder!r} holds an ONNX model, which needs: pip install onnxruntime") from None
        with loading("model", folder):
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self.config = RNNSentConfig.from_pretrained(folder)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = num_threads
            self.session = onnxruntime.InferenceSession(
                str(Path(folder) / ONNX_FILE), options, providers=["CPUExecutionProvider"]
            )

    def __call__(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Ids of one text and more to logits `(len(rows), num_labels)`, float32."""
        input_ids, attention_mask = pad(rows, self.config.pad_token_id)
        return self.session.run(["logits"], {"input_ids": input_ids, "attention_mask": attention_mask})[0]


def load_torch_scorer(name: str, lack: str) -> TorchScorer:
    """As [`load_scorer`] on the CPU; an exported model is refused with what it lacks (`lack`)."""
    scorer = load_scorer(name)
    if isinstance(scorer, OnnxScorer):
        raise InputError(f"{name!r} is an exported model, {lack}: name the model it was made of.")
    return scorer


def load_scorer(name: str, device: torch.device | str = "cpu", bf16: bool = False) -> TorchScorer | OnnxScorer:
    """
    A trained or exported model.

    Args:
        name (`str`): Directory or Hub id of a trained model, or directory of an exported one.
        device (`torch.device`, *optional*, defaults to the CPU): Where a trained model runs.
        bf16 (`bool`, *optional*, defaults to `False`): Whether its layers compute in bfloat16: see [`TorchScorer`]. An
            exported model computes in the type that it was exported in.

    Raises:
        InputError: where it is not a classifier of this package, or is not whole.
    """
    if (Path(name) / ONNX_FILE).is_file():
        return OnnxScorer(name)
    with loading("model", name):
        revision = resolve_revision(name)  # once: all files of one commit
        # Not by `AutoConfig`, which would ask on standard input whether to run another model's code.
        kind = RNNSentConfig.get_config_dict(name, revision=revision)[0].get("model_type")
        if kind != RNNSentConfig.model_type:
            raise InputError(f"{name!r} holds a model of type {kind!r}, not {RNNSentConfig.model_type!r}.")
        config = RNNSentConfig.from_pretrained(name, revision=revision)
        if CLASSIFIER not in (config.architectures or [CLASSIFIER]):
            raise InputError(
                f"{name!r} holds {config.architectures[0]}, which is no classifier ({CLASSIFIER}): train one that "
                f"starts from it by train.py RECIPE --model_name_or_path {name}"
            )
        if config.problem_type == "regression" and config.num_labels != 1:
            raise InputError(f"{name!r} has {config.num_labels} values a text; one can be read.")
        model, info = RNNSentForSequenceClassification.from_pretrained(
            name, revision=revision, output_loading_info=True
        )
        if lacking := sorted(info["missing_keys"]):
            raise InputError(f"{name!r} is not whole: its weights lack {', '.join(lacking)}.")
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        return TorchScorer(model.to(device), tokenizer, bf16, getattr(revision, "resolved", None))


def rounded(answers: np.ndarray) -> list:
    """Answers as they are written: probabilities `(texts, labels)` to six places, values `(texts,)` to seven digits."""
    return np.round(answers, 6).tolist() if answers.ndim > 1 else [float(f"{value:.7g}") for value in answers]


def probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Logits `(texts, labels)` to probabilities, or to the values `(texts,)` of a regression."""
    logits = torch.from_numpy(np.asarray(logits, dtype=np.float64))
    if problem_type == "regression":
        return logits.view(len(logits)).numpy()
    return (logits.sigmoid() if problem_type == "multi_label_classification" else logits.softmax(dim=1)).numpy()


def as_answer(row: np.ndarray, config: RNNSentConfig) -> dict:
    """
    One text's probabilities or value, as [`probabilities`] gives them, as JSON is to have it: `label` and `score` of
    one class a text (the likeliest) and of a value, of several labels their probabilities by name as `labels`.
    """
    names = [config.id2label[index] for index in range(config.num_labels)]
    if config.problem_type == "multi_label_classification":
        return {"labels": dict(zip(names, map(float, row)))}
    best = int(np.argmax(row)) if np.ndim(row) else 0
    return {"label": names[best], "score": float(np.atleast_1d(row)[best])}
