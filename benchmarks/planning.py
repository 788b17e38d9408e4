"""What a training takes of a GPU, beside what `plan_training` says that it will.

    python benchmarks/planning.py                   # an 8B model and a small one: minutes on a GPU
    python benchmarks/planning.py --cases tiny      # seconds, on a CPU too: does everything run?

Random models of real configurations take a few optimizer steps on random examples of full length,
as training takes them (benchmarks/training.py's "ours"). Beside the plan stand the most bytes that
were allocated at one time, from the loading of the weights on; on a GPU also what its driver gives
as taken, which is what has to fit; and the plan's operations of a step over its time (the median
after the first), as a share of the device's peak, beside the share that the plan's hours assume.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from loss import PIVOTS, RESULTS, ROWS, peak_memory, synchronize
from tqdm import tqdm
from training import ours
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

from r2d_core.adapters import LoraSettings, add_adapters
from r2d_core.authors_recipe import THEIR_LORA
from r2d_core.batching import Row
from r2d_core.planning import plan_training
from r2d_core.provenance import provenance
from r2d_core.records import write_json_atomic
from r2d_core.tokenization import IGNORED

UTILISATION = 0.35  # what `plan_training` assumes

LLAMA3_8B = LlamaConfig(
    vocab_size=128264,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
)
QWEN25_HALF_B = Qwen2Config(
    vocab_size=151944,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    max_position_embeddings=32768,
    tie_word_embeddings=True,
)
TINY = LlamaConfig(
    vocab_size=4096,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@dataclass(frozen=True)
class Case:
    """One training: ``lora`` None trains the whole model, in float32 under autocast."""

    model: str
    config: PreTrainedConfig
    trained: str
    lora: LoraSettings | None
    length: int
    batch_size: int = 1
    checkpointing: bool = False


NEW_ROWS = ("LoRA and new rows", LoraSettings())
AUTHORS = ("LoRA, embedding and output matrix", LoraSettings(**THEIR_LORA))
CASES = {
    "8b": Case("Llama-3-8B", LLAMA3_8B, *NEW_ROWS, 4096),
    "8b-checkpointing": Case("Llama-3-8B", LLAMA3_8B, *NEW_ROWS, 4096, checkpointing=True),
    "8b-four": Case("Llama-3-8B", LLAMA3_8B, *NEW_ROWS, 4096, batch_size=4, checkpointing=True),
    "8b-authors": Case("Llama-3-8B", LLAMA3_8B, *AUTHORS, 4096, checkpointing=True),
    "half-b-full": Case("Qwen2.5-0.5B", QWEN25_HALF_B, "everything", None, 2048, batch_size=4),
    "tiny": Case("tiny", TINY, "LoRA and new rows", LoraSettings(rank=8, alpha=8.0), 64, 2),
}


def examples(case: Case) -> list[Row]:
    """As many as a batch has, of full length, a third of each a prompt."""
    random = np.random.default_rng(0)
    rows: list[Row] = []
    for _ in range(case.batch_size):
        ids = random.integers(20, case.config.vocab_size, case.length).tolist()
        ids[-3], ids[case.length // 2] = PIVOTS.safe, PIVOTS.rethink
        labels = [IGNORED] * (case.length // 3) + ids[case.length // 3 :]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def train(case: Case, device: str, steps: int) -> list[float]:
    """Seconds of each optimizer step, the model made new."""
    torch.manual_seed(0)
    dtype = torch.float32 if case.lora is None else torch.bfloat16
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(case.config, dtype=dtype)
        if case.lora is not None:
            model = add_adapters(model, case.lora, ROWS.tolist())
    model = model.to(device).train()
    if case.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    rows, seconds = examples(case), []
    for _ in tqdm(range(steps), desc=f"{case.model}, {case.trained}", unit="step"):
        synchronize(device)
        began = time.perf_counter()
        ours(model, rows, device, case.batch_size)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return seconds


def measure(name: str, device: str, steps: int, peak_flops: float) -> dict[str, Any]:
    """One row: the plan's numbers and the run's."""
    case = CASES[name]
    tokens = case.length * case.batch_size
    plan = plan_training(
        case.config,
        case.lora,
        length=case.length,
        batch_size=case.batch_size,
        gradient_checkpointing=case.checkpointing,
        dtype=torch.float32 if case.lora is None else torch.bfloat16,
        tokens=tokens,
        peak_flops=peak_flops,
        utilisation=UTILISATION,
    )
    row: dict[str, Any] = {
        "case": name,
        "model": case.model,
        "trained": case.trained,
        "length": case.length,
        "batch_size": case.batch_size,
        "checkpointing": case.checkpointing,
        "parameters": plan.parameters,
        "planned_bytes": plan.peak,
    }
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    with peak_memory(device) as peak:
        seconds = train(case, device, steps)
        if device == "cuda":
            free, total = torch.cuda.mem_get_info()
            row["taken_bytes"] = total - free
    row["allocated_bytes"] = peak[0]
    row["seconds_a_step"] = statistics.median(seconds[1:])
    row["tokens_per_second"] = tokens / row["seconds_a_step"]
    row["planned_seconds"] = plan.hours * 3600
    row["utilisation"] = plan.flops / (row["seconds_a_step"] * peak_flops)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    usual = [name for name in CASES if name != "tiny"] if device == "cuda" else ["tiny"]
    parser.add_argument("--cases", nargs="+", choices=CASES, default=usual)
    parser.add_argument("--device", default=device)
    parser.add_argument("--steps", type=int, default=4, help="2 or more")
    parser.add_argument(
        "--tflops", type=float, default=989.0, help="the device's peak in bfloat16 (an H200's)"
    )
    parser.add_argument("--out", type=Path, help="JSON file; default benchmarks/results/…")
    given = parser.parse_args()
    if given.steps < 2:
        parser.error(f"--steps: expected 2 or more (the first is not counted), got {given.steps}")
    if given.device == "cpu" and given.out is None:
        parser.error("--out: expected on a CPU; its numbers are none to publish")
    started = datetime.now(UTC)
    rows = [measure(name, given.device, given.steps, given.tflops * 1e12) for name in given.cases]
    where = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    settings = {"device": where, "cases": given.cases, "steps": given.steps}
    settings |= {"tflops": given.tflops, "utilisation": UTILISATION}
    out = given.out or RESULTS / f"planning-{where.replace(' ', '-').lower()}.json"
    write_json_atomic(out, {"rows": rows, "provenance": provenance(settings, [0], started)})
    pd.set_option("display.width", 200, "display.max_columns", None)
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    print(out)


if __name__ == "__main__":
    main()
