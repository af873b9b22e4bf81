"""RNNSent models: embedding, stacked recurrent layers, pooling and a head. This file travels with every checkpoint."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import can_return_tuple, is_tracing, logging

from .configuration_rnnsent import RNNSentConfig
from .dropout_rnnsent import drop_out
from .ngrams_rnnsent import RNNSentNgrams
from .pooling_rnnsent import RNNSentPooler
from .recurrence_rnnsent import RNNSentRecurrence, sequence_mask, without_autocast
from .softmax_rnnsent import sampled_cross_entropy

logger = logging.get_logger(__name__)

# Logits that a language model's loss computes at once where nobody asked for them.
_MOST_LOGITS = 1 << 26


@dataclass
class RNNSentModelOutput(ModelOutput):
    """
    Output of [`RNNSentModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, sequence_length, output_size)`):
            Output of the last recurrent layer for every token, zero at padding.
        pooler_output (`torch.FloatTensor` of shape `(batch_size, pooled_size)`, *optional*):
            One vector a text, by `config.pooling`; twice `output_size` long for `"max_mean"`.
        state (`tuple[torch.FloatTensor]`, *optional*, returned with `use_cache=True`):
            Final state `(h_n,)`, or `(h_n, c_n)` for an LSTM, each of shape `(num_hidden_layers * num_directions,
            batch_size, hidden_size)` and at each text's own end, and then what the pooling keeps of the text, each of
            shape `(batch_size, size)`. Pass it back as `state` to read on: with one direction, a text read in pieces
            gives what it gives in one.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*, returned with `output_hidden_states=True`):
            The embeddings and the output of every recurrent layer.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    state: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class RNNSentClassifierOutput(ModelOutput):
    """
    Output of [`RNNSentForSequenceClassification`] and [`RNNSentForTokenClassification`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels`):
            Cross-entropy, binary cross-entropy over labels or mean squared error, by `config.problem_type`.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`, or, of tokens, `(batch_size,
            sequence_length, num_labels)`):
            Scores before softmax (or sigmoid, for multi-label). The one-unit sigmoid head gives `[0, z]`.
        state (`tuple[torch.FloatTensor]`, *optional*, returned with `use_cache=True`):
            Final state, as in [`RNNSentModelOutput`].
        hidden_states (`tuple[torch.FloatTensor]`, *optional*, returned with `output_hidden_states=True`):
            The embeddings and the output of every recurrent layer.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class RNNSentCausalLMOutput(ModelOutput):
    """
    Output of [`RNNSentForCausalLM`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned with `labels`):
            Cross-entropy of the next token and, of a second direction, of the one before.
        logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`, *optional*):
            Scores of the next token before softmax. None for a loss by sampled softmax.
        state (`tuple[torch.FloatTensor]`, *optional*, returned with `use_cache=True`):
            Final state, as in [`RNNSentModelOutput`].
        hidden_states (`tuple[torch.FloatTensor]`, *optional*, returned with `output_hidden_states=True`):
            The embeddings and the output of every recurrent layer.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class RNNSentClassificationHead(nn.Module):
    """Dropout and a linear layer, or with `classifier_hidden_size` dropout, linear, ReLU, dropout, linear."""

    def __init__(self, config: RNNSentConfig, input_size: int, may_be_regression: bool = True):
        super().__init__()
        self.config, self.may_be_regression = config, may_be_regression
        self.is_sigmoid = config.classifier_head == "sigmoid"
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.dense = nn.Linear(input_size, config.classifier_hidden_size) if config.classifier_hidden_size else None
        self.out_proj = nn.Linear(
            config.classifier_hidden_size or input_size, 1 if self.is_sigmoid else config.num_labels
        )

    @property
    def scale(self) -> float:
        """What the last layer's output is multiplied with: a regression's `value_scale`."""
        return self.config.value_scale if self.is_regression else 1.0

    @property
    def is_regression(self) -> bool:
        """Whether the output is in the unit of a regression's labels."""
        return self.may_be_regression and self.config.problem_type == "regression"

    def forward(self, features: Tensor) -> Tensor:
        """Features `(..., input_size)` to logits `(..., num_labels)`."""
        features = self.dropout(features)
        if self.dense is not None:
            features = self.dropout(torch.relu(self.dense(features)))
        logits = self.out_proj(features)
        if self.is_regression:
            logits = logits * self.config.value_scale + self.config.value_mean
        # Softmax over [0, z] is (1 - sigmoid(z), sigmoid(z)), and its cross-entropy is the binary one.
        return F.pad(logits, (1, 0)) if self.is_sigmoid else logits


class RNNSentPreTrainedModel(PreTrainedModel):
    """Weight initialization, saving and loading of RNNSent models."""

    config_class = RNNSentConfig
    base_model_prefix = "rnnsent"
    input_modalities = ("text",)
    # A recurrent layer is one kernel call whose activations cannot be dropped and computed again step by step.
    supports_gradient_checkpointing = False
    _is_stateful = True

    def __init__(self, config: RNNSentConfig, *args, **kwargs):
        config.validate()  # again: `from_pretrained` sets the fields that it is given one by one
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args, use_cache: bool | None = None, **kwargs):
        """As in `transformers`. `use_cache`, which scripts give other models here, is `forward`'s alone."""
        return super().from_pretrained(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Starts every layer as `torch.nn` starts it; embeddings from N(0, `initializer_range`), padding's at zero."""
        if isinstance(module, RNNSentRecurrence):
            bound = module.hidden_size**-0.5
            for parameter in module.parameters(recurse=False):
                init.uniform_(parameter, -bound, bound)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, RNNSentNgrams):
            init.zeros_(module.scores)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        else:  # a layer of somebody's own model that is made of these
            super()._init_weights(module)

    @staticmethod
    def _check_state(state: tuple[Tensor, ...] | None, shapes: list[tuple[int, ...]]):
        given = None if state is None else [tuple(part.shape) for part in state]
        if given not in (None, shapes):
            raise ValueError(f"`state` must be a tuple of tensors of shapes {shapes}, got shapes {given}.")

    def _check_reads_on(self, state: tuple[Tensor, ...] | None):
        """Raises where a text is to be read on by a direction that starts from its end."""
        if state is not None and self.config.bidirectional:
            raise ValueError(
                "`state` needs `bidirectional=False`, got True: read in pieces, a text has other answers than in one."
            )

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Embedding:
        if self.config.input_encoding == "one_hot":
            raise ValueError(
                f'`resize_token_embeddings({new_num_tokens})`: `input_encoding="one_hot"` has no embedding to resize; '
                f"its first layer reads exactly {self.config.vocab_size} ids."
            )
        if new_num_tokens is not None and new_num_tokens <= self.config.pad_token_id:
            raise ValueError(
                f"`resize_token_embeddings({new_num_tokens})` would leave no row for `pad_token_id`, "
                f"{self.config.pad_token_id}."
            )
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)


class RNNSentModel(RNNSentPreTrainedModel):
    """
    Embedding, stacked recurrent layers and pooling, without a head.

    Args:
        config ([`RNNSentConfig`]): Configuration.
        add_pooling_layer (`bool`, *optional*, defaults to `True`): Whether `pooler_output` is computed.
    """

    def __init__(self, config: RNNSentConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = None
        if config.input_encoding == "embedding":
            self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.recurrence = RNNSentRecurrence(
            input_size=config.vocab_size if self.embeddings is None else config.embedding_size,
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
            cell_type=config.cell_type,
            nonlinearity=config.nonlinearity,
            recurrence=config.recurrence,
            bidirectional=config.bidirectional,
            merge_mode=config.merge_mode,
            hidden_dropout=config.hidden_dropout,
            weight_dropout=config.weight_dropout,
            variational_dropout=config.variational_dropout,
        )
        self.pooler = RNNSentPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding | None:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Embedding):
        self.embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        use_cache: bool = False,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> RNNSentModelOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Token ids. One of `input_ids` and `inputs_embeds` is needed.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 at tokens, 0 at padding. Padding may stand anywhere in eager mode and is skipped; a traced or
                exported graph takes right padding. None: there is no padding.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, embedding_size)`, *optional*):
                Embeddings instead of ids (vectors of size `vocab_size` with `input_encoding="one_hot"`).
            state (`tuple[torch.FloatTensor]`, *optional*):
                Initial state, as returned. None: zeros.
            use_cache (`bool`, *optional*, defaults to `False`):
                Whether the final state is returned.
            output_hidden_states (`bool`, *optional*):
                Whether the embeddings and every layer's output are returned.

        Returns:
            [`RNNSentModelOutput`], or a tuple of its values with `return_dict=False`.

        Raises:
            ValueError: where the inputs do not fit together.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        inputs = self._embed(input_ids, inputs_embeds)
        batch_size, sequence_length = inputs.shape[:2]
        self._check_state(state, self.state_shapes(batch_size))
        if input_ids is not None and sequence_length > 0 and state is None:  # `generate` goes on from one
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        mask, lengths, order = self._read_mask(attention_mask, inputs)

        embeddings = inputs
        if order is not None:
            inputs = inputs.take_along_dim(order if inputs.dim() == 2 else order.unsqueeze(-1), dim=1)
        initial = None if state is None else state[: self.num_recurrent_states]
        outputs, final_hidden, final_state = self.recurrence(inputs, lengths, initial, return_state=use_cache)
        if order is not None:
            places = order.argsort(dim=1).unsqueeze(-1)
            outputs = [output.take_along_dim(places.to(output.device), dim=1) for output in outputs]

        pooled = None
        if self.pooler is not None:
            past = None if state is None else state[self.num_recurrent_states :]
            pooled, past = self.pooler(outputs[-1], final_hidden, mask, past)
            if final_state is not None:
                final_state = (*final_state, *past)
        hidden_states = None
        if output_hidden_states:
            if not embeddings.is_floating_point():
                embeddings = F.one_hot(embeddings, self.config.vocab_size).to(outputs[-1].dtype)
            hidden_states = (embeddings, *outputs)
        return RNNSentModelOutput(
            last_hidden_state=outputs[-1], pooler_output=pooled, state=final_state, hidden_states=hidden_states
        )

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """What the recurrence reads: vectors `(batch, time, size)`, or for one-hot encoding the ids `(batch, time)`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        if inputs_embeds is None:
            if input_ids.dim() != 2:
                raise ValueError(
                    f"`input_ids` must be of shape (batch_size, sequence_length), got {tuple(input_ids.shape)}."
                )
            input_ids = input_ids.long()  # a tokenizer makes floats of a batch of empty texts
            self._check_ids(input_ids)
            if self.embeddings is None:
                return input_ids
            inputs_embeds = self.embeddings(input_ids)
        elif (
            inputs_embeds.dim() != 3
            or inputs_embeds.shape[2] != self.recurrence.input_size
            or not inputs_embeds.is_floating_point()
        ):
            raise ValueError(
                "`inputs_embeds` must be floats of shape (batch_size, sequence_length, "
                f"{self.recurrence.input_size}), got {inputs_embeds.dtype} of shape {tuple(inputs_embeds.shape)}."
            )
        if self.training and self.config.word_dropout > 0:
            kept = inputs_embeds.new_ones(*inputs_embeds.shape[:2], 1)
            inputs_embeds = inputs_embeds * F.dropout(kept, self.config.word_dropout)
        config = self.config
        return drop_out(inputs_embeds, config.embedding_dropout, self.training, config.variational_dropout)

    def _check_ids(self, input_ids: Tensor):
        # A GPU would have to be waited for, and a graph has no errors of its own.
        if input_ids.device.type != "cpu" or input_ids.numel() == 0 or is_tracing(input_ids):
            return
        least, most = input_ids.aminmax()
        if least < 0 or most >= self.config.vocab_size:
            raise ValueError(
                f"`input_ids` must be from 0 to `vocab_size` - 1 = {self.config.vocab_size - 1}, got ids from {least} "
                f"to {most}."
            )

    def read_ids(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Ids with each text's tokens at the front, and its length (None: no text is padded)."""
        _, lengths, order = self._read_mask(attention_mask, input_ids)
        return (input_ids if order is None else input_ids.take_along_dim(order, dim=1)).long(), lengths

    @property
    def num_recurrent_states(self) -> int:
        """How many parts of `state` are the recurrent layers'; the pooling's follow."""
        return 2 if self.config.cell_type == "lstm" else 1

    def state_shapes(self, batch_size: int) -> list[tuple[int, ...]]:
        """Shapes of the parts of `state`."""
        num_layers = self.recurrence.num_layers * self.recurrence.num_directions
        shapes = [(num_layers, batch_size, self.config.hidden_size)] * self.num_recurrent_states
        if self.pooler is not None:
            shapes += [(batch_size, size) for size in self.pooler.state_sizes]
        return shapes

    def _read_mask(
        self, attention_mask: Tensor | None, inputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """
        The mask as booleans, every text's length, and, where padding is not all on the right, the order `(batch, time)`
        that brings each text's tokens to the front. None for what there is no need of.
        """
        if attention_mask is None:
            return None, None, None
        if attention_mask.shape != inputs.shape[:2]:
            raise ValueError(
                f"`attention_mask` must be of shape {tuple(inputs.shape[:2])} as the input, got "
                f"{tuple(attention_mask.shape)}."
            )
        mask = attention_mask.to(inputs.device).bool()
        # torch.compile can leave its graph to look at the mask; tracing and exporting cannot.
        if is_tracing(mask) and (torch.compiler.is_exporting() or not torch.compiler.is_compiling()):
            logger.warning_once("A traced or exported RNNSent graph takes right-padded batches only.")
            return mask, mask.sum(dim=1), None
        if mask.all():
            return None, None, None
        lengths = mask.sum(dim=1)
        if torch.equal(mask, sequence_mask(lengths, mask.shape[1])):
            return mask, lengths, None
        return mask, lengths, mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)


