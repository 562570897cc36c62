"""Refuses every connection that leaves this machine, and writes down who tried.

Python imports a module of this name at its start. The runner puts this folder on the
PYTHONPATH of a notebook's kernel at laptop scale, so that the kernel and every Python
process it starts are covered. Code that opens sockets without Python is not seen.
"""

import errno
import ipaddress
import os
import socket
import sys

LOG = "COMPANION_NETWORK_LOG"
CONNECTING = {"socket.connect", "socket.sendto", "socket.sendmsg"}
RESOLVING = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}


def is_local(host: object) -> bool:
    """Whether a host name or address means this machine. No name is looked up."""
    name = host.decode() if isinstance(host, bytes) else host
    if not isinstance(name, str) or name in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def guard(event: str, args: tuple) -> None:
    """The audit hook: raises OSError, as a machine without a network would."""
    if event in CONNECTING and isinstance(args[1], tuple):  # a Unix socket has a path
        host, port = args[1][:2]
    elif event in RESOLVING:
        host, port = args[0], args[1] if len(args) > 1 else None
    else:
        return
    if is_local(host):
        return
    place = f"{host}:{port}" if port else str(host)
    if path := os.environ.get(LOG):
        with open(path, "a", encoding="utf-8") as log:  # noqa: PTH123 - keep it light
            log.write(place + "\n")
    sentence = f"At laptop scale a notebook runs offline: no connection to {place}."
    raise OSError(errno.ENETUNREACH, sentence)


if LOG in os.environ:
    sys.addaudithook(guard)
