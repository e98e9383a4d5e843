#!/usr/bin/env python3
"""Running models: heft compared with llama.cpp, Transformers, Accelerate, AirLLM and the machine's limits, in one run.

    python3 bench/run_models.py [--only PART] [--repeats 3] [--quick] [--minutes 15] [--data DIR] [--out FILE.json]
    python3 bench/run_models.py --prepare [--quick]    only what is needed once: environments, models

Parts:
    limits     memory that all threads read, products of the kernels, the disk around the page cache
    generate   a prompt of 128 tokens and single tokens, everything in memory: a Llama with 1.1 billion weights in bfloat16
    encode     BERT-base in float32, 8 sequences of 128 tokens
    streamed   the same Llama with 0.6 GB for it, its files cold
    mixture    a Mixtral of 4 GB in 1 GB: bytes read for each token
    predicted  seconds and memory that `heft run` predicts beside those that it takes: 12 settings
    cgroup     `heft run --memory` in a control group with just as much memory: is it killed?

Every run is a process of its own; the compared programs take turns, and no load is counted. Models have random weights and are made once, in --data
(default: heft/bench in the user's cache folder), as are the environments with llama-cpp-python (built from its source package) and AirLLM; the
others are in the environment of the interoperability tests (tests/interop/run), or in the Python that runs this. --prepare takes about an hour of one
core and 20 GB. What is missing is left out, and said. With --minutes, no repeat is begun after that time, but each part runs once.

Columns: the best and the median of all runs, in seconds or as a rate; figures are of medians, with those of the best in brackets.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time

import run

HERE = os.path.dirname(os.path.abspath(__file__))
GB = run.GB
BENCH = os.path.join(run.BUILD, "bench_run")
PEERS = os.path.join(HERE, "run_peers.py")
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "heft")
SECONDS_MOST = 300  # of one process
PROMPT, BATCHES = 128, (1, 8, 32)
ENCODED = (8, 128)  # sequences, tokens of each
STREAMED_PART, MIXTURE_PART = 0.6 / 2.2, 1.0 / 4.1  # of the weights, in memory
SPARE_BYTES = 32_000_000  # for page tables of a mapping
CGROUP_PARTS = (0.14, STREAMED_PART, 0.5, 0.8, 0.97, 1.02, 1.1)
LLAMACPP, AIRLLM = "llama-cpp-python==0.3.36", "airllm==4.0.0"
AIRLLM_WITH = ["transformers==5.23.0", "accelerate==1.15.0"]
TORCH = "torch==2.13.0"


class Failed(Exception):
    """A process that ended without an answer, with its last words."""


class Killed(Failed):
    """A process that the kernel ended."""


# ---- models ------------------------------------------------------------------------------------------------------------------
def example(name):
    with open(os.path.join(run.ROOT, "examples", name, "config.json"), encoding="utf-8") as file:
        return json.load(file)


def configs(quick):
    """Name of a folder: config and options of `heft init`."""
    llama, bert = example("llama-1.1b"), dict(example("bert-base-cased"), architectures=["BertModel"])
    mixtral = dict(llama, architectures=["MixtralForCausalLM"], model_type="mixtral", hidden_size=1024, intermediate_size=3584,
                   num_attention_heads=16, num_local_experts=8, num_experts_per_tok=2, output_router_logits=False, sliding_window=None)
    if not quick:
        return {"llama": llama, "bert": bert, "mixtral": mixtral}
    return {"llama-quick": dict(llama, num_hidden_layers=6, vocab_size=4000), "bert-quick": dict(bert, num_hidden_layers=2),
            "mixtral-quick": dict(mixtral, num_hidden_layers=4, vocab_size=4000)}


def make_model(data, name, config):
    folder = os.path.join(data, name)
    if not os.path.exists(os.path.join(folder, "model.safetensors")):
        path = os.path.join(data, name + ".config.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        subprocess.run([run.HEFT, "init", path, folder, "-q", "--force"], check=True)
        os.remove(path)
    return folder


class Model:
    def __init__(self, folder):
        self.folder, self.file = folder, os.path.join(folder, "model.safetensors")
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            self.config = json.load(file)
        with open(self.file, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        self.tensors = {name: facts for name, facts in header.items() if name != "__metadata__"}
        self.bytes = sum(end - first for first, end in (facts["data_offsets"] for facts in self.tensors.values()))
        embedding = next(facts for name, facts in self.tensors.items() if "embed_tokens" in name or "word_embeddings" in name)
        first, end = embedding["data_offsets"]
        self.pass_bytes = self.bytes - (end - first)  # that a pass reads, but for rows of the embedding
        self.expert_bytes = sum(facts["data_offsets"][1] - facts["data_offsets"][0] for name, facts in self.tensors.items() if ".experts." in name)

    def flops(self, sequences, tokens, causal):
        """Of the products with weights, the head for one token, and attention."""
        total = 0
        for name, facts in self.tensors.items():
            if len(facts["shape"]) != 2 or "embed" in name or "pooler" in name:
                continue
            total += 2 * facts["shape"][0] * facts["shape"][1] * (1 if name.startswith("lm_head") else tokens)
        keys = (tokens + 1) / 2 if causal else tokens
        total += 4 * tokens * keys * self.config["hidden_size"] * self.config["num_hidden_layers"]
        return sequences * total


# ---- other libraries ---------------------------------------------------------------------------------------------------------
def interop_python():
    venv = os.environ.get("HEFT_INTEROP_VENV", os.path.join(CACHE, "interop-venv"))
    python = os.path.join(venv, "bin", "python")
    return python if os.path.exists(python) else sys.executable


def has(python, package):
    return os.path.exists(python) and subprocess.run([python, "-c", f"import {package}"], capture_output=True).returncode == 0


def venv_python(data, name):
    return os.path.join(data, name + "-venv", "bin", "python")


def make_venv(data, name, package, *installs, **environment):
    python = venv_python(data, name)
    if has(python, package):
        return
    print(f"making the environment of {name}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", os.path.dirname(os.path.dirname(python))], check=True)
    for words in installs:
        subprocess.run([python, "-m", "pip", "--quiet", "install", *words], check=True, env=dict(os.environ, **environment))


def prepare_environments(data):
    make_venv(data, "airllm", "airllm", [TORCH], [AIRLLM, *AIRLLM_WITH])
    make_venv(data, "llamacpp", "llama_cpp", ["--no-binary", "llama-cpp-python", LLAMACPP, "gguf"], CMAKE_ARGS="-DLLAVA_BUILD=OFF")


def prepare_files(data, quick):
    """Returns the models by kind, with those in the formats of other libraries where these are there."""
    models = {}
    for name, config in configs(quick).items():
        models[name.split("-")[0]] = Model(make_model(data, name, config))
    folder = models["llama"].folder
    models["gguf"], models["layers"] = folder + ".gguf", folder + "-airllm"
    if not os.path.exists(models["gguf"]) and has(venv_python(data, "llamacpp"), "gguf"):
        subprocess.run([venv_python(data, "llamacpp"), PEERS, "gguf", folder, models["gguf"] + ".part"], check=True)
        os.rename(models["gguf"] + ".part", models["gguf"])
    return models


# ---- processes ---------------------------------------------------------------------------------------------------------------
class Group:
    """A control group with a limit of memory; of either version."""

    def __init__(self, limit):
        self.limit = limit
        self.new = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
        self.path = os.path.join("/sys/fs/cgroup", "" if self.new else "memory", f"heft-bench-{os.getpid()}")

    def write(self, name, value):
        with open(os.path.join(self.path, name), "w") as file:
            file.write(str(value))

    def read(self, name):
        with open(os.path.join(self.path, name)) as file:
            return file.read()

    def __enter__(self):
        if self.new:
            with open("/sys/fs/cgroup/cgroup.subtree_control", "w") as file:
                file.write("+memory")
        os.mkdir(self.path)
        if self.new:
            self.write("memory.max", self.limit)
            self.write_if_there("memory.swap.max", 0)
        else:
            self.write("memory.limit_in_bytes", self.limit)
            self.write_if_there("memory.memsw.limit_in_bytes", self.limit)
        return self

    def write_if_there(self, name, value):
        try:
            self.write(name, value)
        except OSError:
            pass  # a kernel that does not count swap

    def __exit__(self, *_):
        for _ in range(50):
            try:
                os.rmdir(self.path)
                return
            except OSError:
                time.sleep(0.1)  # the last process is ending

    def command(self, words):
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', os.path.join(self.path, "cgroup.procs"), *words]

    def facts(self):
        names = ("memory.peak", "memory.events") if self.new else ("memory.max_usage_in_bytes", "memory.oom_control")
        facts = {"group_peak": None, "group_kills": 0}
        try:
            facts["group_peak"] = int(self.read(names[0]))
        except OSError:
            pass  # older than Linux 5.19
        for line in self.read(names[1]).splitlines():
            if line.startswith("oom_kill "):
                facts["group_kills"] = int(line.split()[1])
        return facts


def groups_work():
    """None, or why a control group cannot be made."""
    try:
        with Group(64 << 20) as group:
            subprocess.run(group.command(["true"]), check=True, capture_output=True)
        return None
    except (OSError, subprocess.CalledProcessError) as error:
        return str(error)


def case(command, limit=None, text=None):
    """Run a process, in a control group if there is a limit, and return its line or document of JSON."""
    if limit is not None:
        with Group(limit) as group:
            answer = case(group.command(command), text=text)
            return dict(answer, **group.facts())
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=SECONDS_MOST)
    except subprocess.TimeoutExpired:
        raise Failed(f"no answer within {SECONDS_MOST} s") from None
    if done.returncode in (-9, 137):
        raise Killed("killed by the kernel")
    if done.returncode != 0:
        raise Failed(f"exit code {done.returncode}: {last_words(done)}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def last_words(done):
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    try:
        error = json.loads(lines[-1])["error"]
        return f"{error['item']}: {error['message']}"
    except (ValueError, KeyError, TypeError, IndexError):
        return lines[-1][-200:] if lines else "no message"


def heft_run(model, tokens, batch=1, memory=None, limit=None, prompt=4, extra=()):
    """`heft run` on sequences of different random ids."""
    words = [run.HEFT, "run", model.folder, "--ids", "-", "--new-tokens", str(tokens), "--ignore-eos", "--json", *extra]
    if memory:
        words += ["--memory", str(int(memory))]
    lines = [",".join(str(5 + (i * 7919 + t * 104729 + 13) % 2900) for t in range(prompt)) for i in range(batch)]
    return case(words, limit, "\n".join(lines) + "\n")


def read_rate(model, most=1 * GB):
    """GB/s of reads around the page cache."""
    return case([BENCH, "read", model.file, str(int(most))])["rate"]


# ---- results -----------------------------------------------------------------------------------------------------------------
class Part:
    """Rows of measured values, figures made of them, and notes."""

    def __init__(self, name, title):
        self.name, self.title = name, title
        self.rows, self.figures, self.notes, self.runs = {}, [], [], {}
        self.load, self.kills = [os.getloadavg()[0]], 0

    def add(self, row, values, unit="s"):
        values = values if isinstance(values, list) else [values]
        self.rows.setdefault(row, {"unit": unit, "values": []})["values"] += values

    def try_case(self, row, function):
        """Call what runs a process; a failure is a note, once."""
        try:
            answer = function()
        except Failed as failed:
            self.kills += isinstance(failed, Killed)
            note = f"{row}: {failed}"
            if note not in self.notes:
                self.notes.append(note)
            return None
        self.runs.setdefault(row, []).append(answer)
        return answer

    def best(self, row):
        """The least of seconds, the most of a rate."""
        choose = max if "/s" in self.rows[row]["unit"] else min
        return choose(self.rows[row]["values"])

    def middle(self, row):
        return statistics.median(self.rows[row]["values"])

    def figure(self, what, value, against, goal="", best=None):
        if value is not None:
            self.figures.append({"what": what, "value": value, "against": against, "goal": goal, "of_best": best})

    def times(self, own, other, goal=""):
        """How many times as long as heft the other takes."""
        if own in self.rows and other in self.rows:
            self.figure(f"{other} / {own}", self.middle(other) / self.middle(own), "the other library's seconds", goal,
                        self.best(other) / self.best(own))

    def finish(self):
        self.load.append(os.getloadavg()[0])
        print(f"\n### {self.name}: {self.title}\n\nLoad average: {self.load[0]:.1f} before, {self.load[1]:.1f} after.\n")
        print("| | best | median | unit | values |\n| --- | --- | --- | --- | --- |")
        for name, row in self.rows.items():
            print(f"| {name} | {self.best(name):.4g} | {self.middle(name):.4g} | {row['unit']} | {len(row['values'])} |")
        if self.figures:
            print("\n| figure | value | compared with | goal |\n| --- | --- | --- | --- |")
        for f in self.figures:
            value = f["value"] if isinstance(f["value"], str) else f"{f['value']:.3g}"
            best = f" ({f['of_best']:.3g})" if f["of_best"] is not None else ""
            print(f"| {f['what']} | {value}{best} | {f['against']} | {f['goal']} |")
        for note in self.notes:
            print(f"\n- {note}")
        sys.stdout.flush()
        return {key: getattr(self, key) for key in ("name", "title", "load", "rows", "figures", "notes", "runs")}


class Bench:
    def __init__(self, options, data, models):
        self.data, self.models, self.quick = data, models, options.quick
        self.repeats = 1 if options.quick else options.repeats
        self.deadline = time.monotonic() + options.minutes * 60
        self.python = interop_python()
        self.llamacpp, self.airllm = venv_python(data, "llamacpp"), venv_python(data, "airllm")
        self.no_groups = groups_work()

    def rounds(self):
        """Once, and again while there is time."""
        for i in range(self.repeats):
            if i == 0 or time.monotonic() < self.deadline:
                yield i

    def peer(self, python, *words, limit=None):
        return case([python, PEERS, *(str(word) for word in words)], limit)


# ---- parts: everything in memory -----------------------------------------------------------------------------------------------
MEMORY, PRODUCTS, DISK = "limit: memory read by all threads", "limit: products of 128 tokens, ", "limit: direct reads"


def add_limits(b, part, dtype):
    for row, words in ((MEMORY, ["memory"]), (PRODUCTS + dtype, ["products", dtype])):
        answer = part.try_case(row, lambda words=words: case([BENCH, *words]))
        if answer:
            part.add(row, answer["rate"], "GB/s" if row == MEMORY else "Gflop/s")


def part_limits(b):
    part = Part("limits", "what the machine can do")
    for _ in b.rounds():
        add_limits(b, part, "bfloat16")
        add_limits(b, part, "float32")
        part.add(DISK, read_rate(b.models["llama"]), "GB/s")
    return part


def generate_cases(b):
    model, count = b.models["llama"], [PROMPT, 6 if b.quick else 24, 2 if b.quick else 3]
    yield "heft", lambda: case([BENCH, "generate", model.folder, *map(str, count)])
    if os.path.exists(b.models["gguf"]):
        yield "llama.cpp", lambda: b.peer(b.llamacpp, "llamacpp", b.models["gguf"], *count)
    yield "Transformers", lambda: b.peer(b.python, "transformers", model.folder, *count)


def part_generate(b):
    model = b.models["llama"]
    part = Part("generate", f"{model.bytes / GB:.2f} GB in bfloat16, in memory: a prompt of {PROMPT} tokens, and a token behind it")
    for _ in b.rounds():
        add_limits(b, part, "bfloat16")
        for name, function in generate_cases(b):
            run.give_memory_back(1.5 * model.bytes)
            run.make_warm(model.folder)
            answer = part.try_case(name, function)
            if answer:
                part.add(name + ", prompt", answer["prefill"])
                part.add(name + ", token", answer["step"])
            if answer and "compact_step" in answer:  # as `heft run` generates 32 tokens or more
                part.add(name + ", prompt, compact weights", answer["compact_prefill"])
                part.add(name + ", token, compact weights", answer["compact_step"])
                part.add("making weights compact", answer["compacting"])
    if not os.path.exists(b.models["gguf"]):
        part.notes.append("llama.cpp: not there (--prepare)")
    for weights in (", compact weights", ""):
        part.times("heft, token" + weights, "llama.cpp, token", "1.15")
        part.times("heft, token" + weights, "Transformers, token", "2.5")
    for weights in ("", ", compact weights"):
        part.times("heft, prompt" + weights, "llama.cpp, prompt", "1.3")
        part.times("heft, prompt" + weights, "Transformers, prompt", "1.3")
    if "heft, token" in part.rows:
        best, rate = part.best(MEMORY), model.pass_bytes / GB
        part.figure("weights read for a token, of the memory's bandwidth", rate / part.middle("heft, token") / best,
                    f"{best:.1f} GB/s, the best of this run", "0.85", rate / part.best("heft, token") / best)
        arithmetic(part, "heft, prompt", model.flops(1, PROMPT, True), "bfloat16")
    return part


def arithmetic(part, row, flops, dtype):
    best = part.best(PRODUCTS + dtype)
    part.figure(f"arithmetic of {row}, of the kernels' best", flops / 1e9 / part.middle(row) / best, f"{best:.0f} Gflop/s, the best of this run",
                "0.7", flops / 1e9 / part.best(row) / best)


def part_encode(b):
    model, count = b.models["bert"], [*ENCODED, 3 if b.quick else 6]
    part = Part("encode", f"BERT in float32, {ENCODED[0]} sequences of {ENCODED[1]} tokens")
    for _ in b.rounds():
        add_limits(b, part, "float32")
        for name, function in (("heft", lambda: case([BENCH, "encode", model.folder, *map(str, count)])),
                               ("Transformers", lambda: b.peer(b.python, "encode", model.folder, *count))):
            run.give_memory_back(3 * model.bytes)
            run.make_warm(model.folder)
            answer = part.try_case(name, function)
            if answer:
                part.add(name, answer["batch"])
    part.times("heft", "Transformers", "2")
    if "heft" in part.rows:
        arithmetic(part, "heft", model.flops(*ENCODED, False), "float32")
    return part


# ---- parts: less memory than weights -------------------------------------------------------------------------------------------
def step_bytes(model, budget, batch, steps, extra=()):
    """Bytes that one more token makes `heft run` read: the difference of a long and a short run."""
    run.make_cold(model.folder)
    short = heft_run(model, 2, batch, budget, extra=extra)
    run.make_cold(model.folder)
    long = heft_run(model, 2 + steps, batch, budget, extra=extra)
    return (long["bytes_read"] - short["bytes_read"]) / steps


def time_streamed(part, row, model, function, unit_bytes=None):
    """A cold run between two reads of the disk; of its bytes for a token, how many times the disk's time it takes."""
    run.make_cold(model.folder)
    before = read_rate(model)
    run.make_cold(model.folder)
    answer = part.try_case(row, function)
    after = read_rate(model)
    part.add(DISK, [before, after], "GB/s")
    if answer:
        seconds = answer["step"] if "step" in answer else [answer["seconds_per_token"]]
        part.add(row, seconds)
        if unit_bytes:
            part.add(row + ", times the disk's", [s * (before + after) / 2 * GB / unit_bytes for s in seconds], "times")
    return answer


