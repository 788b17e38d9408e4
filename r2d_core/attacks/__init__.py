"""The attacks by name, for measuring a defence: one file an attack, every attack the same call."""

from __future__ import annotations

from typing import Any

from r2d_core.attacks.attack import Attack, Material, Target
from r2d_core.attacks.direct import Direct
from r2d_core.attacks.few_shot import FewShot
from r2d_core.attacks.gcg import GCGAnswer, GCGPivot
from r2d_core.attacks.prefill import ForgedReasoning, PrefillLead, PrefillStep
from r2d_core.attacks.refinement import Refinement
from r2d_core.attacks.wrapper import Wrapper
from r2d_core.errors import InputError

__all__ = ["ATTACKS", "Attack", "Material", "Target", "make_attack"]

ATTACKS: dict[str, type[Any]] = {
    attack.name: attack
    for attack in (
        Direct,
        Wrapper,
        FewShot,
        PrefillLead,
        PrefillStep,
        ForgedReasoning,
        Refinement,
        GCGAnswer,
        GCGPivot,
    )
}


def make_attack(name: str, **settings: Any) -> Attack:
    """The attack of that name with its settings; InputError for an unknown name or setting."""
    if name not in ATTACKS:
        raise InputError(f"unknown attack {name!r}; expected one of {', '.join(ATTACKS)}")
    try:
        return ATTACKS[name](**settings)
    except TypeError as error:
        raise InputError(f"attack {name!r}: {error}") from None
