"""What Slurm's reasons for a pending job mean, of many of its versions."""

from __future__ import annotations

import pytest

from lumen_hpc.cluster import reasons


@pytest.mark.parametrize(
    ("reason", "starts"),
    [
        ("PartitionTimeLimit", False), ("QOSMaxGRESPerJob", False), ("AssocMaxWallDurationPerJobLimit", False),
        ("AssocGrpCPUMinutesLimit", True), ("QOSGrpGRES", True), ("QOSMaxJobsPerUserLimit", True),
        ("AssocGrpGRES", True), ("JobHeldUser", True), ("ReqNodeNotAvail, UnavailableNodes:n3", True),
        ("ReqNodeNotAvail, May be reserved for other job", True), ("ReqNodeNotAvail(Unavailable:n[1-4])", True),
        ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions", True),
        ("launch_failed_requeued_held", True), ("job_requeued_in_held_state", True), ("JobHoldMaxRequeue", True),
        ("QOSUsageThreshold", True), ("QOSJobLimit", True), ("QOSResourceLimit", True), ("QOSTimeLimit", False),
        ("AssociationTimeLimit", False), ("AssociationJobLimit", True), ("MaxGRESPerAccount", True),
        ("MaxCpuPerAccount", True), ("MaxMemPerLimit", False), ("AccountNotAllowed", False), ("QOSNotAllowed", False),
        ("ReservationDeleted", False), ("Reservation ours was deleted", False), ("Reservation", True),
        ("ReqNodeNotAvail, Reserved for maintenance", True), ("ReqNodeNotAvail,_Reserved_for_maintenance", True),
        ("BurstBufferStageIn", True), ("AssocMaxGRESMinutesPerJob", False),
        ("QOSMinGRES", False), ("QOSGrpBillingRunMinutes", True), ("(PartitionTimeLimit)", False),
    ],
)  # fmt: skip
def test_a_pending_reason_says_what_it_means_and_whether_the_job_can_ever_start(reason: str, starts: bool):
    found = reasons.explain(reason)
    assert found and found.starts == starts and found.fix


def test_a_maintenance_is_told_from_nodes_that_are_down():
    found = reasons.explain("ReqNodeNotAvail, Reserved for maintenance")
    assert found and "maintenance" in found.meaning and "time_min" in found.fix


@pytest.mark.parametrize("reason", ["None", "Priority", "Resources", "Dependency", "JobArrayTaskLimit"])
def test_waiting_for_others_needs_no_explanation(reason: str):
    assert reasons.explain(reason) is None