def streamed_peers(b, budget):
    """What the other libraries run with the budget for weights."""
    model = b.models["llama"]
    if os.path.exists(b.models["gguf"]) and not b.no_groups:
        own = b.peer(b.llamacpp, "llamacpp", b.models["gguf"], 4, 1, 1)["anon"]
        yield "llama.cpp", lambda: b.peer(b.llamacpp, "llamacpp", b.models["gguf"], 4, 3, 1, limit=int(budget + own + SPARE_BYTES))
    if has(b.python, "accelerate"):
        yield "Accelerate", lambda: with_folder(b, lambda folder: b.peer(b.python, "accelerate", model.folder, folder, int(budget), 3))
    if has(b.airllm, "airllm"):
        yield "AirLLM", lambda: b.peer(b.airllm, "airllm", model.folder, b.models["layers"], 2)


def with_folder(b, function):
    folder = os.path.join(b.data, "offloaded")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    try:
        return function(folder)
    finally:
        shutil.rmtree(folder)


def part_streamed(b):
    model, steps = b.models["llama"], 4 if b.quick else 8
    budget, one, many = int(model.bytes * STREAMED_PART), "heft, 1 sequence", "heft, 32 sequences, step"
    part = Part("streamed", f"{model.bytes / GB:.2f} GB with {budget / GB:.2f} GB, cold: seconds for a token")
    limit = None if b.no_groups else budget
    try:
        needed = step_bytes(model, budget, 1, steps)
        peers = list(streamed_peers(b, budget))
    except Failed as failed:
        part.notes.append(f"heft or llama.cpp: {failed}")
        return part
    for _ in b.rounds():
        time_streamed(part, one, model, lambda: heft_run(model, 1 + steps, 1, budget, limit), needed)
        time_streamed(part, many, model, lambda: heft_run(model, 1 + steps, 32, budget, limit), needed)
        for name, function in peers:
            if name == "llama.cpp":
                make_file_cold(b.models["gguf"])
            time_streamed(part, name, model, function)
    least = model.pass_bytes - budget
    part.notes += [
        f"a token reads {needed / GB:.3f} GB; of {model.pass_bytes / GB:.3f} GB that it needs, {least / GB:.3f} are not in the budget",
        f"heft: --memory {budget}, of the whole process" + ("" if b.no_groups else ", in a control group with just that"),
        f"llama.cpp: mapped, in a control group with the budget, the memory that it takes itself besides the weights, and {SPARE_BYTES / 1e6:.0f} MB"
        if not b.no_groups else f"llama.cpp: left out, no control group can be made ({b.no_groups})",
        "Accelerate: the budget for weights on the CPU, the rest in its offload folder; AirLLM: a layer at a time; the process may take more, and the page"
        " cache has none of their files before each token"]
    for name, goal in (("llama.cpp", "3"), ("Accelerate", "2"), ("AirLLM", "5")):
        part.times(one, name, goal)
        if name not in part.rows:
            part.notes.append(f"{name}: no figure")
    if one in part.rows:
        figure_disk(part, one, needed, least)
    if one in part.rows and many in part.rows:
        part.figure("tokens per second, 32 sequences / 1", 32 * part.middle(one) / part.middle(many), f"{1 / part.middle(one):.2f} a second", "20",
                    32 * part.best(one) / part.best(many))
    return part


