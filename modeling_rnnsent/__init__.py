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

AutoConfig.register("rnnsent", RNNSentConfig, exist_ok=True)
AutoModel.register(RNNSentConfig, RNNSentModel, exist_ok=True)
AutoModelForSequenceClassification.register(RNNSentConfig, RNNSentForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(RNNSentConfig, RNNSentForTokenClassification, exist_ok=True)
AutoModelForCausalLM.register(RNNSentConfig, RNNSentForCausalLM, exist_ok=True)

__all__ = [
    "RNNSentConfig",
    "RNNSentForCausalLM",
    "RNNSentForSequenceClassification",
    "RNNSentForTokenClassification",
    "RNNSentModel",
    "RNNSentPreTrainedModel",
    "RNNSentRecurrence",
]
