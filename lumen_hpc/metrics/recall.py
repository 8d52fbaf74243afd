"""Token recall as LLaVA-Med publishes it, and the words it counts.

The definition is that of LLaVA-Med's `llava/eval/run_eval.py` (D-Rax and VILA-M3 use the same), with its
habits kept because published numbers carry them: a punctuation mark is dropped or spaced by where it
stands *anywhere* in the text, a comma between digits drops every mark, and one pass removes 32 periods
at most (a flag stands where the count belongs). The published evaluation makes two passes, so of more
than 64 periods the rest stay.
"""

from __future__ import annotations

import re
from collections import Counter

MARKS = ';/[]"{}()=+\\_-><@`,?!'
_MARK = re.compile("[" + re.escape(MARKS) + "]")
_PLACES = tuple((mark, mark + " ", " " + mark) for mark in MARKS)
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
PERIODS_A_PASS = 32

_NUMBERS = {"none": "0"} | {
    word: str(n) for n, word in enumerate(re.findall(r"\w+", "zero one two three four five six seven eight nine ten"))
}
_ARTICLES = frozenset({"a", "an", "the"})
_APOSTROPHES = re.findall(
    r"\S+",
    """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""",
)


def _contraction_table() -> dict[str, str]:
    """Each form with one apostrophe left out → the form; the published table's one irregularity included."""
    table = {}
    for form in _APOSTROPHES:
        for place, letter in enumerate(form):
            if letter == "'":
                table[form[:place] + form[place + 1 :]] = form
    table["somebody'd"] = "somebodyd"
    return table


_CONTRACTIONS = _contraction_table()


def dropped_marks(text: str) -> str:
    """The punctuation of `text` that normalisation removes; its other marks become spaces."""
    if text.count(",") != text.count(", ") and _COMMA_IN_NUMBER.search(text):
        return MARKS
    return "".join([mark for mark, before, after in _PLACES if mark in text and (before in text or after in text)])


def normalize(text: str, dropped: str) -> list[str]:
    """One pass over a lower-cased text, or over one word of a text, that drops the marks `dropped`."""
    text = _MARK.sub(lambda mark: "" if mark[0] in dropped else " ", text)
    text = _PERIOD.sub("", text, count=PERIODS_A_PASS)
    spelled_words = [_NUMBERS.get(word, word) for word in text.lower().split() if word not in _ARTICLES]
    return [_CONTRACTIONS.get(word, word) for word in spelled_words]


def words(text: str) -> list[str]:
    """The words of `text` that token recall compares, in order (LLaVA-Med's two passes).

    With at most `PERIODS_A_PASS` periods the second pass changes nothing, and a word becomes the same
    words wherever the same marks are dropped; `lexical` remembers them by that.
    """
    text = text.lower()
    once = " ".join(normalize(text, dropped_marks(text)))
    return normalize(once, dropped_marks(once))


def recall(answer: str, reference: str) -> float:
    """Token recall as published, 0 to 1.

    Of the words in both, the *answer's* count; of the words missing, the reference's. Repetition
    raises it: see `clipped_recall`. An empty side scores 0. Source: LLaVA-Med, `calculate_f1score`.
    """
    answer_counts, reference_counts = Counter(words(answer)), Counter(words(reference))
    recalled = sum(answer_counts[word] for word in reference_counts)
    missed = sum(count for word, count in reference_counts.items() if word not in answer_counts)
    return recalled / (recalled + missed) if recalled else 0.0


def clipped_recall(answer: str, reference: str) -> float:
    """Share of the reference's words that the answer has, each at most as often as it occurs there."""
    answer_counts, reference_counts = Counter(words(answer)), Counter(words(reference))
    return (answer_counts & reference_counts).total() / reference_counts.total() if reference_counts else 0.0
