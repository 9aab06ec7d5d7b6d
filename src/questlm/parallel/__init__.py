"""Training one model on several processes: communication, DDP and FSDP2, sharded checkpoints."""

from questlm.parallel.activation_checkpointing import checkpoint_activations
from questlm.parallel.engine import (
    Engine,
    clip_gradients,
    compile_blocks,
    distribute,
    full_tensor,
    gathered,
    gradient_exchange,
    local_shard,
    pick_engine,
    weight_cache,
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
    "full_tensor",
    "gathered",
    "gradient_exchange",
    "local_shard",
    "pick_engine",
    "reporting_lost_peers",
    "weight_cache",
]