def figure_disk(part, row, needed, least):
    times = row + ", times the disk's"
    part.figure(f"{row}: seconds / (bytes read / rate of direct reads before and after)", part.middle(times),
                f"{needed / GB:.2f} GB at {part.middle(DISK):.2f} GB/s", "1.15", part.best(times))
    part.figure(f"{row}: the same, of bytes that do not fit in the budget", part.middle(times) * needed / least,
                f"{least / GB:.2f} GB at {part.middle(DISK):.2f} GB/s", "", part.best(times) * needed / least)


def make_file_cold(path):
    fd = os.open(path, os.O_RDONLY)
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def part_mixture(b):
    model, steps = b.models["mixtral"], 6 if b.quick else 16
    budget, row = int(model.bytes * MIXTURE_PART), "heft, 1 sequence"
    part = Part("mixture", f"a Mixtral of {model.bytes / GB:.2f} GB with {budget / GB:.2f} GB, cold")
    sampled = ("--temperature", "1", "--seed", "1")  # greedy tokens of random weights repeat, and so do their experts
    try:
        needed = step_bytes(model, budget, 1, steps, sampled)
    except Failed as failed:
        part.notes.append(f"heft: {failed}")
        return part
    for _ in b.rounds():
        time_streamed(part, row, model, lambda: heft_run(model, 1 + steps, 1, budget, None if b.no_groups else budget, extra=sampled), needed)
    config = model.config
    routed = config["num_experts_per_tok"] / config["num_local_experts"]
    part.figure("bytes read for a token, of the model's", needed / model.bytes, f"{model.bytes / GB:.2f} GB; {routed:.2f} of the experts compute", "0.4")
    routed_bytes = model.pass_bytes - model.expert_bytes * (1 - routed)
    part.figure("bytes that a token computes with, of the model's", routed_bytes / model.bytes, "what it would read if nothing stayed in memory")
    part.notes.append("the router has random weights: a trained one may choose experts more evenly, so that fewer of those chosen are in memory")
    if row in part.rows:
        times = row + ", times the disk's"
        part.figure("seconds / (bytes read / rate of direct reads)", part.middle(times), f"{needed / GB:.2f} GB at {part.middle(DISK):.2f} GB/s", "",
                    part.best(times))
    return part


