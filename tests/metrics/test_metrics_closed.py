"""Yes and no are read by words, never by substrings."""

import pytest

from lumen_hpc.metrics.closed import first_yes_no, polarity, strict


@pytest.mark.parametrize(
    "answer, first, equal, said",
    [
        ("yes", "yes", "yes", "yes"),
        ("No.", "no", "no", "no"),
        ("Yes, there is edema.", "yes", None, "yes"),
        ("There is a nodule.", None, None, "yes"),  # `no` is in `nodule`
        ("There is no nodule.", "no", None, "no"),
        ("Edema is not seen.", None, None, "no"),
        ("There isn't any edema.", None, None, "no"),
        ("The lungs are free of edema.", None, None, "no"),
        ("no, yes", "no", None, "no"),
        ("Yesterday's image shows nothing abnormal", None, None, "yes"),
        ("", None, None, None),
        ("  ", None, None, None),
    ],
)
def test_rules(answer, first, equal, said):
    assert (first_yes_no(answer), strict(answer), polarity(answer)) == (first, equal, said)
