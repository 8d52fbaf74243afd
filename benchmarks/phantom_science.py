"""Whether the demo's recipe reaches its gates: expert, base, FT and LUMEN trained in memory on fresh phantoms.

    python benchmarks/phantom_science.py                      # about 15 minutes on two idle cores
    python benchmarks/phantom_science.py --steps 300 --ft-steps 100 --test 60    # a look at the curve
    python benchmarks/phantom_science.py --weights FOLDER     # keeps the stand-in weights there, and reuses them

The peers are oracles that know the phantoms' own tables (`lumen_hpc/data/phantom_ceilings.py`) and FT with a rule.
The same modules as the stages', without their files and without DeepSpeed: `training/sampler.py` mixes the same
samples, the loss is `train.loss=kinds`, the schedule `schedule.py`'s. Prints the loss as it falls, then a
table of what each model gets right on patients it never saw.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lumen_hpc import nvila
from lumen_hpc.config.data_schema import Phantom, Pretrain
from lumen_hpc.config.schema import Experts, Instruct
from lumen_hpc.data import findings_line, perturbations, phantom, phantom_ceilings, probes
from lumen_hpc.data.diff_vqa import DIAGNOSTIC, Change, parse_difference
from lumen_hpc.data.instructions import kind
from lumen_hpc.experts.phantom_expert import load_expert
from lumen_hpc.metrics.change import Reader, facts, tally
from lumen_hpc.nvila.packing import shared_length
from lumen_hpc.report import composed
from lumen_hpc.schedule import rate_at
from lumen_hpc.training import phantom_records, pretrain, sampler

Row = dict[str, Any]
LEARNING_RATE, WARMUP, BETAS, DECAY, CLIP = 3e-3, 0.025, (0.9, 0.98), 0.02, 1.0
MIXTURE = {"diagnostic": 24, "difference": 8, "prediction": 6}
FT_MIXTURE = {"diagnostic": 24}
TOGETHER = 3


def train(model: nvila.NVILA, records: Sequence[Row], mixture: dict[str, int], steps: int, seed: int) -> None:
    """Trains projector and language model; the tower stays as the expert left it."""
    model.vision_tower.requires_grad_(False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, betas=BETAS, weight_decay=DECAY)
    groups, kinds = pretrain.image_groups(records), np.array([kind(record) for record in records])
    order = sampler.mixed_streams(groups, kinds, mixture, steps=steps, max_run_length=TOGETHER, seed=seed)
    recent: dict[str, list[float]] = defaultdict(list)
    start = time.process_time()
    model.train()
    for step in range(steps):
        indices_by_group: dict[int, list[int]] = {}
        for index in order.batch(step):
            indices_by_group.setdefault(int(groups[index]), []).append(index)
        sequences = list(
            pretrain.encode_groups(model, ([records[i] for i in group] for group in indices_by_group.values()))
        )
        loss, by_kind = loss_of_kinds(
            model, sequences, [[kinds[i] for i in group] for group in indices_by_group.values()]
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, CLIP)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, LEARNING_RATE, WARMUP)
        optimizer.step()
        for name, value in by_kind.items():
            recent[name].append(value)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            losses = ", ".join(f"{name} {np.mean(values[-50:]):.4f}" for name, values in recent.items())
            print(f"  step {step + 1}: {losses} ({time.process_time() - start:.0f} s of processor)", flush=True)
    model.requires_grad_(True).eval()


def loss_of_kinds(model: nvila.NVILA, packed: list, kinds: list[list[str]]) -> tuple[torch.Tensor, dict[str, float]]:
    """The sum of each kind's mean over its supervised tokens, and these means."""
    batch = nvila.pack(packed)
    embeds, _ = model.embed(batch)
    hidden = model.decode(embeds, batch.position_ids, model.attention_plan(batch)).flatten(0, 1)
    labels, previous = batch.labels.flatten(), batch.previous.flatten()
    learned = ((labels != nvila.chat.IGNORE) & (previous >= 0)).nonzero().squeeze(1)
    nll = F.cross_entropy(model.llm.lm_head(hidden[previous[learned]]).float(), labels[learned], reduction="none")
    owner, spans = np.full(batch.token_ids.shape[1], "", dtype=object), iter(batch.spans)
    for group, names in zip(packed, kinds, strict=True):
        if shared_length(group):
            next(spans)
        for name in names:
            span = next(spans)
            owner[span.start : span.stop] = name
    names = owner[learned.numpy()]
    means = {name: nll[torch.from_numpy(names == name)].mean() for name in sorted(set(names))}
    return sum(means.values()), {name: float(mean.detach()) for name, mean in means.items()}


def answer(model: nvila.NVILA, records: Sequence[Row]) -> list[str]:
    """Answers without their findings lines."""
    answers = []
    for start in range(0, len(records), 400):
        inputs = model.preprocess(records[start : start + 400], generation=True, inline=True)
        answers += model.generate(inputs, max_new_tokens=120, batch_tokens=20_000)
    return [findings_line.strip(reply.text) for reply in answers]


