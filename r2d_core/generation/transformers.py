"""Generation by a local transformers model: batches of like length, KV cache, greedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from r2d_core.generation.generator import Generation, Request
from r2d_core.tokenization import encode_prompt, end_of_turn


class TransformersGenerator:
    """Greedy generation with `model.generate`.

    Requests are sorted by length and cut into batches of at most ``batch_tokens`` tokens (prompt
    and answer, padding included), so that little is padded; padding is on the left.

    Args:
        model: a causal language model; put into evaluation mode.
        tokenizer: its tokenizer. Answers end at its EOS, at those that the model's generation
            configuration names, and at the chat template's end of turn.
        batch_tokens: tokens held at once, what the KV cache has room for.

    Raises InputError when the tokenizer has no chat template, or nothing that ends a turn.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_tokens: int = 16384) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        stated = model.generation_config.eos_token_id
        stated = [] if stated is None else stated if isinstance(stated, list) else [stated]
        own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.stop_ids = sorted({*end_of_turn(tokenizer), *own, *stated})
        pad = tokenizer.pad_token_id
        self.pad_id = self.stop_ids[0] if pad is None else pad

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], max_new_tokens: int, progress: bool = False
    ) -> list[Generation]:
        """Greedy answers in the order of the requests; ``progress`` shows a bar."""
        prompts = [
            encode_prompt(self.tokenizer, r.prompt, system=r.system, prefill=r.prefill)
            for r in requests
        ]
        answers: list[Generation | None] = [None] * len(prompts)
        with tqdm(total=len(prompts), desc="generate", disable=not progress) as bar:
            for batch in self._batches(prompts, max_new_tokens):
                rows = self._generate_batch([prompts[i] for i in batch], max_new_tokens)
                for i, row in zip(batch, rows, strict=True):
                    answers[i] = self._finish(len(prompts[i]), row)
                bar.update(len(batch))
        return [a for a in answers if a is not None]

    def _batches(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        batches: list[list[int]] = []
        for i in order:
            longest = len(prompts[i]) + max_new_tokens
            if batches and (len(batches[-1]) + 1) * longest <= self.batch_tokens:
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches

    def _generate_batch(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        width = max(map(len, prompts))
        device = self.model.device
        ids = torch.tensor([[self.pad_id] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self.pad_id,
            eos_token_id=self.stop_ids,
        )
        return out[:, width:].tolist()

    def _finish(self, prompt_tokens: int, row: list[int]) -> Generation:
        end = next((i for i, token in enumerate(row) if token in self.stop_ids), None)
        kept = row if end is None else row[:end]
        text = self.tokenizer.decode(
            kept, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        response_tokens = len(row) if end is None else end + 1
        return Generation(text, prompt_tokens, response_tokens, "length" if end is None else "stop")
