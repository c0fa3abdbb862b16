"""Attention that suits a CPU: what the classes' own computes, sooner. For training svd-nano.

A step of the UNet on two cores spends a third of its time in attention as it comes: PyTorch's fused kernel is slow
backwards in bfloat16, and the cross-attentions compute a softmax over one key. In float32 the numbers are the same to
rounding; under bfloat16's autocast scores are rounded that the fused kernel keeps.
"""

# The model classes declare their parts as bare modules and their outputs as unions: a type checker cannot follow.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportOptionalSubscript=false
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportOptionalCall=false

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

LONG = 64  # tokens from which products of matrices beat the fused kernel, on two cores with AVX512-BF16


class OneTokenAttention:
    """Cross-attention to one token: softmax over one key is 1, so each query gets that token's value."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """hidden_states (B, N, C), encoder_hidden_states (B, 1, D) -> (B, N, C); `attn` is diffusers' Attention."""
        assert encoder_hidden_states is not None and encoder_hidden_states.shape[1] == 1
        return attn.to_out[0](attn.to_v(encoder_hidden_states)).expand_as(hidden_states)


class SelfAttention:
    """Self-attention by products of matrices where there are many tokens, else by the fused kernel in float32."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """hidden_states (B, N, C) -> (B, N, C); `attn` is diffusers' Attention."""
        query, key, value = (
            each(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for each in (attn.to_q, attn.to_k, attn.to_v)
        )
        with torch.autocast(query.device.type, enabled=False):
            if query.shape[2] >= LONG:
                scores = (query * attn.scale) @ key.transpose(-1, -2)
                mixed = scores.softmax(dim=-1) @ value
            else:
                query, key, value = query.float(), key.float(), value.float()
                mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value).to(hidden_states.dtype)
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


@contextlib.contextmanager
def attention_for_cpu(unet: torch.nn.Module) -> Iterator[None]:
    """Within, the attentions of `unet` compute as above, where they are on a CPU and look at one token."""
    blocks = [each for each in unet.modules() if hasattr(each, "attn1") and hasattr(each, "attn2")]
    attentions = [each for block in blocks for each in (block.attn1, block.attn2)]
    before = [each.processor for each in attentions]
    try:
        for block in blocks:
            if block.attn1.to_q.weight.device.type == "cpu":
                block.attn1.processor, block.attn2.processor = SelfAttention(), OneTokenAttention()
        yield
    finally:
        for each, processor in zip(attentions, before, strict=True):
            each.processor = processor
