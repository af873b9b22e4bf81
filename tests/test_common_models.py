"""
`transformers`' own common model tests, run on every RNNSent model.

They are not part of the installed package: `TRANSFORMERS_SOURCE` names an unpacked source distribution of the installed
version (`pip download --no-deps --no-binary transformers transformers==VERSION`).
"""

import os
import sys
import types
import unittest
from pathlib import Path

import pytest

from modeling_rnnsent import (
    RNNSentConfig,
    RNNSentForCausalLM,
    RNNSentForSequenceClassification,
    RNNSentForTokenClassification,
    RNNSentModel,
)

SOURCE = os.environ.get("TRANSFORMERS_SOURCE")
if not SOURCE:
    pytest.skip("TRANSFORMERS_SOURCE does not name transformers' unpacked sources", allow_module_level=True)


def common_tests():
    """The module `tests.test_modeling_common`; two of its mixins lie in folders that the distribution leaves out."""
    package = types.ModuleType("transformers_tests")
    package.__path__ = [str(Path(SOURCE) / "tests")]
    sys.modules["transformers_tests"] = package
    for name, mixin in (
        ("exporters.test_export", "ExportTesterMixin"),
        ("generation.test_utils", "GenerationTesterMixin"),
    ):
        module = types.ModuleType(f"transformers_tests.{name}")
        setattr(module, mixin, type(mixin, (), {}))
        sys.modules[f"transformers_tests.{name}"] = module
    import transformers_tests.test_modeling_common as common

    return common


pytestmark = pytest.mark.slow
common = common_tests()
# The tests tell heads from base models by name in these tables, which hold transformers' own models only.
common.MODEL_MAPPING_NAMES["rnnsent"] = "RNNSentModel"
common.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["rnnsent"] = "RNNSentForSequenceClassification"
common.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES["rnnsent"] = "RNNSentForTokenClassification"
common.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["rnnsent"] = "RNNSentForCausalLM"


class ModelTester:
    """A small model and a batch for it, as each model's own tests in `transformers` have."""

    batch_size, seq_length, hidden_size, num_hidden_layers, vocab_size, is_training = 13, 7, 32, 2, 99, True

    def __init__(self, parent, **settings):
        self.parent = parent
        self.settings = settings

    def get_config(self):
        return RNNSentConfig(
            **{
                "vocab_size": self.vocab_size,
                "embedding_size": 32,
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "initializer_range": 0.02,
                **self.settings,
            }
        )

    def prepare_config_and_inputs_for_common(self):
        input_ids = common.ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        mask = common.random_attention_mask([self.batch_size, self.seq_length])
        return self.get_config(), {"input_ids": input_ids, "attention_mask": mask}


class CommonTests(common.ModelTesterMixin):
    all_model_classes = (
        RNNSentModel,
        RNNSentForSequenceClassification,
        RNNSentForTokenClassification,
        RNNSentForCausalLM,
    )
    settings = {}
    has_attentions = False
    _torch_compile_train_cls = RNNSentForTokenClassification

    def setUp(self):
        self.model_tester = ModelTester(self, **self.settings)

    @unittest.skip("GenerationTesterMixin lies in a folder that the source distribution leaves out")
    def test_generation_tester_mixin_inheritance(self):
        pass


class LSTMTest(CommonTests, unittest.TestCase):
    pass


class BidirectionalGRUTest(CommonTests, unittest.TestCase):
    settings = {"cell_type": "gru", "bidirectional": True, "pooling": "attention", "classifier_hidden_size": 16}
    all_model_classes = CommonTests.all_model_classes[:-1]


class OutputRecurrenceTest(CommonTests, unittest.TestCase):
    settings = {"cell_type": "rnn", "recurrence": "output", "pooling": "max_mean"}


class TiedTest(CommonTests, unittest.TestCase):
    settings = {"tie_word_embeddings": True, "pooling": "mean"}


del CommonTests
