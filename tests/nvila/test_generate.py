import pytest
import torch

from lumen_hpc import nvila
from lumen_hpc.errors import UserError
from lumen_hpc.nvila import generate
from lumen_hpc.nvila.generate import first_tokens, stop_ids
from lumen_hpc.nvila.inputs import Inputs


def _slow_answer(model, sample, steps):
    """Greedy decoding without a cache: the whole sequence again for every token; its ids and logits."""
    generated, logits = [], []
    ids = sample.token_ids
    for _ in range(steps):
        longer = nvila.Sample(ids, ids * 0 - 100, ids, ids * 0 - 100, sample.tiles, sample.blocks)
        with torch.no_grad():
            logits.append(model(nvila.pad([longer]), logits="all").logits[0, -1])
        generated.append(int(logits[-1].argmax()))
        if generated[-1] in stop_ids(model):
            break
        ids = torch.cat([torch.from_numpy(ids), torch.tensor(generated[-1:])]).numpy()
    return generated, torch.stack(logits)


@pytest.mark.parametrize("batch_tokens", [1, 10**6])
def test_batches_caches_and_shared_pictures_do_not_change_answers(family, records, batch_tokens):
    inputs = family.preprocess(records, generation=True)
    answers = family.generate(inputs, max_new_tokens=6, batch_tokens=batch_tokens)
    for record, sample, answer in zip(records, inputs.samples, answers):
        assert answer.ids == _slow_answer(family, sample, 6)[0]
        assert answer.ids == family.generate([record], max_new_tokens=6)[0].ids


def test_cached_logits_are_those_of_the_whole_sequence(family, records):
    """Closer than equal answers: a token in a wrong position often changes no answer."""
    inputs = family.preprocess(records, generation=True)
    seen = []
    hook = family.llm.lm_head.register_forward_hook(lambda _, args, out: seen.append(out))
    answers = family.generate(inputs, max_new_tokens=4)
    hook.remove()
    columns = torch.stack(seen, dim=1)  # one row a sample, in generation's own order
    for sample, answer in zip(inputs.samples, answers):
        _, logits = _slow_answer(family, sample, 4)
        assert min((cached[: len(logits)] - logits).abs().max() for cached in columns) < 1e-5, answer


def test_the_pictures_of_a_group_are_encoded_once(tiny, records):
    seen = []
    tiny.vision_tower.embeddings.register_forward_hook(lambda _, args, out: seen.append(len(out)))
    tiny.generate(records[:2], max_new_tokens=2)
    assert seen == [1]


def test_finished_answers_leave_the_batch_and_change_no_other(family, records):
    rows = []

    def answers(finished):
        """With the branches `finished` ended at their first token, and no other ended at all."""
        rows.clear()

        def end(_, args, out):
            out[:, sorted(stop_ids(family))] = -torch.inf
            if not rows:
                out[finished, family.tokenizer.end] = torch.inf
            rows.append(len(out))
            return out

        hook = family.llm.lm_head.register_forward_hook(end)
        found = [answer.ids for answer in family.generate(records, max_new_tokens=5)]
        hook.remove()
        return found

    whole = answers([])
    assert rows == [len(records)] * 5
    few = answers([0, 2])
    assert rows == [len(records), *[len(records) - 2] * 4]
    assert few.count([family.tokenizer.end]) == 2
    assert all(ours in ([family.tokenizer.end], theirs) for ours, theirs in zip(few, whole))
    answers([0])
    assert rows == [len(records)] * 5  # one of four is not worth copying the others


def test_an_answer_ends_with_the_stop_token(tiny, records):
    """A head that always prefers one token makes that token the answer."""
    with torch.no_grad():
        tiny.llm.model.norm.weight.zero_()
    bias = torch.zeros(tiny.llm.lm_head.out_features)
    tiny.llm.lm_head.bias = torch.nn.Parameter(bias)
    word = tiny.tokenizer.encode("No")[0]
    bias.data[word] = 1
    assert tiny.generate(records[:1], max_new_tokens=3)[0].ids == [word] * 3
    bias.data[tiny.tokenizer.end] = 2
    [answer] = tiny.generate(records[:1], max_new_tokens=3)
    assert answer.ids == [tiny.tokenizer.end]
    assert answer.text == ""


