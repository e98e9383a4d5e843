"""``python -m heft``: the command, which comes with the package."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig


def _command() -> str | None:
    """Find the command that was installed with this package; then any on PATH."""
    from importlib import metadata

    try:
        for file in metadata.files("libheft") or ():
            if file.name == "heft" and file.parent.name == "bin":
                path = str(file.locate())
                if os.access(path, os.X_OK):
                    return path
    except metadata.PackageNotFoundError:
        pass
    path = os.path.join(sysconfig.get_path("scripts"), "heft")
    return path if os.access(path, os.X_OK) else shutil.which("heft")


def main() -> None:
    """Become the command."""
    command = _command()
    if command is None:
        sys.exit("python -m heft: the command heft is not installed")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command, ["heft", *sys.argv[1:]])


if __name__ == "__main__":
    main()
