"""Which samples a step takes."""

from __future__ import annotations

from collections import Counter
from itertools import groupby, pairwise

import numpy as np
import pytest

from lumen_hpc.config.schema import Train
from lumen_hpc.errors import UserError
from lumen_hpc.training import sampler

GROUPS = np.array([0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 4])
KINDS = np.array(["diagnostic"] * 7 + ["difference"] * 2 + ["prediction"] * 2)


def plain(**changes):
    return sampler.single_stream(
        GROUPS, **{"global_batch": 4, "epochs": 3.0, "steps": 0, "max_run_length": 2, "seed": 7, **changes}
    )


def test_every_epoch_holds_every_sample_once():
    order = [i for step in range(plain().steps) for i in plain().batch(step)]
    assert len(order) == 33
    for epoch in range(3):
        assert sorted(order[11 * epoch : 11 * (epoch + 1)]) == list(range(11))


def test_batches_are_full_but_for_the_last():
    assert [len(plain().batch(step)) for step in range(plain().steps)] == [4] * 8 + [1]
    assert plain().consumed(8) == 32 and plain().consumed(9) == 33


def test_a_step_is_the_same_whoever_asks_and_whenever():
    assert plain().batch(5) == plain().batch(5)
    backwards = {step: plain().batch(step) for step in reversed(range(9))}
    one = plain()
    assert {step: one.batch(step) for step in range(9)} == backwards


def test_another_seed_and_another_epoch_have_another_order():
    first = [i for step in range(3) for i in plain().batch(step)][:11]
    assert first != [i for step in range(3) for i in plain(seed=8).batch(step)][:11]
    assert first != [i for step in range(6) for i in plain().batch(step)][11:22]


def test_questions_about_the_same_images_follow_each_other_up_to_the_limit():
    for max_run_length, most in ((0, 4), (3, 3), (2, 2), (1, 1)):
        order = plain(max_run_length=max_run_length, global_batch=11, epochs=1.0).batch(0)
        # Every group is cut into the fewest runs that the limit allows.
        runs = 1 + sum(GROUPS[a] != GROUPS[b] for a, b in pairwise(order))
        assert runs <= sum(-(-count // most) for count in Counter(GROUPS.tolist()).values())
        assert sorted(order) == list(range(11))


def test_no_more_questions_about_the_same_images_follow_each_other_than_the_limit_says():
    groups = np.repeat([0, 1], 40)
    order = sampler.single_stream(groups, global_batch=80, epochs=1.0, steps=0, max_run_length=4, seed=0).batch(0)
    stretches = [len(list(run)) for _, run in groupby(groups[order])]  # runs of one group may meet by chance
    assert {length % 4 for length in stretches} == {0} and max(stretches) < 20
    assert sorted(order) == list(range(80))


def test_part_of_an_epoch_and_a_number_of_steps():
    assert sum(len(plain(epochs=0.5).batch(step)) for step in range(plain(epochs=0.5).steps)) == 6
    assert plain(steps=4).steps == 4 and plain(steps=4).total == 16


def test_a_mixture_takes_its_number_of_each_kind_from_permutations_of_their_own():
    mixture = {"diagnostic": 3, "difference": 1, "prediction": 2}
    mixed = sampler.mixed_streams(GROUPS, KINDS, mixture, steps=7, max_run_length=0, seed=0)
    for step in range(7):
        assert Counter(KINDS[mixed.batch(step)].tolist()) == mixture
    diagnostic = [i for step in range(7) for i in mixed.batch(step) if KINDS[i] == "diagnostic"]
    assert sorted(diagnostic[:7]) == sorted(diagnostic[7:14]) == list(range(7))
    assert mixed.consumed(3) == 18


def test_a_mixture_leaves_out_what_the_records_lack_without_moving_the_rest():
    mixture = {"diagnostic": 3, "difference": 1, "prediction": 2}
    alone = sampler.mixed_streams(GROUPS[:7], KINDS[:7], mixture, steps=5, max_run_length=0, seed=0)
    whole = sampler.mixed_streams(GROUPS, KINDS, mixture, steps=5, max_run_length=0, seed=0)
    assert [alone.batch(s) for s in range(5)] == [whole.batch(s)[:3] for s in range(5)]


def test_a_mixture_that_forgets_a_kind_or_the_steps_is_refused():
    with pytest.raises(UserError, match="prediction"):
        sampler.mixed_streams(GROUPS, KINDS, {"diagnostic": 1, "difference": 1}, steps=3, max_run_length=0, seed=0)
    with pytest.raises(UserError, match=r"train\.steps"):
        sampler.mixed_streams(
            GROUPS, KINDS, {"diagnostic": 1, "difference": 1, "prediction": 1}, steps=0, max_run_length=0, seed=0
        )


def test_a_training_without_a_sample_is_refused():
    kinds = {"diagnostic": 0, "difference": 0, "prediction": 0}
    with pytest.raises(UserError, match="a step would have no sample"):
        sampler.mixed_streams(GROUPS, KINDS, kinds, steps=3, max_run_length=0, seed=0)
    with pytest.raises(UserError, match=r"train\.epochs=0\.001 of 11 records is no sample"):
        plain(epochs=0.001)


@pytest.mark.parametrize(("changes", "longest"), [({}, 3), ({"shared_prefix": False}, 1)])
def test_settings_keep_as_many_questions_about_an_image_together_as_they_say(changes: dict, longest: int) -> None:
    settings = Train(mixture={}, global_batch=4, epochs=2.0, questions_per_image=3, **changes)
    made = sampler.make_sampler(GROUPS, KINDS, settings, seed=7)
    expected = plain(epochs=2.0, max_run_length=longest)
    assert [made.batch(k) for k in range(made.steps)] == [expected.batch(k) for k in range(expected.steps)]


def test_settings_with_a_mixture_mix() -> None:
    mixture = {"diagnostic": 2, "difference": 1, "prediction": 1}
    made = sampler.make_sampler(GROUPS, KINDS, Train(mixture=mixture, steps=5, questions_per_image=3), seed=7)
    expected = sampler.mixed_streams(GROUPS, KINDS, mixture, steps=5, max_run_length=3, seed=7)
    assert [made.batch(k) for k in range(5)] == [expected.batch(k) for k in range(5)]


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_no_run_of_one_group_is_longer_than_its_limit(longest):
    """Five samples in one group and one in each of many others, so that runs of it seldom meet."""
    groups = np.array([0] * 5 + list(range(1, 400)))
    ids = sampler.Stream(np.arange(len(groups)), groups, max_run_length=longest, seed=(0,)).take(0, len(groups))
    places = [place for place, i in enumerate(ids) if groups[i] == 0]
    runs = [len(list(run)) for _, run in groupby(enumerate(places), lambda pair: pair[1] - pair[0])]
    assert sum(runs) == 5 and max(runs) <= longest and len(runs) == -(-5 // longest)


def test_kinds_with_as_many_groups_are_not_permuted_alike():
    kinds = np.array(["diagnostic", "difference"] * 50)
    mixture = {"diagnostic": 50, "difference": 50}
    ids = sampler.mixed_streams(np.arange(100), kinds, mixture, steps=1, max_run_length=0, seed=0).batch(0)
    assert [i + 1 for i in ids[:50]] != ids[50:]
