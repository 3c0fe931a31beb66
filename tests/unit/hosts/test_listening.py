"""Where a server asks itself how it is, by the arguments that the host was given."""

from __future__ import annotations

import ssl
from argparse import Namespace

import pytest

from holdfast.api.systemd import Listening

pytestmark = pytest.mark.host


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, Listening("127.0.0.1", 8000)),
        ({"host": "0.0.0.0", "port": 81}, Listening("127.0.0.1", 81)),
        ({"host": "10.0.0.7"}, Listening("10.0.0.7", 8000)),
        ({"ssl_certfile": "cert.pem"}, Listening("127.0.0.1", 8000, tls=True)),
        (
            {"ssl_certfile": "cert.pem", "ssl_cert_reqs": ssl.CERT_REQUIRED},
            Listening("127.0.0.1", 8000, tls=True, wants_certificates=True),
        ),
        ({"uds": "/run/vllm"}, Listening("127.0.0.1", 8000, unix_socket="/run/vllm")),
    ],
)
def test_a_server_is_asked_where_it_listens(given: dict, asked: Listening) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed here")
    from holdfast.plugin.endpoint import _listening

    usual = {"host": None, "port": 8000, "ssl_certfile": None, "ssl_cert_reqs": ssl.CERT_NONE, "uds": None}
    assert _listening(Namespace(**{**usual, **given})) == asked
