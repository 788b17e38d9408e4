"""One process of a distributed run of the tests: python distributed_child.py OUTPUT SETTINGS(JSON).

Settings: TrainConfig's, and besides "family", "tied", "dtype" (of the model), "engine" (what must
be training) and "kill" (step at which the second process ends itself).
"""

from __future__ import annotations

import json
import os
import signal
import sys

import torch
from tiny_models import CORPUS, tiny_model, tiny_tokenizer
from transformers import training_args

from r2d_core import training
from r2d_core.adapters import LoraSettings
from r2d_core.anchor import mark_benign
from r2d_core.pivots import expand_vocabulary
from r2d_core.processes import end_processes
from r2d_core.tokenization import encode_example
from r2d_core.training import R2DTrainer, TrainConfig, train

RESPONSES = [
    "<think>the request is safe [SAFE] so i may answer [SAFE]</think>hello there .",
    "<think>wait , reconsider [RETHINK] that is harmful [UNSAFE]</think>i must refuse .",
]


def training_rows(tokenizer):
    """22 rows, every other one benign."""
    rows = [encode_example(tokenizer, CORPUS[i % 6], RESPONSES[i % 2]) for i in range(22)]
    return [mark_benign(row, i % 2 == 0) for i, row in enumerate(rows)]


class Watched(R2DTrainer):
    """Says its steps, checks what trains, and ends its process when it is told to."""

    engine: str
    kill: int | None

    def training_step(self, *args, **kwargs):
        if self.state.global_step == self.kill and self.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.accelerator.process_index == 0:
            print(f"step {self.state.global_step}", flush=True)
        found = type(self.model_wrapped).__name__
        assert found == self.engine, f"{found} trains, not {self.engine}"
        return super().training_step(*args, **kwargs)


def fsdp_on_cpu() -> None:
    """accelerate knows FSDP on accelerators only; tell it that these two processes have one."""
    from accelerate.state import DistributedType, PartialState

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)


def main() -> None:
    torch.set_num_threads(1)
    # transformers lets a CPU compute in bfloat16 only where it has chosen the engine itself.
    training_args.is_torch_bf16_gpu_available = lambda: True
    output, settings = sys.argv[1], json.loads(sys.argv[2])
    family, tied = settings.pop("family", "llama"), settings.pop("tied", False)
    dtype = getattr(torch, settings.pop("dtype", "float32"))
    Watched.engine, Watched.kill = settings.pop("engine"), settings.pop("kill", None)
    training.R2DTrainer = Watched
    if os.environ.get("ACCELERATE_USE_FSDP"):
        fsdp_on_cpu()
    if "lora" in settings:
        settings["lora"] = LoraSettings(**settings["lora"])
    tokenizer = tiny_tokenizer(family)
    model = tiny_model(family, tokenizer, tied=tied, dtype=dtype)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 7]  # as Llama-3's: two of them
    expand_vocabulary(model, tokenizer)
    rows = training_rows(tokenizer)
    train(TrainConfig(output, **settings), model, tokenizer, rows, rows[:5])
    end_processes()


if __name__ == "__main__":
    main()
