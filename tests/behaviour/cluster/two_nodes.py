"""A Ray cluster of two nodes on loopback: `ray start` lets no second node join there, Ray's own test kit does.

    RAY_TMPDIR=FOLDER python tests/behaviour/cluster/two_nodes.py [HIDDEN]

Each node has room for one worker. HIDDEN is a folder that the second node does not see (in a mount namespace of its
own). Prints the cluster's address and the process ids of both raylets, and ends with its standard input.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

NOT_PERMITTED = 77
"""Its exit code where nothing can be hidden."""
_NEW_MOUNTS, _PRIVATE = 0x20000, (1 << 18) | (1 << 14)


def hide(folder: str) -> None:
    """From this process and all it starts from now on; ends it where that is not permitted."""
    libc = ctypes.CDLL(None, use_errno=True)
    mounts: list[tuple[bytes | None, ...]] = [(b"none", b"/", None), (b"none", os.fsencode(folder), b"tmpfs")]
    refused = libc.unshare(_NEW_MOUNTS) != 0
    for (source, target, kind), flags in zip(mounts, (_PRIVATE, 0), strict=True):
        refused = refused or libc.mount(source, target, kind, flags, None) != 0
    if refused:
        raise SystemExit(NOT_PERMITTED)


def main(hidden: str | None = None) -> None:
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 10**8, "node_ip_address": "127.0.0.1", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    if hidden:
        hide(hidden)
    second = cluster.add_node(**node)
    raylets = [one.all_processes["raylet"][0].process.pid for one in (cluster.head_node, second)]
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
