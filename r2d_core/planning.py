"""Does it fit, and how long will it take? Memory and time of a training before it is launched.

    config = AutoConfig.from_pretrained("meta-llama/Meta-Llama-3-8B-Instruct")
    print(plan_training(config, LoraSettings(), length=4096, gpus=4))

What is saved for the backward pass is not estimated from a formula of one architecture: the model
itself, adapters included, runs forward as in training (under autocast, or in bfloat16 where the
launch casts it) on fake tensors, which have shapes and no data, and everything that autograd keeps
is added up. Attention is taken as a kernel that never holds the scores (SDPA, flash attention), but
where they are capped (Gemma 2), which is made eagerly. The rest is counted: parameters exactly,
gradients and optimizer states from them.

Every process loads the whole model. FSDP2 then brings it to the GPU and shares it out block by
block. DeepSpeed's ZeRO-3, offloaded or not, brings all of it to every GPU before it shares it out:
a model that no GPU holds whole needs FSDP2.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig
from transformers.masking_utils import AttentionMaskInterface

from r2d_core.adapters import LoraSettings, add_adapters
from r2d_core.anchor import KL_CHUNK_ROWS
from r2d_core.errors import InputError
from r2d_core.kernels.fused import GPU_CHUNK_BYTES
from r2d_core.output_layer import OutputLayer
from r2d_core.pivots import NEW_TOKENS

Sharing = Literal["ddp", "zero2", "zero3", "zero3_offload", "fsdp2"]
GIB = 2**30
CONTEXT_BYTES = GIB
"""What CUDA, its libraries and its communication take of a GPU before anything is trained."""
SLACK = 1.1
"""Memory that the allocator holds and cannot use, as a share of what is used."""
KL_MATRICES = 5.5
"""Float32 matrices of a chunk's logits that the divergence from the base holds at its peak."""
PARTS = (
    "weights", "base", "adapters", "gradients", "optimizer", "activations", "loss", "gathered",
)  # fmt: skip
"""Of a `Plan`: what adds up on each GPU while it trains."""


@dataclass(frozen=True)
class Plan:
    """Bytes on each GPU, floating-point operations of the whole run, and hours.

    Attributes:
        weights: the frozen weights and those trained whole.
        base: the frozen base that ``kl_weight`` compares with.
        adapters: LoRA and the new tokens' rows.
        gradients, optimizer: of what is trained; under DDP gradients are held twice, once to be
            sent; AdamW's two moments, and under ZeRO in bfloat16 the float32 weights.
        activations: what the forward pass saves for the backward pass at its peak.
        loss: the chunk of logits (or those of the divergence), the gradient of the hidden states
            and, where the output matrix is trained whole, its float32 gradient.
        gathered: the largest piece of shared-out weights that is whole while it is used.
        unshared: the whole model, as ZeRO-3 holds it on each GPU before it is shared out; else 0.
        host: what all processes together hold of the memory of their machine (taken as one). At
            most: weights that the files hold in ``dtype`` are mapped, and one copy serves all.
        parameters, trained: how many there are, and how many of them (or beside them) are trained.
    """

    weights: int
    base: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    gathered: int
    unshared: int
    host: int
    parameters: int
    trained: int
    flops: float
    hours: float
    gpu_bytes: int

    @property
    def total(self) -> int:
        """Bytes to reckon with on each GPU while it trains, context and slack included."""
        return CONTEXT_BYTES + round(SLACK * sum(getattr(self, part) for part in PARTS))

    @property
    def start(self) -> int:
        """Bytes to reckon with on each GPU before weights are shared out; 0 where none wait."""
        return CONTEXT_BYTES + round(SLACK * self.unshared) if self.unshared else 0

    @property
    def peak(self) -> int:
        return max(self.total, self.start)

    @property
    def fits(self) -> bool:
        return self.peak <= self.gpu_bytes

    def __str__(self) -> str:
        lines = [f"{self.parameters / 1e9:.2f}B parameters, {self.trained / 1e6:.1f}M trained"]
        lines += [f"  {part:<12}{getattr(self, part) / GIB:8.2f} GiB" for part in PARTS]
        lines.append(f"  {'in all':<12}{self.total / GIB:8.2f} GiB")
        if self.start:
            lines.append(
                f"  {'at the start':<12}{self.start / GIB:8.2f} GiB: ZeRO-3 begins with the whole "
                "model on each GPU; FSDP2 does not"
            )
        verdict = "fits" if self.fits else "does not fit"
        lines.append(
            f"  {'at most':<12}{self.peak / GIB:8.2f} GiB of {self.gpu_bytes / GIB:.1f} GiB "
            f"on each GPU: {verdict}"
        )
        lines.append(
            f"  {'host memory':<12}{self.host / GIB:8.2f} GiB at most, were all GPUs of one machine"
        )
        lines.append(f"  about {self.hours:.1f} hours")
        return "\n".join(lines)


