"""Where the processes of a session listen, as the kernel tells it."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from pathlib import Path
from typing import NamedTuple

from clusters import members

LISTENS = "0A"


class Listener(NamedTuple):
    """A process that takes connections."""

    name: str
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.address.is_loopback


def listeners(session: int) -> set[Listener]:
    """All that the processes of a session listen on; `session` is the process id of its first one."""
    sockets = _listening_sockets()
    found = set()
    for pid in members(session):
        with contextlib.suppress(OSError):
            process = Path(f"/proc/{pid}")
            name = (process / "comm").read_text().strip()
            for handle in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    inode = re.fullmatch(r"socket:\[(\d+)\]", str(handle.readlink()))
                    if inode and inode[1] in sockets:
                        found.add(Listener(name, *sockets[inode[1]]))
    return found


def _listening_sockets() -> dict[str, tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == LISTENS:
                address, port = columns[1].split(":")
                # Four bytes at a time, each as the machine has numbers: little-endian.
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                found = ipaddress.ip_address(b"".join(words))
                sockets[columns[9]] = (getattr(found, "ipv4_mapped", None) or found, int(port, 16))
    return sockets
