"""What one stage hands to the next: four kinds of record, in JSON lines or in the suites' formats.

    Behavior    what is asked of a model, and whether it ought to be refused
    TestCase    a behavior as an attack puts it
    Completion  what the model wrote
    Verdict     what a judge says about it

``read_behaviors``, ``read_test_cases``, ``read_completions`` and ``read_verdicts`` take a file of
our JSON lines, or one of HarmBench, JailbreakBench, XSTest, StrongREJECT, AdvBench or OR-Bench:
which it is, its content says; whether a table of JailbreakBench or OR-Bench is harmful or benign,
its name.
What a suite knows beyond a record's fields is in ``metadata``, so that writing a file in its own
format gives back what was read.
"""

from r2d_core.records.documents import read_json, read_json_lines, read_text
from r2d_core.records.harmbench import write_harmbench
from r2d_core.records.jailbreakbench import Artifact, make_artifact, read_artifact
from r2d_core.records.jsonl import (
    Behavior,
    Completion,
    TestCase,
    Verdict,
    atomic_directory,
    read_jsonl,
    write_bytes_atomic,
    write_json_atomic,
    write_jsonl,
    write_text_atomic,
)
from r2d_core.records.logs import append_log, read_log
from r2d_core.records.reading import (
    read_behaviors,
    read_completions,
    read_test_cases,
    read_verdicts,
)
from r2d_core.records.tables import TABLES, write_behaviors

__all__ = [
    "TABLES",
    "Artifact",
    "Behavior",
    "Completion",
    "TestCase",
    "Verdict",
    "append_log",
    "atomic_directory",
    "make_artifact",
    "read_artifact",
    "read_behaviors",
    "read_completions",
    "read_json",
    "read_json_lines",
    "read_jsonl",
    "read_log",
    "read_test_cases",
    "read_text",
    "read_verdicts",
    "write_behaviors",
    "write_bytes_atomic",
    "write_harmbench",
    "write_json_atomic",
    "write_jsonl",
    "write_text_atomic",
]
