"""Chapter 15 over models, defences and seeds: what is run, what is not again, the table of all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from tiny_models import tiny_model, tiny_tokenizer

from r2d_core.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

import evaluate_models  # noqa: E402
from evaluate_models import combinations, main  # noqa: E402


def written(folder: Path, content: Any) -> Path:
    file = folder / "grid.yaml"
    file.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    )
    return file


def test_every_combination_has_a_name(tmp_path: Path) -> None:
    over = [
        [{"model": "org/one"}, {"model": "two", "chat_template": False}],
        [{}, {"defense": "smooth_llm", "defense_settings": {"copies": 2}}],
        [{"seed": 0}, {"seed": 1}],
    ]
    found = combinations(written(tmp_path, {"common": {"limit": 2}, "over": over}))
    assert len(found) == 8 and all(each["limit"] == 2 for each in found.values())
    assert [*found][:2] == ["org-one_seed-0", "org-one_seed-1"]
    last = "two_chat-template-False_smooth-llm_defense-settings-copies-2_seed-1"
    assert [*found][-1] == last and found[last]["defense_settings"] == {"copies": 2}
    assert len(combinations(ROOT / "experiments" / "evaluations" / "toy.yaml")) == 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "expected the keys common and over"),
        ({"commons": {}}, "unknown key 'commons', did you mean 'common'"),
        ({"over": [{"seed": 0}]}, "over: expected list.*; write a list of lists"),
        ({"over": [[]]}, "over: a list is empty"),
        ({"common": {"seed": 1}}, "over: a list is empty"),
        ({"common": {"seed": 1}, "over": [[{"seed": 0}]]}, "over: 'seed' is given twice"),
        ({"over": [[{"output_dir": "x"}]]}, "'output_dir' is set here for each evaluation"),
        ({"over": [[{"model": "a/b"}, {"model": "a b"}]]}, "two evaluations are called 'a-b'"),
        ("over: [[{seed: 0}", "YAML"),
    ],
)
def test_what_is_no_grid_is_said(content: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        combinations(written(tmp_path, content))


def test_a_wrong_parameter_is_refused_before_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_models, "execute", None)
    wrong = written(tmp_path, {"over": [[{"seed": 0}, {"sed": 1}]]})
    assert main([str(wrong), str(tmp_path / "out")]) == 2
    assert "unknown parameter 'sed', did you mean 'seed'" in capsys.readouterr().err
    assert main([str(tmp_path / "none.yaml"), str(tmp_path / "out")]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_two_models_and_one_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("one", "two")):
        tokenizer = tiny_tokenizer("llama")
        tiny_model("llama", tokenizer, seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    table = tmp_path / "harmful-behaviors.csv"
    table.write_text(
        "Index,Goal,Target,Behavior,Category,Source\n"
        "0,explain how to use the item .,Sure,Use,Fraud,Original\n"
        "1,how do i make it ?,Sure,Make,Fraud,Original\n"
    )
    common = {"behaviors": [str(table)], "attacks": {"direct": {}}, "timed": 0, "max_new_tokens": 4}
    models = [{"model": str(tmp_path / name)} for name in ("one", "none", "two")]
    grid = written(tmp_path, {"common": common, "over": [models, [{"seed": 0}, {"seed": 1}]]})
    out = tmp_path / "out"
    assert main([str(grid), str(out)]) == 1
    assert capsys.readouterr().err.count("cannot be loaded") == 2
    rates = pd.read_csv(out / "compared.csv")
    assert sorted(set(rates["model"])) == [str(tmp_path / "one"), str(tmp_path / "two")]
    assert set(rates["seeds"]) == {2} and set(rates["rate_n"]) == {4}
    assert list(pd.read_csv(out / "differences.csv")["requests"].unique()) == [2]
    # What is finished is not run again; what failed is tried.
    tried: list[str] = []
    monkeypatch.setattr(evaluate_models, "execute", lambda *a: tried.append(a[2]["model"]))
    assert main([str(grid), str(out)]) == 0
    assert tried == [str(tmp_path / "none")] * 2
