"""One slide over several devices: the sequence is cut into shards, every result is that of one process."""

from longvit.parallel.exchange import Wire
from longvit.parallel.ranks import ALONE, Ranks, all_ranks
from longvit.parallel.shard import ShardedLongViT, average_gradients, shard
from longvit.parallel.sharded_attention import sharded_dilated_attention
from longvit.parallel.shards import Shards, exchanged_bytes
from longvit.parallel.watchdog import RankLostError

__all__ = [
    "ALONE",
    "RankLostError",
    "Ranks",
    "ShardedLongViT",
    "Shards",
    "Wire",
    "all_ranks",
    "average_gradients",
    "exchanged_bytes",
    "shard",
    "sharded_dilated_attention",
]
