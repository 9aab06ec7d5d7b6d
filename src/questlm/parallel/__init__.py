"""Several processes that train one model: who they are, how they share it, and how they save it."""

from questlm.parallel.engine import (
    Engine,
    clip_gradients,
    compile_blocks,
    distribute,
    gathered,
    gradient_exchange,
    holding_weights,
    local_part,
    pick_engine,
    whole,
)
from questlm.parallel.ranks import LostPeerError, Ranks, connect, reporting_lost_peers
from questlm.parallel.recompute import recompute

__all__ = [
    "Engine",
    "LostPeerError",
    "Ranks",
    "clip_gradients",
    "compile_blocks",
    "connect",
    "distribute",
    "gathered",
    "gradient_exchange",
    "holding_weights",
    "local_part",
    "pick_engine",
    "recompute",
    "reporting_lost_peers",
    "whole",
]
