"""What a transformer layer keeps for its backward pass, in bytes per token, by `train.checkpointing`.

Only the standard library. The numbers follow the tensors that torch saves for each layer without compilation;
tests/training/test_activations.py counts them on small layers and holds this to 10 %. Compiled layers keep less, since
the compiler recomputes what is cheap: their numbers follow the peaks that `benchmarks/gpu_speed.py` read on a GPU
(gpu_smoke.md), and are 3 to 5 % above them.
"""

from __future__ import annotations


def language_layer(
    checkpointing: str, *, width: int, kv: int, mlp: int, size: int, rank: int = 0, compiled: bool = False
) -> float:
    """Of a Qwen2 layer; `kv`: width of its keys, `size`: bytes of a number, `rank`: of adapters, 0 without them."""
    if checkpointing == "full":  # its input
        return size * width
    if compiled and not rank:
        q_k_v_attention = 2 * width + 2 * kv
        if checkpointing == "selective":  # plus its input, o, gate and up; nothing reads the output of `down`
            return size * (q_k_v_attention + 2 * width + 2 * mlp)
        return size * (q_k_v_attention + 2 * width + 3 * mlp)
    product_outputs = 3 * width + 2 * kv + 2 * mlp  # of the matrix products q, o, down; k, v; gate, up
    if checkpointing == "selective":  # plus its input and attention; an adapter has two products of its own
        return size * (2 * width + product_outputs + (product_outputs + 7 * rank if rank else 0))
    norm_inputs = 2 * (4 if rank else 4 + size) * width  # RMSNorm computes in float32; a frozen one keeps less
    attention = size * (2 * width + 2 * kv)
    product_inputs = size * (3 * width + mlp)  # gate, silu(gate) and up make the rest of the MLP
    if rank:  # an adapter's input is a copy after dropout, whose mask is saved
        product_inputs = (size + 1) * (6 * width + mlp) + size * 7 * rank
    return norm_inputs + attention + product_inputs + size * 3 * mlp


def vision_layer(
    checkpointing: str, *, width: int, mlp: int, size: int, rank: int = 0, compiled: bool = False
) -> float:
    """Of a SigLIP layer."""
    if checkpointing == "full":
        return size * width
    if compiled and not rank and checkpointing == "selective":  # input, q, k, v, attention, out; fc1
        return size * (6 * width + mlp)
    product_outputs = 5 * width + mlp  # q, k, v, out, fc2; fc1
    if checkpointing == "selective":
        return size * (2 * width + product_outputs + (product_outputs + 6 * rank if rank else 0))
    stored_width = 2 * width + 3 * width + width + mlp  # inputs of the norms; q, k, v; attention; input of GELU
    product_inputs = 2 * width + mlp  # of q, k and v; of fc1; of fc2. `out` reads what attention saved
    if rank:
        return size * (stored_width + 6 * rank) + (size + 1) * (5 * width + mlp)
    return size * (stored_width + product_inputs)
