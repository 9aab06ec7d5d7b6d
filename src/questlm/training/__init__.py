"""Training: from a RunConfig to a run folder with checkpoints and a record."""

from questlm.parallel import LostPeerError
from questlm.training.loop import Interrupted, Trainer, resume, train
from questlm.training.run_folder import RunFolder, load_run

__all__ = ["Interrupted", "LostPeerError", "RunFolder", "Trainer", "load_run", "resume", "train"]