def plan_training(
    config: PreTrainedConfig,
    lora: LoraSettings | None,
    *,
    length: int,
    batch_size: int = 1,
    gpus: int = 1,
    sharing: Sharing = "ddp",
    gradient_checkpointing: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    bf16: bool = True,
    frozen_base: bool = False,
    tokens: int = 52_520 * 1000,
    gpu_bytes: int = 80 * 10**9,
    peak_flops: float = 312e12,
    utilisation: float = 0.35,
) -> Plan:
    """Memory on each GPU and time of training a model of this configuration.

    ``batch_size`` sequences of ``length`` tokens are in one forward pass on each GPU. ``dtype`` is
    that of the frozen weights; with ``bf16``, as in TrainConfig, they compute in bfloat16.
    ``frozen_base``: the model is held to its base by ``kl_weight``, were all examples benign.
    ``tokens`` are those of the whole run (default: the paper's examples at a thousand tokens each);
    ``peak_flops`` are a GPU's (default: an A100's in bfloat16), of which ``utilisation`` is used.

    Raises InputError for counts below 1, a frozen base beside weights that are shared out, and a
    model whose logits `OutputLayer` refuses.
    """
    if frozen_base and sharing != "ddp":
        raise InputError(
            f"plan_training sharing: expected 'ddp' with kl_weight, got {sharing!r}: the frozen "
            "base is whole in every process"
        )
    for name, value in (("length", length), ("batch_size", batch_size), ("gpus", gpus)):
        if value < 1:
            raise InputError(f"plan_training {name}: expected 1 or more, got {value}")
    model = _on_meta(config, dtype, layers=None)
    layers = config.get_text_config().num_hidden_layers
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = parameters if lora is None else _adapter_size(model, lora)

    autocast = bf16 and sharing == "ddp"
    if sharing == "ddp":
        computed = torch.float32 if lora is None else dtype
    else:  # casts all of the model, where it casts
        computed = torch.bfloat16 if bf16 else dtype
    item = computed.itemsize
    bf16_zero = sharing.startswith("zero") and bf16
    trained_item = 2 if bf16_zero else 4
    share_states = gpus if sharing != "ddp" else 1
    share_weights = gpus if sharing in ("zero3", "zero3_offload", "fsdp2") else 1
    offloaded = sharing == "zero3_offload"
    weight_item = item if bf16_zero else dtype.itemsize
    weights = parameters * (trained_item if lora is None else weight_item)
    adapters = 0 if lora is None else trained * trained_item
    block = max(_embedding(model).numel(), *(_size(layer) for layer in _layers(model)))

    saved_by_layer, saved_besides = saved_bytes(
        config, lora, computed, batch_size, length, autocast=autocast
    )
    hidden = batch_size * length * config.get_text_config().hidden_size
    if gradient_checkpointing:
        # Of the forward pass autocast's copies of what is trained, or one layer of the backward.
        at_once = max(saved_by_layer, 2 * trained if autocast else 0)
        activations = saved_besides + at_once + layers * hidden * item
    else:
        activations = saved_besides + saved_by_layer * layers
    output_trained = lora is None or lora.new_rows == "modules_to_save"
    output = OutputLayer.of(model).linear.weight.numel()
    # DDP's buckets hold them a second time (accelerate: gradient_as_bucket_view=False).
    copies = 2 if sharing == "ddp" and gpus > 1 else 1
    optimizer = trained * (12 if bf16_zero else 8)
    base = parameters * dtype.itemsize if frozen_base else 0
    host = gpus * (weights + base)
    if offloaded:  # and the gradients, in float32
        host = max(host, weights + adapters + optimizer + 4 * trained)

    logits = GPU_CHUNK_BYTES
    if frozen_base:
        vocabulary = OutputLayer.of(model).linear.weight.shape[0]
        logits = max(logits, round(KL_MATRICES * 4 * KL_CHUNK_ROWS * vocabulary))
        activations += hidden * item  # its last hidden states

    a_token = _flops_a_token(model, config, lora, length, gradient_checkpointing, frozen_base)
    flops = tokens * a_token
    return Plan(
        weights=0 if offloaded else weights // share_weights,
        base=base,
        adapters=0 if offloaded else adapters // share_weights,
        gradients=copies * trained * trained_item // share_states,
        optimizer=0 if offloaded else optimizer // share_states,
        activations=activations,
        loss=logits + 4 * hidden + (4 * output if output_trained else 0),
        gathered=2 * block * item if share_weights > 1 or offloaded else 0,
        unshared=weights + adapters if sharing in ("zero3", "zero3_offload") else 0,
        host=host,
        parameters=parameters,
        trained=trained,
        flops=flops,
        hours=flops / (gpus * peak_flops * utilisation) / 3600,
        gpu_bytes=gpu_bytes,
    )