def _in_dtype_of(module: nn.Module, input: Tensor) -> Tensor:
    """The input as a module's weights are: beside layers in bfloat16 a head may have been kept in float32."""
    return input.to(next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), input.dtype))


class RNNSentForSequenceClassification(RNNSentPreTrainedModel):
    """
    A text's class, classes or value: [`RNNSentModel`], its pooling and a [`RNNSentClassificationHead`].

    With `config.ngram_order` there is a linear model of n-grams beside it ([`RNNSentNgrams`]). In training the logits
    are the recurrent ones alone, in evaluation the weighted mean of both: what the n-grams say already would leave the
    recurrent layers nothing to learn. Training leaves the n-grams and the `temperature` as they are: for other labels
    than those that they were fitted to, load with `ngram_order=0, temperature=1.0`.

    Args:
        config ([`RNNSentConfig`]): Configuration; `num_labels` and `problem_type` shape the head and the loss.
    """

    # Every process fits the same table: there is no need to send it around at every step.
    _ddp_params_and_buffers_to_ignore = ("ngrams.scores", "ngrams.bias")

    def __init__(self, config: RNNSentConfig):
        super().__init__(config)
        self.loss_type = "ForSequenceClassification"  # the library takes it from a class's name, and not of every one
        self.num_labels = config.num_labels
        if config.problem_type is None and config.num_labels == 1:  # as the library's loss takes it
            config.problem_type = "regression"
        if config.problem_type is None and config.classifier_head == "sigmoid":
            config.problem_type = "single_label_classification"
        self.rnnsent = RNNSentModel(config)
        self.classifier = RNNSentClassificationHead(config, config.output_size * (1 + (config.pooling == "max_mean")))
        self.ngrams = RNNSentNgrams(config) if config.ngram_order else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        labels: Tensor | None = None,
        use_cache: bool = False,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> RNNSentClassifierOutput:
        """
        Args:
            labels (`torch.Tensor` of shape `(batch_size,)`, *optional*):
                Class indices; values for regression; for multi-label, 0.0 and 1.0 of shape `(batch_size, num_labels)`.
            use_cache (`bool`, *optional*, defaults to `False`):
                Whether the final state is returned.

        The other arguments are those of [`RNNSentModel.forward`]. With n-grams, `state` holds theirs too, except in
        training, where they are not read.

        Returns:
            [`RNNSentClassifierOutput`], or a tuple of its values with `return_dict=False`.

        Raises:
            ValueError: where the inputs do not fit together; for floats as labels of one class a text; for `state`
                with two directions; in evaluation, for `inputs_embeds` with n-grams.
        """
        self._check_reads_on(state)
        past, reads_ngrams = None, self.ngrams is not None and not self.training
        if reads_ngrams and self.config.ngram_weight == 0:  # nothing in the answer: only what is read on needs them
            reads_ngrams = use_cache or state is not None
        if reads_ngrams and input_ids is None:
            raise ValueError("`inputs_embeds` do not tell the n-grams of a text: give `input_ids`.")
        if reads_ngrams and state is not None:
            own, ngrams = (part.state_shapes(input_ids.shape[0]) for part in (self.rnnsent, self.ngrams))
            self._check_state(state, own + ngrams)
            state, past = state[: len(own)], state[len(own) :]
        outputs = self.rnnsent(
            input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            state=state,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        final_state = outputs.state
        with without_autocast(outputs.pooler_output):  # bfloat16 has three digits: a value of 1987 would be 1984
            logits = self.classifier(_in_dtype_of(self.classifier, outputs.pooler_output))
            if reads_ngrams:
                ids, lengths = self.rnnsent.read_ids(input_ids, attention_mask)
                ngram_logits, past = self.ngrams(ids, lengths, past, use_cache)
                logits = torch.lerp(logits, ngram_logits.to(logits), self.config.ngram_weight)
                final_state = (*final_state, *past) if use_cache else None
        if not self.training and self.config.problem_type != "regression" and self.config.temperature != 1:
            logits = logits / self.config.temperature
        loss = None
        if labels is not None:
            labels = self._read_labels(labels, logits)
            if self.training and self.ngrams is not None and self.config.ngram_weight > 0:
                logger.warning_once(
                    f"The n-grams, {self.config.ngram_weight:g} of this model's answer in evaluation, stay as they are "
                    "in training: for other labels than theirs, load it with `ngram_order=0, temperature=1.0`."
                )
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
            if (
                kwargs.get("num_items_in_batch") is not None
                and self.config.problem_type != "single_label_classification"
            ):
                # Gradient accumulation: of the library's losses only cross-entropy divides by all the update's items.
                loss = loss * labels.numel() / kwargs["num_items_in_batch"]
            if self.training:
                loss = loss / getattr(self.classifier, "scale", 1.0) ** 2  # the head may be another layer by now
        return RNNSentClassifierOutput(loss=loss, logits=logits, state=final_state, hidden_states=outputs.hidden_states)

    def _read_labels(self, labels: Tensor, logits: Tensor) -> Tensor:
        """
        Labels of the type that the library's loss takes for what they are: by it, it tells the kind of problem where
        none is said, for good, and of bytes, booleans and floats it would make one of several labels a text.
        """
        if self.config.problem_type not in (None, "single_label_classification"):
            return labels if labels.is_floating_point() else labels.float()
        is_one_class = self.config.problem_type is not None or (self.ngrams is not None and self.ngrams.is_binary)
        if not labels.is_floating_point() and labels.numel() == len(logits):
            return labels.long()
        if is_one_class or not labels.is_floating_point() or labels.shape != logits.shape:
            wanted = f"class indices of shape ({len(logits)},)"
            if not is_one_class:
                wanted += f" or, for several labels a text, floats of shape {tuple(logits.shape)}"
            raise ValueError(f"`labels` must be {wanted}, got {labels.dtype} of shape {tuple(labels.shape)}.")
        return labels


class RNNSentForTokenClassification(RNNSentPreTrainedModel):
    """
    A class for every token (many-to-many): [`RNNSentModel`] without pooling and a [`RNNSentClassificationHead`].

    Args:
        config ([`RNNSentConfig`]): Configuration; `num_labels` shapes the head.
    """

    def __init__(self, config: RNNSentConfig):
        super().__init__(config)
        self.loss_type = "ForTokenClassification"
        self.num_labels = config.num_labels
        self.rnnsent = RNNSentModel(config, add_pooling_layer=False)
        self.classifier = RNNSentClassificationHead(config, config.output_size, may_be_regression=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        labels: Tensor | None = None,
        use_cache: bool = False,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> RNNSentClassifierOutput:
        """
        Args:
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Class indices; -100 where a token does not count, as at padding.
            use_cache (`bool`, *optional*, defaults to `False`):
                Whether the final state is returned.

        The other arguments are those of [`RNNSentModel.forward`].

        Returns:
            [`RNNSentClassifierOutput`], or a tuple of its values with `return_dict=False`.

        Raises:
            ValueError: where the inputs do not fit together; for `state` with two directions.
        """
        self._check_reads_on(state)
        outputs = self.rnnsent(
            input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            state=state,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(outputs.last_hidden_state)
        loss = self.loss_function(logits, labels, self.config, **kwargs) if labels is not None else None
        return RNNSentClassifierOutput(
            loss=loss, logits=logits, state=outputs.state, hidden_states=outputs.hidden_states
        )


def _pairs(labels: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Which neighbours `(batch, time - 1)` are both tokens: padding is not predicted, nor anything from it."""
    if attention_mask is None:
        return torch.ones_like(labels[:, 1:], dtype=torch.bool)
    is_token = attention_mask.to(labels.device).bool()
    return is_token[:, :-1] & is_token[:, 1:]


class _GenerationState(tuple):
    """A state with what `generate` asks of a cache on Apple's GPUs: whether steps can be taken back."""

    is_croppable = False


class RNNSentForCausalLM(RNNSentPreTrainedModel, GenerationMixin):
    """
    The next token after every token (many-to-many) and, with `generate`, text from a start (one-to-many).

    The state carries the past: a new token costs one step, however long the text before it. With `bidirectional=True`
    there are two language models side by side over one embedding, as in ELMo (Peters et al., 2018, section 3.1): the
    backward direction learns the token before every token. Such a model is a start for a bidirectional classifier,
    which takes embedding and recurrent layer over with `from_pretrained`; it does not generate.

    Args:
        config ([`RNNSentConfig`]): Configuration. With `tie_word_embeddings` and an `embedding_size` other than
            `hidden_size`, a linear layer without bias leads from one to the other. With `sampled_softmax_size`, the
            loss in training compares each token with so many others, and there are no logits.

    Raises:
        ValueError: for a bidirectional config with several layers, whose upper ones would have read the token to be
            predicted, or with directions that are not kept apart (`merge_mode`).
    """

    _tied_weights_keys = {"lm_head.weight": "rnnsent.embeddings.weight"}

    def __init__(self, config: RNNSentConfig):
        super().__init__(config)
        self.loss_type = "ForCausalLM"
        if config.bidirectional and (config.num_hidden_layers > 1 or config.merge_mode != "concat"):
            raise ValueError(
                'RNNSentForCausalLM with `bidirectional=True` needs `num_hidden_layers=1` and `merge_mode="concat"`, '
                f'got {config.num_hidden_layers} and "{config.merge_mode}": a layer that reads both directions has '
                "seen the token to be predicted."
            )
        self.rnnsent = RNNSentModel(config, add_pooling_layer=False)
        self.projections = None
        size = config.hidden_size
        if config.tie_word_embeddings and config.embedding_size != size:
            size = config.embedding_size
            directions = 2 if config.bidirectional else 1
            self.projections = nn.ModuleList(nn.Linear(config.hidden_size, size, bias=False) for _ in range(directions))
        self.lm_head = nn.Linear(size, config.vocab_size, bias=False)
        self.post_init()
        self._forget_temperature()

    def _forget_temperature(self):
        # The library takes a classifier's, what its logits are divided by, for one to draw words at.
        if self.generation_config.temperature == self.config.temperature:
            self.generation_config.temperature = GenerationConfig().temperature

    def adjust_generation_fn(self, generation_config, *args, **kwargs):
        super().adjust_generation_fn(generation_config, *args, **kwargs)
        if generation_config is None:
            self._forget_temperature()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear):
        self.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> RNNSentCausalLMOutput:
        """
        Args:
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                The `input_ids` themselves: the model shifts them. -100 where a token does not count, as at padding.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Compute logits for this many last tokens (0: for all), or for the positions given.
            use_cache (`bool`, *optional*):
                Whether the final state is returned. None: unless there are labels, for whose loss nobody reads on.

        The other arguments are those of [`RNNSentModel.forward`].

        Returns:
            [`RNNSentCausalLMOutput`], or a tuple of its values with `return_dict=False`.

        Raises:
            ValueError: where the inputs do not fit together; for `state` with two directions.
        """
        self._check_reads_on(state)
        outputs = self.rnnsent(
            input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            state=state,
            use_cache=labels is None if use_cache is None else use_cache,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        hidden_states = drop_out(
            outputs.last_hidden_state, self.config.classifier_dropout, self.training, self.config.variational_dropout
        )
        directions = hidden_states.split(self.config.hidden_size, dim=-1)
        loss, logits = None, None
        if labels is None or not self._samples:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(self._project(directions[0][:, kept], 0))
        is_whole = isinstance(logits_to_keep, int) and logits_to_keep == 0
        if labels is not None and (self._samples or self.config.bidirectional or not is_whole):
            loss = self._loss(directions, logits if is_whole else None, labels, attention_mask, **kwargs)
        elif labels is not None:
            labels = labels.masked_fill(F.pad(~_pairs(labels, attention_mask), (1, 0)), -100)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return RNNSentCausalLMOutput(loss=loss, logits=logits, state=outputs.state, hidden_states=outputs.hidden_states)

    @property
    def _samples(self) -> bool:
        # A layer put in the place of the output layer may do more than its weights tell.
        return self.training and self.config.sampled_softmax_size > 0 and isinstance(self.lm_head, nn.Linear)

    def _project(self, hidden_states: Tensor, direction: int) -> Tensor:
        """States of one direction `(..., hidden_size)` to what the output layer reads."""
        return hidden_states if self.projections is None else self.projections[direction](hidden_states)

    def _loss(
        self,
        directions: tuple[Tensor, ...],
        logits: Tensor | None,
        labels: Tensor,
        attention_mask: Tensor | None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> Tensor:
        """Mean cross-entropy of the next token, by `logits` if given, and, of a second direction, the one before."""
        labels = labels.to(directions[0].device)
        is_pair = _pairs(labels, attention_mask)
        shifted = [(directions[0][:, :-1], labels[:, 1:]), *((part[:, 1:], labels[:, :-1]) for part in directions[1:])]
        total, count = 0.0, 0
        for direction, (hidden_states, targets) in enumerate(shifted):
            counts = (is_pair & (targets != -100)).flatten().nonzero().squeeze(1)
            targets = targets.flatten()[counts]
            count += len(counts)
            if direction == 0 and logits is not None:
                found = logits[:, :-1].flatten(0, 1).index_select(0, counts)
                total = total + F.cross_entropy(found.float(), targets, reduction="sum")
                continue
            hidden_states = self._project(hidden_states.flatten(0, 1).index_select(0, counts), direction)
            if self._samples:
                weight, samples = self.lm_head.weight, self.config.sampled_softmax_size
                total = total + sampled_cross_entropy(hidden_states, targets, weight, samples)
            else:
                # In parts: all tokens' logits may be more than the memory.
                size = max(1, _MOST_LOGITS // self.config.vocab_size)
                for part, some in zip(hidden_states.split(size), targets.split(size)):
                    total = total + F.cross_entropy(self.lm_head(part).float(), some, reduction="sum")
        if num_items_in_batch is not None:  # of all batches of an update: gradient accumulation
            return total / len(shifted) / num_items_in_batch
        return total / max(count, 1)

    def generate(self, *args, **kwargs):
        if self.config.bidirectional:
            raise ValueError(
                "`generate` needs `bidirectional=False`, got True: the backward direction has no text to read yet."
            )
        given = kwargs.get("generation_config") or self.generation_config
        if stop_strings := kwargs.get("stop_strings") or given.stop_strings:
            raise ValueError(
                f"`stop_strings` are for tokens that are parts of words, got {stop_strings!r}: where words are tokens, "
                "give their ids as `eos_token_id`."
            )
        return super().generate(*args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,  # `generate` looks for this name
        **kwargs,
    ) -> dict:
        inputs = super().prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )
        if attention_mask is None:
            return inputs
        name = "input_ids" if inputs.get("input_ids") is not None else "inputs_embeds"
        read = inputs[name]
        mask = attention_mask[:, -read.shape[1] :]
        if not mask[:, -1].all():
            # Padding on the right: the next token is told by what stands in the last place, so tokens go there.
            order = mask.bool().to(torch.uint8).argsort(dim=1, stable=True)
            mask = mask.take_along_dim(order, dim=1)
            inputs[name] = read.take_along_dim(order if read.dim() == 2 else order.unsqueeze(-1), dim=1)
        inputs["attention_mask"] = mask
        return inputs

    def _expand_inputs_for_generation(self, expand_size: int = 1, state: tuple[Tensor, ...] | None = None, **kwargs):
        input_ids, inputs = super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)
        if state is not None:
            inputs["state"] = tuple(part.repeat_interleave(expand_size, dim=1) for part in state)
        return input_ids, inputs

    def _prefill(self, *args, **kwargs):
        outputs = super()._prefill(*args, **kwargs)
        if outputs.state is not None:
            outputs.state = _GenerationState(outputs.state)
        return outputs

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the past is `state`, not keys and values

    @staticmethod
    def _reorder_cache(state: tuple[Tensor, ...], beam_idx: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.index_select(1, beam_idx.to(part.device)) for part in state)


RNNSentModel.register_for_auto_class("AutoModel")
RNNSentForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
RNNSentForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
RNNSentForCausalLM.register_for_auto_class("AutoModelForCausalLM")
# By this table `Trainer` knows whose labels are to be shifted when it smooths them.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["rnnsent"] = RNNSentForCausalLM.__name__

__all__ = [
    "RNNSentForCausalLM",
    "RNNSentForSequenceClassification",
    "RNNSentForTokenClassification",
    "RNNSentModel",
    "RNNSentPreTrainedModel",
]
