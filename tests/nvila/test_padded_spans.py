"""Spans of like size in one call: values and gradients are those of a call a span."""

import pytest
import torch

from lumen_hpc.nvila.attention import SpanPlan
from lumen_hpc.nvila.padded_spans import MAX_AREA_RATIO, PaddedBatches
from lumen_hpc.nvila.spans import Span

GROUPS = [
    Span(0, 0, 40), *(Span(0, 40 + 20 * n, 60 + 20 * n, (0, 40)) for n in range(3)),
    Span(0, 100, 138), Span(0, 138, 141, (100, 138)), Span(0, 141, 142),
    Span(1, 5, 30), Span(1, 30, 51, (5, 30)), Span(1, 60, 98),
]  # fmt: skip
"""Groups with branches of like and unlike size, spans alone, and places that no span covers, in two rows of 150."""


def _found(kernel, dtype=torch.float32):
    torch.manual_seed(0)
    qkv = [torch.randn(2, heads, 150, 8, dtype=dtype, requires_grad=True) for heads in (4, 2, 2)]
    out = SpanPlan(GROUPS, kernel).attend(0, *qkv, 0.3)
    (out * torch.randn(2, 150, 4, 8, dtype=dtype)).sum().backward()
    return [out.detach(), *(x.grad for x in qkv)]


def test_values_and_gradients_are_those_of_a_call_a_span():
    for ours, reference in zip(_found("sdpa", torch.float64), _found("eager", torch.float64)):
        assert (ours - reference).abs().max() < 1e-5  # eager's softmax is float32


def test_places_that_no_span_covers_are_zero():
    out, *gradients = _found("sdpa")
    covered = torch.zeros(2, 150, dtype=torch.bool)
    for span in GROUPS:
        covered[span.row, span.start : span.stop] = True
    assert out[covered].abs().amin(dim=(1, 2)).min() > 0
    assert not out[~covered].any()
    for gradient in gradients:
        assert not gradient.transpose(1, 2)[~covered].any()


def test_spans_of_like_size_are_one_call():
    batches = PaddedBatches.of(GROUPS, 2, 150).batches
    assert len(batches) == 6
    assert sorted(len(batch.queries) for batch in batches) == [1, 1, 1, 1, 3, 3]
    assert PaddedBatches.of([Span(0, n, n + 1) for n in range(9)], 1, 9).batches[0].queries.shape == (9, 1)


def test_one_gather_of_queries_keys_and_values_serves_all_calls():
    """The gradient of each is as long as the rows."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        _found("sdpa")
    calls = {event.key: event.count for event in profile.key_averages()}
    assert (calls["aten::index_select"], calls["aten::index_add_"]) == (4, 4)  # and one that puts results in place


@pytest.mark.parametrize(("longest", "calls"), [(11, 1), (12, 2), (30, 2)])
def test_padding_is_bounded(longest, calls):
    spans = [Span(0, 10 * n, 10 * n + 10) for n in range(5)] + [Span(0, 50, 50 + longest)]
    assert (longest / 10) ** 2 <= MAX_AREA_RATIO or calls == 2
    assert len(PaddedBatches.of(spans, 1, 100).batches) == calls


def test_no_spans_give_zeros():
    q = torch.randn(1, 4, 6, 8)
    assert not SpanPlan([], "sdpa").attend(0, q, q[:, :2], q[:, :2], 0.3).any()