def saved_bytes(
    config: PreTrainedConfig,
    lora: LoraSettings | None,
    dtype: torch.dtype,
    batch_size: int,
    length: int,
    *,
    autocast: bool = False,
) -> tuple[int, int]:
    """What a forward pass keeps for the backward pass: bytes of one decoder layer, and besides.

    With ``autocast`` adapters are float32 and it computes in bfloat16; else all is of ``dtype``.
    """
    found = []
    for layers in (1, 2):
        model = _adapted(
            _on_meta(config, dtype, layers), lora, torch.float32 if autocast else dtype
        )
        with FakeTensorMode():
            _as_on_a_cpu(model)
            found.append(measure_saved_bytes(model, batch_size, length, autocast=autocast))
    one, two = found
    layer, besides = two - one, 2 * one - two
    text = config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None) is not None:
        # In float32 the capped scores and their softmax; in bfloat16 these, and the softmax in
        # float32 besides.
        layer += 8 * batch_size * text.num_attention_heads * length**2
    return layer, besides


def measure_saved_bytes(
    model: nn.Module, batch_size: int, length: int, *, autocast: bool = False, **inputs: Any
) -> int:
    """Bytes that one forward pass of a causal model saves for backward, its weights not counted.

    It ends in the hidden states that the output layer gets. Each storage is counted once, however
    many operations keep a view of it. ``inputs`` are the forward pass's beside the ids.
    """
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other storage takes its place
        return tensor

    head: Any = OutputLayer.of(model)
    ids = torch.zeros(batch_size, length, dtype=torch.int64)
    if isinstance(ids, FakeTensor):
        # A mask that is there is not made: for that, positions would be read, which have no data.
        inputs["attention_mask"] = torch.ones(batch_size, 1, length, length, dtype=torch.bool)
    model.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        head.replaced_by(lambda hidden: hidden),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        model(input_ids=ids, use_cache=False, **inputs)
    return sum(storage.nbytes() for storage in kept.values())


