"""The plan of a training: against numbers made by hand, and against what a tiny model takes."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import get_args

import pytest
import torch
import torch.distributed as dist
from accelerate.utils import DistributedDataParallelKwargs
from tiny_models import GEMMAS, tiny_model, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, Qwen2Config

from r2d_core.adapters import LoraSettings, add_adapters
from r2d_core.anchor import KL_CHUNK_ROWS, kl_to_base
from r2d_core.errors import InputError
from r2d_core.kernels.fused import GPU_CHUNK_BYTES
from r2d_core.packed_attention import attention_by_example
from r2d_core.planning import KL_MATRICES, Sharing, measure_saved_bytes, plan_training, saved_bytes

LLAMA3_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
QWQ_32B = Qwen2Config(
    vocab_size=152064,
    hidden_size=5120,
    intermediate_size=27648,
    num_hidden_layers=64,
    num_attention_heads=40,
    num_key_value_heads=8,
)
FAMILIES_OF_MODELS = ("llama", "mistral", "qwen2", "qwen3", *GEMMAS)
PARAMETERS = 8_030_261_248  # as its model card says
# rank 64: q 4096→4096, k and v 4096→1024, up 4096→14336, down 14336→4096; eight rows, twice
TRAINED = 32 * 64 * (8192 + 2 * 5120 + 2 * 18432) + 2 * 8 * 4096


def test_an_8b_model_at_length_4096_fits_one_gpu_of_80_gb_with_lora():
    for checkpointing in (False, True):
        plan = plan_training(
            LLAMA3_8B, LoraSettings(), length=4096, gradient_checkpointing=checkpointing
        )
        assert plan.fits and "fits" in str(plan)
    assert plan.parameters == PARAMETERS and plan.trained == TRAINED
    assert plan.weights == 2 * PARAMETERS
    assert plan.adapters == plan.gradients == 4 * TRAINED and plan.optimizer == 8 * TRAINED
    assert plan.loss == GPU_CHUNK_BYTES + 4096 * 4096 * 4  # a chunk of logits, hidden's gradient
    assert plan.gathered == 0
    # Of every layer its input; of one layer everything, which is more than these few tensors.
    inputs = 32 * 4096 * 4096 * 2
    assert inputs + 4096 * 2 * (4 * 4096 + 4 * 14336) < plan.activations < inputs + 2**30
    small = plan_training(LLAMA3_8B, LoraSettings(), length=4096, gpu_bytes=16 * 10**9)
    assert not small.fits and "does not fit" in str(small)


def test_sharing_divides_what_it_shares():
    def planned(sharing, lora=None):
        return plan_training(LLAMA3_8B, lora, length=512, gpus=8, sharing=sharing)

    zero2, zero3, fsdp2, ddp = (planned(each) for each in ("zero2", "zero3", "fsdp2", "ddp"))
    # Of the gradients, DDP's buckets hold another copy.
    assert (ddp.weights, ddp.gradients, ddp.optimizer) == tuple(
        n * PARAMETERS for n in (4, 2 * 4, 8)
    )
    # DeepSpeed in bfloat16: weights and gradients of two bytes, moments and float32 weights.
    assert (zero2.weights, zero2.gradients) == (2 * PARAMETERS, 2 * PARAMETERS // 8)
    assert zero2.optimizer == zero3.optimizer == 12 * PARAMETERS // 8
    assert zero3.weights == 2 * PARAMETERS // 8 and zero3.gathered == 2 * 2 * 128256 * 4096
    assert fsdp2.weights == 4 * PARAMETERS // 8 and fsdp2.optimizer == PARAMETERS
    offloaded = planned("zero3_offload")
    assert offloaded.weights == offloaded.optimizer == 0 and offloaded.total < zero3.total
    assert planned("zero3_offload", LoraSettings()).adapters == 0
    # The hidden states' gradient is in float32 whatever they are, and so is the matrix's own.
    lora = planned("ddp", LoraSettings())
    assert ddp.loss - lora.loss == zero3.loss - lora.loss == 4 * 128256 * 4096
    whole = plan_training(LLAMA3_8B, LoraSettings(new_rows="modules_to_save"), length=512)
    assert whole.trained == TRAINED - 2 * 8 * 4096 + 2 * 128256 * 4096


def test_several_processes_of_ddp_hold_their_gradients_twice():
    """PyTorch's buckets, which are sent, are not the parameters' gradients unless it is told so."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        linear = torch.nn.Linear(8, 8, bias=False)
        told = DistributedDataParallelKwargs().to_kwargs()  # what differs from PyTorch's defaults
        model = torch.nn.parallel.DistributedDataParallel(linear, **told)
        model(torch.ones(1, 8)).sum().backward()
        assert linear.weight.grad is not None and linear.weight.grad._base is None
        assert int(model._get_ddp_logging_data()["bucket_sizes"]) == 4 * 8 * 8
    finally:
        dist.destroy_process_group()
    lora = LoraSettings(new_rows="modules_to_save")
    alone, two, four = (plan_training(LLAMA3_8B, lora, length=8, gpus=n) for n in (1, 2, 4))
    assert alone.gradients == 4 * alone.trained
    assert two.gradients == four.gradients == 2 * alone.gradients
    assert two.total - alone.total == pytest.approx(1.1 * alone.gradients, abs=1)


