"""Let a library read safetensors through heft: python patched.py FOLDER

Transformers stands for any library that opens safetensors files by itself. In the block, all of them read through heft;
afterwards they are what they were.
"""

import sys

import safetensors
from transformers import AutoModel

import heft


def main() -> None:
    before = safetensors.safe_open

    with heft.patched():
        assert safetensors.safe_open is not before
        model = AutoModel.from_pretrained(sys.argv[1])

    assert safetensors.safe_open is before
    print(type(model).__name__, "with", sum(p.numel() for p in model.parameters()), "parameters")


if __name__ == "__main__":
    main()
