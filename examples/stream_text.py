"""Load a packed model and print its text as it comes: python examples/stream_text.py ARTIFACT [PROMPT]"""

import sys

import questlm

folder, prompt = sys.argv[1], " ".join(sys.argv[2:]) or "def "
options = questlm.GenerationOptions(max_new_tokens=100, temperature=0.8, seed=0)
model = questlm.load(folder)  # imports no training code
print(prompt, end="")
for piece in model.stream(prompt, options):
    print(piece, end="", flush=True)
print(f"\n\n({model.bytes:,} bytes on disk, {model.config.parameters:,} parameters)")
