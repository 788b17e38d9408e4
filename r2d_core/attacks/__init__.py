"""The attacks by name, for measuring a defence: one file an attack, every attack the same call."""

from __future__ import annotations

import dataclasses
from typing import Any, get_type_hints

from r2d_core.attacks.attack import Attack, Material, Surrogate, Target
from r2d_core.attacks.autodan import AutoDAN
from r2d_core.attacks.best_of_n import BestOfN
from r2d_core.attacks.direct import Direct
from r2d_core.attacks.few_shot import FewShot
from r2d_core.attacks.few_shot_attacker import FewShotAttacker
from r2d_core.attacks.forged import ForgedPrompt, ForgedTurn, PivotText
from r2d_core.attacks.gcg import (
    GCGAnswer,
    GCGHarmBench,
    GCGMulti,
    GCGNanoGCG,
    GCGPivot,
    GCGReasoning,
    GCGTransfer,
)
from r2d_core.attacks.pair import PAIR
from r2d_core.attacks.prefill import ForgedReasoning, PrefillLead, PrefillStep
from r2d_core.attacks.random_search import (
    RandomSearch,
    RandomSearchPivot,
    RandomSearchReasoning,
)
from r2d_core.attacks.refinement import Refinement
from r2d_core.attacks.tap import TAP
from r2d_core.attacks.templates import Templates
from r2d_core.attacks.transfer import Transfer
from r2d_core.attacks.wrapper import Wrapper
from r2d_core.attacks.zero_shot import ZeroShot
from r2d_core.checking import mismatch, unknown
from r2d_core.errors import InputError

__all__ = ["ATTACKS", "Attack", "Material", "Surrogate", "Target", "make_attack"]

ATTACKS: dict[str, type[Any]] = {
    attack.name: attack
    for attack in (
        Direct,
        Wrapper,
        Templates,
        FewShot,
        ZeroShot,
        FewShotAttacker,
        PrefillLead,
        PrefillStep,
        ForgedReasoning,
        ForgedPrompt,
        ForgedTurn,
        PivotText,
        Refinement,
        BestOfN,
        PAIR,
        TAP,
        RandomSearch,
        RandomSearchReasoning,
        RandomSearchPivot,
        GCGAnswer,
        GCGReasoning,
        GCGPivot,
        GCGNanoGCG,
        GCGHarmBench,
        GCGMulti,
        GCGTransfer,
        AutoDAN,
        Transfer,
    )
}


def make_attack(name: str, /, **settings: Any) -> Attack:
    """The attack of that name; InputError for an unknown name or setting and a wrong value."""
    if name not in ATTACKS:
        raise InputError(unknown("attack", name, ATTACKS))
    kind = ATTACKS[name]
    annotations = get_type_hints(kind)
    fields = [each.name for each in dataclasses.fields(kind)]
    for setting, value in settings.items():
        if setting not in fields:
            raise InputError(f"attack {name!r}: {unknown('setting', setting, fields)}")
        if problem := mismatch(value, annotations[setting]):
            raise InputError(f"attack {name!r}: {setting}: {problem}")
    return kind(**settings)
