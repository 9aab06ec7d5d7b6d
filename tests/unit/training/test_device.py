"""What a run says of the device that it trains on."""

from __future__ import annotations

import pytest
import torch

from questlm.errors import TrainingError
from questlm.training.device import reporting_failed_gpu


def test_an_error_of_the_gpu_is_one_sentence_with_its_reason_and_the_way_on() -> None:
    wrong = "CUDA error: unspecified launch failure\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
    with (
        pytest.raises(TrainingError, match=r"unspecified launch failure; continue with this$") as caught,
        reporting_failed_gpu(torch.device("cuda:1"), "continue with this"),
    ):
        raise torch.AcceleratorError(wrong)
    assert "cuda:1" in str(caught.value)
    assert "CUDA_LAUNCH_BLOCKING" not in str(caught.value)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes do"), reporting_failed_gpu(torch.device("cuda"), "continue"):
        raise RuntimeError("shapes do not fit")
