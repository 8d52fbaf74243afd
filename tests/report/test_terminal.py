from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from lumen_hpc.report import terminal

CSV = """\
table,block,measure,model,value,p,star
table 1,difference,rouge_l,ft,0.25,0.0001,*
table 1,difference,rouge_l,nvila,0.35,0.0001,(*)
table 1,difference,rouge_l,majority,0.45,0.0001,
table 1,difference,rouge_l,lumen,0.75,,
table 1,prediction,bleu4,ft,,,
table 1,prediction,bleu4,lumen,0.5,0.2,
"""


def test_models_are_rows_and_stars_are_those_of_the_tables(tmp_path: Path):
    (tmp_path / "tables.csv").write_text(CSV)
    out = StringIO()
    terminal.show(tmp_path / "tables.csv", Console(file=out, width=100))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["ft", "0.250*", "–"] in lines
    assert ["nvila", "0.350(*)"] in lines and ["majority", "0.450"] in lines
    assert ["lumen", "0.750", "0.500"] in lines
