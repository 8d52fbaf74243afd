"""Runs Slurm's commands and parses their output: nothing else in the project starts them."""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lumen_hpc.cluster import lock
from lumen_hpc.errors import UserError
from lumen_hpc.plain_text import visible

ENDED_STATES = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
"""States of a job that squeue may still show. Any other, also one of a later Slurm, is a job that may write."""


@dataclass(frozen=True)
class Job:
    id: str
    """123, or 123_4 in an array."""
    state: str
    reason: str
    node: str = ""
    start: str = ""
    user: str = ""
    """Its owner's numeric id."""
    name: str = ""

    @property
    def never_starts(self) -> bool:
        """Whether Slurm has found that its dependency cannot be met any more."""
        return "DependencyNeverSatisfied" in self.reason


def installed() -> bool:
    """True if this machine can submit."""
    return shutil.which("sbatch") is not None


class Unreachable(UserError):
    """The controller does not answer now; a later query may succeed."""

    advice = "try again once it answers (scontrol ping), on a login node"


class FullQueue(Unreachable):
    """The controller answers, and takes no further job now; sbatch tries for two minutes."""

    advice = (
        "the cluster holds as many jobs as it may (MaxJobCount of scontrol show config): try again when some have "
        "ended, or submit fewer tasks (profile.resources.KIND.tasks) or one stage at a time"
    )


FULL_QUEUE_MESSAGE = re.compile("temporarily unable to accept job|job queue full", re.IGNORECASE)
UNREACHABLE_MESSAGE = re.compile(
    "Unable to contact slurm controller|timed out|Zero Bytes were transmitted|Connection (refused|reset)|"
    "Transport endpoint|Unexpected message received|No route to host|Network is unreachable|standby mode|"
    "Message (send|receive) failure|Communication (connection|shutdown) failure|Rate limit exceeded|"
    "Temporary failure in name resolution|Protocol authentication error|"
    "Resource temporarily unavailable",
    re.IGNORECASE,
)


NO_CLUSTER_MESSAGE = re.compile("establish a configuration source|fetch_config|slurm.conf: No such file", re.IGNORECASE)
"""Slurm's commands are here, and no slurm.conf is."""


ANSWER_TIMEOUT_S = 60.0
"""How long a command may take to answer. A job that sbatch has not confirmed by then is taken for not submitted."""
CANCEL_RETRY_PAUSES_S = (1.0, 5.0)
"""Pauses before a job that got no answer to its scancel asks again."""
NOTICE_DELAY_S = 8.0
"""After how long a message names what a command waits for."""


_prefetched: dict[tuple[str, ...], subprocess.Popen[bytes]] = {}
"""Commands that `prefetch` started, whose output nobody has read yet."""
CONFIGURATION_COMMAND = ("scontrol", "show", "config")
FEDERATION_COMMAND = ("scontrol", "show", "federation")
PARTITIONS_COMMAND = ("sinfo", "-h", "-a", "-e", "-o", "%P|%D|%c|%G|%l|%m|%a|%F")


@contextmanager
def prefetch() -> Iterator[None]:
    """Starts the queries about the cluster that a submission needs: Slurm answers while it does other work."""
    for words in (CONFIGURATION_COMMAND, FEDERATION_COMMAND, PARTITIONS_COMMAND):
        with suppress(OSError):
            _prefetched[words] = _start(words)
    try:
        yield
    finally:
        while _prefetched:
            with _prefetched.popitem()[1] as process:
                process.kill()


END_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
"""Signals that ask a job to end. Slurm sends them to each process of a job, also to an sbatch that it waits for."""


def _start(words: tuple[str, ...], own_session: bool = False) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    # The new process inherits the mask.
    signal_mask = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS if own_session else ())
    try:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=own_session,
            pass_fds=tuple(lock.handles) if own_session else (),
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)


def ask(*words: str, timeout: float = ANSWER_TIMEOUT_S, own_session: bool = False) -> str:
    """Runs a Slurm command; UserError with its message if it fails, Unreachable if the controller does not answer.

    `own_session`: neither ^C in the terminal nor a signal that asks the job to end reaches it, and it keeps the run's
    lock if this process is killed.
    """
    return _ask(words, timeout, own_session)[0]


