"""Rows of ids to padded batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


def pad(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Rows of ids, filled up on the right: ids and attention mask `(len(rows), longest)`, int64.

    A batch of empty texts keeps one column of padding, since ONNX Runtime's layers take no text of length 0.
    """
    lengths = np.array([len(row) for row in rows])
    input_ids = np.full((len(rows), max(1, int(lengths.max()))), pad_token_id, dtype=np.int64)
    for row, target, length in zip(rows, input_ids, lengths):
        target[:length] = row
    attention_mask = np.arange(input_ids.shape[1]) < lengths[:, None]
    return input_ids, attention_mask.astype(np.int64)


@dataclass
class PaddingCollator:
    """
    Rows of ids to a right-padded batch.

    The tokenizer's own `pad` gives the same and takes twenty times as long, which a small model would wait for.

    Args:
        pad_token_id (`int`): Fills the rows up.
        labels_are_ids (`bool`, *optional*, defaults to `False`): Whether the ids are also the labels, for language
            modeling: -100 at padding.
    """

    pad_token_id: int
    labels_are_ids: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        input_ids, attention_mask = pad([row["input_ids"] for row in rows], self.pad_token_id)
        batch = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}
        if self.labels_are_ids:
            batch["labels"] = torch.from_numpy(np.where(attention_mask, input_ids, -100))
        elif "labels" in rows[0]:
            labels = np.array([row["labels"] for row in rows])
            batch["labels"] = torch.from_numpy(labels.astype(np.float32) if labels.dtype.kind == "f" else labels)
        return batch
