"""The notebook on training data, on data that is not the toy's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from test_openai_server import Scripted, completion, serving
from tiny_models import CORPUS, tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_source_of_ones_own(tmp_path: Path) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    tiny_tokenizer("llama").save_pretrained(tmp_path / "tokenizer")
    refusal = "<think>that is harmful [UNSAFE]</think>I'm sorry, I cannot help with that ."
    answer = "<think>the request is safe [SAFE] dear [NAME] [SAFE]</think>" + "hello " * 80
    rows = [(CORPUS[0], refusal), *((text, answer) for text in CORPUS[1:4]), ("x", "no reasoning")]
    source = tmp_path / "data.jsonl"
    source.write_text(
        "".join(json.dumps({"instruction": i, "input": "", "output": o}) + "\n" for i, o in rows)
    )
    advbench = tmp_path / "harmful_behaviors.csv"
    advbench.write_text(f'goal,target\n"{CORPUS[0]}",Sure\n')

    def run(**parameters: object) -> None:
        papermill.execute_notebook(
            ROOT / "notebooks" / "08_training_data.ipynb",
            tmp_path / "done.ipynb",
            {"source": str(source), "output_dir": str(tmp_path / "out"), **parameters},
            kernel_name="python3",
            cwd=ROOT,
            progress_bar=False,
        )

    run(tokenizer=str(tmp_path / "tokenizer"), harmful_files=[str(advbench)])
    (found,) = (tmp_path / "out").rglob("statistics.json")
    shares = json.loads(found.read_text())["shares"]
    assert shares["harmful"] == shares["refused"] == 0.25  # one of the four that are kept
    with pytest.raises(PapermillExecutionError, match="parameter 'tokenizer': a source needs one"):
        run()


@pytest.mark.slow
def test_a_teacher_and_a_guard_of_ones_own(tmp_path: Path) -> None:
    """Behind a server, with instructions of one's own; and a model that writes nothing to keep."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    tokenizer = tiny_tokenizer("llama")
    tiny_model("llama", tokenizer).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    table = tmp_path / "harmful_behaviors.csv"
    table.write_text(f'goal,target\n"{CORPUS[0]}",Sure\n"{CORPUS[1]}",Sure\n')

    def run(teacher: dict[str, str], guard: dict[str, str], **parameters: object) -> None:
        papermill.execute_notebook(
            ROOT / "notebooks" / "08_training_data.ipynb",
            tmp_path / "done.ipynb",
            {
                "teacher": teacher,
                "guard": guard,
                "instruction_files": [str(table)],
                "tokenizer": str(tmp_path / "tiny"),
                "output_dir": str(tmp_path / "out"),
                **parameters,
            },
            kernel_name="python3",
            cwd=ROOT,
            progress_bar=False,
        )

    server, app = Scripted(), FastAPI()
    app.post("/v1/chat/completions")(server.answer)
    app.get("/v1/models")(lambda: {"object": "list", "data": [{"id": "m", "object": "model"}]})
    server.script = lambda nth, body: JSONResponse(
        completion(
            "safe"
            if "===== REQUEST =====" in body["messages"][-1]["content"]
            else "<think> that is harmful . [UNSAFE] </think> I'm sorry, I cannot help with that ."
        )
    )
    with serving(app) as url:
        asked = {"model": "m", "generator": "openai_server", "base_url": f"{url}/v1"}
        run(asked, asked)
    (made,) = (tmp_path / "out").rglob("trajectories.jsonl")
    assert made.read_text().count("[RETHINK]") == 2  # teacher and guard do not agree
    shares = json.loads((tmp_path / "out" / "statistics.json").read_text())["shares"]
    assert shares["harmful"] == shares["refused"] == 1.0
    tiny = {"model": str(tmp_path / "tiny")}
    with pytest.raises(PapermillExecutionError, match="no trajectory was kept; most often: cut of"):
        run(tiny, tiny, max_new_tokens=4)
    with pytest.raises(PapermillExecutionError, match="expected teacher and guard with it"):
        run(tiny, {})
