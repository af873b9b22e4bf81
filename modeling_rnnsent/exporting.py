"""A trained classifier as an ONNX graph, with all that is needed to run it, checked against the model."""

import io
import logging
import shutil
import warnings
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TextClassificationPipeline
from transformers.utils import logging as transformers_logging

from .errors import InputError
from .modeling_rnnsent import RNNSentClassifierOutput, RNNSentPreTrainedModel
from .scoring import ONNX_FILE, OnnxScorer, TorchScorer, load_scorer

# Shapes `(batch, time)` at which the graph is compared with the model; none is the example's that it is traced with.
_CHECKED_SHAPES = ((1, 1), (1, 700), (2, 1), (7, 5), (40, 60))
_EXAMPLE_SHAPE = (3, 11)
# Of the largest logit, or of 1 where that is smaller.
_TOLERANCE = 1e-4
# A directory is written beside its place and renamed when the graph has been compared.
_UNFINISHED = ".unfinished"
_ANY_SIZE = 1 << 40


def export_model(name: str, output_dir: str, quantize: bool = False) -> dict[str, float]:
    """
    Writes a trained classifier to `output_dir` as ONNX, with tokenizer and configuration. Batch and length are free.

    Args:
        name (`str`): Directory or Hub id of a trained model.
        output_dir (`str`): Directory to be made.
        quantize (`bool`, *optional*, defaults to `False`):
            Whether weights become int8, with activations quantized as the graph runs (ONNX Runtime's dynamic
            quantization, which leaves GRU and Elman layers as they are). Smaller, faster and a little less exact.

    Returns:
        `dict[str, float]`: `megabytes` of the graph and its weights, and `largest_difference` of a logit from the
        model's over batches of many shapes.

    Raises:
        InputError: where the model cannot be exported, `output_dir` holds files, or packages are missing.
    """
    folder = Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "not empty" if folder.is_dir() else "a file"
        raise InputError(f"the output directory {output_dir!r} is {what}: name another.")
    scorer = load_scorer(name)
    if not isinstance(scorer, TorchScorer):
        raise InputError(f"{name!r} holds an exported model already.")
    if scorer.config.recurrence == "output":
        raise InputError(
            f'the model {name!r} has recurrence="output", which cannot be exported: ONNX has no layer that feeds its '
            "output back."
        )
    scorer.model.float()  # a graph of half precision is nothing that a CPU is faster with
    scorer.config.dtype = torch.float32
    unfinished = folder.resolve().with_name(folder.resolve().name + _UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _trace(scorer, quantize).save_pretrained(unfinished)
        scorer.tokenizer.save_pretrained(unfinished)
        difference, largest = map(max, zip(*_differences(scorer, OnnxScorer(str(unfinished)))))
        if not quantize and not difference < _TOLERANCE * max(1, largest):
            raise InputError(f"{name!r} cannot be exported: the graph's logits differ by {difference:.2g}.")
        if folder.exists():
            folder.rmdir()  # which is empty
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    size = sum(file.stat().st_size for file in folder.glob(f"{ONNX_FILE}*"))
    return {"megabytes": size / 1e6, "largest_difference": difference}


def _trace(scorer: TorchScorer, quantize: bool):
    """The model's `transformers.exporters.ExportedModel`."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise InputError(f"exporting needs packages that are not installed: pip install {' '.join(missing)}")
    from onnxscript.optimizer import optimize
    from transformers.exporters import OnnxConfig, OnnxExporter, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    class Quantizer(OnnxRuntimeQuantizer):
        """Of recurrent layers it takes weights alone, and not what a graph puts together of them."""

        def quantize(self, model, *args):
            optimize(model, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE)
            return super().quantize(model, *args)

    with _quiet():
        exporter = OnnxExporter()
        quantizer = Quantizer(OnnxRuntimeDynamicConfig()) if quantize else None
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    config = OnnxConfig(dynamic=True, dynamic_shapes={"input_ids": axes, "attention_mask": axes})
    if quantizer is not None:
        config.quantizer = quantizer
    input_ids, attention_mask = _random_batch(scorer, _EXAMPLE_SHAPE, np.random.default_rng(0))
    example = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}
    recurrence = scorer.model.rnnsent.recurrence
    recurrence.uses_onnx_operators = True
    try:
        with _quiet():
            return exporter.export(scorer.model, example, config=config)
    finally:
        recurrence.uses_onnx_operators = False


@contextmanager
def _quiet():
    """Keeps back what the exporters print and warn about on every run: stages, versions, unused operators."""
    verbosity, disabled = transformers_logging.get_verbosity(), logging.root.manager.disable
    transformers_logging.set_verbosity_error()
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        transformers_logging.set_verbosity(verbosity)


def _random_batch(scorer: TorchScorer, shape: tuple[int, int], generator: np.random.Generator):
    lengths = generator.integers(0, shape[1] + 1, shape[0])
    lengths[0] = shape[1]
    attention_mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
    input_ids = generator.integers(0, scorer.config.vocab_size, shape)
    return np.where(attention_mask, input_ids, scorer.config.pad_token_id), attention_mask


def _differences(scorer: TorchScorer, exported: OnnxScorer):
    generator = np.random.default_rng(1)
    for shape in _CHECKED_SHAPES:
        input_ids, attention_mask = _random_batch(scorer, shape, generator)
        rows = [ids[: mask.sum()] for ids, mask in zip(input_ids, attention_mask)]
        logits = scorer(rows)
        yield float(np.abs(logits - exported(rows)).max()), float(np.abs(logits).max())


class RNNSentOnnxModel(RNNSentPreTrainedModel):
    """
    An exported graph in the place of a [`RNNSentForSequenceClassification`], for inference.

    Args:
        scorer ([`OnnxScorer`]): Runs the graph.
    """

    def __init__(self, scorer: OnnxScorer):
        super().__init__(scorer.config)
        self.session = scorer.session

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs) -> RNNSentClassifierOutput:
        """Ids and mask `(batch_size, sequence_length)`, padded on the right, to logits."""
        if input_ids.shape[1] == 0:  # texts of no words: ONNX Runtime takes no sequence of length 0
            input_ids, attention_mask = (F.pad(part, (0, 1)) for part in (input_ids, attention_mask))
        inputs = {"input_ids": input_ids.long().numpy(), "attention_mask": attention_mask.long().numpy()}
        return RNNSentClassifierOutput(logits=torch.from_numpy(self.session.run(["logits"], inputs)[0]))


def exported_pipeline(folder: str) -> TextClassificationPipeline:
    """
    The text-classification pipeline of an exported model: called as that of the trained one, with its outputs.

    Args:
        folder (`str`): What `rnnsent export` wrote.

    Raises:
        InputError: where it is not an exported model, or is not whole.

    Example:

    ```python
    >>> from modeling_rnnsent.exporting import exported_pipeline

    >>> classify = exported_pipeline("runs/default-onnx")
    >>> classify(["I loved every minute of it.", "A waste of time."])
    ```
    """
    scorer = OnnxScorer(folder, num_threads=torch.get_num_threads())
    scorer.tokenizer.padding_side = "right"  # which is all that the graph takes, whatever the tokenizer's own
    with _quiet():  # the pipeline does not know the model's class by name
        return TextClassificationPipeline(model=RNNSentOnnxModel(scorer), tokenizer=scorer.tokenizer, device="cpu")
