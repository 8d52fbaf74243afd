"""A real Slurm cluster of several nodes on one machine; everything it writes is in one folder.

`python -m tests.cluster.slurm up` starts one to play with.

It needs root and Debian's packages (`PACKAGES` below), and takes 2 to 5 s to start. Each node is one slurmd in a
hostname namespace of its own, so that `hostname` says n1, n2, … as on a real cluster. Each declares 96 CPUs, 1 TB and
4 H100, which is what cluster_profiles/h100.yaml asks for; the GPUs are links to /dev/null, which is enough for Slurm to
schedule them and to set CUDA_VISIBLE_DEVICES.
Ports are drawn at random, so that several clusters can run side by side.

Partitions: `h100` (default) and `cpu` are never preempted; `preempt` gives way to both; `private` is hidden, and open
to two groups alone. Scheduling cycles, which stock Slurm leaves at a minute, are set to a second. How long daemons wait
for one another is at least what stock Slurm gives them: on a loaded machine a node that answers late is not dead.
Everything else is stock: MaxArraySize is 1001, a requeued job waits two minutes, and dependants of a failed job stay
in the queue unless the job says otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sandbox import slurm_config

PACKAGES = "slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core mariadb-client-core"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "slurmdbd", "mariadbd", "mariadb-install-db", "unshare")
LONGEST_FOLDER = 80
"""A unix socket's path ends at 107 characters, and ours are a few below the folder."""
PATIENCE_S = 120
"""How long a step of starting or asking may take; on an idle machine each takes well under a second."""
PAUSE_S, LONGEST_PAUSE_S = 0.05, 0.25
"""Between two looks of a wait. The pause is four times the look: what asks Slurm all the time takes a fifth of a core
from the jobs that it waits for, while files may be looked at often."""
NODE_MARK = "LUMEN_TEST_NODE"
"""In the environment of a node's slurmd and slurmstepds: the folder and the node they belong to."""

ENTER_NODE = 'hostname "$1" && mount --bind "$2" /etc/hosts && exec slurmd -D -N "$1"'


class ClusterError(RuntimeError):
    """The test cluster did not reach the expected state; the message ends with the last lines of its logs."""


def why_not() -> str | None:
    """Why a cluster cannot run on this machine and what would do, or None where it can."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=search_path())]
    if missing:
        return (
            f"Slurm is not installed ({', '.join(missing)} missing): apt-get install --no-install-recommends {PACKAGES}"
        )
    if os.geteuid() != 0:
        return "the test cluster needs root (slurmd starts other people's jobs)"
    if subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True).returncode:
        return "this container may not open namespaces (unshare), so that its nodes would share one hostname"
    return None


def search_path() -> str:
    """PATH, with the folders for daemons that not every shell has."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


