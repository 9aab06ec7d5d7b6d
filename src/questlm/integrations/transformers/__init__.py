"""Packed models and quantised training in the transformers library: importing this package registers packed models.

    import questlm.integrations.transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("model/")  # a folder that `quest pack` wrote
    tokenizer = AutoTokenizer.from_pretrained("model/")

`QuantizationCallback` fades quantisation in and calls recipes while a `Trainer` trains a prepared model.

Needs `pip install questlm[transformers]`.
"""

from questlm.integrations.transformers.callback import QuantizationCallback
from questlm.integrations.transformers.quantizer import QuestlmConfig, QuestlmQuantizer

__all__ = ["QuantizationCallback", "QuestlmConfig", "QuestlmQuantizer"]