def planned_bytes(model, budget, tokens):
    """The peak of `heft run` that `heft plan` tells, for one sequence; None if this build does not."""
    words = [run.HEFT, "plan", model.folder, "--json", "--context", str(tokens), *(["--memory", str(budget)] if budget else [])]
    try:
        return (case(words).get("run") or {}).get("peak_bytes")
    except Failed:
        return None


def part_predicted(b):
    model, steps = b.models["llama"], 2 if b.quick else 4
    part = Part("predicted", f"{model.bytes / GB:.2f} GB: seconds for a step and memory, predicted and measured")
    budgets = [None, *(int(model.bytes * share) for share in (STREAMED_PART, 0.55, 0.82))]
    settings = {f"{budget / GB:.2f} GB, {batch} sequences" if budget else f"all, {batch} sequences": (budget, batch)
                for budget in budgets for batch in BATCHES}
    for _ in b.rounds():
        for name, (budget, batch) in settings.items():
            (run.make_cold if budget else run.make_warm)(model.folder)
            answer = part.try_case(name, lambda budget=budget, batch=batch: heft_run(model, 1 + steps, batch, budget))
            if answer:
                part.add(name, answer["seconds_per_token"])
    good = told = 0
    for name, (budget, batch) in settings.items():
        answers = part.runs.get(name, [])
        predicted = [a["predicted_seconds_per_token"] for a in answers if a.get("predicted_seconds_per_token")]
        if predicted:
            ratio, told = part.middle(name) / statistics.median(predicted), told + 1
            good += 1 / 1.15 <= ratio <= 1.15
            part.figure(f"{name}: measured / predicted", ratio, f"{statistics.median(predicted):.4f} s predicted", "0.87 to 1.15")
        planned = planned_bytes(model, budget, 5 + steps) if batch == 1 else None
        figure_memory(part, name, budget, planned, answers)
    part.figure("settings within 15 %", f"{good} of {told}" if told else "none: this build predicts nothing", f"{len(settings)} settings", "10 of 12")
    return part


