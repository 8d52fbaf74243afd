"""Why a job is pending, by Slurm's reason: what it means, whether it can ever start, and what would change that."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    meaning: str
    starts: bool
    """False if the job cannot start as it was submitted."""
    fix: str = ""


REASONS: tuple[tuple[str, Reason], ...] = (
    (
        "PartitionTimeLimit",
        Reason("its time limit is longer than the partition's", False, "a smaller profile.resources.KIND.time_min"),
    ),
    (
        "PartitionNodeLimit",
        Reason("it asks for more nodes than the partition allows", False, "fewer profile.resources.KIND.nodes"),
    ),
    (
        r"PartitionConfig|BadConstraints|ConstraintsNotSatisfied",
        Reason("no node fits what it asks for", False, "python launch.py check compares the profile with the cluster"),
    ),
    (
        r"(QOS|Assoc)Max\w*(PerJob|PerNode)\w*|(QOS|Assoc)MaxWallDuration\w*|QOSMin\w+|(QOS|Association)TimeLimit|"
        "MaxMemPerLimit",
        Reason("it asks for more than its qos or account allows one job", False, "a smaller request, or another qos"),
    ),
    (
        r"InvalidAccount|InvalidQOS|AssocNotFound",
        Reason("its account or qos is not valid any more", False, "profile.account and profile.resources.KIND.qos"),
    ),
    (
        r"(Account|QOS)NotAllowed",
        Reason("its partition is closed to its account or qos", False, "another profile.resources.KIND.partition"),
    ),
    (
        r"ReservationDeleted|Reservation \S+ was deleted",
        Reason("its reservation does not exist any more", False, "profile.additional.reservation"),
    ),
    (
        r"(QOS|Assoc)(Grp|Max)\w*Minutes\w*|(QOS|Assoc)GrpWall\w*|(QOS|Assoc)(Grp|Max)\w*RunMin\w*|\w*BillingMinutes",
        Reason("the budget of its account or qos is spent", True, "it starts once there is budget again, or never"),
    ),
    (
        r"(QOS|Assoc)(Grp|Max)\w+|(QOS|Association)(Job|Resource)Limit|Max\w+PerAccount|AccountingPolicy",
        Reason(
            "its account, qos or user runs as much as is allowed at once",
            True,
            "it starts when others end, or never where it alone asks for more",
        ),
    ),
    (
        "QOSUsageThreshold",
        Reason(
            "its account has used more than its qos asks for", True, "it starts as the usage decays, or another qos"
        ),
    ),
    ("JobHeldAdmin", Reason("an administrator holds it", True, "ask them")),
    ("JobHeldUser", Reason("it is held", True, "scontrol release JOB")),
    ("JobHoldMaxRequeue", Reason("it was queued again too often, and Slurm holds it", True, "scontrol release JOB")),
    (
        r"launch failed requeued held",
        Reason("its start failed on a node, and Slurm holds it", True, "scontrol release JOB"),
    ),
    (r".*requeued.*held", Reason("it was queued again, and is held", True, "scontrol release JOB")),
    ("PartitionDown|PartitionInactive", Reason("its partition is closed now", True, "wait, or another partition")),
    (
        r"ReqNodeNotAvail,? Reserved for maintenance|ReservedMaintenance",
        Reason(
            "a maintenance, or a reservation of others, begins before it would end, or goes on",
            True,
            "wait, or submit again with a profile.resources.KIND.time_min that ends before (scontrol show reservation)",
        ),
    ),
    (
        "ReqNodeNotAvail|NodeDown|Nodes required for job are|ReqNodeReserved",
        Reason("nodes that it needs are down, reserved or drained", True, "wait"),
    ),
    ("Reservation", Reason("its reservation has not begun or is over", True, "the dates of the reservation")),
    ("Licenses", Reason("it waits for a licence", True, "wait")),
    ("BurstBuffer", Reason("it waits for its burst buffer", True, "wait, or profile.additional.bb")),
    ("BeginTime", Reason("it waits for its time of beginning, as after a requeue", True, "wait")),
)
"""Reasons that are more than a turn in the queue."""


def explain(reason: str) -> Reason | None:
    """The first that matches; None for a job that merely waits for its turn or for what it reads."""
    words = reason.strip("()").replace("_", " ")  # Slurm writes its longer reasons with spaces or underscores
    return next((found for pattern, found in REASONS if re.match(pattern, words)), None)
