"""Quantise any module's linear layers, train it, and take the quantisation off again."""

import torch
from torch import nn

import questlm

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 1))
questlm.prepare(model, questlm.QuantSpec(weight_bits=2, act_bits=4))  # in place: any nn.Linear, anywhere inside
print(model)

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
x = torch.randn(256, 32)
y = x[:, :1] * x[:, 1:2]
for step in range(101):
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 50 == 0:
        print(f"step {step:3d}: loss {loss.item():.4f}")

questlm.restore(model)  # plain layers again, with the weights that were trained
print(model)
