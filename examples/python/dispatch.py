"""Run a model that is larger than its memory: python dispatch.py FOLDER MEMORY

The plan says which modules stay in memory. The others are read from the checkpoint's own files whenever they run: no copy
of the weights is written anywhere.
"""

import sys

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

import heft


def main() -> None:
    folder, memory = sys.argv[1:3]
    plan = heft.plan(folder, max_memory={"cpu": memory, "disk": "1TB"}, strategy="sequential")
    on_disk = [name for name, device in plan.device_map.items() if device == "disk"]
    print(f"on disk: {', '.join(on_disk)}: {plan.disk_bytes} bytes")

    config = AutoConfig.from_pretrained(folder)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    model.tie_weights()
    model = heft.load_checkpoint_and_dispatch(model, folder, device_map=plan.device_map)

    with torch.no_grad():
        logits = model(torch.arange(8)[None]).logits
    print("next token:", logits[0, -1].argmax().item())


if __name__ == "__main__":
    main()
