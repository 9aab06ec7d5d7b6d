"""Several processes that train one model: who they are, how they share it, and how they save it."""

from questlm.parallel.activation_checkpointing import checkpoint_activations
from questlm.parallel.engine import (
    Engine,
    clip_gradients,
    compile_blocks,
    distribute,
    gathered,
    gradient_exchange,
    local_shard,
    pick_engine,
    weight_cache,
    whole,
)
from questlm.parallel.processes import LostPeerError, Processes, connect, reporting_lost_peers

__all__ = [
    "Engine",
    "LostPeerError",
    "Processes",
    "checkpoint_activations",
    "clip_gradients",
    "compile_blocks",
    "connect",
    "distribute",
    "gathered",
    "gradient_exchange",
    "local_shard",
    "pick_engine",
    "reporting_lost_peers",
    "weight_cache",
    "whole",
]
