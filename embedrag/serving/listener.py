"""The socket that a server listens on, opened before anything is computed, and who can reach it."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from embedrag.errors import UserError

# A server on loopback answers only under these names. A web page can let a name of its own point to this machine; its
# requests under such a name are refused.
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_names(host: str) -> list[str]:
    """Names that requests to a server on this address may use; ["*"], any name, if other machines can reach it."""
    return sorted({*LOOPBACK_NAMES, host}) if is_loopback(host) else ["*"]


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
