import pytest
import torch
from torch.nn import functional as F

from lumen_hpc import nvila
from lumen_hpc.nvila import layers
from lumen_hpc.nvila.vision import tower_hidden


def _gradients(model, batch):
    model.zero_grad()
    model(batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _calls(model, part):
    counted = []
    part.register_forward_hook(lambda *_: counted.append(1))
    return counted


def test_the_head_runs_on_supervised_places_only(tiny, records):
    inputs = tiny.preprocess(records)
    seen = []
    tiny.llm.lm_head.register_forward_hook(lambda _, args, out: seen.append(out.shape))
    some = tiny(inputs)
    everything = tiny(inputs, logits="all")
    assert seen[0][0] == inputs.batch().supervised
    assert everything.logits.shape[:2] == inputs.batch().token_ids.shape
    assert abs(some.loss - everything.loss) < 1e-6


def test_the_loss_is_the_mean_over_all_places_in_every_bit(family, records):
    out = family(family.preprocess(records), logits="all", keep=True)
    official = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), out.labels[:, 1:].flatten())
    assert torch.equal(out.loss, official)


def test_layers_behind_the_selected_one_never_learn(family, records):
    gradients = _gradients(family, nvila.pad(family.preprocess(records).samples))
    learned = {name for name in gradients if gradients[name].any()}
    assert not any(
        name.startswith(("vision_tower.encoder.layers.2", "vision_tower.post_layernorm")) for name in gradients
    )
    assert any(name.startswith("vision_tower.encoder.layers.1.") for name in learned)
    assert "mm_projector.layers.2.weight" in learned


def test_gradient_checkpointing_recomputes_and_changes_nothing(family, records):
    batch = nvila.pad(family.preprocess(records).samples)
    family.train()
    plain = _gradients(family, batch)
    family.gradient_checkpointing()
    layers = family.llm.model.layers[0], family.vision_tower.encoder.layers[0]
    calls = [_calls(family, layer.self_attn) for layer in layers]
    again = _gradients(family, batch)
    assert [len(c) for c in calls] == [2, 2]
    assert all((plain[name] - again[name]).abs().max() < 1e-6 for name in plain)


def test_the_tower_works_in_micro_batches_of_tiles(family, records):
    batch = nvila.pad(family.preprocess(records).samples)
    whole = _gradients(family, batch)
    family.tiles_at_once = 2
    calls = _calls(family, family.vision_tower.encoder.layers[0])
    parts = _gradients(family, batch)
    assert len(calls) == -(-len(batch.tiles) // 2)
    assert all((whole[name] - parts[name]).abs().max() < 1e-5 for name in whole)


def test_text_alone_still_runs_tower_and_projector_while_learning(family, records):
    """Otherwise a process without pictures would leave the others waiting for ZeRO-3's weights."""
    text = nvila.pad(family.preprocess(records[3:]).samples)
    calls = [_calls(family, family.vision_tower.encoder.layers[0]), _calls(family, family.mm_projector)]
    gradients = _gradients(family, text)
    assert [len(c) for c in calls] == [1, 1]
    assert not any(gradients[name].any() for name in gradients if not name.startswith("llm."))
    assert "vision_tower.embeddings.patch_embedding.weight" in gradients
    with torch.no_grad():
        family(text)
    assert [len(c) for c in calls] == [1, 1]


def test_calls_that_only_others_need_change_nothing(family, records):
    batch = nvila.pad(family.preprocess(records).samples)
    alone = _gradients(family, batch)
    family.tiles_at_once, family.sync_tower_calls = 3, lambda calls: calls + 2
    calls = _calls(family, family.vision_tower.encoder.layers[0])
    together = _gradients(family, batch)
    assert len(calls) == -(-len(batch.tiles) // 3) + 2
    assert all((alone[name] - together[name]).abs().max() < 1e-5 for name in alone)


def test_a_batch_without_supervision_has_a_loss_of_zero_with_gradients(tiny, records):
    inputs = tiny.preprocess(records[:1], generation=True)
    out = tiny(inputs)
    out.loss.backward()
    assert out.loss.item() == 0
    assert out.supervised == 0


def test_gradients_reach_what_is_kept_on_the_way(tiny, records):
    out = tiny(tiny.preprocess(records[:1]), keep=True)
    [gradient] = torch.autograd.grad(out.loss, out.proj_out)
    assert gradient.shape == out.proj_out.shape
    assert gradient.any()


def test_padding_is_zero_and_masked_like_the_official_batch(tiny, records):
    out = tiny(tiny.preprocess(records), keep=True)
    lengths = [len(sample) for sample in tiny.preprocess(records).samples]
    assert out.attention_mask.sum(1).tolist() == lengths
    assert not out.inputs_embeds[~out.attention_mask].any()
    assert out.inputs_embeds[out.attention_mask].abs().sum(1).all()


def test_frozen_parts_get_no_gradients(tiny, records):
    tiny.parts["vision_tower"].requires_grad_(False)
    gradients = _gradients(tiny, nvila.pad(tiny.preprocess(records).samples))
    assert gradients
    assert not any(name.startswith("vision_tower.") for name in gradients)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_bfloat16_stays_near_float32(tmp_path, tiny, records, kernel):
    nvila.save(tiny, tmp_path / "tiny")
    model = nvila.load(tmp_path / "tiny", dtype=torch.bfloat16, attention=kernel)
    inputs = tiny.preprocess(records)
    assert abs(model(inputs).loss.item() - tiny(inputs).loss.item()) < 0.05


def test_the_towers_layers_get_tokens_whose_numbers_lie_side_by_side(tiny):
    """The patch embedding makes channels first, which every norm and sum of the residual stream would pay for."""
    seen = []
    for layer in layers.layers(tiny)["vision_tower"]:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
    size = tiny.config.image_size
    tower_hidden(tiny.vision_tower, torch.zeros(2, 3, size, size), tiny.config.select_layer)
    assert seen and all(seen)
