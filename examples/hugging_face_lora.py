"""Train LoRA adapters beside frozen 4-bit layers: the adapters are not quantised.

Needs `pip install transformers peft`.
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import questlm

torch.manual_seed(0)
shape = LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
adapters = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", modules_to_save=["lm_head"])
model = get_peft_model(LlamaForCausalLM(shape), adapters)
questlm.prepare(model, questlm.QuantSpec(weight_bits=4, act_bits=4))  # the layers under the adapters
print(model.base_model.model.model.layers[0].mlp.up_proj)

tokens = torch.tensor([list(b"a sentence that is learned by heart, byte by byte. " * 3)])
optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=2e-2)
for step in range(61):
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 20 == 0:
        print(f"step {step:2d}: loss {loss.item():.3f} nats/token")
