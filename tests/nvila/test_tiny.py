import torch

from lumen_hpc.nvila.tiny import make_tiny, train_tokenizer

TEXTS = ["pleural effusion moderate no resolved consolidation yes", "nothing has changed ."]


def test_the_demo_s_sizes():
    model = make_tiny(TEXTS)
    assert model.config.image_tokens(None) == 17
    assert 1.2e6 < sum(p.numel() for p in model.parameters()) < 1.6e6
    assert model.llm.lm_head.out_features == model.tokenizer.backend.get_vocab_size()


def test_a_seed_gives_the_same_weights_and_leaves_the_process_s_state_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = make_tiny(TEXTS), make_tiny(TEXTS), make_tiny(TEXTS, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.llm.lm_head.weight, two.llm.lm_head.weight)
    assert not torch.equal(one.llm.lm_head.weight, other.llm.lm_head.weight)


def test_words_of_a_small_vocabulary_become_single_tokens():
    tokenizer = train_tokenizer(TEXTS)
    assert len(tokenizer.encode(" effusion moderate")) == 2
    assert tokenizer.decode(tokenizer.encode("pleural effusion")) == "pleural effusion"


def test_transformers_reads_the_tokenizer_and_its_template(tmp_path):
    from transformers import AutoTokenizer

    from lumen_hpc import nvila
    from lumen_hpc.nvila.chat import encode

    model = make_tiny(TEXTS)
    nvila.save(model, tmp_path / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny" / "llm")
    messages = [{"role": "user", "content": "what changed?"}, {"role": "assistant", "content": "nothing"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ours, _ = encode(
        [{"from": "human", "value": "what changed?"}, {"from": "gpt", "value": "nothing"}], model.tokenizer
    )
    assert tokenizer(text, add_special_tokens=False).input_ids == ours.tolist()
