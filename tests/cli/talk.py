"""A conversation with `heft run --chat` on a pseudo terminal: what test_talk.sh calls.

talk.py HEFT MODEL LONG: the models have a tokenizer and a chat template; LONG has positions for thousands of tokens. stdin and stderr are
the terminal, stdout is a pipe.
"""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

heft, model, long_model = sys.argv[1:4]


class Talk:
    def __init__(self, folder, *arguments):
        self.terminal, child = pty.openpty()
        self.process = subprocess.Popen([heft, "run", folder, "--chat", "-v", *arguments], stdin=child, stdout=subprocess.PIPE, stderr=child,
                                        start_new_session=True, preexec_fn=lambda: __import__("fcntl").ioctl(0, 0x540E, 0))  # TIOCSCTTY
        os.close(child)
        self.shown = self.said = ""

    def read(self, seconds=0.05):
        files = [self.terminal, self.process.stdout.fileno()]
        for file in select.select(files, [], [], seconds)[0]:
            try:
                text = os.read(file, 65536).decode(errors="replace")
            except OSError:  # the other side has closed the terminal
                text = ""
            if file == self.terminal:
                self.shown += text
            else:
                self.said += text
            if not text:
                time.sleep(0.01)

    def wait(self, done, what):
        end = time.monotonic() + 120
        while not done():
            if time.monotonic() > end:
                self.process.kill()
                raise SystemExit(f"{what} did not come: shown {self.shown!r}, said {self.said!r}")
            self.read()

    def prompt(self):
        self.wait(lambda: self.shown.endswith("> "), "a prompt")

    def ask(self, text):
        """The answer, and (tokens in the cache, tokens computed)."""
        self.prompt()
        before, self.shown = self.said, ""
        self.type(text + "\n")
        self.prompt()
        self.read()
        counts = re.search(r"(\d+) tokens in the cache, (\d+) computed", self.shown)
        return self.said[len(before):], tuple(map(int, counts.groups())) if counts else None

    def type(self, text):
        os.write(self.terminal, text.encode("latin-1") if isinstance(text, str) else text)

    def leave(self, key="\x04"):
        if key:
            self.type(key)
        self.wait(lambda: self.process.poll() is not None, "the end")
        self.read(0.2)
        return self.process.returncode


def once(folder, prompt, *arguments):
    return subprocess.run([heft, "run", folder, "--prompt", prompt, "-q", *arguments], capture_output=True, check=True, text=True).stdout


def tokens(folder, prompt):
    text = subprocess.run([heft, "run", folder, "--prompt", prompt, "--json", "--new-tokens", "0"], capture_output=True, check=True, text=True).stdout
    return int(re.search(r'"logits_shape": \[1, (\d+), ', text)[1])


def check(good, what):
    if not good:
        raise SystemExit(what)


def a_conversation_is_that_of_its_text(*arguments):
    talk = Talk(long_model, "--new-tokens", "5", "--ignore-eos", "--system", "b", *arguments)
    text = "system b user a cat the"
    first, counts = talk.ask("a cat")
    check(first == once(long_model, text, "--new-tokens", "5", "--ignore-eos"), f"the first answer: {first!r}")
    check(counts == (0, tokens(long_model, text)), f"the first turn computed {counts}")
    done = counts[1] + 4
    text = f"{text[:-3]}assistant {first[:-1]} user the the"
    second, counts = talk.ask("the")
    check(second == once(long_model, text, "--new-tokens", "5", "--ignore-eos"), f"the second answer: {second!r}")
    check(sum(counts) == tokens(long_model, text), f"the second turn has {counts}")
    check(0 < counts[0] <= done, f"the second turn kept {counts[0]} of {done}")
    check(talk.leave() == 0, "Ctrl-D does not leave with 0")
    check("generation " in talk.shown, talk.shown)


