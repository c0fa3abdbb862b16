"""Attention processors that train faster on a CPU, with the results of diffusers' own.

With diffusers' processors a third of a UNet step on two cores is attention: PyTorch's fused kernel has a slow backward
in bfloat16, and cross-attention computes a softmax over one key. In float32 the results differ by rounding only. Under
bfloat16 autocast, scores are rounded that the fused kernel keeps.
"""

# The model classes declare their submodules as plain modules and their outputs as unions: a type checker cannot follow.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportOptionalSubscript=false
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportOptionalCall=false

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import UNetSpatioTemporalConditionModel

MIN_TOKENS = 64
"""Tokens from which matrix products are faster than the fused kernel, on two cores with AVX512-BF16."""


def one_token_attention(
    attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, attention_mask: None = None
) -> torch.Tensor:
    """Attend from (B, N, C) to one token (B, 1, D): softmax over one key is 1, so each query gets the token's value."""
    assert encoder_hidden_states.shape[1] == 1
    return attn.to_out[0](attn.to_v(encoder_hidden_states)).expand_as(hidden_states)


def self_attention(
    attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: None = None, attention_mask: None = None
) -> torch.Tensor:
    """Attend within (B, N, C): by matrix products for many tokens, else by the fused kernel in float32."""
    query, key, value = (
        project(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for project in (attn.to_q, attn.to_k, attn.to_v)
    )
    with torch.autocast(query.device.type, enabled=False):
        if query.shape[2] >= MIN_TOKENS:
            hidden = ((query * attn.scale) @ key.transpose(-1, -2)).softmax(dim=-1) @ value
        else:
            query, key, value = query.float(), key.float(), value.float()
            hidden = torch.nn.functional.scaled_dot_product_attention(query, key, value).to(hidden_states.dtype)
    return attn.to_out[0](hidden.transpose(1, 2).flatten(2))


@contextlib.contextmanager
def attention_for_cpu(unet: UNetSpatioTemporalConditionModel) -> Iterator[None]:
    """Use these processors inside the `with`, if `unet` is on a CPU."""
    originals = unet.attn_processors
    try:
        if unet.device.type == "cpu":
            unet.set_attn_processor(
                {name: self_attention if ".attn1." in name else one_token_attention for name in originals}
            )
        yield
    finally:
        unet.set_attn_processor(originals)
