"""Show progress, and cancel: python progress_cancel.py SOURCE TARGET SECONDS

A progress function may raise any exception: heft stops, removes what it has written so far, and the exception goes on.
A Control-C does the same.
"""

import sys
import time

import heft


class TooLate(Exception):
    pass


def main() -> None:
    source, target, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    end = time.monotonic() + seconds

    def progress(what: str, done: int, total: int) -> None:  # called some 20 times a second
        print(f"\r{what}: {done} of {total} bytes", end="", file=sys.stderr)
        if time.monotonic() > end:
            raise TooLate

    try:
        report = heft.convert(source, target, dtype="float64", progress=progress)
    except TooLate:
        sys.exit("\ncancelled: nothing was written")
    print(f"\nwrote {report.total_size} bytes")


if __name__ == "__main__":
    main()
