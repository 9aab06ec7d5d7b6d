"""How fast packed models are on this machine's CPU, beside the same shapes in float32."""

from questlm.bench.layers import layer_speed
from questlm.bench.models import decode_speed, prefill_speed
from questlm.bench.text import TextSpeed, text_speed
from questlm.bench.timing import Comparison, SpeedReport

__all__ = ["Comparison", "SpeedReport", "TextSpeed", "decode_speed", "layer_speed", "prefill_speed", "text_speed"]
