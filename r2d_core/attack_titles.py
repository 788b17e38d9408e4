"""What readers see in place of an attack's code name; the order is that of the figures.

Every attack of ``attacks.ATTACKS`` is here, for those who need the names but not torch.
"""

from __future__ import annotations

TITLES = {
    "direct": "direct request",
    "wrapper": "held-out wrapper",
    "few_shot": "few-shot",
    "prefill_lead": "prefill: lead",
    "prefill_step": "prefill: lead + step",
    "forged_reasoning": "prefill: forged reasoning",
    "refinement": "refinement search",
    "gcg_answer": "GCG on the answer",
    "gcg_pivot": "GCG on the pivots",
    "gcg_reasoning": "GCG on the reasoning",
    "gcg_nanogcg": "GCG as in nanoGCG",
    "gcg_harmbench": "GCG as in HarmBench",
    "gcg_multi": "GCG, many requests",
    "gcg_transfer": "GCG, transferred",
    "random_search": "random search, answer",
    "random_search_reasoning": "random search, reasoning",
    "random_search_pivot": "random search, pivots",
    "zero_shot": "zero-shot",
    "templates": "human templates",
    "transfer": "found on another model",
    "few_shot_attacker": "few-shot by an attacker",
    "best_of_n": "best of N",
    "pair": "PAIR",
    "tap": "TAP",
    "autodan": "AutoDAN",
    "forged_prompt": "forged reasoning in prompt",
    "forged_turn": "forged turn in prompt",
    "pivot_text": "pivots as user text",
}


def attack_title(name: str) -> str:
    """The title of an attack in figures and sentences; of one that has none, its name in words."""
    return TITLES.get(name, name.replace("_", " "))
