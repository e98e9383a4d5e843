"""Read the part of a tensor that one rank needs: python rank_slice.py PATH NAME DIM RANK SIZE

In tensor parallelism, a linear layer is split by rows (dimension 0) or columns (dimension 1). heft reads the bytes of the
part alone: a part by rows is one piece of the file, and is mapped without being read.
"""

import sys

import heft


def main() -> None:
    path, name = sys.argv[1:3]
    dim, rank, size = map(int, sys.argv[3:6])

    with heft.open(path) as checkpoint:
        whole = checkpoint[name]
        part = whole.slice(dim, rank, size)  # lazy, and divided as by torch.chunk()
        tensor = part.torch()  # torch("float32") would cast it, too

    # the checkpoint is closed; the tensor keeps only its own bytes
    print(f"{name} {list(whole.shape)}: rank {rank} of {size} has {list(tensor.shape)}, {tensor.nbytes} of {whole.nbytes} bytes")
    print("sum", tensor.double().sum().item())


if __name__ == "__main__":
    main()
