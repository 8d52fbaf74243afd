"""A cluster to play with: `python -m tests.cluster.slurm up | status | kill-node n2 | start-node n2 | down`."""

import sys

from sandbox.slurm import main

if __name__ == "__main__":
    sys.exit(main())
