"""
Causing more events than anybody reads.

Says `ready`, waits for a line, connects as often as its second argument says, and says `denied` if a
connection that is forbidden was refused after all that.
"""

from __future__ import annotations

import socket
import sys


def main() -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(int(sys.argv[2])):
            sock.connect(("127.0.0.1", 9))
        try:
            sock.connect(("127.0.0.2", 9))
        except PermissionError:
            print("denied", flush=True)
        else:
            print("connected", flush=True)


if __name__ == "__main__":
    main()
