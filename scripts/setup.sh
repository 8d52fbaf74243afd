#!/usr/bin/env bash
# Makes .venv from the lock: torch by normal resolution (pip picks the build this machine needs, with its
# libraries), then everything else exactly as locked. Runs again only when the lock or pyproject changed.
#   scripts/setup.sh [VENV]      PYTHON=python3.12 picks another interpreter
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
lock=requirements/cpu.lock
python=${PYTHON:-python3}
stamp=$venv/.lumen-ready
unset PYTHONPATH PYTHONHOME  # a cluster's modules set them: builds would import numpy of another Python
export PIP_USER=0  # a pip.conf may ask for installs into the home, which pip refuses in an environment
expected=$(cat "$lock" pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null)" = "$expected" ]; then
  echo "environment: $venv is ready, nothing to install"
  exit 0
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || { echo "setup: $("$python" --version) is too old, lumen_hpc needs 3.11 or newer (set PYTHON=...)" >&2; exit 2; }
if compgen -G "$venv/lib/python*/site-packages/vllm-[0-9]*" >/dev/null; then  # pip would mix the files of two builds
  echo "setup: $venv has vllm for GPUs, and this would install that for CPUs over it; make VENV=FOLDER makes another" >&2
  exit 2
fi
mkdir -p "$venv"
: > "$stamp"  # ours, and not ready
[ -x "$venv/bin/pip" ] || "$python" -m venv "$venv" \
  || { echo "setup: no venv module; on Debian: apt-get install python3-venv" >&2; exit 2; }
echo "environment: installing into $venv (about 2 minutes and 4 GB)"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
pip install --no-compile "$(grep '^torch==' "$lock")"
# Half of the others each: pip works on one core, and no package of one half is in the other.
pip install --no-compile --no-deps -r <(grep -v '^torch==' "$lock" | awk 'NR % 2') & half=$!
pip install --no-compile --no-deps -r <(grep -v '^torch==' "$lock" | awk 'NR % 2 == 0') || { wait; exit 1; }
wait $half
pip install --no-deps --no-build-isolation -e .
# pip compiles on one core, which is most of its time; templates that are no Python fail, and nobody imports them. Tests
# of packages and other models than ours are a quarter of the text.
"$venv/bin/python" -m compileall -qq -j 0 -x '/tests/|/torch/testing/_|/transformers/models/(?!auto/|qwen2/|siglip/)' \
  "$venv/lib" || true
echo "$expected" > "$stamp"
echo "environment: $venv is ready"
