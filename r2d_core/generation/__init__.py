"""The generators by name, and what all of them take and give."""

from __future__ import annotations

from typing import Any

from r2d_core.generation.generator import (
    FailedRequests,
    Generation,
    Generator,
    OutageError,
    Request,
    RequestError,
    answer_directly,
    answer_each,
    complete,
    completion_of,
    encodable,
    request_of,
)
from r2d_core.generation.openai_server import OpenAIServerGenerator
from r2d_core.generation.transformers import TransformersGenerator
from r2d_core.generation.vllm import VllmGenerator

__all__ = [
    "GENERATORS",
    "FailedRequests",
    "Generation",
    "Generator",
    "OpenAIServerGenerator",
    "OutageError",
    "Request",
    "RequestError",
    "TransformersGenerator",
    "VllmGenerator",
    "answer_directly",
    "answer_each",
    "complete",
    "completion_of",
    "encodable",
    "request_of",
]

GENERATORS: dict[str, type[Any]] = {
    "transformers": TransformersGenerator,
    "vllm": VllmGenerator,
    "openai_server": OpenAIServerGenerator,
}
