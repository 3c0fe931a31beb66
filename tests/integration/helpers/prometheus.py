"""A real Prometheus that scrapes a server each second, with the alert rules."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

from support.tools import needed_tool

RULES = Path(__file__).resolve().parents[3] / "deploy" / "prometheus" / "alerts.yaml"
WITHIN_S = 30.0
POLL_S = 0.2


class Prometheus:
    """Process of Prometheus; a context manager."""

    def __init__(self, url: str, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {"job_name": "vllm", "static_configs": [{"targets": [url.removeprefix("http://").rstrip("/")]}]}
            ],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self._log = folder / "prometheus.log"
        self._command = [
            str(needed_tool("prometheus")),
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)

    def __enter__(self) -> Prometheus:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def value(self, query: str) -> float | None:
        """Return the first value of a query; None without a value or an answer."""
        try:
            answer: dict[str, Any] = self._client.get("/api/v1/query", params={"query": query}).json()
        except (httpx.HTTPError, ValueError):
            return None
        found = answer.get("data", {}).get("result", [])
        return float(found[0]["value"][1]) if found else None

    def await_value(self, query: str, is_wanted: Callable[[float], bool]) -> float:
        """Wait for a value of a query, and return it."""
        deadline = time.monotonic() + WITHIN_S
        while (value := self.value(query)) is None or not is_wanted(value):
            assert time.monotonic() < deadline, f"{query} is {value}\n{self._log.read_text()[-2000:]}"
            time.sleep(POLL_S)
        return value
