"""Questlm inside other people's libraries. Each module here needs the library that it is named after.

questlm.integrations.transformers  packed models in `AutoModelForCausalLM`, training by `Trainer`
"""