def _on_meta(config: PreTrainedConfig, dtype: torch.dtype, layers: int | None) -> Any:
    """The model without data, with its first ``layers`` layers (None: all)."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    if layers is not None:
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="without_scores"
        )


def _adapted(model: Any, lora: LoraSettings | None, dtype: torch.dtype) -> Any:
    if lora is None:
        return model
    vocabulary = _embedding(model).shape[0]
    rows = range(max(0, vocabulary - len(NEW_TOKENS)), vocabulary)
    adapted: Any = add_adapters(model, lora, list(rows))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to("meta", dtype)
    for module in adapted.modules():
        if isinstance(module, nn.Dropout):
            module.forward = functools.partial(_dropout, p=module.p)  # type: ignore[method-assign]
    return adapted


def _as_on_a_cpu(model: nn.Module) -> None:
    """Put fake tensors of a CPU, for which there is autocast, in the place of the model's own."""
    made: dict[int, nn.Parameter] = {}  # by the identity of its own, for what is tied stays so
    for own in model.parameters():
        fake = torch.empty(own.shape, dtype=own.dtype)
        made[id(own)] = nn.Parameter(fake, requires_grad=own.requires_grad)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _dropout(x: Tensor, p: float) -> Tensor:
    """As on a GPU: a mask of one byte a number is kept, where a CPU keeps factors in x's dtype."""
    return torch.native_dropout(x, p, True)[0]


def _adapter_size(model: Any, lora: LoraSettings) -> int:
    """How many numbers adapters, new rows and copies of whole matrices have."""
    low_rank = _low_rank_size(model, lora)
    embedding = _embedding(model)
    matrices = 1 if OutputLayer.of(model).linear.weight is embedding else 2
    if lora.new_rows == "rows":
        return low_rank + matrices * len(NEW_TOKENS) * embedding.shape[1]
    whole = matrices * embedding.numel() if lora.new_rows == "modules_to_save" else 0
    return low_rank + whole


def _low_rank_size(model: Any, lora: LoraSettings) -> int:
    return sum(
        lora.rank * (module.in_features + module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in lora.targets
    )


def _flops_a_token(
    model: Any,
    config: PreTrainedConfig,
    lora: LoraSettings | None,
    length: int,
    gradient_checkpointing: bool,
    frozen_base: bool,
) -> float:
    """Forward 2 a weight, backward 2 for the input and 2 for a weight that is trained.

    The divergence from a frozen base makes the logits of both once more in the backward pass.
    """
    in_layers = sum(
        module.weight.numel()
        for layer in _layers(model)
        for module in layer.modules()
        if isinstance(module, nn.Linear)
    )
    output = OutputLayer.of(model).linear.weight.numel()
    text = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    width = text.num_attention_heads * head_dim
    attention = 2 * length * width * text.num_hidden_layers  # two products over half the square
    forward_in_layers = 2 * in_layers + attention
    whole = lora is None or lora.new_rows == "modules_to_save"
    return (
        forward_in_layers * (2 if gradient_checkpointing else 1)
        + 2 * in_layers
        + 2.5 * attention
        + (2 * in_layers if lora is None else 6 * _low_rank_size(model, lora))
        + (6 if whole else 4) * output
        + (forward_in_layers + (12 if whole else 10) * output if frozen_base else 0)
    )


def _layers(model: Any) -> nn.ModuleList:
    return model.get_decoder().layers


def _embedding(model: Any) -> Tensor:
    return model.get_input_embeddings().weight


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class _WithoutScores(torch.autograd.Function):
    """Attention as a fused kernel has it: queries, keys, values, output and a number a row kept."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1]).float())
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise NotImplementedError("made to be counted, not to be run backward")


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **_: Any
) -> tuple[Tensor, None]:
    if torch.is_autocast_enabled("cpu"):  # which casts for attention
        query, key, value = (each.bfloat16() for each in (query, key, value))
    return _WithoutScores.apply(query, key, value).transpose(1, 2), None


AttentionInterface.register("without_scores", _attend)
AttentionMaskInterface.register("without_scores", lambda *_, **__: None)