class Score:
    """Facts of answers against those of the truth: micro F1, and the share of answers that are exact."""

    def __init__(self) -> None:
        self.hits = self.extra = self.missed = self.exact = self.count = 0

    def add(self, claims: set | None, true: set) -> None:
        found = tally(claims if claims is not None else {("unreadable",)}, true)
        self.hits, self.extra, self.missed = (a + b for a, b in zip((self.hits, self.extra, self.missed), found[:3]))
        self.exact += claims == true
        self.count += 1

    def __str__(self) -> str:
        total = 2 * self.hits + self.extra + self.missed
        return f"F1 {2 * self.hits / total if total else 1:.3f}, exact {self.exact / max(self.count, 1):.3f}"


def claimed(reader: Reader, text: str, type: str) -> set | None:
    change = reader.change(text, type)
    return None if change is None else facts(change)


def report(name: str, model: nvila.NVILA, records: Sequence[Row], truth: dict[tuple[str, str], Change]) -> None:
    """Prints what a model gets right: shares of exact answers, change F1, controls, and its composed baseline."""
    reader = Reader.of([record["meta"] for record in records])
    right: dict[str, list[bool]] = defaultdict(list)
    scores: dict[str, Score] = defaultdict(Score)
    for record, text in zip(records, answer(model, records), strict=True):
        meta = record["meta"]
        if meta["type"] in DIAGNOSTIC:
            right["closed" if meta["closed"] else meta["type"]].append(text == meta["long_answer"])
        else:
            true = facts(parse_difference(meta["short_answer"]))
            scores[meta["type"]].add(claimed(reader, text, meta["type"]), true)
    print(f"{name}: exact " + ", ".join(f"{key} {np.mean(values):.3f}" for key, values in sorted(right.items())))
    for key, score in scores.items():
        print(f"  {key}: {score}")
    pairs = [record for record in records if record["meta"]["type"] == "difference"]
    asked = [probe for record in pairs for probe in probes.probes(record, list(phantom.ps.LEVELS))]
    rows = [{**probe["meta"], "answer": text} for probe, text in zip(asked, answer(model, asked), strict=True)]
    ruled, score = composed.answers(rows, reader), Score()
    for record in pairs:
        text = ruled[record["meta"]["question_id"]]
        score.add(claimed(reader, text, "difference"), facts(parse_difference(record["meta"]["short_answer"])))
    print(f"  difference by rule from single images: {score}", flush=True)
    for control in ("same", "swapped", "other_patient") if name == "LUMEN" else ():
        changed = [row for k in range(len(pairs)) if (row := perturbations.perturb(control, pairs, k))]
        shown, own = Score(), Score()
        for row, text in zip(changed, answer(model, changed), strict=True):
            claims, ids = claimed(reader, text, "difference"), (row["meta"]["ref_study_id"], row["meta"]["study_id"])
            shown.add(claims, facts(truth[ids]))
            own.add(claims, facts(parse_difference(row["meta"]["short_answer"])))
        print(f"  {control}: against what was shown: {shown}; against the pair's own truth: {own}", flush=True)


class Truth(dict):
    """(reference study, main study) → what changed between them, whoever they belong to."""

    def __init__(self, timelines: Sequence[Sequence[phantom.Study]]) -> None:
        self._states = {str(study.study_id): study.states for timeline in timelines for study in timeline}

    def __missing__(self, ids: tuple[str, str]) -> Change:
        return phantom.questions.change(*(self._states[study] for study in ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patients", type=int, default=4000, help="phantom patients that FT and LUMEN learn from")
    parser.add_argument("--steps", type=int, default=1000, help="LUMEN's steps")
    parser.add_argument("--ft-steps", type=int, default=1000)
    parser.add_argument("--test", type=int, default=300, help="unseen patients")
    parser.add_argument("--expert-text", action="store_true", help="give the models the phantom expert's sentences")
    parser.add_argument("--weights", type=Path, help="folder of the stand-in weights, created if it is empty")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    instruct, experts = Instruct(findings_first=True, expert_text=chosen.expert_text), Experts(model="phantom")
    weights = chosen.weights or Path("runs") / f"phantom-science-{chosen.seed}"
    if not (weights / "nvila" / "config.json").exists():
        pretrain.pretrain(Pretrain(), experts, instruct, chosen.seed, weights)
    base = weights / "nvila"
    split = [list(phantom.patients(chosen.seed + offset, Phantom(patients=count, test_fraction=0)))
            for offset, count in ((0, chosen.patients), (500_009, chosen.test))]  # fmt: skip
    expert = load_expert(weights / "expert.safetensors") if chosen.expert_text else None
    learn, test = (
        phantom_records.records(part, instruct, chosen.seed,
                                expert_sentences=pretrain.sentences(expert, part, experts) if expert else {})
        for part in split
    )  # fmt: skip
    pairs = [(one.states, two.states, two.day - one.day, 0) for one, two in split[1]]
    true = [phantom_ceilings.changes(*pair[:2]) for pair in pairs]
    for oracle in phantom_ceilings.ORACLES:
        print(f"oracle, {oracle}: F1 {phantom_ceilings.micro_f1(true, phantom_ceilings.answers(pairs, oracle)):.3f}")
    for name, records, mixture, steps in (
        ("FT", [record for record in learn if kind(record) == "diagnostic"], FT_MIXTURE, chosen.ft_steps),
        ("LUMEN", learn, MIXTURE, chosen.steps),
    ):
        print(f"{name}: {steps} steps of {mixture}")
        model = nvila.load(base)
        train(model, records, mixture, steps, chosen.seed)
        report(name, model, test, Truth(split[1]))


if __name__ == "__main__":
    main()
