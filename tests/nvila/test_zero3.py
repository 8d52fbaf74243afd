import socket
from pathlib import Path

from tests.training.forked import Rank
from tests.training.toy import finish

SCRIPT = Path(__file__).with_name("zero3_worker.py")


def test_a_process_with_text_alone_does_not_keep_zero3_waiting(tmp_path):
    """Two processes with unequal numbers of tower calls: it ends, and with the losses of one process."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    ranks = [Rank(str(SCRIPT), [str(rank), port], tmp_path / f"{rank}.log") for rank in range(2)]
    printed = "\n".join(finish(ranks))
    losses = [line.split()[1:] for line in printed.splitlines() if line.startswith("losses")]
    assert len(losses) == 2 and [rank.returncode for rank in ranks] == [0, 0], printed[-2000:]
    for together, alone in losses:
        assert abs(float(together) - float(alone)) < 1e-5
