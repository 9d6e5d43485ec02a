"""Listen addresses of a worker: `unix:///path` or `tcp://host:port`."""

import ipaddress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from aiohttp import web


class Address(NamedTuple):
    """A Unix socket path, or a TCP host and port (0: any free one)."""

    path: str = ""
    host: str = ""
    port: int = 0


def parse_address(listen: str, *, token: str | None) -> Address:
    """Parse a listen address. Raise ValueError for other forms, and for a TCP address reachable from other hosts without a
    token.
    """
    parts = urlsplit(listen)
    if parts.scheme == "unix" and parts.path and not parts.netloc:
        return Address(path=parts.path)
    if parts.scheme != "tcp" or not parts.hostname or parts.port is None:
        raise ValueError(f"cannot listen on {listen!r}: give unix:///path or tcp://host:port")
    if token is None and not _is_loopback(parts.hostname):
        raise ValueError(f"{listen} can be reached from outside: guard it with --token-env")
    return Address(host=parts.hostname, port=parts.port)


async def open_site(runner: web.AppRunner, address: Address) -> str:
    """Start to listen. Return the address for clients, with the port that was assigned."""
    if address.path:
        _remove_stale(Path(address.path))
        await web.UnixSite(runner, address.path).start()
        _keep_private(Path(address.path))
        return f"unix://{address.path}"
    await web.TCPSite(runner, address.host, address.port).start()
    port: int = runner.addresses[0][1]
    return f"tcp://{address.host}:{port}"


def _remove_stale(path: Path) -> None:
    """Remove a socket that an earlier worker left."""
    if path.is_socket():
        path.unlink()


def _keep_private(path: Path) -> None:
    path.chmod(0o600)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
