"""Compares the fingerprints of trainings: what determines a result, by key (`folder.fingerprint_of`).

It needs only the standard library, so that a login node can read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def unordered(value: Any) -> Any:
    """A value with each list of names sorted: `train.tune` and `train.adapter.targets` are sets."""
    if isinstance(value, Mapping):
        return {key: unordered(item) for key, item in value.items()}
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return sorted(value)
    return value


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key → its value in `one` and in `other`, where these differ; None where there is none."""
    return {
        key: (one.get(key), other.get(key))
        for key in [*other, *(key for key in one if key not in other)]
        if unordered(one.get(key)) != unordered(other.get(key))
    }
