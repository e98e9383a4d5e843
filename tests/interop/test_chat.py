"""heft renders chat templates as Transformers does, character by character, or refuses them."""

import json
import os
import random
from datetime import datetime
from functools import cache

import chat_templates
import pytest
import text_tokenizers
from libheft_chat import Chat, HeftError
from libheft_text import Tokenizer as HeftTokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

COUNT = int(os.environ.get("HEFT_CHATS", "300"))
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def reference():
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **TOKENS)


REFERENCE = reference()


def both(template, chat, messages, **options):
    """The text of Transformers and that of heft; an exception where there is none."""
    results = []
    for render in (lambda: REFERENCE.apply_chat_template(messages, chat_template=template, tokenize=False, **options), lambda: chat.render(messages, **options)):
        try:
            results.append(render())
        except Exception as error:  # noqa: BLE001 # whatever the template runs into
            results.append(error)
    return results


@pytest.mark.parametrize("name", chat_templates.TEMPLATES)
def test_templates(name):
    template = chat_templates.TEMPLATES[name]
    chat = Chat(template=template, config={"tokenizer_class": "PreTrainedTokenizerFast", **TOKENS})
    rng = chat_templates.generator(name)
    rendered = refused = 0
    for _ in range(COUNT):
        messages, variables = chat_templates.messages(rng), chat_templates.variables(rng)
        expected, mine = both(template, chat, messages, add_generation_prompt=rng.random() < 0.8, **variables)
        if isinstance(expected, Exception):
            assert isinstance(mine, HeftError), (messages, variables, expected, mine)
        elif isinstance(mine, HeftError) and str(mine).startswith("UNSUPPORTED"):
            refused += 1
        else:
            assert mine == expected, (messages, variables)
            rendered += 1
    assert rendered > COUNT / 3 and refused <= COUNT / 20, (rendered, refused)


