"""Quantise a Hugging Face Llama, train it for a few steps, and make it a plain one again.

Needs `pip install transformers`.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import questlm

torch.manual_seed(0)
shape = LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM(shape)  # a tiny one, made here; one from LlamaForCausalLM.from_pretrained does as well
questlm.prepare(model, questlm.QuantSpec(weight_bits=4, act_bits=4))  # all linear layers but the output head

tokens = torch.tensor([list(b"a sentence that is learned by heart, byte by byte. " * 3)])
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(21):
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 0:
        print(f"step {step:2d}: loss {loss.item():.3f} nats/token")

questlm.restore(model)  # a plain LlamaForCausalLM, ready for save_pretrained
print(type(model.model.layers[0].mlp.up_proj))
