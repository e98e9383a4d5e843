"""Run a model: python run.py PATH PROMPT [MEMORY]

Continues a prompt, which is a text or ids such as 5,9,20, and prints each token as soon as it is chosen. With a MEMORY
that is smaller than the model, such as 2GB, weights stay in their files and are read as they are needed: the tokens are
the same. Needs neither torch nor numpy.
"""

import sys

import heft
import heft.run


def main() -> None:
    path, prompt = sys.argv[1:3]
    memory = sys.argv[3] if len(sys.argv) > 3 else None
    ids = [int(part) for part in prompt.split(",")] if prompt.replace(",", "").isdigit() else None
    try:
        with heft.run.Session(path, memory=memory) as session:
            for piece in session.stream(prompt if ids is None else ids, max_new_tokens=16, ignore_eos=True):
                print(f"{piece.id} " if piece.text is None else piece.text, end="", flush=True)
            print()
            facts = session.facts
            print(f"{facts.passes} passes, {facts.read_bytes} bytes read, {facts.peak_bytes} at most", file=sys.stderr)
    except heft.HeftError as error:
        sys.exit(f"{error.status}: {error}")


if __name__ == "__main__":
    main()
