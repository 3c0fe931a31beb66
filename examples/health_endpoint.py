#!/usr/bin/env python3
"""Health endpoint for a load balancer: 200 with the share of engines that serve, 503 while none does.

A balancer with weights (HAProxy `agent-check`, Envoy) reads the share from the body, in percent; others read the code.

    health_endpoint.py --port 9000 [--url http://127.0.0.1:8000]
"""

from __future__ import annotations

import argparse
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from holdfast.client import Client, ClientFailure


def share_of(client: Client) -> int:
    """Return the percent of engines that make progress; 0 for a server that cannot be reached."""
    try:
        status = client.status()
    except ClientFailure:
        return 0
    serving = sum(engine.state.makes_progress for engine in status.engines)
    return 100 * serving // max(1, status.total_engines) if status.ready else 0


def make_server(url: str, port: int) -> ThreadingHTTPServer:
    client = Client(url)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            share = share_of(client)
            body = f"{share}%\n".encode()
            self.send_response(200 if share else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--port", type=int, default=9000)
    args = parser.parse_args()
    with make_server(args.url, args.port) as server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
