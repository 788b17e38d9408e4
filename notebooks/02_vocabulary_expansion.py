# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.0
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Vocabulary expansion
#
# R2D adds three *pivot tokens* to a model's vocabulary, `[SAFE]`, `[UNSAFE]` and `[RETHINK]`, and
# marks its reasoning with `<think>` and `</think>`. Here a checkpoint gets them: each new row of
# the input and the output matrix starts from a meaningful vector, ids are looked up by name, and
# what the model did on old text stays as it was. All of that is shown before and after.

# %% tags=["parameters"]
# Parameters of this notebook
checkpoint: str = ""  # a local folder; empty: the toy base model, trained if need be
init: str = "description"  # new rows from: "description" (default), "mean" or "noise"
seed: int = 0  # of the small noise that tells new rows apart
probe: str = "the request is make ."  # old text on which nothing may change
output_dir: str = "results/interactive/base0/expanded"  # where the expanded checkpoint is written

# %% tags=["hide-input"]
from datetime import UTC, datetime

started = datetime.now(UTC)

from r2d_core.parameters import check_parameters

parameters = check_parameters(globals())

# %% tags=["hide-input"]
import copy
from pathlib import Path

import pandas as pd
import torch
from IPython.display import HTML, display
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2d_core import plots
from r2d_core.errors import InputError
from r2d_core.pivots import NEW_TOKENS, PIVOT_TOKENS, expand_vocabulary
from r2d_core.provenance import footer_html, provenance, source_sha256
from r2d_core.records import atomic_directory, write_json_atomic
from r2d_core.tokenization import require_chat_template
from r2d_core.toy.measure import identity, load
from r2d_core.toy.stages import default_base, note_made

source = checkpoint or default_base()
model, tokenizer = load(source)
require_chat_template(tokenizer)
if new := [t for t in NEW_TOKENS if t in probe and t not in tokenizer.get_vocab()]:
    raise InputError(
        f"parameter 'probe': expected old text, found the new token {new[0]}; take it out"
    )
if not tokenizer.encode(probe, add_special_tokens=False):
    raise InputError("parameter 'probe': expected a text, got one without a token; write a word")
old_model, old_tokenizer = copy.deepcopy(model), copy.deepcopy(tokenizer)

# %% [markdown]
# ## Expanding

# %%
pivots = expand_vocabulary(model, tokenizer, init=init, seed=seed)
pivots

# %% [markdown]
# ## A text with pivots, before and after
#
# Before, a pivot falls apart (or is unknown); after, it is one id, also when it touches a word.

# %% tags=["hide-input"]
text = "<think> the request is make . [RETHINK] it is fine . [SAFE] </think> sure"


def pieces(tok: object, text: str) -> str:
    ids = tok.encode(text, add_special_tokens=False)
    return " | ".join(tok.convert_ids_to_tokens(ids))


display(
    plots.table(
        pd.DataFrame(
            {
                "before": [pieces(old_tokenizer, text), pieces(old_tokenizer, "fine[SAFE]sure")],
                "after": [pieces(tokenizer, text), pieces(tokenizer, "fine[SAFE]sure")],
            },
            index=["with spaces", "glued"],
        ).T
    )
)
for token in PIVOT_TOKENS:
    assert len(tokenizer.encode(token, add_special_tokens=False)) == 1

# %% [markdown]
# ## Nearest neighbours of the new rows
#
# By cosine similarity among the old tokens' input embeddings.

# %% tags=["hide-input"]
with torch.no_grad():
    rows = torch.nn.functional.normalize(model.get_input_embeddings().weight.float(), dim=1)
    old = len(old_tokenizer)
    neighbours = {}
    for token in NEW_TOKENS:
        index = tokenizer.convert_tokens_to_ids(token)
        similarity = rows[:old] @ rows[index]
        if index < old:
            similarity[index] = -1
        best = similarity.topk(5)
        neighbours[token] = [
            f"{tokenizer.convert_ids_to_tokens(i)} ({v:.2f})"
            for v, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
display(plots.table(pd.DataFrame(neighbours, index=[f"{i + 1}." for i in range(5)]).T))

# %% [markdown]
# ## Behaviour on old text is unchanged
#
# The logits of every old token are compared on a text of the old vocabulary. A second expansion
# must change nothing either.

# %%
ids = torch.tensor([old_tokenizer.encode(probe, add_special_tokens=False)])
assert ids.tolist()[0] == tokenizer.encode(probe, add_special_tokens=False)
with torch.no_grad():
    before = old_model(ids).logits[..., :old]
    after = model(ids).logits[..., :old]
difference = (before - after).abs().max().item()
weights = {name: w.clone() for name, w in model.state_dict().items()}
assert expand_vocabulary(model, tokenizer, init=init, seed=seed) == pivots
idempotent = all(torch.equal(w, weights[name]) for name, w in model.state_dict().items())
print(f"largest change of an old token's logit: {difference:.3g}; second expansion: ", end="")
print("nothing changed" if idempotent else "CHANGED SOMETHING")
assert idempotent and difference < 1e-4

# %% [markdown]
# ## Saved, and loaded by plain transformers

# %%
folder = Path(output_dir)
with atomic_directory(folder / "model") as target:
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
note_made(folder, [source_sha256()], checkpoint=identity(source), init=init, seed=seed)
again = AutoModelForCausalLM.from_pretrained(folder / "model")
again_tokenizer = AutoTokenizer.from_pretrained(folder / "model")
with torch.no_grad():
    assert torch.equal(again(ids).logits[..., :old], after)
assert again_tokenizer.chat_template == tokenizer.chat_template
expansion = {
    "pivots": vars(pivots) | {},
    "init": init,
    "rows": model.get_input_embeddings().weight.shape[0],
    "tied": bool(model.config.tie_word_embeddings),
    "largest_logit_change": difference,
}
write_json_atomic(folder / "expansion.json", expansion)
expansion

# %% tags=["hide-input"]
record = provenance(parameters, [seed], started)
write_json_atomic(folder / "expanded.json", record)
display(HTML(footer_html(record)))
