"""Settings from variables and from the host's `--config` file, and which of them has precedence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from holdfast.cli import serve as serve_module
from holdfast.cli.serve import serve
from holdfast.cli.settings_sources import settings_from_environment, split_config
from holdfast.core.errors import BadConfiguration

yaml = pytest.importorskip("yaml", reason="PyYAML comes with the host")


def test_variables_are_settings_by_the_name_of_the_flag() -> None:
    environment = {"HOLDFAST_MAX_RETRIES": "5", "HOLDFAST_STANDBY_PRELOAD": "on", "HOLDFAST_CHECK_LOGITS": "0"}
    environment |= {"HOLDFAST_API_KEY": "secret", "HOLDFAST_RETRY_WINDOW": "", "OTHER": "x"}
    assert settings_from_environment(environment) == {"max_retries": 5, "standby_preload": True, "check_logits": False}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("HOLDFAST_MAX_RETRYS", "5", "did you mean HOLDFAST_MAX_RETRIES"),
        ("HOLDFAST_MAX_RETRIES", "many", "variable HOLDFAST_MAX_RETRIES: .*invalid int"),
        ("HOLDFAST_FAULT_POLICY", "never", "variable HOLDFAST_FAULT_POLICY: .*choose from"),
        ("HOLDFAST_CHECK_LOGITS", "perhaps", "--check-logits is on or off"),
    ],
)
def test_a_wrong_variable_is_refused_by_its_name(name: str, value: str, said: str) -> None:
    with pytest.raises(BadConfiguration, match=said):
        settings_from_environment({name: value})


@pytest.mark.parametrize("joined", [False, True])
def test_the_host_reads_a_copy_of_its_file_without_our_settings(tmp_path: Path, joined: bool) -> None:
    file = tmp_path / "server.yaml"
    content = {"port": 8000, "max-retries": 5, "fault_policy": "external", "check-logits": True}
    file.write_text(yaml.safe_dump({**content, "fault-classes": [{"message": "x", "class": "device"}]}))
    stated = [f"--config={file}"] if joined else ["--config", str(file)]
    with split_config(["model", *stated, "--tp", "2"]) as (arguments, settings):
        assert arguments[:2] == ["model", "--config"] and arguments[3:] == ["--tp", "2"]
        assert yaml.safe_load(Path(arguments[2]).read_text()) == {"port": 8000}
        assert (settings["max_retries"], settings["fault_policy"], settings["check_logits"]) == (5, "external", True)
        assert settings["fault_classes"].startswith("[{")
    assert not Path(arguments[2]).exists() and file.exists()


@pytest.mark.parametrize("text", [None, "- a list", "a: [", "port: 1"])
def test_a_file_without_our_settings_is_the_hosts_own_matter(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "server.yaml"
    if text is not None:
        file.write_text(text)
    with split_config(["model", "--config", str(file)]) as found:
        assert found == (["model", "--config", str(file)], {})
    with split_config(["model", "--config"]) as found:
        assert found == (["model", "--config"], {})


def test_a_wrong_value_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("max-retries: many")
    with pytest.raises(BadConfiguration, match=r"server.yaml: .*invalid int"), split_config(["--config", str(file)]):
        pass


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, Any] = {}

    def settle(flags: dict[str, Any]) -> dict[str, Any]:
        found.update(flags)
        raise BadConfiguration("far enough")

    monkeypatch.setattr(serve_module, "settle_upstream_flags", settle)
    file = tmp_path / "server.yaml"
    file.write_text("max-retries: 1\nmax-worker-restarts: 1\nmax-engine-restarts: 1\n")
    monkeypatch.setenv("HOLDFAST_MAX_WORKER_RESTARTS", "2")
    monkeypatch.setenv("HOLDFAST_MAX_ENGINE_RESTARTS", "2")
    arguments: Sequence[str] = ["model", "--config", str(file), "--max-engine-restarts", "3"]
    assert serve(arguments) == 2 and "far enough" in capsys.readouterr().err
    assert (found["max_retries"], found["max_worker_restarts"], found["max_engine_restarts"]) == (1, 2, 3)


def test_a_wrong_variable_ends_the_start_with_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_MAX_RETRIES", "many")
    assert serve(["model"]) == 2
    assert "HOLDFAST_MAX_RETRIES" in capsys.readouterr().err


def test_the_secret_of_the_nodes_is_no_setting_although_its_name_resembles_one() -> None:
    assert settings_from_environment({"HOLDFAST_NODE_SECRET": "a secret of the nodes"}) == {}