def test_eos_tokens_of_the_checkpoint_stop_too(tiny):
    other = tiny.tokenizer.id("<|endoftext|>")
    tiny.config.files["llm/generation_config.json"] = f'{{"eos_token_id": [{other}]}}'.encode()
    assert stop_ids(tiny) == {tiny.tokenizer.end, other}


def test_a_last_answer_in_the_record_is_not_given_away(tiny, records):
    question = {**records[0], "conversations": records[0]["conversations"][:1]}
    with_answer, without = (tiny.preprocess([r], generation=True).input_ids for r in (records[0], question))
    assert torch.equal(with_answer, without)


def test_inputs_that_hold_answers_are_refused(tiny, records):
    with pytest.raises(UserError, match="generation=True"):
        tiny.generate(tiny.preprocess(records))
    with pytest.raises(UserError, match="max_new_tokens=0"):
        tiny.generate(records, max_new_tokens=0)


def test_a_prompt_that_leaves_an_answer_no_position_is_refused(tiny, records):
    prompts = [len(sample) for sample in tiny.preprocess(records, generation=True).samples]
    longest = max(prompts)
    tiny.config.llm["max_position_embeddings"] = longest + 6
    assert tiny.generate(records, max_new_tokens=6)
    message = f"prompt {prompts.index(longest)} has {longest} tokens.*max_new_tokens=7.*{longest + 6} that"
    with pytest.raises(UserError, match=message):
        tiny.generate(records, max_new_tokens=7)


def test_the_same_prompt_twice_is_answered_twice(tiny, records):
    once, twice, thrice = tiny.generate([records[0]] * 3, max_new_tokens=4)
    assert once.ids == twice.ids == thrice.ids == tiny.generate(records[:1], max_new_tokens=4)[0].ids


def test_groups_of_unlike_sizes_share_one_batch(tiny, records):
    """Three questions on one picture beside one on two pictures and one on none."""
    asked = [records[0], records[1], {**records[0], "conversations": records[2]["conversations"]}, *records[2:]]
    together = tiny.generate(asked, max_new_tokens=5)
    assert [a.ids for a in together] == [tiny.generate([r], max_new_tokens=5)[0].ids for r in asked]


def test_the_probability_of_yes_is_that_of_the_first_token(family, records):
    """Against the whole sequence's logits: yes over yes and no, summed over their spellings."""
    inputs = family.preprocess(records, generation=True)
    yes, no = first_tokens(family.tokenizer)
    assert yes and no and not set(yes) & set(no)
    for sample, answer in zip(inputs.samples, family.generate(inputs, max_new_tokens=2)):
        p = _slow_answer(family, sample, 1)[1][0].double().softmax(0)
        assert answer.yes == pytest.approx(float(p[yes].sum() / (p[yes].sum() + p[no].sum())), abs=1e-5)


def test_after_a_findings_line_the_probability_of_yes_is_that_of_the_next_token(family, records, monkeypatch):
    """The second token of each answer is made the end of a line; an answer that ends before has that of its first."""
    inputs = family.preprocess(records, generation=True)
    yes, no = first_tokens(family.tokenizer)
    for sample, answer in zip(inputs.samples, family.generate(inputs, max_new_tokens=3)):
        monkeypatch.setattr(generate, "line_ends", lambda tokenizer, end=answer.ids[1]: [end])
        (again,) = family.generate(Inputs([sample], inputs.pad_id, generation=True), max_new_tokens=3)
        place = max((place for place, token in enumerate(again.ids[:-1], 1) if token == answer.ids[1]), default=0)
        p = _slow_answer(family, sample, 3)[1][place].double().softmax(0)
        assert again.ids == answer.ids and place
        assert again.yes == pytest.approx(float(p[yes].sum() / (p[yes].sum() + p[no].sum())), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_caller_s_default_dtype_changes_no_answer(tiny, records, dtype):
    expected = tiny.generate(records, max_new_tokens=4)
    torch.set_default_dtype(dtype)
    try:
        answers = tiny.generate(records, max_new_tokens=4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert answers == expected


def test_no_records_have_no_answers_and_make_no_batch(tiny):
    assert tiny.generate([]) == tiny.generate(tiny.preprocess([], generation=True)) == []
    with pytest.raises(UserError, match="at least one sample"):
        tiny(tiny.preprocess([]))
