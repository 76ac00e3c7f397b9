"""A socket to listen on, taken before anything is computed, and who can reach it."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from embedrag.errors import UserError

# Names of a server that listens on loopback, as clients send them; a page of the web that leads there under a name of
# its own is refused.
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_names(host: str) -> list[str]:
    """Names under which a server on this address may be asked; all of them, where other machines can reach it."""
    return sorted({*LOOPBACK_NAMES, host}) if is_loopback(host) else ["*"]


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections.

    Raises:
        UserError: when the address is not of this machine, or the port is taken.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family)
        # Connections inherit it; asyncio sets it only on sockets of its own, and answers would wait 40 ms for an ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (socket.gaierror, UnicodeError):
        raise UserError(f"--host {host}: no such address") from None
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise UserError(f"--port {port}: {os.strerror(error.errno)}; name another, or 0 for any free one") from None
        raise UserError(f"--host {host}: {os.strerror(error.errno or 0)}") from None


def url(listener: socket.socket) -> str:
    """Its address as people and programs write it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
