"""Write down where a node can be reached, for nodes that start later.

    introduce.py FILE [NAME]

An address ends in the id of the node, which exists only once the node has started, so no
configuration can hold it beforehand. This asks the running node of KACHERY_P2P_CONFIG_DIR for
its addresses and writes them into FILE, one multiaddr a line, for
`kachery-p2p start --bootstrap @FILE`. With NAME only the addresses of that host name are written:
unlike a container's IP address it stays the same when the node is started anew.
"""

import json
import subprocess
import sys
from pathlib import Path

STATUS_S_MAX = 60


def addresses_of_node() -> list[str]:
    """The multiaddrs of the running node; what is wrong, if anything, is on stderr by then."""
    command = ["kachery-p2p", "status", "--json", "--wait", str(STATUS_S_MAX)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return list(json.loads(answer.stdout)["addresses"])


def addresses_of_host(addresses: list[str], name: str) -> list[str]:
    """Those of `addresses` that lead to the host called `name`."""
    return [address for address in addresses if address.split("/")[2:3] == [name]]


def write_at_once(path: Path, lines: list[str]) -> None:
    """Write `lines` so that a reader meets all of them or none."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text("".join(f"{line}\n" for line in lines))
    temporary.replace(path)


def main(arguments: list[str]) -> int:
    """The exit code."""
    try:
        addresses = addresses_of_node()
    except subprocess.CalledProcessError as error:
        return error.returncode
    if len(arguments) > 1:
        addresses = addresses_of_host(addresses, arguments[1])
    if not addresses:
        print("introduce: error: the node has no such address", file=sys.stderr)
        print("introduce: hint: start it with --advertise NAME:PORT", file=sys.stderr)
        return 1
    write_at_once(Path(arguments[0]), addresses)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
