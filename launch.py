#!/usr/bin/env python
"""LUMEN on a cluster: `python launch.py stage=full run=NAME`, from a login node.

  python launch.py stage=NAME|full [KEY=VALUE ...]   submit what is missing (dry_run=true only shows it)
  python launch.py check | status | cancel | logs    run=NAME [stage=NAME]
  python launch.py ask run=NAME image=FILE [reference=FILE days=N] "what has changed compared to the reference image?"
  python launch.py compare runs=FIRST,OTHER          settings, tables and differences of runs
  python launch.py stage=full KEY=[A,B]              a run for each value
  python launch.py [VERB] --help                     every setting, or what a verb takes

Exit codes: 0 done, 1 a run failed, 2 the command or its settings are wrong.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # under -I and -P too: never another, installed copy

from lumen_hpc.cluster import command_errors
from lumen_hpc.errors import UserError, raise_interrupts


def main(arguments: list[str]) -> int:
    """Parses a command line and carries it out; returns the exit code."""
    workplace = command_errors.Workplace()
    try:
        try:
            code = _carry_out(arguments, workplace)
        except (Exception, KeyboardInterrupt) as error:
            code = command_errors.exit_code(error, workplace)
        sys.stdout.flush()
        return code
    except OSError as error:
        return command_errors.lost_output(error)


def _carry_out(arguments: list[str], workplace: command_errors.Workplace) -> int:
    if {"-h", "--help", "help"} & set(arguments) or not arguments:
        from lumen_hpc.cluster import commands
        from lumen_hpc.config.request import VERBS

        commands.print_help(__doc__ or "", next((word for word in arguments if word in VERBS), ""))
        return 0
    _require_working_folder()
    from jobs import PIPELINE
    from lumen_hpc.cluster import commands, environment
    from lumen_hpc.config.resolve import resolve
    from lumen_hpc.config.sweep import points

    if swept := points(arguments):
        from lumen_hpc.cluster import sweep

        environment.drop(report=True)
        workplace.folder, workplace.writes = "the folder of a run", True
        raise_interrupts()
        return sweep.submit(swept, PIPELINE)
    request = resolve(arguments)
    workplace.folder = str(request.folder)
    workplace.writes = request.verb == "submit" and not request.dry_run
    on_slurm = request.verb != "submit" or request.profile.executor == "slurm"
    if on_slurm and request.verb not in ("ask", "compare"):  # which run here, within an allocation perhaps
        environment.drop(report=request.verb == "submit")
    if request.verb != "ask":  # which has torch to load
        raise_interrupts()
    return getattr(commands, request.verb)(request, PIPELINE)


def _require_working_folder() -> None:
    """Raises UserError where the folder that the command is started in was removed: no relative path has a meaning."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the working directory cannot be read ({error.strerror}): start from another") from None


def _with_docstrings() -> None:
    """Starts again without PYTHONOPTIMIZE or -OO: they take the usage above, and docstrings that transformers reads."""
    if sys.flags.optimize > 1:
        os.environ.pop("PYTHONOPTIMIZE", None)
        flags = ["-I"] if sys.flags.isolated else []
        os.execv(sys.executable, [sys.executable, *flags, os.path.abspath(__file__), *sys.argv[1:]])


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nothing is held yet: a Ctrl-C in the midst of
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # imports would leave a traceback, or a crash of torch's
    _with_docstrings()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115  # closed, as by `>&-`
        stream.reconfigure(errors="replace")  # a terminal may know less than Unicode
        setattr(sys, name, stream)
    gc.set_threshold(100_000)  # the default collects often while modules load: a tenth of a submission's time
    sys.exit(main(sys.argv[1:]))