def _ask(words: tuple[str, ...], timeout: float, own_session: bool) -> tuple[str, str]:
    """What a Slurm command answers, and what it says beside on stderr; errors as in `ask`."""
    try:
        process = _prefetched.pop(words, None) or _start(words, own_session)
        with process:
            try:
                output, error_output = _read_output(process, words[0], timeout)
            except BaseException:
                process.kill()
                raise
    except FileNotFoundError:
        raise UserError(
            f"{words[0]} is not on this machine: is this a login node? (profile.executor=local runs here)"
        ) from None
    except OSError as error:
        lasting = error.errno not in (errno.EAGAIN, errno.ENOMEM)
        hint = (
            "" if lasting else ": too many processes, or too little memory, for this user here (ulimit -u, ulimit -v)"
        )
        raise (UserError if lasting else Unreachable)(
            f"{words[0]} could not be started ({error.strerror}){hint}"
        ) from None
    except subprocess.TimeoutExpired as error:
        message = " ".join(_plain(error.stderr or b"").split())
        failure = FullQueue if FULL_QUEUE_MESSAGE.search(message) else Unreachable
        cause = message or "is the Slurm controller up?"
        raise failure(f"{words[0]} did not answer within {timeout:.0f} s: {cause}") from None
    if process.returncode:
        message = " ".join((_plain(error_output).strip() or _plain(output).strip()).split())
        if not message:  # it was killed, or died, before it could say anything; Slurm may have taken what it sent
            raise Unreachable(f"{' '.join(words[:3])}: it ended without a word (exit status {process.returncode})")
        if NO_CLUSTER_MESSAGE.search(message):
            message += ": is this a login node? (profile.executor=local runs here)"
        raise (Unreachable if UNREACHABLE_MESSAGE.search(message) else UserError)(f"{' '.join(words[:3])}: {message}")
    return _plain(output), _plain(error_output)


def _plain(output: bytes) -> str:
    """The text without the colours that a site's wrapper may add: an id or state within them would be another."""
    return re.sub(r"\x1b\[[\d;]*m", "", output.decode(errors="replace"))


def _read_output(process: subprocess.Popen[bytes], program_name: str, timeout: float) -> tuple[bytes, bytes]:
    """What a command prints; says on stderr when that takes long."""
    if timeout > NOTICE_DELAY_S:
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=NOTICE_DELAY_S)
        print(f"lumen: waiting for {program_name} …", file=sys.stderr, flush=True)
        timeout -= NOTICE_DELAY_S
    return process.communicate(timeout=timeout)


def queue(users: Iterable[str] = ()) -> dict[str, Job]:
    """The queued and running jobs of this user, and of other users' ids, a line each array task, by id.

    Raises Unreachable where squeue fails: jobs missing from its output would be submitted again.
    """
    ids = dict.fromkeys([str(os.getuid()), *users])
    try:
        return _query_queue("-u", ",".join(ids))
    except UserError as error:
        raise Unreachable(str(error)) from None


def _query_queue(*selection: str) -> dict[str, Job]:
    text = ask("squeue", "-h", "-a", "-r", *selection, "-o", "%i|%T|%r|%N|%S|%U|%j")
    if text and not text.endswith("\n"):
        raise Unreachable("squeue: its answer is cut off")
    jobs = (Job(*line.split("|", 6)) for line in text.splitlines() if line.count("|") >= 6)
    return {job.id: job for job in jobs if job.state not in ENDED_STATES}


def log_path(job: str) -> str:
    """The log of a job in the queue; its script where scontrol fails; empty for an unknown job."""
    try:
        match = re.search(r"StdOut=(.+)", ask("scontrol", "show", "job", job))
        return match[1] if match else ""
    except UserError:
        pass
    try:
        return ask("squeue", "-h", "-a", "-j", job, "-o", "%o").partition("\n")[0]
    except UserError:
        return ""


@functools.cache
def settings() -> dict[str, str]:
    """`scontrol show config` as a mapping, asked once."""
    lines = (line.split("=", 1) for line in ask(*CONFIGURATION_COMMAND).splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in lines}


def setting(name: str, default: str) -> str:
    """A line of the cluster's configuration; `default` where it has none, or users may not ask for it."""
    try:
        return settings().get(name, default)
    except Unreachable:
        raise
    except UserError:
        return default


def cluster() -> str:
    """The cluster's name; empty where it is not known."""
    return setting("ClusterName", "")


def largest_array() -> int:
    """How many tasks one array may have: MaxArraySize caps the index, and ours start at 0; 0 switches arrays off.

    A scheduler's max_array_tasks caps the count.
    """
    limits = (
        re.fullmatch(r"(\d+)", setting("MaxArraySize", "")),
        re.search(r"\bmax_array_tasks=(\d+)", setting("SchedulerParameters", ""), re.IGNORECASE),
    )
    return max(1, min((int(limit[1]) for limit in limits if limit), default=1001))


