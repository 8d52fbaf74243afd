"""vLLM's own OpenAI-compatible server, as a script whose child processes apply torchvision_compat too.

python tests/language/vllm_server.py --model FOLDER --host 127.0.0.1 --port 8000
"""

import lumen_hpc.torchvision_compat  # noqa: F401  vLLM's processes import this file again, so this import precedes vLLM's
from lumen_hpc.language.vllm_engine import prepare_process

prepare_process()

if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    main()
