"""The files that configure the test cluster of slurm.py: Slurm's, its accounting's, and the nodes' hosts."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from sandbox import neighbour

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.own.pid
SlurmdPidFile={folder}/run/%n.own.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=5
CompleteWait=0
MinJobAge=3600
MaxArraySize={max_array_size}
SlurmdTimeout=300
SlurmctldTimeout=300
MessageTimeout=30
TCPTimeout=30
BatchStartTimeout=120
AccountingStorageHost=127.0.0.1
AccountingStoragePass={folder}/munge.sock
AccountingStoragePort={accounting_port}
{accounting}
PartitionName=h100    Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF MaxTime=1-00:00:00 DefaultTime=10
PartitionName=cpu     Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=1-00:00:00 DefaultTime=10
PartitionName=preempt Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=1-00:00:00 DefaultTime=10
PartitionName=private Nodes=ALL Hidden=YES AllowGroups=root,{neighbour} PreemptMode=OFF MaxTime=60 DefaultTime=10
"""
WITH_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
JobAcctGatherType=jobacct_gather/linux"""
WITHOUT_ACCOUNTING = """\
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
    "CPUs={cpus} RealMemory=1000000 Gres=gpu:h100:4 State=UNKNOWN\n"
)
GPUS = "NodeName={name} Name=gpu Type=h100 File={folder}/dev/gpu[0-3]\n"
ACCOUNTING_CONFIG = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={accounting_port}
SlurmUser=root
PidFile={folder}/run/slurmdbd.own.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=accounting
"""


def write(folder: Path, names: Sequence[str], settings: Mapping[str, int | bool], ports: Sequence[int]) -> None:
    """Fills the folder of a cluster with these nodes; `ports`: the controller's, the accounting's, and one per node."""
    for subfolder in ("run", "log", "state", "spool", "dev"):
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
    for gpu in range(4):
        (folder / "dev" / f"gpu{gpu}").symlink_to(os.devnull)
    (folder / "cluster.json").write_text(json.dumps(settings))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    controller_port, accounting_port, *node_ports = ports
    values = {
        **settings,
        "folder": folder,
        "host": socket.gethostname().partition(".")[0],
        "controller_port": controller_port,
        "accounting_port": accounting_port,
        "accounting": WITH_ACCOUNTING if settings["accounting"] else WITHOUT_ACCOUNTING,
        "neighbour": neighbour.NAME,
    }
    nodes = "".join(NODE.format(name=name, port=port, **values) for name, port in zip(names, node_ports, strict=True))
    # Nodes come before the partitions, which say Nodes=ALL.
    head, partitions = CONFIG.format(**values).split("PartitionName", 1)
    (folder / "slurm.conf").write_text(head + nodes + "PartitionName" + partitions)
    (folder / "gres.conf").write_text("".join(GPUS.format(name=name, folder=folder) for name in names))
    (folder / "cgroup.conf").write_text("CgroupPlugin=autodetect\n")
    accounting_config = folder / "slurmdbd.conf"
    accounting_config.write_text(ACCOUNTING_CONFIG.format(**values))
    accounting_config.chmod(0o600)
    host_lines = "".join(f"127.0.0.1 {name}\n" for name in names)
    (folder / "hosts").write_text(Path("/etc/hosts").read_text() + "\n" + host_lines)
