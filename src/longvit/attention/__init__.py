"""Dilated attention: the paper's equation, readable, testable and timed alone (imports torch only)."""

from longvit.attention.dilated import dilated_attention, dilated_attention_packed
from longvit.attention.operators import attention_pairs

__all__ = ["attention_pairs", "dilated_attention", "dilated_attention_packed"]
