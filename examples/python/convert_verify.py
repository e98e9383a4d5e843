"""Cast, reshard and verify a checkpoint: python convert_verify.py SOURCE TARGET [DTYPE]

The checkpoint may be larger than memory: both steps take a fixed amount. The target is there whole, or not at all.
"""

import sys

import heft


def main() -> None:
    source, target = sys.argv[1:3]
    dtype = sys.argv[3] if len(sys.argv) > 3 else "float16"

    try:
        report = heft.convert(source, target, dtype=dtype, max_shard_size="100KB")
    except FileExistsError as error:  # a heft.ExistsError; force=True replaces what is there
        sys.exit(str(error))
    for file in report.files:
        print(f"{file['name']}: {file['tensors']} tensors, {file['size_bytes']} bytes")

    checked = heft.verify(target, deep=True)  # every byte: checksums, NaN, infinities
    for problem in checked.problems:
        print(problem.kind, problem.file, problem.tensor, problem.message)
    print("valid" if checked else "not valid", f"{checked.tensors} tensors, {checked.bytes_read} bytes read")
    sys.exit(0 if checked else 1)


if __name__ == "__main__":
    main()
