"""What the import of NVILA opens."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import collections, json, os, sys
opened = collections.Counter()
def watch(event, args):
    if event == "open" and isinstance(args[0], (str, os.PathLike)) and "transformers/models/" in str(args[0]):
        if str(args[0]).endswith(".py"):
            opened[str(args[0])] += 1
sys.addaudithook(watch)
import lumen_hpc.nvila
present = [name for name in ("sklearn", "scipy", "pandas") if name in sys.modules]
import transformers
found = [transformers.LlamaForCausalLM.__name__, transformers.AutoTokenizer.__name__, transformers.__version__]
print(json.dumps({"twice": sum(count > 1 for count in opened.values()), "all": len(opened), "present": present,
                  "found": found}))
"""


def test_transformers_reads_its_models_once_and_leaves_scipy_alone_and_stays_whole():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["all"] > 1000  # another release may read them otherwise: then the module has nothing left to do
    assert seen["twice"] < 0.05 * seen["all"]  # the few that are imported as well
    assert seen["present"] == []
    assert seen["found"][:2] == ["LlamaForCausalLM", "AutoTokenizer"]
