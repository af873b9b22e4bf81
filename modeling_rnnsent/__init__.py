"""Recurrent text classification for Hugging Face `transformers`. Importing it registers the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_rnnsent import RNNSentConfig
from .modeling_rnnsent import (
    RNNSentForCausalLM,
    RNNSentForSequenceClassification,
    RNNSentForTokenClassification,
    RNNSentModel,
    RNNSentPreTrainedModel,
)
from .recurrence_rnnsent import RNNSentRecurrence

AutoConfig.register("rnnsent", RNNSentConfig)
AutoModel.register(RNNSentConfig, RNNSentModel)
AutoModelForSequenceClassification.register(RNNSentConfig, RNNSentForSequenceClassification)
AutoModelForTokenClassification.register(RNNSentConfig, RNNSentForTokenClassification)
AutoModelForCausalLM.register(RNNSentConfig, RNNSentForCausalLM)

__all__ = [
    "RNNSentConfig",
    "RNNSentForCausalLM",
    "RNNSentForSequenceClassification",
    "RNNSentForTokenClassification",
    "RNNSentModel",
    "RNNSentPreTrainedModel",
    "RNNSentRecurrence",
]