def what_a_template_writes_anew_is_computed_anew():
    path = os.path.join(long_model, "chat_template.jinja")
    with open(path) as file:
        before = file.read()
    with open(path, "w") as file:  # answers are not in the text of later turns
        file.write(before.replace("{{ m.role }} {{ m.content }} ", "{% if m.role == 'user' %}user {{ m.content }} {% endif %}"))
    talk = Talk(long_model, "--new-tokens", "5", "--ignore-eos")
    first, counts = talk.ask("a cat")
    done = counts[1]
    text = "user a cat user the the"
    second, counts = talk.ask("the")
    check(second == once(long_model, text, "--new-tokens", "5", "--ignore-eos"), f"the answer after other text: {second!r}")
    check(sum(counts) == tokens(long_model, text) and 0 < counts[0] < done, f"of {done} tokens, {counts} are kept and computed")
    check(talk.leave() == 0, "exit code")
    with open(path, "w") as file:
        file.write(before)


def an_interrupt_stops_the_answer():
    talk = Talk(long_model, "--new-tokens", "100000", "--ignore-eos")
    talk.prompt()
    talk.shown = ""
    talk.type("a cat\n")
    talk.wait(lambda: len(talk.said) > 20, "an answer")
    talk.type("\x03")
    talk.prompt()
    check(talk.process.poll() is None, "an interrupt ends the program")
    said = len(talk.said)
    time.sleep(0.2)
    talk.read()
    check(said + 1 >= len(talk.said), "the answer goes on")
    check(talk.said.endswith("\n"), "the answer has no end")
    talk.type("the\n")
    # what goes to the terminal may come later than what went to stdout after it
    talk.wait(lambda: len(talk.said) > said + 20 and talk.shown.count(" tokens in the cache") > 1, "another answer")
    counts = re.findall(r"(\d+) tokens in the cache", talk.shown)
    check(int(counts[-1]) > 0, "what was said before the interrupt is computed again")
    talk.type("\x03")
    talk.shown = ""
    talk.prompt()
    check(talk.leave("\x03") == 0, "an interrupt at the prompt does not leave with 0")


def a_signal_ends_the_program():
    for signals, code in (((signal.SIGTERM,), 12), ((signal.SIGHUP,), 12)):
        talk = Talk(long_model, "--new-tokens", "100000", "--ignore-eos")
        talk.prompt()
        talk.type("a cat\n")
        talk.wait(lambda: len(talk.said) > 20, "an answer")
        for number in signals:
            talk.process.send_signal(number)
        check(talk.leave(None) == code, f"{signals}: exit {talk.process.returncode}")


def what_is_refused_is_not_kept():
    talk = Talk(model, "--new-tokens", "4")
    answer, counts = talk.ask("\xff")
    check(answer == "" and counts is None and "not UTF-8" in talk.shown, f"{answer!r} {talk.shown!r}")
    answer, counts = talk.ask("a cat")
    check(answer == once(model, "user a cat the", "--new-tokens", "4"), f"an answer after a refusal: {answer!r}")
    answer, counts = talk.ask("")  # no message
    check(answer == "" and counts is None, f"{answer!r} {counts}")
    answer, counts = talk.ask("a cat " * 60)
    check(answer == "" and "64 positions" in talk.shown, f"a text that is too long: {talk.shown!r}")
    answer, counts = talk.ask("a")
    check(counts[0] > 0, f"after a refusal {counts} are in the cache")
    check(talk.leave() == 0, "exit code")


def a_conversation_ends_with_its_positions():
    talk = Talk(model, "--new-tokens", "1000", "--ignore-eos")
    answer, counts = talk.ask("a cat")
    check("no room for a longer conversation" in talk.shown, talk.shown)
    check(counts[1] < 64, f"{counts}")
    answer, counts = talk.ask("the")
    check(answer == "", f"an answer beyond the last position: {answer!r}")
    check(talk.leave() == 0, "exit code")


a_conversation_is_that_of_its_text()
a_conversation_is_that_of_its_text("--memory", "64MB")
what_a_template_writes_anew_is_computed_anew()
an_interrupt_stops_the_answer()
a_signal_ends_the_program()
what_is_refused_is_not_kept()
a_conversation_ends_with_its_positions()
