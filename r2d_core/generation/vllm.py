"""Generation by vLLM in this process (`vllm.LLM`), for models and batches that need its speed.

vLLM pins other versions than the book does, so it has an environment of its own (`make
install-vllm`, on CPU); this module imports it only when a generator is made.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r2d_core.errors import InputError
from r2d_core.generation.encoding import decode_answer, encode_request, stop_ids_of
from r2d_core.generation.generator import Generation, Request, RequestError, sampling_seed


class VllmGenerator:
    """Generation with vLLM's offline `LLM`; it schedules and batches by itself.

    vLLM is given token ids and gives token ids back: prompts, prefills and stop tokens are those of
    `TransformersGenerator`, and a user's text forges no control token.

    Args:
        model: folder (or hub name) of a model and its tokenizer.
        tokenizer: what makes ids of the messages, where it is not the model's own as it was saved:
            one with another chat template, such as a judge's (`install_judge_template`).
        engine: further arguments of `vllm.LLM`: dtype, max_model_len, tensor_parallel_size, ….

    Raises InputError when vLLM is not installed, the folder holds no model, or the tokenizer has no
    chat template or nothing that ends a turn.
    """

    def __init__(self, model: str | os.PathLike[str], tokenizer: Any = None, **engine: Any) -> None:
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise InputError(
                f"generator 'vllm': vLLM cannot be imported here ({error}); run `make install-vllm`"
                " and use .venv-vllm/bin/python, or take generator 'transformers'"
            ) from None
        if os.path.isabs(model) and not (Path(model) / "config.json").is_file():
            raise InputError(
                f"generator 'vllm': model {os.fspath(model)!r} is no folder with a config.json; "
                "give the folder that save_pretrained wrote"
            )
        from transformers import AutoTokenizer, GenerationConfig

        self.tokenizer = AutoTokenizer.from_pretrained(model) if tokenizer is None else tokenizer
        try:
            stated = GenerationConfig.from_pretrained(model).eos_token_id
        except OSError:  # there is no generation_config.json
            stated = None
        self.stop_ids = stop_ids_of(self.tokenizer, stated)
        self.llm = LLM(os.fspath(model), **engine)
        self._sampling: Any = SamplingParams

    def generate(
        self, requests: Sequence[Request], max_new_tokens: int, progress: bool = False
    ) -> list[Generation]:
        """Answers in the order of the requests; ``progress`` shows a bar.

        Raises RequestError, before any is answered, for those for which ``max_model_len`` has no
        room.
        """
        prompts = [encode_request(self.tokenizer, request) for request in requests]
        room = self.llm.llm_engine.model_config.max_model_len
        too_long = {
            request: f"generator 'vllm': the request has {len(prompt)} tokens, which with "
            f"max_new_tokens={max_new_tokens} is more than max_model_len={room}; raise "
            "max_model_len or ask for less"
            for request, prompt in zip(requests, prompts, strict=True)
            if len(prompt) + max_new_tokens > room
        }
        if too_long:
            failed = {request: RequestError(said) for request, said in too_long.items()}
            raise RequestError(next(iter(too_long.values())), failed)
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [
                self._sampling(
                    temperature=request.temperature,
                    seed=sampling_seed(request),
                    max_tokens=max_new_tokens,
                    stop_token_ids=self.stop_ids,
                    detokenize=False,
                )
                for request in requests
            ],
            use_tqdm=progress,
        )
        return [
            decode_answer(self.tokenizer, self.stop_ids, len(prompt), output.outputs[0].token_ids)
            for prompt, output in zip(prompts, outputs, strict=True)
        ]
