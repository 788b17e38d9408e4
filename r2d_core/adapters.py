"""LoRA, and the rows of the new tokens trained beside it, with PEFT.

    adapted = add_adapters(model, LoraSettings(), new_token_ids(tokenizer))
    ...                                     # train: the model's own weights are frozen
    adapted.save_pretrained("adapter")      # loads elsewhere with plain PEFT
    merge_adapters(adapted)                 # model is itself again, trained

Of the embedding and the output matrix, PEFT's ``trainable_token_indices`` trains some rows. Its
forward pass makes a copy of the whole matrix with these rows put in, at every step and once more
for the output, and its backward pass a gradient of that size: gigabytes at a vocabulary of 128k.
Here the look-up is replaced by one that never copies (`_look_up_rows`), and the loss takes the
frozen matrix and the trained rows apart (`output_layer`). What is saved is PEFT's own.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r2d_core.checking import check_fields, unknown
from r2d_core.errors import InputError
from r2d_core.pivots import NEW_TOKENS

NewRows = Literal["rows", "modules_to_save", "none"]


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters on some linear layers; the defaults are the paper's, but for ``new_rows``.

    targets    names of linear layers, as "q_proj": all layers so called
    new_rows   "rows": of embedding and output matrix only the new tokens' rows are trained, the
               old vocabulary stays byte for byte. "modules_to_save": both matrices are trained
               whole, as the authors did, tied ones staying tied. "none": neither.

    Raises InputError for a wrong type and a value out of range.
    """

    rank: int = 64
    alpha: float = 64.0
    dropout: float = 0.0
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    )
    new_rows: NewRows = "rows"

    def __post_init__(self) -> None:
        check_fields(self, "LoraSettings")
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1 or not self.targets:
            raise InputError(
                "LoraSettings: expected rank of 1 or more, alpha above 0, dropout from 0 to below "
                f"1 and at least one of targets, got {self}"
            )


def new_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that `expand_vocabulary` added, ascending.

    It adds special tokens; a `<think>` that a tokenizer has of its own (Qwen3, R1-Distill) is an
    added token but no special one, and belongs to the old vocabulary.
    """
    return sorted(
        number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.content in NEW_TOKENS and token.special
    )


def add_adapters(
    model: PreTrainedModel, settings: LoraSettings, new_ids: Sequence[int]
) -> PeftModel:
    """Put adapters into ``model`` and freeze everything else. Draws from the global generator.

    ``new_ids`` are the tokens whose rows are trained with ``new_rows="rows"``. What is trained is
    float32, whatever the model's dtype: steps of 1e-4 are lost in bfloat16.

    Raises InputError for targets that the model does not have, and when there are no new tokens.
    """
    linear = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            # The output matrix is trained by ``new_rows``, and only by that.
            if isinstance(module, nn.Linear) and module is not model.get_output_embeddings()
        }
    )
    for target in settings.targets:
        if target not in linear:
            raise InputError(f"LoraSettings targets: {unknown('linear layer', target, linear)}")
    if settings.new_rows == "rows" and not new_ids:
        raise InputError(
            "LoraSettings new_rows='rows': the tokenizer has no new tokens; add them with "
            "expand_vocabulary(model, tokenizer), or set new_rows='none'"
        )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        **_embedding_arguments(model, settings.new_rows, new_ids),
    )
    with warnings.catch_warnings():
        # PEFT (0.21 does) reads a property that transformers 5 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            assert "token_adapter" in name or "modules_to_save" in name, name
            parameter.data = parameter.data.float()
    embedding = adapted.get_input_embeddings()
    if isinstance(embedding, TrainableTokensWrapper):
        _look_up_rows(embedding)
    # PEFT would ask the hub for the base's configuration, and copy embedding and output matrix
    # into every adapter because the vocabulary has grown. The trained rows are all that is new.
    adapted.save_pretrained = functools.partial(  # type: ignore[method-assign]
        adapted.save_pretrained, save_embedding_layers=False
    )
    return adapted


def merge_adapters(adapted: PeftModel) -> None:
    """Work the adapters into the model that `add_adapters` was given, which is itself again."""
    for wrapper in _whole_matrices(adapted):
        for trained in wrapper.modules_to_save.values():
            trained.to(wrapper.original_module.weight.dtype)
    _free(adapted.merge_and_unload())


def remove_adapters(adapted: PeftModel) -> None:
    """Take the adapters out again: the model is what it was."""
    for wrapper in _whole_matrices(adapted):
        # PEFT would leave the trained copy of a whole matrix in the model's place of it.
        for trained in wrapper.modules_to_save.values():
            trained.to(wrapper.original_module.weight.dtype)
            trained.load_state_dict(wrapper.original_module.state_dict())
    _free(adapted.unload())


def _whole_matrices(adapted: PeftModel) -> list[ModulesToSaveWrapper]:
    return [each for each in adapted.modules() if isinstance(each, ModulesToSaveWrapper)]


def _free(model: nn.Module) -> None:
    model.requires_grad_(True)
    for name in ("peft_config", "_hf_peft_config_loaded"):
        model.__dict__.pop(name, None)


def base_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the state of an adapted model, that of the model without adapters, under its own names."""
    own = {}
    for name, tensor in state.items():
        if any(part in name for part in (".lora_", ".trainable_tokens_", ".modules_to_save.")):
            continue
        name = name.removeprefix("base_model.model.")
        for part in (".token_adapter.base_layer", ".base_layer", ".original_module"):
            name = name.replace(part, "")
        own[name] = tensor
    return own


def trained_rows(wrapper: TrainableTokensWrapper) -> tuple[list[int], nn.Parameter]:
    """The ids of the rows trained in a wrapped layer, and their values [R, H]."""
    adapter = wrapper.token_adapter
    (name,) = adapter.active_adapters
    return adapter.token_indices[name], adapter.trainable_tokens_delta[name]


def _embedding_arguments(
    model: PreTrainedModel, new_rows: NewRows, new_ids: Sequence[int]
) -> dict[str, Any]:
    names = [_name_of(model, model.get_input_embeddings())]
    output = model.get_output_embeddings()
    tied = output.weight is model.get_input_embeddings().weight
    if not tied:
        names.append(_name_of(model, output))
    if new_rows == "rows":
        ids = sorted(new_ids)
        return {"trainable_token_indices": ids if tied else {name: ids for name in names}}
    if new_rows == "modules_to_save":
        # Without ensure_weight_tying, PEFT silently unties a tied model.
        names = [name.rpartition(".")[2] for name in names]
        return {"modules_to_save": names, "ensure_weight_tying": tied}
    return {}


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _look_up_rows(wrapper: TrainableTokensWrapper) -> None:
    """Replace the wrapper's look-up: frozen rows as they are, trained rows where their ids stand.

    Nothing of the size of the embedding is made, forward or backward.
    """
    rows, _ = trained_rows(wrapper)
    wrapper.register_buffer("rows", torch.tensor(rows), persistent=False)  # ascending

    def look_up(ids: Tensor) -> Tensor:
        base = wrapper.token_adapter.base_layer
        frozen = base(ids)
        _, values = trained_rows(wrapper)
        index = torch.searchsorted(wrapper.rows, ids).clamp(max=len(rows) - 1)
        trained = F.embedding(index, values).to(frozen.dtype)
        scale = getattr(base, "embed_scale", None)  # Gemma's
        if scale is not None:
            trained = trained * scale.to(frozen.dtype)
        return torch.where((wrapper.rows[index] == ids)[..., None], trained, frozen)

    wrapper.forward = look_up  # type: ignore[method-assign]