def figure_memory(part, name, budget, planned, answers):
    peak = max((a["memory"]["peak_anon_bytes"] for a in answers), default=0)
    if planned and answers:
        near = abs(peak - planned) <= max(planned / 20, 16 << 20)
        part.figure(f"{name}: peak of anonymous memory / planned", peak / planned, f"{planned / 1e6:.0f} MB of `heft plan`", "5 % or 16 MB: " + ("yes" if near else "no"))
    if budget and answers:
        part.figure(f"{name}: peak of anonymous memory / --memory", peak / budget, f"{budget / 1e6:.0f} MB", "1")


def part_cgroup(b):
    model = b.models["llama"]
    part = Part("cgroup", f"{model.bytes / GB:.2f} GB, --memory and the control group's limit alike; cold")
    if b.no_groups:
        part.notes.append(f"not run, no control group can be made: {b.no_groups}")
        return part
    tried = refused = 0
    for share in CGROUP_PARTS:
        limit = int(model.bytes * share)
        for batch, prompt in ((1, PROMPT), (32, 16)):
            name = f"{limit / 1e6:.0f} MB, {batch} sequence{'s' * (batch > 1)} of {prompt} tokens"
            run.make_cold(model.folder)
            answer = part.try_case(name, lambda limit=limit, batch=batch, prompt=prompt: heft_run(model, 4, batch, limit, limit, prompt))
            tried, refused = tried + 1, refused + (answer is None)
            if answer:
                part.add(name, answer["seconds_per_token"])
                peak = answer["memory"]["peak_anon_bytes"]
                part.figure(f"{name}: anonymous memory / limit", peak / limit, f"{peak / 1e6:.0f} MB; of the group {(answer['group_peak'] or 0) / 1e6:.0f}", "1")
    part.figure("runs that were killed", f"{part.kills} of {tried}", "the limit as --memory", "0")
    part.figure("runs that heft refused", f"{refused - part.kills} of {tried}", "what a block and its intermediate results take")
    return part


