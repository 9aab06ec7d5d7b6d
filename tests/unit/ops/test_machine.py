"""What the machine can run, asked inside compiled code."""

from __future__ import annotations

import torch

from questlm.ops.machine import constant_when_compiled


def test_a_constant_is_marked_as_torch_marks_it() -> None:
    ours, theirs = constant_when_compiled(lambda: 3), torch.compiler.assume_constant_result(lambda: 3)
    assert vars(ours) == vars(theirs) != {}