class Cluster:
    """One cluster, identified by its folder: an object created later for the same folder steers the same cluster."""

    def __init__(
        self, folder: str | Path, nodes: int = 3, accounting: bool = True, max_array_size: int = 1001, cpus: int = 96
    ):
        self.folder = Path(folder).resolve()
        if len(str(self.folder)) > LONGEST_FOLDER:
            raise ClusterError(f"{self.folder}: too long for a socket's path, at most {LONGEST_FOLDER} characters")
        saved = self.folder / "cluster.json"
        requested: dict[str, Any] = {
            "nodes": nodes,
            "accounting": accounting,
            "max_array_size": max_array_size,
            "cpus": cpus,
        }
        state = json.loads(saved.read_text()) if saved.exists() else requested
        self.settings: dict[str, Any] = state
        self.nodes = [f"n{i + 1}" for i in range(state["nodes"])]
        self.accounting: bool = state["accounting"]
        self.environment = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": search_path()}
        """What a process needs to talk to this cluster."""

    # Life

    def up(self) -> Cluster:
        """Start everything and return when every node is idle, or raise ClusterError and leave nothing running."""
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise ClusterError(f"{self.folder} is not empty; if it is an earlier cluster's, `down` removes it")
        try:
            slurm_config.write(self.folder, self.nodes, self.settings, free_ports(2 + len(self.nodes)))
            self._start(
                "munged",
                "munged",
                "--foreground",
                "--force",
                f"--socket={self.folder}/munge.sock",
                f"--key-file={self.folder}/munge.key",
                f"--pid-file={self.folder}/run/munged.own.pid",
                f"--log-file={self.folder}/log/munged.log",
                f"--seed-file={self.folder}/run/munge.seed",
            )
            self.wait(lambda: (self.folder / "munge.sock").exists(), PATIENCE_S, "munged")
            if self.accounting:
                self._start_accounting()
            self._start("slurmctld", "slurmctld", "-D", "-i")
            for node in self.nodes:
                self._start_slurmd(node)
            self.wait(lambda: self.node_states() == dict.fromkeys(self.nodes, "idle"), PATIENCE_S, "every node idle")
        except BaseException:
            self.down()
            raise
        return self

    def down(self) -> None:
        """Stop every daemon and every job, and remove the folder."""
        self._stop("slurmctld")
        for node in self.nodes:
            self._kill_processes_of(node)
        for name in ("slurmdbd", "mariadbd", "munged"):
            self._stop(name)
        if (self.folder / "cluster.json").exists():  # never a folder that is not a cluster's
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill_node(self, node: str) -> None:
        """The node loses power: its slurmd, job steps and tasks get SIGKILL at once.

        Slurm itself finds out after SlurmdTimeout, five minutes; `declare_dead` reports it at once.
        """
        self._known(node)
        self._kill_processes_of(node)

    def declare_dead(self, node: str) -> None:
        """Report to the controller what it would find out by itself: the node is down, its jobs are lost."""
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=killed by a test")

    def start_node(self, node: str) -> None:
        """Bring a killed node back and wait until it takes jobs."""
        self._known(node)
        self._start_slurmd(node)
        self.wait(lambda: listens(self._port_of(node)), PATIENCE_S, f"slurmd of {node}")
        self.wait(self.node_states, PATIENCE_S, "slurmctld")
        if self.node_states()[node].startswith("down"):  # a node declared down stays so until somebody resumes it
            self.run("scontrol", "update", f"nodename={node}", "state=resume")
        in_service = lambda: self.node_states().get(node) in ("idle", "mix", "alloc")  # noqa: E731
        self.wait(in_service, PATIENCE_S, f"{node} back in service")

    def restart_controller(self) -> None:
        """Stop slurmctld in good order and start it again on its saved state; jobs go on meanwhile."""
        self._stop("slurmctld")
        self._start("slurmctld", "slurmctld", "-D")
        self.wait(lambda: self.run("scontrol", "ping", check=False).returncode == 0, PATIENCE_S, "slurmctld")

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """The controller answers nobody meanwhile; its jobs go on."""
        controller = self._process("slurmctld")
        assert controller is not None
        os.kill(controller, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(controller, signal.SIGCONT)

    # Talk

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a Slurm command against this cluster; with `check`, a failure raises ClusterError."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S)
        if check and done.returncode:
            raise ClusterError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def queue(self) -> list[tuple[str, str, str, str]]:
        """Each job or array task still in the queue: (id, name, state, reason), array tasks one by one, by id.

        squeue orders by priority, which changes between two calls.
        """
        lines = self.run("squeue", "--noheader", "--array", "--format=%i|%j|%T|%r").stdout.splitlines()
        return sorted((job, name, state, reason) for job, name, state, reason in (line.split("|", 3) for line in lines))

    def node_states(self) -> dict[str, str]:
        """Name and short state of each node: idle, mix, alloc, comp, down, …; empty while the controller is away."""
        lines = self.run("sinfo", "--noheader", "-N", "-p", "h100", "-o", "%N %t", check=False).stdout.splitlines()
        return dict(line.split() for line in lines)

    def wait(self, reached: Callable[[], object], seconds: float, what: str) -> None:
        """Poll until `reached()` is true; raise ClusterError with the logs' tails after `seconds`."""
        deadline = time.monotonic() + seconds
        asked = time.monotonic()
        while not reached():
            answered = time.monotonic()
            if answered > deadline:
                raise ClusterError(f"waited {seconds} s for: {what}\n{self._tails()}")
            time.sleep(min(LONGEST_PAUSE_S, max(PAUSE_S, 4 * (answered - asked))))
            asked = time.monotonic()

    def alive(self, name: str) -> bool:
        """Whether this daemon (slurmctld, munged, n1, …) of this cluster runs."""
        return self._process(name) is not None

    # How

    def _start(self, name: str, *command: str, **extra: str) -> None:
        """Start a daemon in its foreground mode, detached from this process; its pid goes to run/NAME.pid."""
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self.environment | {"LUMEN_TEST_CLUSTER": str(self.folder)} | extra,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (self.folder / "run" / f"{name}.pid").write_text(str(process.pid))

    def _start_slurmd(self, node: str) -> None:
        (self.folder / "spool" / node).mkdir(exist_ok=True)
        self._start(
            node,
            "unshare",
            "--mount",
            "--uts",
            "--propagation",
            "private",
            "sh",
            "-c",
            ENTER_NODE,
            "sh",
            node,
            str(self.folder / "hosts"),
            **{NODE_MARK: f"{self.folder}:{node}"},
        )

    def _start_accounting(self) -> None:
        database = self.folder / "db"
        installed = self.run(
            "mariadb-install-db",
            "--no-defaults",
            "--user=root",
            f"--datadir={database}",
            "--auth-root-authentication-method=socket",
            "--skip-test-db",
        )
        (self.folder / "log" / "mariadb-install.out").write_text(installed.stdout)
        self._start(
            "mariadbd",
            "mariadbd",
            "--no-defaults",
            "--user=root",
            f"--datadir={database}",
            f"--socket={self.folder}/db.sock",
            f"--pid-file={self.folder}/run/mariadbd.own.pid",
            "--skip-networking",
            "--skip-log-bin",
            "--performance-schema=OFF",
            "--innodb-buffer-pool-size=32M",
            "--innodb-log-file-size=16M",
            "--innodb-flush-method=nosync",
            "--innodb-lock-wait-timeout=900",
        )
        self.wait(lambda: (self.folder / "db.sock").exists(), PATIENCE_S, "mariadbd")
        self._start("slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=str(self.folder / "db.sock"))
        answers = ("sacctmgr", "-n", "show", "cluster")
        self.wait(lambda: self.run(*answers, check=False).returncode == 0, PATIENCE_S, "slurmdbd")

    def _stop(self, name: str) -> None:
        """End a daemon with SIGTERM, and with SIGKILL if it has not ended after 10 s."""
        for signal_, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
            pid = self._process(name)
            if pid is None:
                return
            os.kill(pid, signal_)
            deadline = time.monotonic() + seconds
            while self.alive(name) and time.monotonic() < deadline:
                time.sleep(0.02)

    def _process(self, name: str) -> int | None:
        """The daemon's pid, if the process of that number is still the one that this cluster started."""
        try:
            pid = int((self.folder / "run" / f"{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if f"LUMEN_TEST_CLUSTER={self.folder}" in environment_of(pid) else None

    def _kill_processes_of(self, node: str) -> None:
        while pids := list(self._processes_of(node)):  # again, since a process may fork while we look
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _processes_of(self, node: str) -> Iterator[int]:
        """Daemons carry the mark; tasks carry what Slurm gives them."""
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                environment = environment_of(int(entry))
                if f"{NODE_MARK}={self.folder}:{node}" in environment or (
                    f"SLURM_CONF={self.folder}/slurm.conf" in environment and f"SLURMD_NODENAME={node}" in environment
                ):
                    yield int(entry)

    def _port_of(self, node: str) -> int:
        line = next(
            line
            for line in (self.folder / "slurm.conf").read_text().splitlines()
            if line.startswith(f"NodeName={node} ")
        )
        return int(line.partition("Port=")[2].split()[0])

    def _known(self, node: str) -> None:
        if node not in self.nodes:
            raise ClusterError(f"there is no node {node!r}: {', '.join(self.nodes)}")

    def _tails(self) -> str:
        logs = sorted((self.folder / "log").glob("*"))
        return "\n".join(
            f"{log.name}: {line}"
            for log in logs
            if log.is_file()
            for line in log.read_text(errors="replace").splitlines()[-3:]
        )


def environment_of(pid: int) -> set[str]:
    """The environment that a process started with, as NAME=value; empty for one that has ended."""
    try:
        return set(Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0"))
    except OSError:  # ended (a zombie's environ reads empty), or not ours
        return set()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    """Distinct TCP ports that nobody listens on, below the range from which outgoing connections draw theirs."""
    ports: list[int] = []
    for port in random.sample(range(20000, 32000), 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise ClusterError("no free ports between 20000 and 32000")