PARTS = {"limits": part_limits, "generate": part_generate, "encode": part_encode, "streamed": part_streamed, "mixture": part_mixture,
         "predicted": part_predicted, "cgroup": part_cgroup}


# ---- the run -----------------------------------------------------------------------------------------------------------------
def machine():
    with open("/proc/cpuinfo") as file:
        cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "cpus": os.cpu_count(), "memory_bytes": memory, "kernel": platform.release()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small models, one repeat: whether everything runs, not how fast")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--data", default=os.path.join(CACHE, "bench"))
    parser.add_argument("--out")
    options = parser.parse_args()
    os.makedirs(options.data, exist_ok=True)
    os.environ.update(HF_HUB_OFFLINE="1")
    if options.prepare:
        prepare_environments(options.data)
    models = prepare_files(options.data, options.quick)
    if options.prepare:
        return
    facts, begun = machine(), time.monotonic()
    print(f"{facts['cpus']} CPUs ({facts['cpu']}), {facts['memory_bytes'] / GB:.0f} GB, Linux {facts['kernel']}", flush=True)
    bench, results = Bench(options, options.data, models), []
    for name in options.only or PARTS:
        results.append(PARTS[name](bench).finish())
    print(f"\n{(time.monotonic() - begun) / 60:.1f} minutes")
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump({"machine": facts, "quick": options.quick, "parts": results}, file, indent=1)


if __name__ == "__main__":
    main()
