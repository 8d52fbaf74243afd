"""A cluster to play with: sandbox/slurm.py as a command.

python -m tests.cluster.slurm up [--nodes 3] [--no-accounting]     # prints the export line for your shell
python -m tests.cluster.slurm status | kill-node n2 | start-node n2 | restart-controller
python -m tests.cluster.slurm down                                 # stops all of it and removes the folder
"""

from __future__ import annotations

import argparse
import sys
import tempfile

from sandbox import slurm


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster.slurm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["up", "down", "status", "kill-node", "start-node", "restart-controller"])
    parser.add_argument("node", nargs="?", help="for kill-node and start-node")
    parser.add_argument("--folder", default=f"{tempfile.gettempdir()}/lumen-slurm")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--no-accounting", dest="accounting", action="store_false")
    options = parser.parse_args()
    if options.verb.endswith("-node") and not options.node:
        parser.error(f"{options.verb} needs a node's name")
    if reason := slurm.why_not():
        print(reason, file=sys.stderr)
        return 2
    try:
        cluster = slurm.Cluster(options.folder, options.nodes, options.accounting)
        if options.verb == "up":
            cluster.up()
            print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}")
        elif options.verb == "status":
            print(cluster.run("sinfo", "-N", "-o", "%N %P %t %C %G").stdout, end="")
        elif options.verb.endswith("-node"):
            getattr(cluster, options.verb.replace("-", "_"))(options.node)
        else:
            getattr(cluster, options.verb.replace("-", "_"))()
    except slurm.ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
