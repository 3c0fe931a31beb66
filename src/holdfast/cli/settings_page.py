"""The reference of the settings, docs/reference/settings.md, written from the flags and the configuration. Pure."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from holdfast.cli.serve_flags import flag_groups, shown_defaults
from holdfast.core.config import changeable_keys

_OPENING = """# Settings

Written by `make settings` from the flags of `holdfast serve`; do not edit by hand.

- Under `holdfast serve`, give a setting as a flag. A switch that is on has a `--no-…` form.
- Under `vllm serve` with `VLLM_PLUGINS=holdfast`, and for `vllm.LLM(...)`, give the same name with
  underscores in `additional_config`:
  `--additional-config '{"holdfast": {"fault_policy": "auto", "max_retries": 5}}'`.
- Under `holdfast serve` a setting may also be a variable, `HOLDFAST_` and the name in capitals with
  underscores (`HOLDFAST_MAX_RETRIES=5`; `HOLDFAST_STANDBY_PRELOAD=true` for a switch), or a key of
  the host's `--config` file (`max-retries: 5`).
- Precedence, highest first: flag, variable, `--config` file, `--additional-config`, default. An
  empty variable is none. A variable that resembles the name of a setting and is none stops the
  start.
- An existing value of `VLLM_PLUGINS` is extended and never replaced: other plugins keep working.
- A setting with *yes* in the column *at run time* can be changed while the server runs, by the
  [command](http.md#configure) `configure`; the others are fixed at the start.
- An unknown name or a value out of bounds stops the start with exit code 2 and names the nearest
  known setting.
"""

_FAILURE_MODEL = "../failure-model.md"
_SECTIONS = {
    "fault_policy": "the-ladder",
    "max_ranks_out": "the-ladder",
    "accept_stale_state": "state-that-is-set-at-run-time",
    "fault_classes": "fault-classes",
    "max_worker_restarts": "worker-restarts",
    "standby_workers": "worker-restarts",
    "wait_for_standby": "standby-workers",
    "standby_engines": "workers-that-outlive-their-engine-core",
    "adopt_workers": "workers-that-outlive-their-engine-core",
    "max_engine_restarts": "a-lost-engine-core",
    "min_engines": "an-engine-core-that-is-left-out",
    "max_api_server_restarts": "processes-beside-the-engine-cores",
    "stall_detection": "stalls",
    "poison_detection": "poison-requests",
    "poison_memory": "repeated-poison-requests",
    "check_logits": "silent-numerical-faults",
    "recovery_prefill_tokens": "load-after-a-recovery",
    "cpu_enablement": "many-ranks",
}


def settings_page() -> str:
    """Return the whole page as Markdown: a table for each group of flags."""
    return "\n".join([_OPENING, *_groups()])


def _groups() -> Iterator[str]:
    defaults = shown_defaults()
    for title, actions in flag_groups().items():
        rows = [_row(action, defaults.get(action.dest)) for action in actions]
        table = "\n".join(["| flag | default | at run time | meaning |", "| --- | --- | --- | --- |", *rows])
        yield f"## {title.capitalize()}\n\n{table}\n"


def _row(action: argparse.Action, default: str | None) -> str:
    shown = "" if default is None else f"`{default}`"
    text = re.sub(r"(?<![`\w-])(--[a-z][a-z-]+)", r"`\1`", str(action.help))
    section = _SECTIONS.get(action.dest)
    more = f" ([more]({_FAILURE_MODEL}#{section}))" if section else ""
    meaning = f"{text[0].upper()}{text[1:]}{more}"
    changeable = "yes" if action.dest in changeable_keys() else ""
    return f"| `{action.option_strings[0]}` | {shown} | {changeable} | {meaning} |"
