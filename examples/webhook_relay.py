#!/usr/bin/env python3
"""Relay every event of a Holdfast server to a webhook, at least once, over restarts of the server and of this relay.

webhook_relay.py --webhook https://example.com/hook [--url http://127.0.0.1:8000] [--place relay.json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import httpx
import msgspec

from holdfast.client import Client, ClientFailure, Event, Place

MAX_PAUSE_S = 30.0


def deliver(webhook: str, event: Event) -> None:
    """Send one event; try again with growing pauses until the webhook takes the event."""
    pause_s = 0.5
    while True:
        try:
            httpx.post(webhook, json=msgspec.to_builtins(event), timeout=10.0).raise_for_status()
            return
        except httpx.HTTPError as error:
            print(f"event {event.sequence} is not taken: {error}; trying again", file=sys.stderr)
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, MAX_PAUSE_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--webhook", required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--place", type=Path, default=Path("relay.json"), help="file that says what was delivered")
    parser.add_argument("--events", type=int, default=0, help="end after so many events; 0: never")
    args = parser.parse_args()
    place = Place(**json.loads(args.place.read_text())) if args.place.exists() else Place()
    delivered = 0
    try:
        for event in Client(args.url).follow(place, lambda failure: print(failure, file=sys.stderr)):
            deliver(args.webhook, event)
            args.place.write_text(json.dumps({"after": event.sequence, "instance_id": event.instance_id}))
            delivered += 1
            if delivered == args.events:
                return 0
    except ClientFailure as failure:
        print(f"webhook_relay: {failure}", file=sys.stderr)
        return failure.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
