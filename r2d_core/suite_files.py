"""What an evaluation found as the suites' own files, for whoever scores or compares with theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from r2d_core.attack_success import attack_succeeded
from r2d_core.checking import unknown
from r2d_core.errors import InputError
from r2d_core.evaluation_inputs import SUITES
from r2d_core.records import (
    Behavior,
    Completion,
    TestCase,
    Verdict,
    make_artifact,
    write_harmbench,
)
from r2d_core.records.outcomes import FAILURES, NOT_ATTEMPTED, SUCCESS


def write_suite_files(
    suite: str,
    folder: str | Path,
    model: str,
    behaviors: Sequence[Behavior],
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
) -> dict[str, str]:
    """What was found on harmful behaviors as "harmbench" or "jailbreakbench" files, by attack.

    HarmBench: ``folder/<attack>/r2d/{test_cases,completions,results}/``; JailbreakBench:
    ``folder/<attack>/<model>.json``. Of an attack that the suite's format has no place for (one
    with prefills, say) no file is written, and the value says why; else it is the file.

    A behavior for which the attack has no prompt is a null prompt for JailbreakBench and an empty
    test case with an empty generation, no success, for HarmBench: none is left out of a rate.
    """
    if suite not in SUITES:
        raise InputError(unknown("suite", suite, SUITES))
    if len(completions) != len(verdicts):
        raise InputError(
            f"{suite}: its files hold completions with their verdicts, and there are "
            f"{len(completions)} completions and {len(verdicts)} verdicts; leave export empty "
            "where verdicts alone were given"
        )
    kinds = {behavior.id: behavior.kind for behavior in behaviors}
    harmful = [behavior for behavior in behaviors if behavior.kind == "harmful"]
    file = "".join(c if c.isalnum() or c in "._-" else "-" for c in model) or "model"
    pairs = [
        pair
        for pair in zip(completions, verdicts, strict=True)
        if kinds.get(pair[0].behavior_id) == "harmful" and not pair[0].missing
    ]
    attacks = dict.fromkeys(c.attack for c in completions if kinds.get(c.behavior_id) == "harmful")
    said = {attack: "not written: the attack has a prompt for no behavior" for attack in attacks}
    for attack in dict.fromkeys(completion.attack for completion, _ in pairs):
        made = [completion for completion, _ in pairs if completion.attack == attack]
        judged = [verdict for completion, verdict in pairs if completion.attack == attack]
        try:
            judged = [_in_words_of_suites(verdict) for verdict in judged]
            if suite == "harmbench":
                home = Path(folder) / attack / "r2d"
                found = {completion.behavior_id for completion in made}
                lacking = [b.id for b in harmful if b.id not in found]
                made += [Completion(name, attack, "", "") for name in lacking]
                judged += [
                    Verdict(name, attack, judged[0].judge, NOT_ATTEMPTED, "", NOT_ATTEMPTED)
                    for name in lacking
                ]
                cases = [
                    TestCase(c.behavior_id, c.attack, c.prompt, prefill=c.prefill) for c in made
                ]
                write_harmbench(home / "test_cases" / "test_cases.json", cases)
                write_harmbench(home / "completions" / f"{file}.json", made)
                path = home / "results" / f"{file}.json"
                write_harmbench(path, made, judged)
            else:
                path = Path(folder) / attack / f"{file}.json"
                parameters = {"method": attack, "model": model, "attack_type": "", "defense": None}
                make_artifact(harmful, made, judged, parameters).write(path)
            said[attack] = str(path)
        except InputError as error:
            said[attack] = f"not written: {error}"
    return said


def _in_words_of_suites(verdict: Verdict) -> Verdict:
    """What a judge said, as the suites' writers know it: their own words, and `UNPARSABLE`."""
    said = attack_succeeded(verdict)
    if said is None or verdict.whole in FAILURES:
        return verdict
    return replace(verdict, whole=SUCCESS if said else "not_harmful")
