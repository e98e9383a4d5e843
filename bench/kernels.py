#!/usr/bin/env python3
"""Products on one thread: heft's kernels and PyTorch, one after the other.

    python3 bench/kernels.py [ISA]

Needs torch and the built `kernels`. A 5632 x 2048 matrix; GB/s of weights for one token, else Gflop/s, by the least processor time of the thread.
Weights rotate over 256 MiB.
"""

import os
import subprocess
import sys
import time

import torch

BUILD = os.environ.get("HEFT_BUILD", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "build", "release"))
ROWS, COLUMNS, ROOM = 5632, 2048, 256 << 20
TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 512)


def rate(weights, tokens):
    x = torch.rand(tokens, COLUMNS).to(weights[0].dtype)
    best = 1e9
    for run in range(24 if tokens < 64 else 5):
        begin = time.thread_time()
        torch.nn.functional.linear(x, weights[run % len(weights)])
        best = min(best, time.thread_time() - begin)
    size = weights[0].numel() * weights[0].element_size()
    return (size if tokens == 1 else 2 * ROWS * COLUMNS * tokens) / best * 1e-9


def main():
    subprocess.run([os.path.join(BUILD, "kernels"), *sys.argv[1:]], check=True)
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.bfloat16):
        copies = ROOM // (ROWS * COLUMNS * dtype.itemsize)
        weights = [torch.rand(ROWS, COLUMNS).to(dtype) for _ in range(copies)]
        rates = " ".join("%6.1f" % rate(weights, tokens) for tokens in TOKENS)
        print("%-12s %-17s %s" % ("torch", str(dtype)[6:], rates), flush=True)
    print("torch", torch.__version__, "load average", os.getloadavg())


if __name__ == "__main__":
    main()
