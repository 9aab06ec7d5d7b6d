"""Training: from a RunConfig to a run folder with checkpoints and a record.

`run.py` holds `train` and `resume`; they build a model and tokens (`build.py`), prepare the first step (`start.py`) and
hand over to the loop (`loop.py`). What a checkpoint holds is in `state.py`.
"""

from questlm.parallel import LostPeerError
from questlm.training.build import load_run
from questlm.training.interrupt import Interrupted
from questlm.training.loop import Trainer
from questlm.training.run import resume, train
from questlm.training.run_folder import RunFolder

__all__ = ["Interrupted", "LostPeerError", "RunFolder", "Trainer", "load_run", "resume", "train"]
