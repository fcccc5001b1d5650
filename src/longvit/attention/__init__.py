"""Dilated attention: the paper's equation, readable, testable and timed alone (imports torch only)."""

from longvit.attention.dilated import attention_pairs, dilated_attention

__all__ = ["attention_pairs", "dilated_attention"]