class Programs:
    """Random templates: most of what the grammar has, in and out of place."""

    NAMES = ["messages", "m", "x", "y", "ns", "d", "l", "s", "n", "none_there", "bos_token", "true", "loop"]
    CONSTANTS = ["1", "0", "-2", "3", "1.5", "'a b'", "''", "'role'", "'\\n x '", '"é\'"', "none", "true", "false", "[]", "[1, 'a']", "{'a': 1, 'items': 2}", "('a',)", "7"]
    ATTRIBUTES = ["role", "content", "a", "items", "value", "first", "index0", "last", "x", "strip", "length", "keys", "0"]
    METHODS = ["strip()", "strip('a ')", "lstrip()", "rstrip('\\n')", "split()", "split(' ')", "split('a', 1)", "rsplit('a', 1)", "split(maxsplit=1)", "upper()", "lower()", "title()", "capitalize()",
               "startswith('a')", "endswith(('b', 'x'))", "items()", "keys()", "values()", "get('a')", "get('q', 5)", "replace('a', 'bb')", "replace('', '-')", "replace('a', 'b', 1)", "find('a')", "rfind(' ')",
               "count('a')", "join(['x', 'y'])", "splitlines()", "isdigit()", "removeprefix('a')", "index(1)", "splitlines(true)", "zfill(3)", "append(1)"]  # fmt: skip
    FILTERS = ["trim", "upper", "lower", "length", "count", "first", "last", "list", "string", "join", "join(', ')", "join('-', attribute='role')", "tojson", "tojson(indent=2)", "tojson(ensure_ascii=true)",
               "tojson(sort_keys=true)", "tojson(separators=(',', ':'))", "default('q')", "default('q', true)", "d", "replace('a', 'x')", "reverse", "reverse|list", "items|list", "sort", "sort(reverse=true)",
               "dictsort", "indent", "indent(2, true)", "indent(first=true, blank=true)", "int", "abs", "title", "capitalize", "map(attribute='role')|list", "map('upper')|join", "map('length')|list",
               "select|list", "reject('none')|list", "select('string')|list", "selectattr('role')|list|length", "selectattr('role', 'equalto', 'user')|list", "rejectattr('content', 'defined')|list",
               "selectattr('content', 'string')|map(attribute='content')|join('|')", "batch(2)|list", "safe", "wordcount", "items", "map('upper')"]  # fmt: skip
    TESTS = ["defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "iterable", "sequence", "true", "false", "odd", "even", "divisibleby 2", "equalto 1", "eq('a')",
             "in [1, 'a']", "sameas true", "sameas none", "gt 0", "ne none", "callable", "lower"]  # fmt: skip
    OPERATORS = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or"]

    def __init__(self, rng):
        self.rng, self.loops = rng, 0

    def expression(self, depth=0):
        rng, more = self.rng, lambda: self.expression(depth + 1)
        kind = rng.randint(0, 3 if depth > 2 else 15)
        if kind < 2:
            return rng.choice(self.NAMES)
        if kind < 4:
            return rng.choice(self.CONSTANTS)
        if kind == 4:
            return f"{more()} {rng.choice(self.OPERATORS)} {more()}"
        if kind == 5:
            return f"({more()}).{rng.choice(self.ATTRIBUTES)}"
        if kind == 6:
            return f"({more()}).{rng.choice(self.METHODS)}"
        if kind in (7, 8):
            return f"({more()})|{rng.choice(self.FILTERS)}"
        if kind == 9:
            return f"{more()} is {rng.choice(['', 'not '])}{rng.choice(self.TESTS)}"
        if kind == 10:
            return f"({more()})[{more()}]"
        if kind == 11:
            return f"({more()})[{rng.choice(['1:', ':-1', '::-1', '1:3', ':', '-2:', '::2', '3:0:-1'])}]"
        if kind == 12:
            return f"{more()} if {more()}{rng.choice(['', ' else ' + more()])}"
        if kind == 13:
            return f"{rng.choice(['not ', '-', '+'])}{more()}"
        if kind == 14:
            return rng.choice([f"[{more()}, {more()}]", f"{{'k': {more()}, {more()}: 1}}", f"({more()}, {more()})", f"range({more()})|list", f"dict(a={more()})", f"f({more()})", f"f(1, b={more()})"])
        return f"m.{rng.choice(self.ATTRIBUTES)}"

    def tag(self, text):
        return "{%" + self.rng.choice(["", "", "-", "+"]) + " " + text + " " + self.rng.choice(["", "", "-", "+"]) + "%}"

    def statement(self, depth):
        rng, tag = self.rng, self.tag
        kind = rng.randint(0, 4 if depth > 2 else 11)
        if kind == 0:
            return rng.choice(["text", "\n", "  \n  ", " ", "\n    ", "a\n\tb ", "{# c #}\n", "{#- c -#}  \n", " {#c+#}\n", "}}", "\r\n"])
        if kind < 4:
            return "{{" + rng.choice(["", "-"]) + " " + self.expression() + " " + rng.choice(["", "-"]) + "}}"
        if kind == 4:
            return tag(f"set {rng.choice(['x', 'y', 's', 'ns.value', 'm'])} = {self.expression()}")
        if kind == 5:
            return tag(f"if {self.expression()}") + self.body(depth) + rng.choice(["", tag(f"elif {self.expression()}") + self.body(depth), tag("else") + self.body(depth)]) + tag("endif")
        if kind == 6:
            self.loops += 1
            inside = self.body(depth) + rng.choice(["", "", tag(f"if {self.expression()}") + tag("break") + tag("endif"), tag("continue") if rng.random() < 0.2 else ""])
            self.loops -= 1
            head = rng.choice([f"for m in {rng.choice(['messages', self.expression()])}", f"for k, x in {rng.choice(['d.items()', 'd|dictsort', self.expression()])}", f"for m in messages if {self.expression()}"])
            return tag(head) + inside + rng.choice(["", tag("else") + self.body(depth)]) + tag("endfor")
        if kind == 7:
            return tag(f"set {rng.choice(['x', 's'])}{rng.choice(['', ' | trim', ' | upper | trim'])}") + self.body(depth) + tag("endset")
        if kind == 8:
            return tag(rng.choice(["macro f(a, b=2)", "macro f(x)", "macro f()"])) + self.body(depth) + tag("endmacro")
        if kind == 9:
            return tag(f"with x = {self.expression()}, q = x") + self.body(depth) + tag("endwith")
        if kind == 10:
            return tag("generation") + self.body(depth) + tag("endgeneration")
        return self.body(depth)

    def body(self, depth):
        return "".join(self.statement(depth + 1) for _ in range(self.rng.randint(0, 3)))

    def template(self):
        start = "{%- set ns = namespace(value=1) %}{%- set d = {'b': 2, 'a': messages} %}{%- set l = [3, 1, 2] %}{%- set s = ' Ab a\\n' %}{%- set n = 5 %}{%- set m = messages[0] %}"
        return start + "".join(self.statement(0) for _ in range(self.rng.randint(1, 3)))


def compiles(template):
    try:
        _compile_jinja_template(template)
    except Exception:  # noqa: BLE001
        return False
    return True


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_programs():
    """What heft renders is what Transformers renders; it may refuse more."""
    counts = {"same": 0, "refused": 0, "failed": 0}
    for seed in range(COUNT * 20):
        rng = random.Random(seed)
        template, messages = Programs(rng).template(), chat_templates.messages(rng)
        try:
            chat = Chat(template=template, config={"tokenizer_class": "PreTrainedTokenizerFast", **TOKENS})
        except HeftError as error:
            chat, refusal = None, error
        expected, mine = both(template, chat, messages) if chat else [both(template, None, messages)[0], refusal]
        if isinstance(expected, Exception):
            # Jinja computes constants when it compiles, also those that are never reached
            assert isinstance(mine, HeftError) or not compiles(template), (seed, template, messages, expected, mine)
            counts["failed"] += 1
        elif isinstance(mine, HeftError):
            assert str(mine).startswith(("UNSUPPORTED", "LIMIT", "FORMAT")), (seed, template, expected, mine)
            counts["refused"] += 1
        else:
            assert mine == expected, (seed, template, messages)
            counts["same"] += 1
    print(counts)
    assert counts["same"] > 5 * COUNT, counts


