#!/usr/bin/env python3
"""Sidecar of a Kubernetes pod: evict the pod when its Holdfast server makes no progress for too long.

A server repairs itself within seconds to minutes; a pod that is still not ready after `--after` seconds is given to
the scheduler, which respects PodDisruptionBudgets. Needs the verb `create` on `pods/eviction` for its service account.

    drain_pod.py --after 900        POD_NAME and POD_NAMESPACE come from the downward API
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path

import httpx

from holdfast.client import AsyncClient

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


async def await_unready(url: str, after_s: float, period_s: float) -> None:
    """Return when the server has made no progress for `after_s` seconds."""
    async with AsyncClient(url) as client:
        ready_at = time.monotonic()
        while time.monotonic() - ready_at < after_s:
            if await client.is_ready():
                ready_at = time.monotonic()
            await asyncio.sleep(period_s)


def evict(api: str, account: Path, namespace: str, pod: str) -> None:
    """Ask the API server to evict the pod; refused while a PodDisruptionBudget forbids it."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    authority = account / "ca.crt"
    httpx.post(
        f"{api}/api/v1/namespaces/{namespace}/pods/{pod}/eviction",
        json=body,
        headers={"Authorization": f"Bearer {(account / 'token').read_text().strip()}"},
        verify=str(authority) if authority.exists() else True,
        timeout=10.0,
    ).raise_for_status()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--after", type=float, default=900.0, help="seconds without progress")
    parser.add_argument("--period", type=float, default=2.0)
    parser.add_argument("--api", default="https://kubernetes.default.svc")
    parser.add_argument("--account", type=Path, default=ACCOUNT)
    args = parser.parse_args()
    while True:
        asyncio.run(await_unready(args.url, args.after, args.period))
        try:
            evict(args.api, args.account, os.environ["POD_NAMESPACE"], os.environ["POD_NAME"])
            return 0
        except httpx.HTTPError as error:
            print(f"drain_pod: the pod is not evicted: {error}; waiting again", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
