"""Settings of what a run reads and generates: data, prepare, outcomes and the stand-in weights of phantoms."""

from __future__ import annotations

from dataclasses import dataclass, field

from lumen_hpc.config.fields import choice, in_range, runtime_only


@dataclass(kw_only=True)
class Phantom:
    patients: int = in_range(400, 1)
    """How many phantom patients are generated."""
    size: int = in_range(64, 64, 2544)
    """Side of a phantom radiograph [px], 64 to 2544."""
    dicom_every: int = 10
    """Every n-th image is written as DICOM too; 0 writes none."""
    studies: int = in_range(2, 2)
    """Studies per patient, at least 2."""
    test_fraction: float = in_range(0.15, 0, 0.5)
    """Share of patients in the test split (half as many go to val)."""
    mimic_iv: bool = False
    """Give the phantoms MIMIC-IV tables, for stage outcomes."""
    effect: float = 1.0
    """How strongly a hidden severity drives their outcomes; 0: not at all."""


@dataclass(kw_only=True)
class Data:
    source: str = choice("phantom", "phantom", "mimic")
    """Where studies come from: generated phantoms, or MIMIC-CXR with Medical-Diff-VQA. `data=mimic` for short."""
    mimic_cxr: str = ""
    """Folder with `files/` (JPG) and the metadata and split csv files of MIMIC-CXR-JPG."""
    mimic_cxr_dicom: str = ""
    """Optional second tree of `files/` with DICOMs."""
    diff_vqa: str = ""
    """Folder of Medical-Diff-VQA: mimic_pair_questions.csv and mimic_all.csv."""
    mimic_iv: str = ""
    """Optional folder of MIMIC-IV, 2.x or 3.x, with `hosp/` and `icu/` (and `ed/`): outcomes and laboratory values."""
    prefer: str = choice("jpg", "jpg", "dicom")
    """Which file is read where a study has both."""
    phantom: Phantom = field(default_factory=Phantom)


@dataclass(kw_only=True)
class Prepare:
    on_bad: str = choice("stop", "stop", "skip")
    """A bad row stops the stage, or goes to rejected.jsonl with its reason."""
    max_bad: float = in_range(0.05, 0, 1)
    """With `on_bad=skip`: the share of questions lost to bad rows above which the stage stops anyway."""
    images: str = choice("read", "read", "header", "exist", "trust")
    """How a study's image is checked: so that it can be decoded, by its header and end, by its path, or not at all."""
    image_threads: int = runtime_only(16, low=1)
    """Image files checked at a time."""
    one_study_per_test_subject: bool = True
    """As in the paper (section 2.1): the test split keeps one seeded study per subject."""
    difference_fraction: float = in_range(1.0, 0, 1)
    """Seeded share of difference questions kept; the paper's own filter is unstated (about 0.33 of one per study)."""
    reversed_pairs: str = choice("keep", "keep", "reorder")
    """Difference questions whose main study is the earlier one (half of release 1.0.0): as they are, or as in 1.0.1."""
    patient_overlap: str = choice("refuse", "refuse", "drop", "allow")
    """A patient in two splits: stop, drop that patient's training questions, or accept it."""


@dataclass(kw_only=True)
class Outcomes:
    memory_gb: float = runtime_only(1.0, low=0.25)
    """Memory that reading MIMIC-IV may take beside Python [GiB]; what does not fit is spilled to the run's folder."""
    threads: int = runtime_only(2, low=1)
    """Threads that read MIMIC-IV."""


@dataclass(kw_only=True)
class Pretrain:
    patients: int = in_range(4000, 1)
    """Phantom patients (another seed than the run's) that the stand-in weights are trained on."""
    expert_steps: int = in_range(500, 1)
    """Steps of the vision expert (tower and projector as a classifier)."""
    base_steps: int = 120
    """Steps of diagnostic instruction of the tiny base model."""
    layers: int = in_range(4, 1)
    """Layers of the tiny base's language model."""

    @property
    def steps(self) -> int:
        """Of both trainings; those of one take about as long as those of the other."""
        return self.expert_steps + self.base_steps
