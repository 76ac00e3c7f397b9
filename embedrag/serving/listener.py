"""The socket that a server listens on, opened before anything is computed, and who can reach it."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket

from embedrag.errors import UserError

ANY = "*"
_PORT = re.compile(r":\d*$")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address.

    >>> [is_loopback(host) for host in ("127.0.0.2", "[::1]", "localhost.", "127.0.0.1.evil.example")]
    [True, True, True, False]
    """
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


def is_own(name: str) -> bool:
    """Whether a request names this machine, in `Host` or as the place of the page that sends it (`Origin`).

    A server on loopback refuses all other names: a web page can let a name of its own point to this machine. An empty
    name is no page: every browser sends one.

    >>> [is_own(name) for name in ("", "LocalHost:80", "http://127.0.0.1:8000", "[::1]:8000", "::1")]
    [True, True, True, True, True]
    >>> [is_own(name) for name in ("evil.example:8000", "localhost:x", "https://localhost.evil.example", "null")]
    [False, False, False, False]
    """
    name = name.rpartition("://")[2]
    return not name or is_loopback(name) or is_loopback(_PORT.sub("", name))


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that accepts connections.

    Args:
        host: address of this machine.
        port: 0 takes any free one.

    Raises:
        UserError: this machine does not have the address, or the port is taken.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family)
        # Connections inherit this. asyncio sets it only on sockets that it opened itself, and without it an answer
        # would wait 40 ms for an acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (socket.gaierror, UnicodeError):
        raise UserError("no such address", "host", host) from None
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise UserError(f"{reason}; name another port, or 0 for any free one", "port", port) from None
        raise UserError(reason, "host", host) from None


def url(listener: socket.socket) -> str:
    """The address of a socket as people and programs write it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
