"""Models by name, and how each is asked: here, through vLLM, by a server; bare, or with a defence.

A folder or a name on the hub becomes a `Reached`, which `r2d_core.evaluation` attacks, asks and
judges with. Its name stands for it in what it made: the same model under other settings has
another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2d_core.attacks.identity import identity
from r2d_core.attacks.journal import digest
from r2d_core.attacks.template_stripping import without_chat_template
from r2d_core.checking import unknown
from r2d_core.defenses import DEFENSES, refusal_filter
from r2d_core.errors import InputError
from r2d_core.generation import (
    GENERATORS,
    Generator,
    OpenAIServerGenerator,
    TransformersGenerator,
    VllmGenerator,
)
from r2d_core.judges import JUDGES, Judge, ModelJudge, install_judge_template
from r2d_core.judges.strings import GCGStrings
from r2d_core.pretrained import loaded
from r2d_core.tokenization import CHAT_TEMPLATES, install_chat_template
from r2d_core.trajectories import parse

HOW = frozenset(
    {"batch_tokens", "device_map", "concurrency", "retries", "timeout_s", "cache",
     "api_key_variable", "gpu_memory_utilization", "tensor_parallel_size", "max_num_seqs",
     "max_model_len", "token", "hf_token", "cache_dir", "download_dir", "local_files_only"}
)  # fmt: skip
"""Settings of how a model is fetched and run: they change none of its answers but by rounding, and
a run goes on under others. They are in no name, and so is no key."""
FROM_WHERE = ("revision", "subfolder", "token", "cache_dir", "local_files_only")
"""Settings of a local model that its tokenizer is loaded with, too."""


@dataclass(frozen=True)
class Reached:
    """A model that answers.

    Attributes:
        generator: it, or a defence round it.
        name: what stands for it in the settings of what it made: another model has another name,
            and so has the same one under other settings (dtype, revision, a server's dialect, but
            none of `HOW`), or with weights, tokenizer, template or configuration written anew.
        model, tokenizer: where it is in this process, for attacks with gradients.
    """

    generator: Generator
    name: str
    model: Any = None
    tokenizer: Any = None


def reach(model: str, generator: str = "transformers", **settings: Any) -> Reached:
    """A model by its folder or name on the hub, and how it is asked.

    ``settings`` are the generator's own (``base_url`` of a server, ``max_model_len`` of vLLM), and
    ``chat_template``: the name of one of `tokenization.CHAT_TEMPLATES`, which the tokenizer is then
    given, or False: prompts reach the model bare (`attacks.template_stripping`), where it is in
    this process. Left out, it is the tokenizer's own.

    A local model takes the GPU where there is one, and its files' dtype unless ``dtype`` says
    otherwise. A server's ``cache`` is a folder's path and its ``tokenizer`` a folder or name on the
    hub: with it, and dialect "vllm", a user's text forges no control token. Raises InputError for
    an unknown generator, setting or template, for a tokenizer without one, and where no model is.
    """
    return _reach(model, generator, "", settings)


def reach_described(what: str, given: Mapping[str, Any], judge: str = "") -> Reached:
    """`reach` by a mapping with ``model`` and what else it takes, such as a parameter holds.

    ``what`` names it in errors; ``judge`` is the judge that it is the model of, whose template a
    tokenizer in this process is then given. Raises InputError as `reach` does, and without a model.
    """
    settings = {"generator": "transformers", **given}
    model = settings.pop("model", None)
    if not isinstance(model, str) or not model:
        raise InputError(
            f"{what} asks a model: give model, a folder or name on the hub, and how it is reached "
            "(generator, base_url, …)"
        )
    return _reach(model, settings.pop("generator"), judge, settings)


def _reach(model: str, generator: str, judge: str, settings: Mapping[str, Any]) -> Reached:
    """`reach`; of a judge whose model was trained on its prompt, with the template for that."""
    if generator not in GENERATORS:
        raise InputError(unknown("generator", generator, GENERATORS))
    settings, trained = dict(settings), getattr(JUDGES.get(judge), "chat_template", "")
    if settings.get("chat_template") in (True, None):
        settings.pop("chat_template", None)
    named = _local_name(model) + _settings_name(settings)
    template = settings.pop("chat_template", True)
    if template is not True:
        _check_template(template, generator, settings, judge if trained else "")
    try:
        if generator == "openai_server":
            if trained and settings.get("dialect") != "vllm":
                raise InputError(
                    f"judge {judge!r}: a server would wrap its published prompt once more; "
                    "give dialect 'vllm', which takes it as it is"
                )
            tokenizer = settings.pop("tokenizer", None)
            if tokenizer is not None:
                tokenizer = settings["tokenizer"] = load_tokenizer(tokenizer, judge)
            elif trained:
                try:
                    tokenizer = settings["tokenizer"] = load_tokenizer(model, judge)
                except InputError as error:
                    raise InputError(
                        f"judge {judge!r}: give tokenizer, a folder or name on the hub, where the "
                        f"server's name of the model is none: {error}"
                    ) from None
            if tokenizer is not None:
                _give_template(tokenizer, template, model)
            if settings.get("cache") is not None:
                settings["cache"] = Path(settings["cache"])
            server = OpenAIServerGenerator(model, **settings)
            return Reached(server, f"{generator}:{named}", None, tokenizer)
        where = {name: settings[name] for name in FROM_WHERE if name in settings}
        if generator == "vllm":
            tokenizer = load_tokenizer(model, judge, **where)
            _give_template(tokenizer, template, model)
            engine = VllmGenerator(model, tokenizer=tokenizer, **settings)
            return Reached(engine, named, None, tokenizer)
        own = {"batch_tokens": settings.pop("batch_tokens")} if "batch_tokens" in settings else {}
        here = loaded(model, AutoModelForCausalLM.from_pretrained, **{"dtype": "auto", **settings})
        if torch.cuda.is_available() and "device_map" not in settings:
            here = here.to("cuda")
        tokenizer = load_tokenizer(model, judge, **where)
        if template is False:
            made = without_chat_template(here, tokenizer)
            made.batch_tokens = own.get("batch_tokens", made.batch_tokens)
            tokenizer = made.tokenizer
        else:
            _give_template(tokenizer, template, model)
            made = TransformersGenerator(here, tokenizer, **own)
        commit = getattr(here.config, "_commit_hash", None)  # which one the hub's name was
        return Reached(made, f"{named}@{commit}" if commit else named, here, tokenizer)
    except TypeError as error:  # a setting that is none
        raise InputError(f"generator {generator!r}: {error}") from None


def load_tokenizer(model: str, judge: str = "", **where: Any) -> Any:
    """A model's tokenizer, with the chat template of ``judge`` where that has one of its own.

    ``where`` are settings of `FROM_WHERE`. InputError when there is no such model.
    """
    tokenizer = loaded(model, AutoTokenizer.from_pretrained, **where)
    if judge and getattr(JUDGES[judge], "chat_template", ""):
        install_judge_template(tokenizer, judge)
    return tokenizer


def make_judges(
    judges: Mapping[str, Mapping[str, Any]], folder: str | Path
) -> dict[str, tuple[Judge, str]]:
    """Judges of `JUDGES` by name, each with the name of its model ("" for lists of strings).

    ``judges``: a judge's name -> {} for strings, else ``model``, ``generator`` and its settings, as
    `reach` takes them. What a judge's model answered is kept under ``folder/progress``. Raises
    InputError for an unknown judge and a judge's model that is missing or in vain.
    """
    made: dict[str, tuple[Judge, str]] = {}
    for name, given in judges.items():
        if name not in JUDGES:
            raise InputError(unknown("judge", name, JUDGES))
        if not issubclass(JUDGES[name], ModelJudge):
            if given:
                raise InputError(f"judge {name!r} is a list of strings: it takes no {min(given)!r}")
            made[name] = (JUDGES[name](), "")
            continue
        reached = reach_described(f"judge {name!r}", given, judge=name)
        cache = Path(folder) / "progress" / "judges"
        made[name] = (JUDGES[name](reached.generator, reached.name, cache), reached.name)
    return made


def draws(defense: str) -> bool:
    """Whether the defence of that name draws at random, by a ``seed``; False for an unknown one."""
    kind = DEFENSES.get(defense)
    return kind is not None and "seed" in {field.name for field in dataclasses.fields(kind)}


def defend(reached: Reached, defense: str, **settings: Any) -> Reached:
    """The same model with a defence of `DEFENSES` round it.

    What a defence needs of the model (model, tokenizer, a filter that asks it) is given to it;
    refusals are those of GCG's strings, in the answer behind the reasoning. Two settings are not
    the defence's own: ``filter_tokens`` (1024), the length of the answers by which erase-and-check
    knows what is refused, in which a reasoning has to find its end; and ``model`` of the perplexity
    filter, the folder or hub name of its language model (GPT-2 in the papers), without which it is
    the attacked model itself. Raises InputError for an unknown defence or setting and for one that
    is missing.
    """
    if defense not in DEFENSES:
        raise InputError(unknown("defense", defense, DEFENSES))
    own = json.dumps([defense, settings], sort_keys=True, default=str)
    strings = GCGStrings()

    def refuses(text: str) -> bool:
        return strings.refuses(parse(text).answer)

    known = {"model": reached.model, "tokenizer": reached.tokenizer, "refused": refuses}
    fields = {field.name for field in dataclasses.fields(DEFENSES[defense])}
    takes = fields - {"generator", "harmful", *known}
    if "harmful" in fields:
        takes.add("filter_tokens")
        length = settings.pop("filter_tokens", 1024)
        if not isinstance(length, int) or length < 1:
            raise InputError(f"defense {defense!r}: filter_tokens: expected tokens, got {length!r}")
        known["harmful"] = refusal_filter(reached.generator, refuses, length)
    if "model" in fields:
        takes.add("model")
        if filter_model := settings.pop("model", ""):
            own += f" {_local_name(filter_model)}"
            known["model"] = loaded(filter_model, AutoModelForCausalLM.from_pretrained)
            known["tokenizer"] = loaded(filter_model, AutoTokenizer.from_pretrained)
    for name in settings:
        if name not in takes:
            raise InputError(f"defense {defense!r}: {unknown('setting', name, takes)}")
    given = {name: value for name, value in known.items() if name in fields}
    if missing := [name for name, value in given.items() if value is None]:
        raise InputError(
            f"defense {defense!r} needs the model's {missing[0]}, which is not in this process; "
            "take generator 'transformers'"
        )
    try:
        made = DEFENSES[defense](reached.generator, **given, **settings)
    except TypeError as error:  # a setting that is missing
        raise InputError(f"defense {defense!r}: {error}") from None
    # Of words and synonyms that came from a file, what was in it.
    read = {n: getattr(made, n) for n, given in settings.items() if getattr(made, n) is not given}
    if read:
        own += f" {digest(repr(identity(read)))}"
    return replace(reached, generator=made, name=f"{reached.name}|{own}")


def _check_template(
    template: Any, generator: str, settings: Mapping[str, Any], trained: str
) -> None:
    """Raise InputError for a ``chat_template`` that is none, or in vain as the model is reached."""
    if template is not False and template not in [*CHAT_TEMPLATES]:
        known = unknown("chat template", template, CHAT_TEMPLATES)
        raise InputError(f"chat_template: {known}, or false: prompts go bare")
    if trained:
        raise InputError(
            f"judge {trained!r}: its model reads its published prompt and nothing round it; leave "
            "chat_template out"
        )
    if template is False and generator != "transformers":
        raise InputError(
            "chat_template false: for prompts to go bare the model has to be in this process; take "
            "generator 'transformers'"
        )
    if generator == "openai_server" and settings.get("tokenizer") is None:
        raise InputError(
            f"chat_template {template!r}: the server has a template of its own; give tokenizer and "
            "dialect 'vllm', and token ids are sent, or leave chat_template out"
        )


def _give_template(tokenizer: Any, template: str | bool, model: str) -> None:
    if isinstance(template, str):
        install_chat_template(tokenizer, template)
    elif not tokenizer.chat_template:
        raise InputError(
            f"model {model!r}: its tokenizer has no chat template; give chat_template, the name of "
            f"one ({', '.join(CHAT_TEMPLATES)}), or false: prompts then go bare"
        )


def telling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that answers hang on: those that are none of `HOW`."""
    return {name: value for name, value in settings.items() if name not in HOW}


def _local_name(model: str) -> str:
    """A local model's folder and a digest of its files; another's name as it is.

    Of weights it is sizes and times, of the small files (configurations, tokenizer, chat template)
    what is in them: one that was written anew is another model.
    """
    if not Path(model).is_dir():
        return model
    found: list[tuple[str, Any]] = []
    for file in sorted(Path(model).iterdir()):
        if file.suffix in (".safetensors", ".bin", ".pt", ".pth"):
            found.append((file.name, (file.stat().st_size, file.stat().st_mtime_ns)))
        elif file.suffix in (".json", ".jinja", ".model", ".txt"):
            found.append((file.name, hashlib.sha256(file.read_bytes()).hexdigest()))
    return f"{model}#{digest(repr(found))}" if found else model


def _settings_name(settings: Mapping[str, Any]) -> str:
    """The settings that change answers, as a name's end; a server's address in front of them."""
    given = telling(settings)
    address = given.pop("base_url", "")
    if isinstance(given.get("tokenizer"), str):
        given["tokenizer"] = _local_name(given["tokenizer"])
    told = json.dumps(given, sort_keys=True, default=str) if given else ""
    return (f"@{address}" if address else "") + (f"|{told}" if told else "")
