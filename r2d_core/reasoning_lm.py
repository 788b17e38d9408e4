"""lm-evaluation-harness's local model, for models that reason before they answer.

The library ends a generation at a task's stop strings, which may come up in mid-reasoning
("Question:" of GSM8K), and grades a reasoning that never ends as if it were the answer. Imported
only where the library is installed (the extra ``eval``).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from r2d_core.errors import InputError
from r2d_core.pivots import THINK_CLOSE, THINK_OPEN


class ReasoningLM(HFLM):
    """HFLM that generates to the end of turn and grades what stands behind the reasoning.

    Stop strings are applied to the answer alone. A reasoning without an end has the empty answer.

    Attributes:
        unfinished: by task, how many answers ended at the token limit or within the reasoning.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.unfinished: Counter[str] = Counter()
        self._asked = ""

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """One task after the other, so that what is unfinished is counted by task.

        Raises InputError where the model's context has no room for so long an answer.
        """
        for limit in {request.args[1].get("max_gen_toks", 0) for request in requests}:
            if limit >= self.max_length:
                raise InputError(
                    f"UtilityConfig max_new_tokens: {limit} is no less than the model's context of "
                    f"{self.max_length} tokens; lower it"
                )
        answers: dict[int, str] = {}
        for task in dict.fromkeys(request.task_name for request in requests):
            self._asked = task
            places = [i for i, request in enumerate(requests) if request.task_name == task]
            made = super().generate_until([requests[i] for i in places], disable_tqdm)
            answers |= dict(zip(places, made, strict=True))
        return [answers[i] for i in range(len(requests))]

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **settings: Any
    ) -> torch.Tensor:
        """The library's, without stop strings; unfinished reasonings are taken out, [B, T]."""
        out: torch.Tensor = super()._model_generate(context, max_length, [], **settings)
        width = context.shape[1]
        ends = self.model.generation_config.eos_token_id
        for asked, row in zip(context, out, strict=True):
            written = row[width:].tolist()
            end = next((i for i, token in enumerate(written) if token in ends), None)
            text = self.tokenizer.decode(written[:end], skip_special_tokens=False)
            begun = self.tokenizer.decode(asked[-16:], skip_special_tokens=False)
            opened = begun.rstrip().endswith(THINK_OPEN)  # by the template, as R1's does
            thinks = (opened or THINK_OPEN in text) and THINK_CLOSE not in text
            self.unfinished[self._asked] += thinks or end is None
            if thinks:
                row[width:] = self.eot_token_id
        return out
