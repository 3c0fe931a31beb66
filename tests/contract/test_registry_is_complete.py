"""No name of the host stands in Holdfast's strings that the registry does not know, with a reason."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import NamedTuple

import pytest

import holdfast
from contract.package_ast import nodes_of
from holdfast.hosts.vllm.contract import name_touchpoints
from holdfast.hosts.vllm.contract.registry import TOUCHPOINTS

PACKAGE = Path(holdfast.__path__[0])
HOST = PACKAGE / "hosts" / "vllm"
REGISTRY = HOST / "contract"

ATTRIBUTES = {t.name.rpartition(".")[2] for t in TOUCHPOINTS if t.kind in ("attribute", "call", "wrap")}
TEXTS = {t.name for t in TOUCHPOINTS if t.kind == "text"}
MODULES = {t.module for t in TOUCHPOINTS}

# Of Python, of torch and of Holdfast itself: no names of the host.
NOT_OF_THE_HOST = {
    "__dict__": "Python",
    "ncclCommInitRankConfig": "NCCL",
    "__name__": "Python",
    "_modules": "torch.nn.Module",
    "size": "torch.distributed.ProcessGroup",
    "model": "torch.nn.Module: some models have their layers in it",
    "language_model": "torch.nn.Module: models that read pictures have their layers in it",
    "layers": "torch.nn.Module: a model without it is armed as a whole",
    "phase": "InjectedFault",
    "rank": "PeerSilent",
    "holdfast": "the sentinel of an engine core",
    "link": "the tie of a worker to its engine core",
    "holdfast_failed_steps": "the writer of failed steps of an engine core",
    "ipv4_mapped": "Python",
    "stream": "logging.StreamHandler",
    "_set_default_timeout": "torch.distributed: a backend of a process group",
}


class Found(NamedTuple):
    """A string of Holdfast's sources, and where."""

    text: str
    where: str


def sources(folder: Path) -> list[Path]:
    """Return every module of a folder except the registry's own."""
    return [file for file in sorted(folder.rglob("*.py")) if not file.is_relative_to(REGISTRY)]


@functools.cache
def strings() -> list[Found]:
    """Return the string constants of Holdfast that are no docstrings."""
    found = []
    for file in sources(PACKAGE):
        bare = {id(node.value) for node in nodes_of(file) if isinstance(node, ast.Expr)}
        for node in nodes_of(file):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in bare:
                text = node.value if isinstance(node.value, str) else node.value.decode("latin1")
                found.append(Found(text, f"{file}:{node.lineno}"))
    return found


def named(pattern: str) -> list[Found]:
    """Return every match of a pattern in the strings of Holdfast."""
    return [Found(match, where) for text, where in strings() for match in re.findall(pattern, text)]


def attributes_by_name() -> list[Found]:
    """Return the attributes that the vLLM host reads, tests or sets by a name in a string."""
    return [
        Found(node.args[1].value, f"{file}:{node.lineno}")
        for file in sources(HOST)
        for node in nodes_of(file)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "hasattr", "setattr")
        and isinstance(node.args[1], ast.Constant)
        and isinstance(node.args[1].value, str)
    ]


def test_every_environment_variable_of_the_host_is_registered() -> None:
    """A variable that is named in a string is checked against each supported release."""
    assert [found for found in named(r"\bVLLM_[A-Z0-9_]+\b") if found.text not in TEXTS] == []


def test_every_module_of_the_host_that_is_named_in_a_string_is_registered() -> None:
    """A module that is imported by name, or looked for among the imported, exists in each supported release."""
    assert [found for found in named(r"\bvllm(?:\.[a-z_0-9]+)+\b") if found.text not in MODULES | TEXTS] == []


def test_every_attribute_that_is_read_by_name_is_registered() -> None:
    """An attribute that is read with a default fails in silence after a rename in the host."""
    known = ATTRIBUTES | set(NOT_OF_THE_HOST)
    assert [found for found in attributes_by_name() if found.text not in known] == []


@pytest.mark.parametrize("name", ["EXECUTOR_FAILED", "WORKER_FAILED", "ENGINE_CORE_DEAD"])
def test_a_sentence_of_the_host_stands_in_one_place(name: str) -> None:
    """A text that is compared is a constant of the registry, never a literal."""
    value = getattr(name_touchpoints, name)
    sentence = value if isinstance(value, str) else value.decode()
    assert named(re.escape(sentence)) == []
    assert sentence in TEXTS


def test_every_touchpoint_has_a_reason() -> None:
    """A touchpoint without a reason cannot be judged when the host changes."""
    assert [t.label for t in TOUCHPOINTS if not t.why.strip()] == []
