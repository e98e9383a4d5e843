"""One copy of the weights for all ranks of a host: torchrun --nproc-per-node 2 shared_ranks.py PATH [DTYPE]

The first rank that gets there reads and casts the checkpoint into memory of the host. The others wait, and then map the
same memory. It goes away with the last process that uses it. A rank that writes into a tensor gets pages of its own.
"""

import sys

import torch
import torch.distributed as dist

import heft


def main() -> None:
    path, dtype = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "float32"
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    state = heft.load(path, dtype=dtype, share=True)

    # all ranks have equal weights ...
    total = torch.stack([tensor.double().sum() for tensor in state.values()]).sum()
    totals = [torch.zeros_like(total) for _ in range(dist.get_world_size())]
    dist.all_gather(totals, total)
    # ... and a write of one rank is its own
    first = next(iter(state.values()))
    before = first.clone()
    if rank == 0:
        first += 1
    dist.barrier()
    mine = "changed" if not torch.equal(first, before) else "unchanged"
    # in one write, so that lines of several ranks do not mix
    sys.stdout.write(f"rank {rank}: equal {all(torch.equal(t, total) for t in totals)}, {mine}\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
