"""Reads what a text about a chest radiograph says: findings with their state, side, place, level, type and change.

There are two readings by one grammar (grammar.yaml). The strict one, for training records, reads a sentence only if
every word has its place in one complete parse; any doubt becomes a problem. The lenient one, for scores, reads what it
can and leaves out the rest.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from functools import lru_cache

from lumen_hpc.language import parsing
from lumen_hpc.language.attributes import SIDES, Place, places
from lumen_hpc.language.clauses import ANY, CHANGING, Finding, Statement, number_words, split_changes
from lumen_hpc.language.findings import Problems, State, state_of
from lumen_hpc.language.words import MOST_CHARACTERS, Names, Word, numbers_of, tidy, vocabulary, words

LATER_IMAGE = "it speaks of a later image"
"""A problem, unless the question speaks of one."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a text says.

    A view is False if the text denies it. The places are all that it names, of any finding. The lead is the yes or no
    with which it opens, else empty. It is partial if it denies findings of a part of the image alone, such as `the
    lungs`, or findings that lie outside that part. It is predicted if it speaks of the future of every finding. The
    problems are reasons for doubt; unread is what has no complete parse: unknown words and whole sentences.
    """

    findings: dict[str, State]
    views: dict[str, bool]
    places: frozenset[Place]
    numbers: frozenset[str]
    lead: str
    partial: bool
    predicted: bool
    problems: tuple[str, ...]
    unread: tuple[str, ...]


@lru_cache(maxsize=1 << 14)
def read(text: str, kind: str, names: Names = (), lenient: bool = False) -> Facts:
    """What a text says, as an answer to a question of this type. `names`: (role, word) beyond the vocabulary."""
    tidy_text = tidy(text) if lenient else text
    text_words = words(tidy_text, names, kind == "prediction")
    ends_lead = all(word.text in (",", ".", ";", ":") for word in text_words[1:2])
    lead = "".join(role for word in text_words[:1] for role in ("yes", "no")[: 1 + ends_lead] if role in word.roles)
    text_words = text_words[(1 + ends_lead) * bool(lead) :]
    reading = _Reading(kind, lenient, {lead} - {""})
    reading.unread.add(f"longer than {MOST_CHARACTERS:,} characters", len(text) > MOST_CHARACTERS)
    reading.problems.add("it says one of what may be a finding", _has_bare_one(text_words))
    for sentence in sentences_of(text_words):
        reading.add(sentence)
    return reading.facts(numbers_of(tidy_text))


def _has_bare_one(text_words: list[Word]) -> bool:
    """True if `the earlier one` stands after a finding and no image: `A new effusion next to the earlier one.`"""
    roles = [word.roles.keys() for word in text_words]
    images = {"img", "imgs", "ref", "main", "mains", "today", "prior"}
    ones = (at for at, word in enumerate(text_words) if word.text.endswith(" one") and roles[at] & images)
    roles_before = set().union(*roles[: next(ones, 0)])
    return "finding" in roles_before and roles_before.isdisjoint(images)


def sentences_of(text_words: list[Word]) -> list[list[Word]]:
    """The words of a text, cut at its full stops."""
    return [
        [*sentence] for stop, sentence in itertools.groupby(text_words, lambda word: "stop" in word.roles) if not stop
    ]


@dataclass(slots=True)
class _Reading:
    """Collects what the sentences of one text say.

    Leads are each yes or no that it states. Counts are number words that do not count the findings of their clause.
    `earlier` is the previous statement; `doubtful` is the mark of a clause after one without a claim.
    """

    kind: str
    lenient: bool
    leads: set[str]
    problems: Problems = field(default_factory=Problems)
    unread: Problems = field(default_factory=Problems)
    findings: dict[str, Finding] = field(default_factory=dict)
    views: dict[str, bool] = field(default_factory=dict)
    places: list[parsing.Phrase] = field(default_factory=list)
    counts: set[str] = field(default_factory=set)
    earlier: Statement | None = None
    doubtful: set[str] = field(default_factory=set)

    def add(self, sentence: list[Word]) -> None:
        """Reads one sentence, clause by clause."""
        unknown = dict.fromkeys(word.text for word in sentence if not word.roles)
        self.unread.add(f"unknown words: {', '.join(unknown)}", unknown)
        if unknown and not self.lenient:
            return
        phrases = parsing.phrases_of([word for word in sentence if word.roles])
        self.unread.add(f"a sentence of more than {parsing.MOST_PHRASES} phrases", phrases[parsing.MOST_PHRASES :])
        phrases = phrases[: parsing.MOST_PHRASES]
        complete_parses = parsing.strict_parses(phrases)
        self.unread.add("no complete parse", not complete_parses)
        parses = complete_parses or [parsing.lenient_parse(phrases) if self.lenient else []]
        cuts = {tuple(clause.start for clause in parse) for parse in parses}
        self.problems.add("it can be read in more than one way", len(cuts) > 1)
        self.doubtful = set()
        for clause in parses[0]:
            clause.unread |= self.doubtful | ({"incomplete"} if unknown else set())
            clause.unread |= {"lenient"} if self.lenient else set()
            for part in split_changes(clause) if self.lenient else [clause]:
                self.clause(part)

    def clause(self, clause: parsing.Clause) -> None:
        """Adds what one clause says."""
        statement = Statement(clause, self.kind, self.earlier)
        self.doubtful = {"after-doubtful"} if "doubtful" in statement.marks else set()
        if self.lenient and "no-claim" in statement.marks:
            return
        if "of-before" in statement.marks:
            self.earlier = statement  # `was seen before and has since cleared`
            return
        self.places += clause.all("Loc", "Place", "NotPlace")
        self.problems.update(parsing.doubts(statement.marks))
        if ":yes-no" in statement.marks:
            return self.leads.update(clause.roles("closed"))
        if view_rules := {":view", ":notview"} & statement.marks:
            is_it = view_rules == {":view"}
            contradicts = any(self.views.setdefault(view, is_it) != is_it for view in clause.roles("view"))
            return self.problems.add("it says of a view both that it is and that it is not", contradicts)
        self.earlier = statement
        self.counts |= statement.counts
        for item in statement.items:
            finding = self.findings.get(item.name) or Finding(item.name)
            finding.marks |= {"other-findings"} if self.findings.keys() - {item.name} else set()
            marks = finding.add(statement, item)
            self.problems.update(parsing.doubts(marks))
            if "says-nothing" not in marks:
                self.findings[item.name] = finding

    def listed_changes(self, states: dict[str, State]) -> dict[str, State]:
        """What is new or resolved where a text lists the findings of both images: it names one of them for both, or
        says that there is none on the other image.
        """
        images = {name: frozenset(w for w, there in self.findings[name].presence if there) for name in states}
        general = self.findings.get(ANY, Finding(ANY))
        normal_images = set() if images.get(ANY) else {when for when, _ in general.presence}
        lists_both = any(named >= {"then", "now"} for named in images.values())
        changes = {
            frozenset({here}): change
            for here, other, change in (("now", "then", "new"), ("then", "now", "resolved"))
            if self.kind in CHANGING and (lists_both or normal_images == {other})
        }
        unseen = vocabulary()["outside"] if general.denied_places and not lists_both else [ANY]
        return {
            name: replace(state, status=changes[images[name]])
            for name, state in states.items()
            if state.status == "mentioned" and name not in (ANY, *unseen) and images[name] in changes
        }

    def facts(self, numbers: frozenset[str]) -> Facts:
        """What the whole text says."""
        findings = {name: state_of(finding, self.kind, self.problems) for name, finding in self.findings.items()}
        if self.lenient:
            findings |= self.listed_changes(findings)
        named_states = [state for name, state in findings.items() if name != ANY]
        if named_states and ANY in findings:
            general_status = findings[ANY].status
            is_counted = self.counts & number_words(named_states)  # two abnormalities are seen: a and b
            is_implied = is_counted or (general_status != "resolved" and "explicit" not in self.findings[ANY].marks)
            repeated_statuses = {"changed", *(state.status for state in named_states if is_implied)}
            if general_status in repeated_statuses or {general_status} == {state.direction for state in named_states}:
                del findings[ANY]  # but: an image that is `now normal` has lost every finding
        affirmed_places = [place for place in self.places if place.kind != "NotPlace"]
        place_names = places(affirmed_places, next(iter(findings), ""))
        denied_places = places(place for place in self.places if place.kind == "NotPlace")
        names_part = any(
            p.roles("weak")[-1:] == ["part"] for p in affirmed_places if not p.has("side", "place", "bothways")
        )
        outside_findings = findings.keys() & {*vocabulary()["outside"]}
        all_absent = all(state.status == "absent" for state in findings.values())
        self.problems.add("it says both yes and no", len(self.leads) > 1)
        self.problems.add(
            "it leaves a place open", not all_absent and any(place.has("or") for place in affirmed_places)
        )
        contradicts_place = any(a <= b and a & SIDES == b & SIDES for a in denied_places for b in place_names)
        self.problems.add("it denies a place", contradicts_place or (denied_places and not place_names))
        self.problems.add("it counts what it does not name", self.counts - number_words(set(findings) - {ANY}))
        return Facts(
            findings=findings,
            views=self.views,
            places=frozenset().union(*(state.places for state in findings.values())) or place_names,
            numbers=numbers,
            lead=max(self.leads, default=""),
            partial=names_part
            and bool(outside_findings or (ANY in findings and findings[ANY].status in ("absent", "same"))),
            predicted=all(finding.predicted for finding in self.findings.values()),
            problems=tuple(self.problems),
            unread=tuple(self.unread),
        )


def places_in(text: str) -> frozenset[Place]:
    """The places that a text names, whatever it claims about them."""
    phrases = parsing.phrases_of([word for word in words(text) if word.roles])
    return places(parsing.Phrase(phrases).all("Loc"))
