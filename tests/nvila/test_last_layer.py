"""The last layer on the places that are read: the same numbers for less work."""

import torch

from lumen_hpc import nvila
from lumen_hpc.nvila.last_layer import LastLayer
from tests.nvila.conftest import make_family


def _run(records, places):
    """Hidden states at `places` and the gradients of a sum over them; the tokens that the last MLP saw."""
    model = make_family("lite").train()
    samples = model.preprocess(records).samples
    batch = nvila.pack([samples[:2], samples[2:3], samples[3:]])
    seen = []
    last = model.llm.model.layers[-1]
    last.mlp.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[:-1].numel()))
    embeds, _ = model.embed(batch)
    chosen = batch.predictors if places else None
    hidden = model.decode(embeds, batch.position_ids, model.attention_plan(batch), chosen)
    hidden = hidden if places else hidden.flatten(0, 1)[batch.predictors]
    (hidden * torch.arange(hidden.shape[-1])).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return hidden.detach(), gradients, seen, batch


def test_its_mlp_runs_on_the_places_alone_and_nothing_changes(records):
    hidden, gradients, seen, batch = _run(records, places=True)
    whole, expected, everywhere, _ = _run(records, places=False)
    assert seen == [len(batch.learned)]
    assert everywhere == [batch.token_ids.numel()]
    assert (hidden - whole).abs().max() < 1e-5
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-4 * expected[name].abs().max()), name


def test_a_compiled_layer_is_like_the_others():
    model = make_family("lite")
    last = model.llm.model.layers[-1]
    assert isinstance(last, LastLayer)
    model.kernel = "flex"
    model.prepare_layers("none", compiled=True)
    assert type(last) is type(model.llm.model.layers[0])
    model.prepare_layers("none")
    assert isinstance(last, LastLayer)
