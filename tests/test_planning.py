"""The plan of a training: against numbers made by hand, and against what a tiny model takes."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from transformers import LlamaConfig

from r2d_core.adapters import LoraSettings, add_adapters
from r2d_core.errors import InputError
from r2d_core.kernels.fused import GPU_CHUNK_BYTES
from r2d_core.planning import measure_saved_bytes, plan_training, saved_bytes

LLAMA3_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
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
    assert (ddp.weights, ddp.gradients, ddp.optimizer) == tuple(n * PARAMETERS for n in (4, 4, 8))
    # DeepSpeed in bfloat16: weights and gradients of two bytes, moments and float32 weights.
    assert (zero2.weights, zero2.gradients) == (2 * PARAMETERS, 2 * PARAMETERS // 8)
    assert zero2.optimizer == zero3.optimizer == 12 * PARAMETERS // 8
    assert zero3.weights == 2 * PARAMETERS // 8 and zero3.gathered == 2 * 2 * 128256 * 4096
    assert fsdp2.weights == 4 * PARAMETERS // 8 and fsdp2.optimizer == PARAMETERS
    offloaded = planned("zero3_offload")
    assert offloaded.weights == offloaded.optimizer == 0 and offloaded.total < zero3.total
    assert ddp.loss - planned("ddp", LoraSettings()).loss == 4 * 128256 * 4096
    whole = plan_training(LLAMA3_8B, LoraSettings(new_rows="modules_to_save"), length=512)
    assert whole.trained == TRAINED - 2 * 8 * 4096 + 2 * 128256 * 4096


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


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gemma3"])
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)], ids=["full", "lora"])
def test_activations_are_those_that_a_model_on_this_machine_keeps(family, lora):
    """Two layers of data and real attention, against shapes alone."""
    model = tiny_model(family, tiny_tokenizer(family))
    layer, besides = saved_bytes(model.config, lora, torch.float32, 3, 40)
    if lora is not None:
        model = add_adapters(model, lora, list(range(8)))
    measured = measure_saved_bytes(model, 3, 40)
    assert 2 * layer + besides == pytest.approx(measured, rel=0.06)
    assert saved_bytes(model.config, lora, torch.float32, 6, 40)[0] == pytest.approx(
        2 * layer, rel=0.05
    )


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


def test_bad_counts_are_named():
    with pytest.raises(InputError, match="plan_training gpus: expected 1 or more, got 0"):
        plan_training(LLAMA3_8B, None, length=8, gpus=0)
