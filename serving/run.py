"""A server on a port, until a signal ends it."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable
from ipaddress import ip_address

import uvicorn

from personalization.errors import UnavailableError, UsageError
from serving.app import app_of
from serving.service import Service

TOKEN = "CHAMTUNE_TOKEN"
"""The environment variable with what clients must bring."""
LOCAL = ("localhost", "127.0.0.1", "[::1]")
"""What a Host header names this machine by."""
MOST_CONNECTIONS = 1024
DESCRIPTORS = 4 * MOST_CONNECTIONS
"""Files and connections that a server asks the system for."""
IDLE_S = 30
"""A connection that asks nothing for so long is closed."""


def serve(
    service: Service, host: str, port: int, hosts: tuple[str, ...] = (), bound: Callable[[int], None] = lambda _: None
) -> None:
    """Answer over HTTP until SIGINT or SIGTERM; what was asked before is answered. `bound` is told the port.

    UsageError where others than this machine could ask and there is no token, or where one of `hosts` is no pattern;
    UnavailableError where the port is taken.
    """
    token = os.environ.get(TOKEN) or None
    if not is_loopback(host) and token is None:
        raise UsageError(f"on {host} others than this machine may ask; give a token in {TOKEN}, or listen on 127.0.0.1")
    if odd := [one for one in hosts if "*" in one.removeprefix("*.") and one != "*"]:
        raise UsageError(f"--allow {odd[0]}: a * stands alone, or leads as in *.example.org; name the host")
    _make_room()
    own = hosts or (*LOCAL, named(host))
    config = uvicorn.Config(
        app_of(service, own, token),
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=IDLE_S,
        lifespan="on",
    )
    with listening(host, port) as door:
        bound(door.getsockname()[1])
        uvicorn.Server(config).run([door])


def listening(host: str, port: int) -> socket.socket:
    """A socket on a port; UnavailableError where it cannot be had.

    asyncio switches Nagle's delay off, 40 ms an answer, where a socket names TCP as its protocol.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except OSError as error:
        door.close()
        raise UnavailableError(f"{named(host)}:{port} cannot be listened on: {error.strerror or error}") from None
    return door


def _make_room() -> None:
    """Raise the soft limit of descriptors, which is often no more than the connections, as far as is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def named(host: str) -> str:
    """An address as URLs and Host headers write it."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
