import pytest
import torch

from lumen_hpc.errors import UserError
from lumen_hpc.nvila import attention, block_mask, flash
from lumen_hpc.nvila.attention import Span, SpanPlan, VarlenIndex, plan, resolve_kernel, spans_varlen
from lumen_hpc.nvila.block_mask import BLOCK, block_mask_plan

SPANS = [Span(0, 0, 5), Span(0, 5, 7, (0, 5)), Span(0, 7, 10, (0, 5)), Span(1, 0, 4), Span(1, 6, 9)]
LENGTH = 10


@pytest.fixture
def qkv():
    torch.manual_seed(0)
    return torch.randn(2, 4, LENGTH, 8), torch.randn(2, 2, LENGTH, 8), torch.randn(2, 2, LENGTH, 8)


def _dense(q, k, v, scale):
    """The same rule as one mask of tokens by tokens."""
    allowed = torch.zeros(2, LENGTH, LENGTH, dtype=torch.bool)
    for span in SPANS:
        for place in range(span.start, span.stop):
            allowed[span.row, place, span.prefix[0] : span.prefix[1]] = True
            allowed[span.row, place, span.start : place + 1] = True
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(~allowed[:, None], float("-inf"))
    return (scores.softmax(-1).nan_to_num() @ v).transpose(1, 2)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_spans_are_a_block_mask_and_padding_is_zero(qkv, kernel):
    out = SpanPlan(SPANS, kernel).attend(0, *qkv, 0.3)
    assert out.shape == (2, LENGTH, 4, 8)
    assert (out - _dense(*qkv, 0.3)).abs().max() < 1e-6
    assert not out[1, 4:6].any()
    assert not out[1, 9].any()


def test_a_call_for_each_span_as_sdpa_makes_on_a_gpu_is_the_same(qkv):
    out = attention._attend_spans(SPANS, *qkv, 0.3, attention._sdpa)
    assert (out - _dense(*qkv, 0.3)).abs().max() < 1e-6


def _varlen(q, k, v, ends_q, ends_k, most_q, most_k, softmax_scale, causal):
    """What flash_attn_varlen_func promises: causal to the bottom right, grouped heads, int32 ends."""
    assert ends_q.dtype == ends_k.dtype == torch.int32
    assert causal
    out = torch.empty_like(q)
    for i in range(len(ends_q) - 1):
        a, b, c, d = ends_q[i], ends_q[i + 1], ends_k[i], ends_k[i + 1]
        assert b - a <= most_q
        assert d - c <= most_k
        keys, values = (x[c:d].repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(0, 1) for x in (k, v))
        scores = q[a:b].transpose(0, 1) @ keys.transpose(1, 2) * softmax_scale
        hidden = torch.ones(b - a, d - c, dtype=torch.bool).triu(int((d - c) - (b - a)) + 1)
        out[a:b] = (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values).transpose(0, 1)
    return out


def test_one_call_of_flash_attention_covers_all_spans(qkv):
    index = VarlenIndex.of(SPANS, LENGTH, torch.device("cpu"))
    out = spans_varlen(index, *qkv, 0.3, _varlen)
    assert (out - _dense(*qkv, 0.3)).abs().max() < 1e-6


@pytest.mark.parametrize(("dtype", "calls"), [(torch.float32, 0), (torch.bfloat16, 2)])
def test_flash_attention_computes_half_precision_alone(qkv, monkeypatch, dtype, calls):
    made = []
    monkeypatch.setattr(
        flash, "varlen", lambda: lambda *args, **options: (made.append(1), _varlen(*args, **options))[1]
    )
    qkv, built = [x.to(dtype) for x in qkv], SpanPlan(SPANS, "flash")
    for layer in range(2):
        out = built.attend(layer, *qkv, 0.3)
    assert (out - _dense(*qkv, 0.3)).abs().max() < (1e-6 if dtype == torch.float32 else 0.05)
    assert len(made) == calls


def test_a_kernel_that_cannot_run_here_is_refused():
    with pytest.raises(UserError, match="'fast'"):
        resolve_kernel("fast")
    if not torch.cuda.is_available():
        assert resolve_kernel("auto") == "sdpa"
        with pytest.raises(UserError, match="needs flash-attn"):
            resolve_kernel("flash")


LONG = [Span(0, 0, 200), Span(0, 200, 290, (0, 200)), Span(0, 290, 600, (0, 200)), Span(0, 600, 601), Span(1, 3, 400)]
"""Spans across, along and inside blocks of 128, with uncovered places, in two rows of 700."""


def test_the_block_mask_of_spans_is_the_mask_of_tokens_by_tokens():
    built = block_mask_plan(LONG, 2, 700, torch.device("cpu"))
    dense = torch.eye(700, dtype=torch.bool).repeat(2, 1, 1)  # an uncovered place sees itself, and its result is zeroed
    for span in LONG:
        for place in range(span.start, span.stop):
            dense[span.row, place, place] = False
            dense[span.row, place, span.prefix[0] : span.prefix[1]] = True
            dense[span.row, place, span.start : place + 1] = True
    rows, queries, keys = (
        torch.arange(n).view(shape) for n, shape in ((2, (2, 1, 1)), (700, (1, 700, 1)), (700, (700,)))
    )
    assert torch.equal(built.mask.mask_mod(rows, torch.tensor(0), queries, keys), dense)
    padded = torch.eye(768, dtype=torch.bool).repeat(2, 1, 1)
    padded[:, :700, :700] = dense
    padded = padded.view(2, 6, BLOCK, 6, BLOCK)
    partial, full = (_dense_blocks(*parts) for parts in (
        (built.mask.kv_num_blocks, built.mask.kv_indices), (built.mask.full_kv_num_blocks, built.mask.full_kv_indices)
    ))  # fmt: skip
    assert torch.equal(full, padded.all(4).all(2))
    assert torch.equal(partial | full, padded.any(4).any(2))


def _dense_blocks(counts, indices):
    blocks = torch.zeros(indices.shape, dtype=torch.bool)
    for row, _, query in torch.cartesian_prod(*map(torch.arange, counts.shape)).tolist():
        blocks[row, 0, query, indices[row, 0, query, : counts[row, 0, query]].long()] = True
    return blocks[:, 0]


@pytest.mark.parametrize("spans", [SPANS, LONG])
def test_flex_attention_equals_the_spans_in_value_and_gradient(spans):
    length = LENGTH if spans is SPANS else 700
    torch.manual_seed(0)
    weights = torch.randn(2, length, 4, 8)
    found = {}
    for kernel in ("sdpa", "flex"):
        torch.manual_seed(1)
        qkv = [torch.randn(2, heads, length, 8, requires_grad=True) for heads in (4, 2, 2)]
        out = plan(spans, 2, length, kernel, torch.device("cpu")).attend(0, *qkv, 0.3)
        (out * weights).sum().backward()
        found[kernel] = [out.detach(), *(x.grad for x in qkv)]
    for one, other in zip(found["sdpa"], found["flex"]):
        assert (one - other).abs().max() < 1e-5


def test_the_flex_kernel_applies_the_block_mask(monkeypatch):
    """Forward alone: FlexAttention has no backward pass on a CPU."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 700, 8) for heads in (4, 2, 2))
    built = plan(LONG, 2, 700, "flex", torch.device("cpu"))
    expected = built.attend(0, q, k, v, 0.3)
    monkeypatch.setattr(block_mask, "_fused_attention", lambda: block_mask.flex_attention)
    built.dense = None
    assert (built.attend(0, q, k, v, 0.3) - expected).abs().max() < 1e-5
