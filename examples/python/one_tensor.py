"""List a checkpoint, and read a few rows of one tensor: python one_tensor.py PATH [NAME]

heft.open() reads headers only: this takes as long for 100 GB as for 100 MB. torch is not needed.
"""

import sys

import heft


def main() -> None:
    with heft.open(sys.argv[1]) as checkpoint:
        if len(sys.argv) == 2:
            for name, tensor in checkpoint.items():
                print(f"{name:50} {tensor.dtype:10} {list(tensor.shape)}")
            print(f"{len(checkpoint)} tensors, {checkpoint.nbytes} bytes in {len(checkpoint.files)} files")
            return
        tensor = checkpoint[sys.argv[2]]  # a KeyError if there is none
        rows = tensor[:2]  # lazy
        values = memoryview(rows.read("float32"))  # reads and casts these rows; a buffer, as numpy and torch take it
        print(f"{tensor.dtype} {list(tensor.shape)}")
        print(values.tolist())


if __name__ == "__main__":
    main()
