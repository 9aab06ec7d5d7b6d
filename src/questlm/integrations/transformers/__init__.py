"""Packed models in the transformers library: importing this package registers them.

    import questlm.integrations.transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("model/")  # a folder that `quest pack` wrote
    tokenizer = AutoTokenizer.from_pretrained("model/")

Needs `pip install questlm[transformers]`.
"""

from questlm.integrations.transformers.quantizer import QuestlmConfig, QuestlmQuantizer

__all__ = ["QuestlmConfig", "QuestlmQuantizer"]
