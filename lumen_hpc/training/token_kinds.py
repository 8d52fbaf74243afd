"""The kind of each supervised token: its question's, except for the yes or no of an outcome's answer.

Only that word is the prognosis; some forty tokens around it follow from the images or from the wording. With
`train.loss=kinds`, as a kind of its own, it counts as much as they do, and its loss is the log loss of the prognosis.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

VERDICT = "verdict"


class TokenKinds:
    """Names and numbers of the kinds of some records."""

    def __init__(self, kinds: np.ndarray, device: torch.device | str = "cpu") -> None:
        """`kinds` [samples] str: the kind of each record's question, by sample id."""
        self.names = sorted(set(kinds.tolist()))
        if "outcome" in self.names:
            self.names.append(VERDICT)
        number = {name: k for k, name in enumerate(self.names)}
        self._verdict = number.get(VERDICT, 0)
        self._of_sample = np.array([number[kind] for kind in kinds.tolist()], dtype=np.int64)
        self._outcome = number.get("outcome", -1)
        self._index = torch.from_numpy(self._of_sample).to(device)

    def of(self, micro_batch: Any) -> torch.Tensor:
        """int64 [supervised tokens] of a micro-batch: their kinds, as places in `names`."""
        return torch.where(micro_batch.verdicts, self._verdict, self._index[micro_batch.samples])

    def counts(self, ids: Iterable[int], supervised: np.ndarray) -> torch.Tensor:
        """float64 [names]: supervised tokens of each kind in these samples; `supervised` [samples] as indexed."""
        sample_ids = np.fromiter(ids, dtype=np.int64)
        found = np.bincount(self._of_sample[sample_ids], supervised[sample_ids], minlength=len(self.names))
        outcomes = int((self._of_sample[sample_ids] == self._outcome).sum())
        if outcomes:
            found[self._outcome] -= outcomes
            found[self._verdict] += outcomes
        return torch.from_numpy(found)