@cache
def tokenizer_of(family):
    tokenizer = family()
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"])
    return tokenizer.to_str()


def folder_of(path, family, template, **config):
    """A folder with a tokenizer whose special tokens are those of chats."""
    (path / "tokenizer.json").write_text(tokenizer_of(family))
    written = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **config}
    if template:
        written["chat_template"] = template
    (path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in written.items() if v != "absent"}))


@pytest.mark.parametrize("family", [text_tokenizers.gpt2, text_tokenizers.llama, text_tokenizers.llama3], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["LLAMA2", "CHATML", "QWEN3", "ZEPHYR"])
def test_ids(tmp_path, family, name):
    """The ids of a rendered conversation: the template's own special tokens, and no others."""
    folder_of(tmp_path, family, chat_templates.TEMPLATES[name])
    reference = AutoTokenizer.from_pretrained(tmp_path)
    chat, mine = Chat(tmp_path), HeftTokenizer(tmp_path)
    rng = chat_templates.generator(7)
    compared = 0
    while compared < 50:
        messages = chat_templates.messages(rng)
        try:
            expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except Exception:  # noqa: BLE001
            continue
        assert mine.encode(chat.render(messages), add_special=False) == list(expected), messages
        compared += 1


ADDED = {"__type": "AddedToken", "content": "<s>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
TOKENS_OF = "{{ messages[0].content }}|{{ bos_token }}|{{ eos_token }}|{{ image_token }}|{{ boi_token }}|{{ pad_token }}"
CONFIGS = {
    "plain": {},
    "added": {"bos_token": ADDED},
    "null": {"bos_token": None, "eos_token": None},
    "absent": {"bos_token": "absent", "eos_token": "absent"},
    "backend": {"bos_token": "absent", "tokenizer_class": "TokenizersBackend"},
    "no class": {"tokenizer_class": "absent"},
    "no class, absent": {"tokenizer_class": "absent", "bos_token": "absent"},
    "llama": {"tokenizer_class": "LlamaTokenizer", "bos_token": "absent", "eos_token": "absent"},
    "qwen2": {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "absent"},
    "gemma": {"tokenizer_class": "GemmaTokenizer", "bos_token": "absent", "pad_token": "absent"},
    "custom": {"image_token": "<i>", "boi_token": {**ADDED, "content": "<b>"}},
    "extra": {"extra_special_tokens": {"image_token": "<i>"}},
    "list": {"additional_special_tokens": ["<i>"]},
    "named": {"chat_template": [{"name": "default", "template": TOKENS_OF}, {"name": "rag", "template": "rag"}]},
    "older": {"map": {"eos_token": {"content": "<e>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}, "bos_token": "<b>"}},
    "newer": {"added_tokens_decoder": {"0": {"content": "<unk>", "special": True}}, "map": {"eos_token": "<e>"}},
    "jinja": {"files": {"chat_template.jinja": "jinja " + TOKENS_OF + "\n"}},
    "jinja and more": {"files": {"chat_template.jinja": "jinja", "additional_chat_templates/rag.jinja": "rag"}},
    "default of more": {"files": {"additional_chat_templates/default.jinja": "more", "additional_chat_templates/rag.jinja": "rag"}},
    "no default": {"files": {"additional_chat_templates/rag.jinja": "rag"}},
    "crlf": {"files": {"chat_template.jinja": "{% if 1 %}\r\nx\r\n\r\n{% endif %}\r\n"}},
    "json only": {"chat_template": None, "files": {"chat_template.json": '{"chat_template": "of a processor"}'}},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_folders(tmp_path, kind):
    """Which template a folder has, and which special tokens the template sees: as AutoTokenizer, or a refusal."""
    config = {"chat_template": TOKENS_OF, **CONFIGS[kind]}
    files, token_map = config.pop("files", {}), config.pop("map", None)
    folder_of(tmp_path, text_tokenizers.llama, None, **config)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, newline="")
    if token_map:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(token_map))
    messages = [{"role": "user", "content": "x"}]
    results = []
    for render in (lambda: AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(messages, tokenize=False), lambda: Chat(tmp_path).render(messages, add_generation_prompt=False)):
        try:
            results.append(render())
        except Exception as error:  # noqa: BLE001
            results.append(error)
    expected, mine = results
    if kind == "json only":  # which Transformers reads for processors
        assert mine == "of a processor"
    elif isinstance(mine, HeftError):
        assert isinstance(expected, Exception) or "the default of its tokenizer is not known" in str(mine), (expected, mine)
    else:
        assert mine == expected
    assert isinstance(mine, str) or kind in ("no class", "no class, absent", "llama", "qwen2", "gemma", "no default"), mine


def test_time():
    now = 1700050000
    for directive in "YymdHIMSpBbAaj%":
        expected = datetime.fromtimestamp(now).strftime(f"x%{directive}y")
        assert Chat(template="{{ strftime_now('x%" + directive + "y') }}").render([{}], now=now) == expected
