"""Addresses of this machine: its names, those that others can reach, and where it can listen.

No Ray. Opens sockets of this machine only, and connects to nothing.
"""

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import psutil

LOOPBACK = "127.0.0.1"
EVERY_INTERFACE = frozenset({"0.0.0.0", "::"})


def is_loopback(host: str) -> bool:
    """Return whether an address or a name can be reached from this machine only."""
    address = parsed_address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def parsed_address(text: str) -> IPv4Address | IPv6Address | None:
    """Return an IP address, IPv4 where it is written as IPv6 (::ffff:10.0.0.1); None for a name."""
    try:
        address = ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def machine_names() -> tuple[str, ...]:
    """Return the names by which a local network may know this machine; no look-up is made.

    The name itself, the name without its domain, and that in `.local`, where mDNS announces it.
    """
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return tuple(dict.fromkeys((name, short, f"{short}.local")))


def machine_addresses() -> tuple[str, ...]:
    """Return the addresses of this machine's interfaces that are up, IPv4 first."""
    states = psutil.net_if_stats()
    found = {
        address
        for name, entries in psutil.net_if_addrs().items()
        if name in states and states[name].isup
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
        and (address := parsed_address(entry.address.partition("%")[0]))
    }
    return tuple(map(str, sorted(found, key=lambda address: (address.version, int(address)))))


def reachable_addresses(host: str) -> tuple[str, ...]:
    """Return the addresses at which other machines find a server that listens on `host`.

    Which of them a given machine reaches depends on the networks and firewalls in between.
    """
    if is_loopback(host):
        return ()
    if host not in EVERY_INTERFACE:
        return (host,)
    return tuple(
        str(address)
        for address in map(ip_address, machine_addresses())
        if not (address.is_loopback or address.is_link_local)
        and (host == "::" or address.version == 4)
    )


def netloc(host: str, port: int) -> str:
    """Return an address and a port as a URL has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind_error(host: str, port: int) -> OSError | None:
    """Return why no server can listen on an address now, or None if one can.

    Binds as Ray Serve's proxy does: a name is looked up as IPv4.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return error
    return None
