"""One slide over several devices: the sequence is cut into shards, every result is that of one process."""

from longvit.parallel.attention import sharded_dilated_attention
from longvit.parallel.exchange import Wire
from longvit.parallel.shards import Shards, exchanged_bytes

__all__ = ["Shards", "Wire", "exchanged_bytes", "sharded_dilated_attention"]
