"""flash-attention through stand-ins with its versions' signatures: the one that works is chosen, and is equal."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from lumen_hpc import nvila
from lumen_hpc.errors import UserError
from lumen_hpc.nvila import attention, flash
from tests.nvila.conftest import make_family
from tests.nvila.test_attention import LENGTH, SPANS


def _sequences(q, k, v, cu_seqlens_q, cu_seqlens_k, scale):
    """Attention of sequences one behind the other, causal to the bottom right, in plain operators."""
    parts = zip(
        *(x.split(ends.diff().tolist()) for x, ends in ((q, cu_seqlens_q), (k, cu_seqlens_k), (v, cu_seqlens_k)))
    )
    out = []
    for query, key, value in parts:
        heads = [x.transpose(0, 1)[None] for x in (query, key, value)]
        mask = torch.ones(len(query), len(key), dtype=torch.bool).tril(len(key) - len(query))
        out.append(
            F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale, enable_gqa=True)[0].transpose(0, 1)
        )
    return torch.cat(out)


def version_2(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
              causal=False, window_size=(-1, -1), softcap=0.0, deterministic=False):  # fmt: skip
    assert causal and dropout_p == 0
    return _sequences(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale)


def version_3(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
              softmax_scale=None, causal=False, qv=None):  # fmt: skip
    assert causal and seqused_q is None and seqused_k is None
    return _sequences(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale)


def version_4(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, seqused_q=None,
              seqused_k=None, page_table=None, softmax_scale=None, causal=False):  # fmt: skip
    assert causal and page_table is None
    return _sequences(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale), None


VERSIONS = {
    "flash_attn": version_2,
    "flash_attn_interface": version_3,
    "flash_attn_3.flash_attn_interface": version_3,
    "flash_attn.cute": version_4,
}


@pytest.fixture
def gpu(monkeypatch):
    """A pretended GPU whose kernels are the CPU's, with the flash-attention packages that a test installs."""
    monkeypatch.setattr(flash, "DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    flash.varlen.cache_clear()

    def install(*modules, major=9, **functions):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (major, 0))
        for name in modules:
            if "." in name and name.split(".")[0] not in sys.modules:  # a namespace without a function
                monkeypatch.setitem(sys.modules, name.split(".")[0], ModuleType(name.split(".")[0]))
            module = ModuleType(name)
            module.flash_attn_varlen_func = functions.get(name.replace(".", "_"), VERSIONS[name])
            monkeypatch.setitem(sys.modules, name, module)
        return flash.varlen()

    yield install
    flash.varlen.cache_clear()


def _used(function, version) -> bool:
    return function is not None and function.__closure__[0].cell_contents is version


@pytest.mark.parametrize(
    ("modules", "major", "version"),
    [
        (["flash_attn"], 8, version_2),
        (["flash_attn"], 9, version_2),
        (["flash_attn", "flash_attn_interface"], 9, version_3),
        (["flash_attn", "flash_attn_3.flash_attn_interface"], 9, version_3),
        (["flash_attn", "flash_attn.cute"], 9, version_4),
        (["flash_attn.cute", "flash_attn_interface"], 9, version_3),
        (["flash_attn", "flash_attn_interface"], 8, version_2),
        (["flash_attn", "flash_attn.cute", "flash_attn_interface"], 10, version_4),
        (["flash_attn.cute"], 12, version_4),
    ],
)
def test_the_fastest_version_for_the_gpu_is_taken(gpu, modules, major, version):
    assert _used(gpu(*modules, major=major), version)
    assert attention.resolve_kernel("auto") == attention.resolve_kernel("flash") == "flash"


@pytest.mark.parametrize(("modules", "major"), [([], 9), (["flash_attn.cute"], 8), (["flash_attn"], 7)])
def test_without_a_version_for_the_gpu_it_is_sdpa(gpu, modules, major):
    assert gpu(*modules, major=major) is None
    assert attention.resolve_kernel("auto") == "sdpa"
    with pytest.raises(UserError, match="needs flash-attn"):
        attention.resolve_kernel("flash")


def _raises(*_, **__):
    raise RuntimeError("no kernel image is available for execution on the device")


def _other(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, **_):
    return _sequences(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale * 1.2)


@pytest.mark.parametrize(("broken", "reason"), [(_raises, "no kernel image"), (_other, "differs from plain")])
def test_a_version_that_fails_or_computes_something_else_is_passed_over_and_named(gpu, caplog, broken, reason):
    assert _used(gpu("flash_attn", "flash_attn_interface", flash_attn_interface=broken), version_2)
    assert "flash-attention 3 is installed and not used: " in caplog.text and reason in caplog.text


@pytest.mark.parametrize("version", [version_2, version_3, version_4])
def test_one_call_equals_the_spans_in_value_and_gradient(version):
    torch.manual_seed(0)
    weights, found = torch.randn(2, LENGTH, 4, 8), []
    index = attention.VarlenIndex.of(SPANS, LENGTH, torch.device("cpu"))
    for run in (
        lambda *qkv: attention.SpanPlan(SPANS, "eager").attend(0, *qkv, 0.3),
        lambda *qkv: attention.spans_varlen(index, *qkv, 0.3, flash._with_uniform_call(version)),
    ):
        torch.manual_seed(1)
        qkv = [torch.randn(2, heads, LENGTH, 8, requires_grad=True) for heads in (4, 2, 2)]
        out = run(*qkv)
        found.append([out, *torch.autograd.grad((out * weights).sum(), qkv)])
    for one, other in zip(*found):
        assert (one - other).abs().max() < 1e-5


def test_a_model_learns_through_it_as_through_sdpa_and_indexes_a_batch_once(gpu, records, monkeypatch):
    """bfloat16, the precision that flash-attention computes."""
    gpu("flash_attn.cute")
    calls, built = [], attention.VarlenIndex.of
    monkeypatch.setattr(attention.VarlenIndex, "of", lambda *given: calls.append(1) or built(*given))
    found = {}
    for kernel in ("sdpa", "flash"):
        model = make_family("resize").to(torch.bfloat16).train()
        model.kernel = attention.resolve_kernel(kernel)
        model.prepare_layers("full")
        samples = model.preprocess(records).samples
        loss = model(nvila.pack([samples[:2], samples[2:3], samples[3:]])).loss
        loss.backward()
        found[kernel] = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    assert calls == [1]
    for one, other in zip(found["sdpa"], found["flash"], strict=True):
        assert (one.float() - other.float()).norm() <= 2e-2 * max(float(one.float().norm()), 1e-2)
