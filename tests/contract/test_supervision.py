"""The examples for supervisors say what the server does."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

import pytest

from holdfast.api import routes
from holdfast.cli.serve import EXIT_CANNOT_START, EXIT_USAGE
from holdfast.cli.serve_flags import flag_parser

PAGE = (Path(__file__).resolve().parents[2] / "docs/reference/supervision.md").read_text()


def example(language: str) -> str:
    [text] = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(text)


@pytest.fixture
def pod() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="it comes with the host")
    loaded: dict[str, Any] = yaml.safe_load(example("yaml"))
    return loaded


@pytest.fixture
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(example("ini"))
    return parser


def test_the_probes_ask_what_is_there_and_liveness_never_asks_for_readiness(pod: dict[str, Any]) -> None:
    [container] = pod["containers"]
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/health", "liveness": "/health", "readiness": f"{routes.PREFIXES[0]}/ready"}
    assert paths["readiness"] in {f"{routes.PREFIXES[0]}{route.path}" for route in routes._ROUTES}


def test_the_commands_have_flags_that_exist(pod: dict[str, Any], unit: configparser.ConfigParser) -> None:
    [container] = pod["containers"]
    words = [*container["command"], *unit["Service"]["ExecStart"].split()]
    known = {option for action in flag_parser()._actions for option in action.option_strings}
    assert {word for word in words if word.startswith("--")} <= known


def test_systemd_does_not_start_again_what_was_asked_wrongly(unit: configparser.ConfigParser) -> None:
    given_up = {int(code) for code in unit["Service"]["RestartPreventExitStatus"].split()}
    assert given_up == {EXIT_USAGE}
    assert unit["Service"]["Type"] == "notify"


@pytest.mark.host
def test_every_exit_code_is_in_the_table() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed here")
    from holdfast.hosts.vllm.owner.exit import EXIT_DEFEATED

    told = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert told == {0, EXIT_USAGE, EXIT_CANNOT_START, EXIT_DEFEATED}
