from __future__ import annotations

import pytest

from questlm.errors import ConfigError
from questlm.serving.limits import Limits


def test_limits_are_checked() -> None:
    assert Limits().sequences == 8
    with pytest.raises(ConfigError, match="sequences = 0 cannot be used"):
        Limits(sequences=0)
    with pytest.raises(ConfigError, match="Did you mean 'queue'"):
        Limits(queues=1)