def cancel(ids: list[str]) -> list[str]:
    """Cancels jobs; returns the ids that stay in the queue. Jobs that have ended meanwhile are no error."""
    if not ids:
        return []
    try:
        ask("scancel", *ids, own_session=True)
    except UserError as error:
        if not _is_about_ended_jobs(error):
            print(f"lumen: {error}", file=sys.stderr)
        queued_ids = _queued_ids(ids)
        return [id_ for id_ in ids if id_.split("_")[0] in queued_ids]
    return []


def _queued_ids(ids: list[str]) -> set[str]:
    """The jobs among these, whoever owns them, that have not ended; all where Slurm does not tell."""
    try:
        queued_jobs = _query_queue("-j", ",".join(ids))
    except UserError as error:
        return set() if "Invalid job id" in str(error) else {id_.split("_")[0] for id_ in ids}
    return {name.split("_")[0] for name, job in queued_jobs.items() if job.state != "COMPLETING"}


def cancel_pending(ids: list[str]) -> bool:
    """From within a job: cancels those of the jobs that have not started; False if this site's nodes cannot.

    Single tasks of an array must not be running: with `--state`, Slurm 22.05 takes 7_1 for all of array 7. A controller
    that is too busy to answer is asked again, since each remaining job costs a turn in the queue. Not `--quiet`: for a
    job that has ended, scancel would exit with 1 and no message, as a killed scancel does.
    """
    if not ids:
        return True
    state_filter = [] if any("_" in id_ for id_ in ids) else ["--state=PENDING"]
    for pause in (*CANCEL_RETRY_PAUSES_S, 0):
        try:
            ask("scancel", *state_filter, *ids, own_session=True)
            return True
        except Unreachable:
            time.sleep(pause)
        except UserError as error:
            return _is_about_ended_jobs(error)
    return False


def _is_about_ended_jobs(error: UserError) -> bool:
    """Whether scancel complains about ended jobs alone: it has cancelled all others."""
    return "Invalid job id" in str(error) or "already completing" in str(error)


class Refused(UserError):
    """sbatch does not take a script; the message is its own."""


def submit(script: Path) -> str:
    """Submits an sbatch script; its job id. Raises Refused, or Unreachable."""
    try:
        output, messages = _ask(("sbatch", *one_cluster(), str(script)), ANSWER_TIMEOUT_S, own_session=True)
    except Unreachable:
        raise
    except UserError as error:
        raise Refused(sbatch_messages(error)) from None
    if not (match := re.search(r"Submitted batch job (\d+)", output)):
        raise Refused(f"no job id in the answer of sbatch: {output.strip()[:200]}")
    for message in messages.splitlines():
        _report(message)
    return match[1]


@functools.cache
def _report(message: str) -> None:
    """Says once what a site tells whoever submits, such as that it charges another account."""
    print(f"lumen: {visible(message)}", file=sys.stderr)


@functools.cache
def one_cluster() -> tuple[str, ...]:
    """sbatch's option that keeps jobs on this cluster of a federation: another's queue is not asked, nor cancelled."""
    match = None
    with suppress(UserError):  # an older Slurm knows no federations
        match = re.search(r"^Self:\s*([^:\s]+)", ask(*FEDERATION_COMMAND), re.MULTILINE)
    return (f"--clusters={match[1]}",) if match and "SLURM_CLUSTERS" not in os.environ else ()


def requeue(job: str) -> str:
    """Puts a running job back into the queue, from within it; what goes on with its work.

    Slurm would take back a cancelled job too. Whatever ends a job, its state is COMPLETING meanwhile: a preemption has
    its time, the time limit is a reason, and what Slurm itself queues again has one restart more.
    """
    try:
        record = ask("scontrol", "show", "job", job)
        if re.search(r"JobState=\S*(COMPLETING|CANCELLED)", record):
            restarts = re.search(r"Restarts=(\d+)", record)
            if restarts and int(restarts[1]) > int(os.environ.get("SLURM_RESTART_COUNT", "0")):
                return "Slurm queues it again"
            if not re.search(r"PreemptTime=\d|Reason=TimeLimit", record):
                return "it was cancelled, and nothing goes on by itself"
        ask("scontrol", "requeue", job)
    except UserError as error:
        return f"it could not be queued again ({error}): the same command goes on"
    return "Slurm queues it again"


def task_ids(job: str, count: int) -> list[str]:
    """The ids of an array's tasks."""
    return [f"{job}_{index}" for index in range(count)] if count > 1 else [job]


def sbatch_messages(error: Exception) -> str:
    """sbatch's own messages in a failed submission."""
    messages = re.split(r"sbatch: (?:error: )?", str(error).partition(": ")[2])
    return " ".join(dict.fromkeys(message.strip() for message in messages if message.strip())) or str(error)
