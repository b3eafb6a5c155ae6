"""Inside transformers' generate, several prompts at once: python examples/custom_generate.py [MODEL [DRAFTER]]."""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dynatree import DynaTree

name, *drafter = sys.argv[1:] or ["models/smollm2", "models/smollm2-drafter"]
# In its file's type, often bfloat16, there would be no graph for it.
model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(name)
inputs = tokenizer(["The tree", "A river by the hills"], return_tensors="pt", padding=True, padding_side="left")
options = {"max_new_tokens": 40, "do_sample": False, "repetition_penalty": 1.2}
plain = model.generate(**inputs, **options)
with DynaTree(model, tokenizer, *drafter) as tree:
    found = model.generate(**inputs, **options, custom_generate=tree)
print(*tokenizer.batch_decode(found, skip_special_tokens=True), sep="\n")
print("the same tokens as without:", found.equal(plain))
