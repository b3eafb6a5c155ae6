"""A model of your own, loaded as usual: python examples/own_model.py [MODEL [DRAFTER]], folders or names of the hub."""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dynatree import DynaTree

name, *drafter = sys.argv[1:] or ["models/smollm2", "models/smollm2-drafter"]
# In its file's type, often bfloat16, there would be no graph for it.
model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(name)
inputs = tokenizer("The aardwolf is a small mammal", return_tensors="pt")
plain = model.generate(**inputs, max_new_tokens=60, do_sample=False)[0, inputs["input_ids"].shape[1] :]
with DynaTree(model, tokenizer, *drafter) as tree:
    tree.calibrate()  # about a minute, once: it is kept for the next time
    found = tree.generate("The aardwolf is a small mammal", max_new_tokens=60)
print(found)
print("the same tokens as model.generate:", found.tokens == plain.tolist())
