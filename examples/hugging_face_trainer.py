"""Train a Hugging Face model with 2-bit weights in a Trainer. Quantisation fades in; CAGE pulls weights to their grid.

Needs `pip install 'questlm[transformers]'`.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import questlm
from questlm.integrations.transformers import QuantizationCallback
from questlm.training.recipes import Cage

torch.manual_seed(0)
shape = LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM(shape)  # a tiny one, made here; one from LlamaForCausalLM.from_pretrained does as well
questlm.prepare(model, questlm.QuantSpec(weight_bits=2, act_bits=16, gradual=0.5))

tokens = torch.tensor(list(b"a sentence that is learned by heart, byte by byte. " * 3))
rows = [{"input_ids": tokens, "labels": tokens}] * 60
settings = TrainingArguments(
    "trainer-output",
    max_steps=60,
    per_device_train_batch_size=1,
    learning_rate=3e-3,
    logging_steps=20,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
)
trainer = Trainer(model, settings, train_dataset=rows, callbacks=[QuantizationCallback([Cage(10.0)])])
trainer.train()
for entry in trainer.state.log_history[:-1]:
    print(f"step {entry['step']:2d}: loss {float(entry['loss']):.3f} nats/token")
