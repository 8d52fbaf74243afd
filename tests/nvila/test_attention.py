import pytest
import torch

from lumen_hpc.errors import UserError
from lumen_hpc.nvila.attention import Span, SpanPlan, check_kernel, spans_varlen

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
    out = spans_varlen(SPANS, *qkv, 0.3, _varlen)
    assert (out - _dense(*qkv, 0.3)).abs().max() < 1e-6


def test_a_kernel_that_cannot_run_here_is_refused():
    with pytest.raises(UserError, match="'fast'"):
        check_kernel("fast")
    if not torch.cuda.is_available():
        assert check_kernel("auto") == "sdpa"
        with pytest.raises(UserError, match="flash-attn and a GPU"):
            check_kernel("flash")
