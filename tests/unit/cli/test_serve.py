"""`holdfast serve`: whose flags are whose, and what is taken only because the original design has it."""

from __future__ import annotations

import re

import pytest

from holdfast.cli.serve import serve, settle_upstream_flags, split_flags
from holdfast.cli.serve_flags import flag_parser
from holdfast.core.config import HoldfastConfig, dump_config, known_keys, parse_config
from holdfast.core.errors import BadConfiguration

TIMEOUTS = ("acknowledge", "rebuild", "gloo-comm", "drain", "containment", "engine-recovery")


def settings_of(*arguments: str) -> HoldfastConfig:
    flags, rest = split_flags(arguments)
    assert rest == []
    return parse_config(settle_upstream_flags(flags))


def test_what_is_not_ours_is_left_for_the_host() -> None:
    """A flag of the host keeps its value and its place."""
    assert split_flags(["model", "--max-retries", "3", "-tp", "2"]) == ({"max_retries": 3}, ["model", "-tp", "2"])


@pytest.mark.parametrize("name", TIMEOUTS)
def test_every_timeout_has_a_flag(name: str) -> None:
    """Seconds, with a fraction where that is wanted."""
    settings = settings_of(f"--{name}-timeout", "7.5")
    assert getattr(settings, name.replace("-", "_") + "_timeout_s") == 7.5


@pytest.mark.parametrize("name", TIMEOUTS)
def test_a_timeout_of_nothing_is_refused(name: str) -> None:
    """A wait that is over before it begins is never meant."""
    with pytest.raises(BadConfiguration, match=name.replace("-", "_")):
        settings_of(f"--{name}-timeout", "0")


def test_the_help_names_the_defaults_that_are_in_force() -> None:
    """Every figure in the help is the one of the settings."""
    text = " ".join(flag_parser().format_help().split())
    said = re.findall(r"--([a-z-]+) (?:N|S|PORT) [^()]*\(default: (\d+)\)", text)
    in_force = dump_config(HoldfastConfig())
    assert len(said) >= 8
    assert [(flag, value) for flag, value in said if in_force[flag.replace("-", "_")] != float(value)] == []


def test_every_flag_is_a_setting_or_taken_for_compatibility() -> None:
    """No flag of ours leads nowhere."""
    names = {action.dest for action in flag_parser()._actions}
    assert names - set(known_keys()) == {"internal_fault_report_port", "shutdown_on_fault_tolerance_failure"}


def test_the_report_port_is_taken_and_one_line_says_that_it_has_no_effect(capsys: pytest.CaptureFixture[str]) -> None:
    """A command line of the original design starts here too."""
    assert settings_of("--internal-fault-report-port", "22866") == HoldfastConfig()
    said = capsys.readouterr().err
    assert "--internal-fault-report-port has no effect" in said
    assert said.count("\n") == 1


def test_nothing_is_said_about_a_flag_that_was_not_given(capsys: pytest.CaptureFixture[str]) -> None:
    settings_of("--max-retries", "3")
    assert capsys.readouterr().err == ""


def test_ending_a_server_that_cannot_be_repaired_is_what_is_done_anyway() -> None:
    assert settings_of("--shutdown-on-fault-tolerance-failure") == HoldfastConfig()


def test_keeping_a_server_that_cannot_be_repaired_is_refused_with_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything of the host is looked at."""
    assert serve(["model", "--no-shutdown-on-fault-tolerance-failure"]) == 2
    said = capsys.readouterr().err
    assert "--fault-policy external" in said
    assert said.count("\n") == 1
