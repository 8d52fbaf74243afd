"""The curated panel: sixteen laboratory values that a physician weighs beside a chest radiograph.

Item ids are MIMIC-IV's (`hosp/d_labitems`), as the dataset's own concept queries use them. One id an analyte: the
central laboratory's test in blood. Point-of-care ids, rare and of poor quality, are left out. No
living patient has a value outside `lowest` to `highest`; it is a typing error, and counted as such.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Analyte:
    """One laboratory test of the panel."""

    name: str
    """Its name in states and prompts."""
    itemid: int
    label: str
    """Its label in d_labitems; another label there means that the id is used for something else."""
    units: tuple[str, ...]
    """Spellings of the one unit that is read, in lower case, the first the one that is shown; "" for none."""
    lowest: float
    highest: float
    display_unit: str = ""
    """The unit as it is shown, where lower case is not how it is written."""

    @property
    def unit(self) -> str:
        return self.display_unit or self.units[0]


PANEL = (
    Analyte("creatinine", 50912, "Creatinine", ("mg/dl",), 0.05, 50, "mg/dL"),
    Analyte("urea nitrogen", 51006, "Urea Nitrogen", ("mg/dl",), 0.5, 400, "mg/dL"),
    Analyte("sodium", 50983, "Sodium", ("meq/l", "mmol/l"), 80, 210, "mEq/L"),
    Analyte("potassium", 50971, "Potassium", ("meq/l", "mmol/l"), 1, 15, "mEq/L"),
    Analyte("bicarbonate", 50882, "Bicarbonate", ("meq/l", "mmol/l"), 1, 70, "mEq/L"),
    Analyte("lactate", 50813, "Lactate", ("mmol/l",), 0.05, 50, "mmol/L"),
    Analyte("pH", 50820, "pH", ("units", ""), 6.3, 8.2),
    Analyte("pCO2", 50818, "pCO2", ("mm hg", "mmhg"), 4, 250, "mm Hg"),
    Analyte("hemoglobin", 51222, "Hemoglobin", ("g/dl",), 1, 30, "g/dL"),
    Analyte("white cells", 51301, "White Blood Cells", ("k/ul", "10*3/ul"), 0, 1000, "K/uL"),
    Analyte("platelets", 51265, "Platelet Count", ("k/ul", "10*3/ul"), 0, 4000, "K/uL"),
    Analyte("INR", 51237, "INR(PT)", ("", "ratio"), 0.3, 50),
    Analyte("bilirubin", 50885, "Bilirubin, Total", ("mg/dl",), 0, 100, "mg/dL"),
    Analyte("albumin", 50862, "Albumin", ("g/dl",), 0.3, 10, "g/dL"),
    Analyte("troponin T", 51003, "Troponin T", ("ng/ml",), 0, 100, "ng/mL"),
    Analyte("NT-proBNP", 50963, "NTproBNP", ("pg/ml",), 0, 500_000, "pg/mL"),
)
