"""Texts for tokenizers: code, eight languages, and random Unicode."""

import random
import unicodedata

LANGUAGES = {
    "english": "The library doesn't load what it can't bound. We've measured 1,024 files (in 3.5 seconds), they're all fine; "
    "isn't that 100% of what you'd expect? I'll say so: \"yes\". Mr. O'Neill's e-mail is o.neill@example.org — see https://example.org/a?b=c#d.",
    "german": "Größere Gewichte fließen häufig über langsame Straßen; der Übergang kostet 12.345,67 €. „Außerdem“, sagte sie, „heißt das Donaudampfschifffahrtsgesellschaft.“",
    "french": "L'été dernier, où étiez-vous ? J'ai vu l'œuvre à Noël : « c'était très réussi », dit-elle, ça coûte 3 500 € aujourd'hui.",
    "russian": "Съешь же ещё этих мягких французских булок, да выпей чаю. Объём — 42 МБ, скорость 3,5 ГБ/с; «ёлка» и №7.",
    "chinese": "模型的权重分成多个文件,每个文件都有名字。今天是2026年11月29日,温度3.5度。你好,世界!「引用」与《书名》。",
    "japanese": "モデルの重みを読み込みます。カタカナとひらがな、漢字が混ざった文章です。ｶﾀｶﾅも半角で、２０２６年。「はい」と言った。がぎぐげご",
    "arabic": "مرحبًا بالعالم! هذا نصٌّ قصير فيه أرقام ١٢٣٤ وعلامات؟ نعم، وكلمةٌ بتشكيلٍ كاملٍ. اللُّغَةُ العَرَبِيَّةُ.",
    "hindi": "नमस्ते दुनिया! यह एक छोटा पाठ है, जिसमें संख्याएँ १२३ और चिह्न हैं। क्या हुआ? क्षत्रिय ज्ञान श्री।",
}
CODE = """#include <stdio.h>

static int add(int a, int b)\t{ return a + b; } /* sum */
int main(void)
{
    for (int i = 0; i < 10; i++) {
        printf("%d\\t%s\\n", add(i, 0x1F), i % 2 ? "odd" : "even");
    }
    return 0;
}

def forward(self, x: torch.Tensor, *, mask=None) -> "Tensor":
    \"\"\"A docstring.\"\"\"
    scores = (q @ k.transpose(-2, -1)) / math.sqrt(d_k)   # [B, H, T, T]
    if mask is not None:
        scores = scores.masked_fill(mask == 0, float("-inf"))
    return F.softmax(scores, dim=-1) @ v
\r\n<div class="a">&nbsp;<p>x</p></div>\r\n    \n\n\n\t\t{"key": [1, 2.5e-3, null, true], "ключ": "值"}
SELECT a.id, COUNT(*) FROM t AS a WHERE a.x >= 3 AND b != 'it''s' GROUP BY 1;   $HOME/.cache/*.json && ls -la | grep ^d
"""
ODD = [
    "",
    " ",
    "  ",
    "\n",
    "\t \n ",
    "a",
    " a",
    "a ",
    "  a  b  ",
    "'",
    "it's IT'S we'll WE'LL",
    "a" * 300,
    " " * 300 + "x",
    "ab" * 200,
    "\u0000a\u0000",
    "e\u0301\u0323 \u1e69 s\u0323\u0307 s\u0307\u0323",
    "\u0130stanbul ISTANBUL \u03a3\u03a3 \ufb01 \u2460 \u3392 \uff21\uff22",
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u2764\ufe0f",
    "a\u200bb\u200cc\u200dd\ufeffe\u00adf\u2060g",
    "x\u00a0y\u2003z\u3000w\u0085v\u2028u",
    "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u1219\u1230\u1228\u1275 \u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd",
    "<s> </s> <unk> [CLS] [SEP] [MASK] <|endoftext|> <|im_start|>user\nHi<|im_end|>",
    "\u2581a \u2581\u2581b <0x41> <0xFF> ##ing \u0120the",
    "\ufffd\ufffe\uffff \U0010ffff \ue000",
    "q" + "\u0301\u0323" * 60,
]


def corpus():
    return [*LANGUAGES.values(), CODE, *ODD]


def assigned():
    """The code points that Python's Unicode, 14, knows."""
    return [c for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]


def random_texts(count, seed, specials=()):
    """Texts of up to 60 characters, each of a few kinds: ASCII, one script, spaces, marks, anything, tokens, samples."""
    chooser = random.Random(seed)
    points = assigned()
    marks = [c for c in points if unicodedata.category(chr(c)) in ("Mn", "Me", "Mc")]
    spaces = "  \t\n\r\n\u00a0\u2003\u3000\u200b"
    samples = "".join(corpus())
    result = []
    for _ in range(count):
        text = []
        for _ in range(chooser.randrange(1, 7)):
            kind, length = chooser.randrange(8), chooser.randrange(1, 11)
            if kind == 0:
                text += [chr(chooser.randrange(32, 127)) for _ in range(length)]
            elif kind == 1:
                start = chooser.randrange(len(points) - 200)
                text += [chr(points[start + chooser.randrange(200)]) for _ in range(length)]
            elif kind == 2:
                text += [chooser.choice(spaces) for _ in range(length)]
            elif kind == 3:
                text += ["e", *(chr(chooser.choice(marks)) for _ in range(length // 2))]
            elif kind == 4:
                text += [chr(chooser.choice(points)) for _ in range(length)]
            elif kind == 5 and specials:
                text += [chooser.choice(specials), chooser.choice(["", " "])]
            else:
                start = chooser.randrange(len(samples))
                text += [samples[start : start + 3 * length]]
        result.append("".join(text))
    return result
