"""One slide over several devices: the sequence is cut into shards, every result is that of one process."""

from longvit.parallel.attention import sharded_dilated_attention
from longvit.parallel.exchange import Wire
from longvit.parallel.shard import ShardedLongViT, average_gradients, shard
from longvit.parallel.shards import Shards, exchanged_bytes

__all__ = [
    "ShardedLongViT",
    "Shards",
    "Wire",
    "average_gradients",
    "exchanged_bytes",
    "shard",
    "sharded_dilated_attention",
]
