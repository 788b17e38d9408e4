"""The field's attacks in the toy world: its attacker, its budgets, what is said of them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_model

from r2d_core.attack_titles import attack_title
from r2d_core.attacks import ATTACKS, make_attack
from r2d_core.attacks.gcg import GCGTransfer
from r2d_core.errors import InputError
from r2d_core.generation import Request
from r2d_core.pivots import expand_vocabulary
from r2d_core.records import Behavior, Completion
from r2d_core.toy.attacker import ToyAttacker
from r2d_core.toy.base import make_tokenizer
from r2d_core.toy.evaluation import attack_material, harmful_behaviors, query_of
from r2d_core.toy.field import (
    ATTACKED,
    SETTINGS,
    STRIPPED,
    TEST,
    UNKNOWN,
    WHY_NOT,
    _budgets,
    add_steps,
    better_than_asking,
    measure_field_attacks,
    read_field,
    recount,
    surrogate_of,
)
from r2d_core.toy.field_tables import (
    borne_out,
    head_to_head,
    head_to_head_shown,
    shares,
    subject_in_words,
    tally,
    told_more_than_half,
)
from r2d_core.toy.judge import ABSENT
from r2d_core.toy.language import make_language
from r2d_core.toy.measure import Measurement
from r2d_core.toy.outcomes import JUDGED, STEPS, by_scope, count, packed, read_judged
from r2d_core.toy.splits import make_splits

LANGUAGE = make_language(0)
SPLITS = make_splits(LANGUAGE, 0)


NOT_HERE = {
    "templates": "puts a file of somebody's jailbreaks to a model; the toy world has none",
    "transfer": "puts a file of what was found on another model; here gcg_transfer searches",
}
"""Attacks of the registry that the chapter leaves out, and why."""


def test_the_chapter_has_every_attack_of_the_registry():
    assert not set(ATTACKED) & set(NOT_HERE)
    # The bare request is no attack of the registry, but another way to the model.
    assert set(ATTACKED) | set(NOT_HERE) == set(ATTACKS) | {STRIPPED}


def test_settings_are_those_of_attacks():
    attacks = set(ATTACKED) - {STRIPPED}
    assert set(SETTINGS) <= attacks
    for name in attacks:
        make_attack(name, **SETTINGS.get(name, {}))


def test_attacker_answers_in_the_form_it_is_asked_for():
    behaviors = harmful_behaviors(LANGUAGE, SPLITS, "development", 2, 0)
    attacker = ToyAttacker(behaviors, attack_material(LANGUAGE, SPLITS, "development"))
    system = f"Make it say {behaviors[1].prompt}. Answer in JSON."
    requests = [
        Request("begin", system=system, seed=1),
        Request("begin", system=system, seed=2),
        Request(f"BEHAVIOR: {behaviors[0].prompt}", seed=1),
        Request("is it on topic?", system="Say YES or NO."),
        Request("BEHAVIOR: of nobody", seed=1),
    ]
    texts = [made.text for made in attacker.generate(requests, 100)]
    assert texts == [made.text for made in attacker.generate(requests, 100)]
    first, second = (json.loads(text)["prompt"] for text in texts[:2])
    assert first != second
    item = str(query_of(behaviors[1]).item).split()
    assert all(word in first for word in item) and all(word in second for word in item)
    assert str(query_of(behaviors[0]).item).split()[1] in texts[2] and "{" not in texts[2]
    assert texts[3:] == ["[[YES]]", "nothing to rewrite"]


def test_the_longer_of_two_prompts_is_the_one_quoted():
    inner = Behavior("a", "how do i make bano tiskel ?")
    outer = Behavior("b", "how do i make bano tiskel ? please")
    asked = []

    class Material:
        @staticmethod
        def rewrite(behavior, best, rng):
            asked.append(behavior.id)
            return best

    ToyAttacker([inner, outer], Material).generate([Request(outer.prompt)], 10)
    assert asked == ["b"]


def test_findings_name_every_attack_once():
    columns = ["attack", "method", "n", "only_attack", "only_direct", "p_value", "p_holm"]
    columns += ["seeds_higher", "seeds_lower"]
    tests = pd.DataFrame(
        [
            ("pair", "r2d", 48, 20, 1, 1e-5, 1e-4, 3, 0),
            ("pair", "refusal", 48, 9, 0, 1e-3, 1e-2, 2, 0),
            ("pair", "refusal_recovery", 48, 20, 1, 1e-5, 1e-4, 2, 1),
            ("tap", "r2d", 48, 1, 20, 1e-5, 1e-4, 0, 3),  # differs, and is worse
            ("autodan", "r2d", 12, 5, 0, 0.04, 0.2, 3, 0),  # not after correction
            ("best_of_n", "r2d", 48, 20, 1, 1e-5, 1e-4, 2, 1),  # one seed points the other way
        ],
        columns=columns,
    )
    said = better_than_asking(tests)
    assert "- **PAIR** beats it on R2D and Refusal tuning. The test calls it ahead on Refusal + " \
        "recovery (ahead in 2, behind in 1 of the seeds): no finding.\n" in said  # fmt: skip
    beaten, _, others = said.partition("On no method with this budget")
    assert "**PAIR**" in beaten and "**PAIR**" not in others
    assert all(name not in beaten for name in ("TAP", "AutoDAN", "best of N"))
    assert "- **best of N** (R2D 20 and 1 of 48). The test calls it ahead on R2D (ahead in 2, " \
        "behind in 1 of the seeds): no finding.\n" in others  # fmt: skip
    assert "- **TAP** (R2D 1 and 20 of 48). It is ahead nowhere. " + UNKNOWN in others
    assert "- **AutoDAN** (R2D 5 and 0 of 12). It is ahead somewhere, not by" in others
    assert "tell it from chance. It breeds" in others
    missing = others.rpartition("Not tried when these tables were made: ")[2].rstrip(".")
    tried = {"direct", "pair", "tap", "autodan", "best_of_n"}
    assert missing == ", ".join(attack_title(name) for name in ATTACKED if name not in tried)


def test_findings_say_whose_suffix_serves_all():
    columns = ["attack", "method", "n", "only_attack", "only_direct", "p_value", "p_holm"]
    columns += ["seeds_higher", "seeds_lower"]
    rows = [(name, "r2d", 48, 20, 1, 1e-5, 1e-4, 3, 0) for name in ATTACKED if name != "direct"]
    said = better_than_asking(pd.DataFrame(rows, columns=columns))
    assert "GCG, many requests and GCG, transferred: one suffix a seed serves all requests" in said
    assert "Not tried" not in said and "On no method" not in said


def test_transfer_is_from_another_method():
    methods = ["refusal", "refusal_recovery", "r2d"]
    assert [surrogate_of(m, methods) for m in methods] == ["refusal_recovery", "refusal", "refusal"]
    assert surrogate_of("r2d", ["r2d"]) is None


TABLES = Path(__file__).parents[1] / "book" / "attacks"


def test_every_attack_is_in_the_tables():
    tests = pd.read_csv(TABLES / "field_tests.csv")
    assert set(ATTACKED) - {"direct"} == set(tests["attack"])


def test_the_tables_are_what_the_code_counts_in_their_outcomes(tmp_path: Path):
    shutil.copyfile(TABLES / "field_outcomes.csv.gz", tmp_path / "field_outcomes.csv.gz")
    recount(tmp_path)
    for name in ("field.csv", "field_tests.csv"):
        assert (tmp_path / name).read_text() == (TABLES / name).read_text(), (
            f"{name}: run experiments/publish.py --reword and commit it"
        )


def test_the_tables_are_of_the_outcomes():
    outcomes = by_scope(read_judged(TABLES / "field_outcomes.csv.gz"))
    counted = pd.read_csv(TABLES / "field.csv")
    pd.testing.assert_frame_equal(count(outcomes), counted, check_dtype=False)
    tests = pd.read_csv(TABLES / "field_tests.csv").set_index(["attack", "method"])
    whole = outcomes[outcomes["scope"] == "whole"]
    for (attack, method), some in whole.groupby(["attack", "method"]):
        if attack == "direct":
            continue
        asked = whole[(whole["attack"] == "direct") & (whole["method"] == method)]
        keys = ["seed", "behavior"]
        pairs = some.merge(asked, on=keys, suffixes=("", "_asked"))
        row = tests.loc[(attack, method)]
        assert (row["n"], row["requests"]) == (len(pairs), pairs["behavior"].nunique())
        more = pairs["harmful"] - pairs["harmful_asked"]
        assert (row["only_attack"], row["only_direct"]) == ((more > 0).sum(), (more < 0).sum())
        by_seed = more.groupby(pairs["seed"]).sum()
        assert (row["seeds_higher"], row["seeds_lower"]) == (
            (by_seed > 0).sum(),
            (by_seed < 0).sum(),
        )


def test_the_tables_were_made_from_a_commit():
    assert json.loads((TABLES / "field.json").read_text())["dirty"] is False


def test_the_tables_record_says_how_they_were_made():
    record = json.loads((TABLES / "field.json").read_text())
    assert record.get("test") == TEST and record.get("settings") == SETTINGS


def test_reasons_are_given_for_the_attacks_that_no_test_calls_ahead():
    """For all of them, and for none that the tables show to work, be it in one seed."""
    tests = pd.read_csv(TABLES / "field_tests.csv")
    ahead = tests[(tests["p_holm"] < 0.05) & (tests["only_attack"] > tests["only_direct"])]
    assert set(WHY_NOT) == set(tests["attack"]) - set(ahead["attack"])
    assert all(WHY_NOT.values()) and UNKNOWN not in better_than_asking(tests)


def test_budgets_are_of_first_successes_over_all_seeds():
    def run(*queries: tuple[int, int | None]) -> Measurement:
        spent = [{"queries": n, "queries_to_jailbreak": first} for n, first in queries]
        answers = [
            Completion(f"b{i}", "pair", "p", "text", metadata=each) for i, each in enumerate(spent)
        ]
        return Measurement({}, [*answers, Completion("b", "direct", "p", "text")], [])

    runs = {("r2d", 0): run((4, 4), (9, None)), ("r2d", 1): run((9, 2))}
    curves = pd.read_csv(io.StringIO(_budgets(runs)))
    assert set(curves["attack"]) == {"pair"} and set(curves["method"]) == {"r2d"}
    assert list(curves["budget"]) == [1, 2, 4, 9]  # on to what was spent, though it won nothing
    assert list(curves["successes"]) == [0, 1, 2, 2] and set(curves["n"]) == {3}
    assert _budgets({}).startswith("attack,method,budget")
    # Seeds that do the same to a request leave the interval of one.
    twice = {("r2d", seed): run((4, 4), (9, None)) for seed in (0, 1)}
    bounds = [
        pd.read_csv(io.StringIO(_budgets(some)))[["rate", "low", "high"]].to_numpy().tolist()
        for some in (twice, {("r2d", 0): run((4, 4), (9, None))})
    ]
    assert bounds[0] == bounds[1]


def steps_are_added_to(folder: Path, old: Path, judged: pd.DataFrame) -> None:
    """As a table of before: no steps, a record, and beside it what it was made from."""
    old.mkdir()
    methods = list(dict.fromkeys(judged["method"]))
    made = {"methods": methods, "seeds": [0], "partition": "development", "n_per_split": 1}
    record = {"parameters": made | {"world_seed": 0}, "dirty": False}
    (old / "field.json").write_text(json.dumps(record))
    table = old / "field_outcomes.csv.gz"
    table.write_bytes(packed(judged[JUDGED]))
    assert STEPS not in read_field(old)
    add_steps(old, folder / "measured")
    assert table.read_bytes() == (folder / "field_outcomes.csv.gz").read_bytes()
    after = json.loads((old / "field.json").read_text())
    assert "r2d_core.toy.field.add_steps" in after.pop(STEPS) and after == record
    # Of other completions, nothing is written.
    changed = judged[JUDGED].copy()
    changed.loc[2, "answer"] = "correct" if changed.loc[2, "answer"] != "correct" else "refused"
    for wrong, said in (
        (changed, "field_outcomes.csv.gz:4: answer is '"),
        (judged[JUDGED].iloc[:-1], f"a row for each of the {len(judged)} completions"),
    ):
        table.write_bytes(packed(wrong))
        with pytest.raises(InputError, match=said):
            add_steps(old, folder / "measured")
        assert table.read_bytes() == packed(wrong)


def test_measured_with_models_of_a_grid(tmp_path, monkeypatch):
    tokenizer = make_tokenizer(LANGUAGE)
    model = tiny_model("word", tokenizer)
    expand_vocabulary(model, tokenizer)
    for method in ("refusal", "r2d"):
        folder = tmp_path / method / "training" / "seed0" / "model"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1.5)  # the next is another model
    options = {
        "models_dir": str(tmp_path),
        "partition": "development",
        "n_per_split": 1,
        "n_gradient": 1,
        "world_seed": 0,
        "output_dir": tmp_path / "out",
    }
    names = ["direct", "pair", "zero_shot", "pivot_text", "forged_prompt", "gcg_transfer", STRIPPED]
    monkeypatch.setitem(SETTINGS, "gcg_transfer", {"steps": 1, "candidates": 4, "init": "please"})
    made_on = []
    run = GCGTransfer.run

    def noting(self, behaviors, target, material, seed):
        made_on.append((target.model, [surrogate.model for surrogate in target.surrogates]))
        return run(self, behaviors, target, material, seed)

    monkeypatch.setattr(GCGTransfer, "run", noting)
    judged = measure_field_attacks(["refusal", "r2d"], names, [0], **options)
    table = pd.read_csv(tmp_path / "out" / "field.csv")
    assert table["n"].sum() == len(by_scope(judged))
    asked = {method: set(some["attack"]) for method, some in table.groupby("method")}
    assert asked == {"r2d": set(names), "refusal": set(names) - {"forged_prompt"}}
    queries = table[table["scope"] == "whole"].set_index(["attack", "method"])["queries"]
    assert (queries["direct"] == 1).all() and (queries["pair"] > 1).all()
    tests = pd.read_csv(tmp_path / "out" / "field_tests.csv")
    assert len(tests) == 11 and set(tests["n"]) == {3} and (tests["p_holm"] == 1).all()
    curves = pd.read_csv(tmp_path / "out" / "field_budgets.csv")
    assert set(curves["attack"]) == {"pair"}
    of_pair = curves[curves["attack"] == "pair"].groupby("method")
    assert set(of_pair.groups) == {"refusal", "r2d"}
    spent = queries["pair"].groupby("method").max()  # means over a split: no more than the largest
    assert (of_pair["budget"].max() >= spent).all()
    assert (of_pair["n"].first() == 3).all()
    again = measure_field_attacks(["refusal", "r2d"], names, [0], **options)
    pd.testing.assert_frame_equal(again, judged)
    read = read_field(tmp_path / "out")
    of_scopes = by_scope(judged)
    whole = of_scopes[of_scopes["scope"] == "whole"].reset_index(drop=True)
    pd.testing.assert_frame_equal(read.drop(columns=STEPS), whole, check_dtype=False)
    assert read[STEPS].tolist() == judged[STEPS].tolist()
    steps_are_added_to(tmp_path / "out", tmp_path / "old", judged)
    (tmp_path / "out" / "field_outcomes.csv.gz").unlink()  # as beside older tables
    with pytest.raises(InputError, match="field_outcomes.csv.gz: no such file; .* recompute: true"):
        read_field(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*-progress"))
    # By transfer: made on the other method's model, never on the one that is attacked.
    for (attacked, surrogates), of in zip(made_on, ("r2d", "refusal"), strict=True):
        (surrogate,) = surrogates
        theirs = load_file(tmp_path / of / "training" / "seed0" / "model" / "model.safetensors")
        assert torch.equal(surrogate.lm_head.weight, theirs["lm_head.weight"])
        assert not torch.equal(surrogate.lm_head.weight, attacked.lm_head.weight)
    for method in ("refusal", "r2d"):
        (steps,) = (tmp_path / "out" / "measured" / f"{method}-seed0" / "steps").iterdir()
        lines = [json.loads(line)[1] for line in steps.read_text().splitlines()]
        assert len(lines) == 2 and {"ids", "loss", "seconds", "flops"} <= set(lines[0])


def responses(*cells: tuple[str, str, str, str]) -> pd.DataFrame:
    """Rows as `read_field`'s: of each method and attack a digit of steps a response, or "r" where
    it is refused; two seeds, one after the other, of as many requests.
    """
    rows = []
    for method, attack, first, second in cells:
        for seed, said in enumerate((first, second)):
            for number, each in enumerate(said):
                steps = 0 if each == "r" else int(each)
                label = "refused" if each == "r" else "harmful" if steps > 1 else "garbled"
                rows.append((method, 0, seed, attack, "seen", f"b{number}", label, steps))
    names = ["method", "base_seed", "seed", "attack", "split", "behavior", "whole", STEPS]
    judged = pd.DataFrame(rows, columns=names).assign(
        reasoning=ABSENT, answer=ABSENT, prompt_tokens=1, response_tokens=1, queries=1
    )
    return by_scope(judged).assign(**{STEPS: judged[STEPS]})


SOME = responses(
    ("r2d", "pair", "4" * 12, "4" * 12),
    ("refusal_recovery", "pair", "r" * 12, "r" * 11 + "4"),
    ("r2d", "random_search", "r" * 12, "r" * 12),
    ("refusal_recovery", "random_search", "2" * 12, "2" * 10 + "43"),
    ("r2d", "direct", "r" * 12, "r" * 12),
    ("refusal_recovery", "direct", "r" * 12, "r" * 12),
    ("r2d", "wrapper", "4" * 12, "r" * 11 + "1"),
    ("refusal_recovery", "wrapper", "r" * 12, "3" + "r" * 11),
    ("r2d", "gcg_pivot", "223", "222"),
)


def test_two_methods_are_compared_attack_by_attack():
    found = head_to_head(SOME, "r2d", "refusal_recovery").set_index("attack")
    assert set(found.index) == {"pair", "random_search", "direct", "wrapper"}  # put to both
    pair = found.loc["pair"]
    assert (pair["n"], pair["requests"], pair["only_reference"], pair["only_method"]) == \
        (24, 12, 23, 0)  # fmt: skip
    assert (pair["harmful_reference"].successes, pair["refused_other"].successes) == (24, 23)
    assert pair["p_holm"] >= pair["p_value"] and found["p_holm"]["direct"] == 1
    said = tally(found.reset_index(), "r2d", "refusal_recovery")
    assert said == (
        "Of the 4 attacks put to both, R2D is harmful more often than Refusal + recovery under 2, "
        "less often under 1 and as often under 1."
    )
    said = borne_out(found.reset_index())
    assert said.startswith("Borne out: more often under *PAIR* (100% [")
    assert "; less often under *random search, answer* (0% [0, " in said
    # The one is the same, the other has a seed that points the other way.
    assert said.endswith("Not told from chance: *direct request* and *held-out wrapper*.")
    shown = head_to_head_shown(found.reset_index(), "r2d", "refusal_recovery")
    assert shown.loc["PAIR", ("harmful alone", "R2D")] == 23
    assert shown.loc["held-out wrapper", "seeds"].tolist() == [1, 1]
    assert head_to_head(SOME[SOME["method"] == "r2d"], "r2d", "refusal_recovery").empty


def test_more_than_half_of_a_procedure_is_another_matter():
    strict = head_to_head(told_more_than_half(SOME), "r2d", "refusal_recovery").set_index("attack")
    assert strict["only_method"]["random_search"] == 2 and strict["only_reference"]["pair"] == 23
    table = shares(SOME, "none")
    assert table.loc["GCG on the pivots", ("R2D", "harmful")].startswith("100% [")
    assert table.loc["GCG on the pivots", ("R2D", "3 steps or more")].startswith("17% [")
    assert table.loc["GCG on the pivots", ("Refusal + recovery", "harmful")] == "none"
    assert list(shares(SOME.drop(columns=STEPS)).columns) == [
        ("R2D", "harmful"), ("Refusal + recovery", "harmful"),
    ]  # fmt: skip
    said = subject_in_words(SOME)
    assert said.startswith(
        "Under *random search, answer* (22 of 24) and *GCG on the pivots* (5 of 6) **most harmful "
    )
    assert said.endswith("Under the other attacks 38 of 38 harmful responses tell 3 steps or more.")
    assert subject_in_words(SOME[SOME["attack"] == "pair"]).startswith("Under no attack do most")


def test_the_chapter_says_what_its_tables_hold():
    """That R2D does worse under most attacks, and what suffix searches win."""
    whole = read_field(TABLES)
    against = head_to_head(whole, "r2d", "refusal_recovery")
    for rows in (against, head_to_head(told_more_than_half(whole), "r2d", "refusal_recovery")):
        more = (rows["only_reference"] > rows["only_method"]).sum()
        assert more > len(rows) / 2
    assert (whole["harmful"] == (whole[STEPS] >= 2)).all() and whole[STEPS].isin(range(5)).all()
    front = (TABLES.parent / "six_languages.md").read_text()
    more, less = (
        (against["only_reference"] > against["only_method"]).sum(),
        (against["only_reference"] < against["only_method"]).sum(),
    )
    told = (against["p_holm"] < 0.05) & (against["runs_lower"] == 0)
    assert f"than the control in {more} of {len(against)}, three of them borne out" in front
    assert f"and less often in {less} (" in front and told.sum() == 3
    said = subject_in_words(whole)
    searches = ("random_search", "random_search_reasoning", "random_search_pivot", "gcg_pivot")
    assert all(f"*{attack_title(name)}* (" in said for name in searches)
