"""Load a checkpoint in another dtype: python load_cast.py PATH [DTYPE]

Each tensor goes from its file into its new memory, cast on the way. The most memory that this takes is that of the
result; no second copy and no whole shard is ever there.
"""

import resource
import sys

import heft


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    path, dtype = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "bfloat16"
    import torch  # noqa: F401 - so that its own memory is there before

    before = peak_mib()
    state = heft.load(path, dtype=dtype)  # a folder, a file, an index, or org/name of the hub's cache

    size = sum(tensor.nbytes for tensor in state.values()) / 2**20
    print(f"{len(state)} tensors, {size:.2f} MiB as {dtype}")
    print(f"peak memory grew by {peak_mib() - before:.2f} MiB")


if __name__ == "__main__":
    main()
