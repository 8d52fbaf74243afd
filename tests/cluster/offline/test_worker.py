from __future__ import annotations

import os
import signal

from lumen_hpc.cluster.worker import Stop


def test_signals_only_set_a_flag_and_the_first_is_the_reason() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        stop = Stop()
        assert not stop.requested()
        for number in (signal.SIGUSR2, signal.SIGUSR2, signal.SIGTERM):
            os.kill(os.getpid(), number)
            assert stop.requested() and stop.reason == "SIGUSR2"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