def test_zero3_shares_out_what_every_gpu_held_whole():
    """DeepSpeed's engine moves a model that `zero.Init` did not make to the device as it is."""
    gpu = 40 * 10**9
    small = {"length": 512, "gpus": 8, "gradient_checkpointing": True}
    plans = {
        each: plan_training(QWQ_32B, LoraSettings(), sharing=each, gpu_bytes=gpu, **small)
        for each in get_args(Sharing)
    }
    assert plans["fsdp2"].fits and plans["fsdp2"].start == plans["fsdp2"].unshared == 0
    whole = 2 * plans["fsdp2"].parameters
    for each in ("zero3", "zero3_offload"):
        plan = plans[each]
        assert plan.total < gpu < whole < plan.peak == plan.start and not plan.fits
        assert plan.unshared == whole + 2 * plan.trained
        assert "at the start" in str(plan) and "FSDP2" in str(plan) and "does not fit" in str(plan)
    for each in ("ddp", "zero2"):  # hold them whole all along
        assert plans[each].start == 0 and plans[each].peak == plans[each].total > whole
    assert "at the start" not in str(plans["fsdp2"])
    roomy = plan_training(QWQ_32B, LoraSettings(), sharing="zero3", gpu_bytes=80 * 10**9, **small)
    assert roomy.fits


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside held at a time."""

    def __init__(self):
        super().__init__()
        self.held, self.most = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.held:
                    self.held[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.held.pop, storage._cdata)
        self.most = max(self.most, sum(self.held.values()))
        return made


def test_a_frozen_base_is_planned_for_as_it_is_held():
    def planned(base, **given):
        return plan_training(LLAMA3_8B, LoraSettings(), length=4096, frozen_base=base, **given)

    without, held = planned(False), planned(True)
    assert (without.base, held.base) == (0, 2 * PARAMETERS)
    assert held.host == 2 * without.host
    assert held.activations - without.activations == 2 * 4096 * 4096
    assert held.total > without.total + 2 * PARAMETERS
    assert "base" in str(held)
    # A forward pass more; the logits of both made forward and backward, the model's derived.
    layers = without.flops / (52_520 * 1000) / 2  # about: forward, and backward for the input
    assert held.flops == pytest.approx(
        without.flops + 52_520 * 1000 * (layers + 10 * 128256 * 4096), rel=0.1
    )
    with pytest.raises(InputError, match="sharing: expected 'ddp' with kl_weight, got 'zero2'"):
        planned(True, gpus=4, sharing="zero2")

    v, h = 32000, 16  # what a chunk of the divergence holds, forward and backward
    hidden, weight = torch.randn(2 * KL_CHUNK_ROWS, h, requires_grad=True), torch.randn(v, h)
    with Peak() as peak:
        kl_to_base(hidden, weight, hidden.detach() + 1, weight + 1).backward()
    assert 0.9 < peak.most / (KL_MATRICES * 4 * KL_CHUNK_ROWS * v) <= 1


def test_every_process_loads_the_whole_model_into_the_hosts_memory():
    def host(sharing, lora, gpus=8):
        return plan_training(LLAMA3_8B, lora, length=8, gpus=gpus, sharing=sharing).host

    for sharing in get_args(Sharing):
        assert host(sharing, LoraSettings()) == 8 * 2 * PARAMETERS
    assert host("fsdp2", None) == 8 * 4 * PARAMETERS
    # Offloaded, alone: weights; AdamW's moments, float32 weights and their gradients.
    assert host("zero3_offload", None, gpus=1) == (2 + 12 + 4) * PARAMETERS


def test_time_is_floating_point_operations_over_what_the_gpus_make():
    tokens = 10**6
    plan = plan_training(LLAMA3_8B, None, length=1, tokens=tokens, peak_flops=1e15, utilisation=0.5)
    matrices = PARAMETERS - 128256 * 4096 - 65 * 4096  # but the embedding and the norms
    assert plan.flops == pytest.approx(6 * matrices * tokens, rel=1e-3)
    assert plan.hours == pytest.approx(plan.flops / 0.5e15 / 3600)
    more = plan_training(
        LLAMA3_8B, None, length=1, tokens=tokens, peak_flops=1e15, utilisation=0.5, gpus=4
    )
    assert more.hours == pytest.approx(plan.hours / 4)
    recomputed = plan_training(
        LLAMA3_8B, None, length=1, tokens=tokens, gradient_checkpointing=True
    )
    lora = plan_training(LLAMA3_8B, LoraSettings(), length=1, tokens=tokens)
    assert lora.flops < plan.flops < recomputed.flops


def test_operations_are_counted_matrix_by_matrix():
    """Of the layers' weights, the output matrix and attention, forward and backward."""
    tokens, length, layers = 1000, 4096, 32
    in_layers = layers * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336)
    output, low_rank = 128256 * 4096, TRAINED - 2 * 8 * 4096
    # Two products of a position with half of the others, on the average; five backward.
    attention = 2 * 2 * (length // 2) * (32 * 128) * layers

    def a_token(lora, **given):
        plan = plan_training(LLAMA3_8B, lora, length=length, tokens=tokens, **given)
        return pytest.approx(plan.flops / tokens, rel=1e-9)

    lora, both = LoraSettings(), LoraSettings(new_rows="modules_to_save")
    frozen = 4 * (in_layers + output) + 6 * low_rank + 3.5 * attention
    assert 6 * (in_layers + output) + 3.5 * attention == a_token(None)
    assert frozen == a_token(lora) and frozen + 2 * output == a_token(both)
    again = 2 * in_layers + attention
    assert frozen + again == a_token(lora, gradient_checkpointing=True)
    # The base forward; both logits, both again, and the gradient of the model's.
    assert frozen + again + 10 * output == a_token(lora, frozen_base=True)
    assert frozen + again + (2 + 12) * output == a_token(both, frozen_base=True)


def test_a_batch_takes_what_its_examples_take():
    def planned(**given):
        return plan_training(
            LLAMA3_8B, LoraSettings(), length=512, gradient_checkpointing=True, **given
        )

    shared = {"sharing": "fsdp2", "gpus": 2}
    one, three = (planned(batch_size=n, **shared) for n in (1, 3))
    assert three.activations == pytest.approx(3 * one.activations, rel=0.01)
    assert three.loss - one.loss == 2 * 4 * 512 * 4096
    base = [planned(batch_size=3, frozen_base=each).activations for each in (False, True)]
    assert base[1] - base[0] == 3 * 2 * 512 * 4096
    # What the layers keep of their input, one of them whole, and what lies outside of them.
    layer, besides = saved_bytes(LLAMA3_8B, LoraSettings(), torch.bfloat16, 1, 512)
    assert one.activations == 32 * 2 * 512 * 4096 + layer + besides and besides > 2 * 512 * 4096


ADAPTED = LoraSettings(rank=4), LoraSettings(rank=4, dropout=0.05)
RUNS = [
    *((each, lora, "autocast", True) for each in FAMILIES_OF_MODELS for lora in (None, *ADAPTED)),
    *((each, ADAPTED[0], "bfloat16", True) for each in FAMILIES_OF_MODELS),
    *(("llama", lora, "autocast", False) for lora in (None, *ADAPTED)),
    *(("llama", lora, "bfloat16", False) for lora in (None, ADAPTED[1])),
    *((each, lora, "float32", False) for each in ("llama", "gemma2") for lora in (None, *ADAPTED)),
]


@pytest.mark.parametrize(("family", "lora", "computed", "packed"), RUNS)
def test_activations_are_those_that_a_model_on_this_machine_keeps(
    monkeypatch, family, lora, computed, packed
):
    """Two layers of data and real attention, computed as in training, against shapes alone.

    autocast: alone or by DDP in bf16; bfloat16: all cast, by ZeRO or FSDP2; float32: without bf16.
    """
    autocast, low = computed == "autocast", torch.bfloat16
    dtype = torch.float32 if computed == "float32" or (autocast and lora is None) else low
    model = tiny_model(family, tiny_tokenizer(family), dtype=dtype)
    planned, besides = saved_bytes(model.config, lora, dtype, 1, 80, autocast=autocast)
    adapted = model
    if lora is not None:
        adapted = add_adapters(model, lora, list(range(8)))
        trained = {p for p in adapted.parameters() if p.requires_grad}
        assert {p.dtype for p in trained} == {torch.float32}
        if not autocast:
            adapted.to(dtype)
    # A GPU keeps a mask of bytes; this machine's way with float factors is not what is planned.
    monkeypatch.setattr(
        torch.nn.Dropout, "forward", lambda self, x: torch.native_dropout(x, self.p, True)[0]
    )
    inputs, attention = {}, nullcontext()
    if packed:
        positions = [*range(50), *range(30)]
        inputs = {"position_ids": torch.tensor([positions]), "example_lengths": [50, 30]}
        attention = attention_by_example(model)
    with attention:
        measured = measure_saved_bytes(adapted, 1, 80, autocast=autocast, **inputs)
    assert 0.85 * measured <= 2 * planned + besides <= 1.15 * measured


def test_activations_follow_the_batch():
    config = tiny_model("llama", tiny_tokenizer("llama")).config
    one, two = (saved_bytes(config, None, torch.bfloat16, n, 40)[0] for n in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.05)


def test_weights_adapters_and_states_are_those_of_a_tiny_model():
    model = tiny_model("llama", tiny_tokenizer("llama"))
    lora = LoraSettings(rank=4)
    plan = plan_training(model.config, lora, length=8, dtype=torch.float32)
    assert plan.weights == sum(p.nbytes for p in model.parameters())
    adapted = add_adapters(model, lora, list(range(8)))
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert plan.trained == sum(p.numel() for p in trained)
    optimizer = torch.optim.AdamW(trained)
    adapted(input_ids=torch.tensor([[1, 2]])).logits.sum().backward()
    optimizer.step()
    assert plan.gradients == sum(p.grad.nbytes for p in trained)
    states = [
        state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
    ]
    assert plan.optimizer == sum(state.nbytes for state in states)


def test_without_bf16_everything_is_computed_in_the_weights_dtype():
    def planned(**more):
        return plan_training(
            LLAMA3_8B, LoraSettings(), length=512, gpus=2, dtype=torch.float32, **more
        )

    assert planned(bf16=False).weights == planned().weights == 4 * PARAMETERS
    # Autocast keeps a copy of every frozen matrix in bfloat16 for the backward pass.
    in_layers = PARAMETERS - 2 * 128256 * 4096
    assert planned(bf16=False).activations < 2 * in_layers < planned().activations
    for sharing in ("zero2", "zero3"):
        assert planned(sharing=sharing, bf16=False).weights == 2 * planned(sharing=sharing).weights


def test_bad_counts_are_named():
    with pytest.raises(InputError, match="plan_training gpus: expected 1 or more, got 0"):
        plan_training(LLAMA3_8B, None, length=8, gpus=0)
