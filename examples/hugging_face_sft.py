"""Fine-tune a chat model with 4-bit weights and activations in TRL's SFTTrainer.

Needs `pip install 'questlm[transformers]' trl`.
"""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import questlm
from questlm.integrations.transformers import QuantizationCallback


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, made here; one from AutoTokenizer.from_pretrained does as well."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<end>{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", chat_template=template
    )


torch.manual_seed(0)
shape = LlamaConfig(vocab_size=257, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
model = questlm.prepare(LlamaForCausalLM(shape), questlm.QuantSpec(weight_bits=4, act_bits=4))
talk = [{"role": "user", "content": "What is learned?"}, {"role": "assistant", "content": "A sentence, by heart."}]
settings = SFTConfig(
    "sft-output",
    max_steps=60,
    per_device_train_batch_size=1,
    learning_rate=3e-3,
    logging_steps=20,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
    bf16=False,
)
trainer = SFTTrainer(
    model,
    settings,
    train_dataset=Dataset.from_list([{"messages": talk}] * 60),
    processing_class=byte_tokenizer(),
    callbacks=[QuantizationCallback()],
)
trainer.train()
for entry in trainer.state.log_history[:-1]:
    print(f"step {entry['step']:2d}: loss {float(entry['loss']):.3f} nats/token")
