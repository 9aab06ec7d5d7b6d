"""Train a Hugging Face model with 4-bit weights and activations in a loop of accelerate.

Needs `pip install 'questlm[transformers]'`. On several GPUs: accelerate launch examples/hugging_face_accelerate.py
"""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import questlm

torch.manual_seed(0)
shape = LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
model = questlm.prepare(
    LlamaForCausalLM(shape), questlm.QuantSpec(weight_bits=4, act_bits=4)
)  # before accelerate sees it

tokens = torch.tensor(list(b"a sentence that is learned by heart, byte by byte. " * 3))
accelerator = Accelerator(gradient_accumulation_steps=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
model, optimizer, batches = accelerator.prepare(model, optimizer, DataLoader([tokens] * 82, batch_size=1))
for step, batch in enumerate(batches):
    with accelerator.accumulate(model):
        loss = model(input_ids=batch, labels=batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    if step % 40 == 0:
        accelerator.print(f"step {step // 2:2d}: loss {loss.item():.3f} nats/token")

print(type(accelerator.unwrap_model(model).model.layers[0].mlp.up_proj))
