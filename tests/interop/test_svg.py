"""The picture of a plan in a browser: to scale, nothing outside, readable, light and dark. Needs Chromium; without it these are skipped."""

import json
import re
import shutil
import struct
import subprocess
import zlib

import pytest
from helpers import ROOT, heft

BROWSER = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: tools/bootstrap --interop looks for it")

EXAMPLES = ROOT / "examples"
DEEP = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "dtype": "bfloat16",
}
CASES = {
    "four devices": (EXAMPLES / "llama-1.1b" / "config.json", "best", "0=1GB,1=500MB,cpu=600MB,disk"),
    "whole": (EXAMPLES / "bert-base-cased" / "config.json", "auto", "cpu=2GB"),
    "eighty layers": (DEEP, "best", "0=60GB,1=40GB,cpu=30GB,disk"),
    "many devices": (DEEP, "balanced", ",".join(f"{i}=24GB" for i in range(8)) + ",cpu=10GB"),
    "nothing fits": (EXAMPLES / "llama-3b" / "config.json", "sequential", "0=1MB,cpu=1MB"),
}
SCRIPT = """
<script>
const root = document.querySelector('svg'), all = [];
for (const e of root.querySelectorAll('rect, text')) {
  const box = e.getBoundingClientRect(), title = e.querySelector('title');
  all.push({tag: e.tagName, kind: e.getAttribute('class') || '', text: title ? title.textContent : e.textContent,
    fill: getComputedStyle(e).fill, left: box.left, right: box.right, top: box.top, bottom: box.bottom});
}
const page = root.getBoundingClientRect();
const out = document.createElement('pre');
out.id = 'found';
out.textContent = JSON.stringify({all, width: page.width, height: page.height});
document.body.appendChild(out);
</script>
"""


def browse(dark, *arguments):
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=True).stdout


def pixels(path):
    """Rows of (r, g, b) of a PNG with 8 bits a channel."""
    data = path.read_bytes()
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert depth == 8 and kind in (2, 6)
    step, at, body = {2: 3, 6: 4}[kind], 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            body += data[at + 8 : at + 8 + length]
        at += length + 12
    body, above, rows = zlib.decompress(body), bytearray(width * step), []
    for y in range(height):
        start = y * (width * step + 1)
        how, line = body[start], bytearray(body[start + 1 : start + 1 + width * step])
        for x in range(width * step):
            left = line[x - step] if x >= step else 0
            corner = above[x - step] if x >= step else 0
            if how == 1:
                more = left
            elif how == 2:
                more = above[x]
            elif how == 3:
                more = (left + above[x]) // 2
            elif how == 4:
                guess = left + above[x] - corner
                more = min((left, above[x], corner), key=lambda c: abs(guess - c))
            else:
                more = 0
            line[x] = (line[x] + more) & 255
        rows.append([tuple(line[x : x + 3]) for x in range(0, width * step, step)])
        above = line
    return rows


def color(text):
    return tuple(int(n) for n in re.findall(r"\d+", text)[:3])


def contrast(one, two):
    """By WCAG 2: 4.5 is what small text needs."""

    def light(rgb):
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((light(color(one)), light(color(two))), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module", params=list(CASES))
def drawn(request, scratch):
    config, strategy, memory = CASES[request.param]
    if isinstance(config, dict):
        (scratch / "svg.json").write_text(json.dumps(config))
        config = scratch / "svg.json"
    picture = scratch / "plan.svg"
    plan = heft("plan", config, "--strategy", strategy, "--max-memory", memory, "--svg", picture)
    page = scratch / "plan.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><body style='margin:0'>{picture.read_text()}{SCRIPT}</body>")
    found = {}
    for dark in (False, True):
        text = browse(dark, "--dump-dom", f"file://{page}")
        found[dark] = json.loads(re.search(r'<pre id="found">(.*?)</pre>', text, re.S).group(1).replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    return plan, picture, found


def test_sizes_are_to_scale_and_in_order(drawn):
    plan, _, found = drawn
    modules = [e for e in found[False]["all"] if e["kind"] in ("m0", "m1")]
    columns = sorted({round(e["left"]) for e in modules})
    devices = [d for d, placed in plan["placed_bytes"].items() if placed]
    assert len(columns) == len(devices)
    scale = None
    for device, left in zip(devices, columns):
        own = [e for e in modules if round(e["left"]) == left]
        names = [m or "the whole model" for m, d in plan["device_map"].items() if str(d) == device]
        shown = [e["text"].rsplit(": ", 1)[0] for e in own]
        assert shown == [n for n in names if n in set(shown)], "another order"
        height = own[0]["bottom"] - own[-1]["top"]
        assert abs(sum(e["bottom"] - e["top"] for e in own) - height) < 1, "gaps or overlaps"
        here = height / plan["placed_bytes"][device]
        scale = scale or here
        assert abs(here * plan["placed_bytes"][device] - scale * plan["placed_bytes"][device]) < 1, "not to scale"


def test_nothing_is_outside(drawn):
    _, _, found = drawn
    for scheme in found.values():
        rooms = [e for e in scheme["all"] if e["kind"] == "room"]
        for e in scheme["all"]:
            where = (e["text"], e["left"], e["right"])
            assert e["left"] >= -0.5 and e["right"] <= scheme["width"] + 0.5, where
            assert e["top"] >= -0.5 and e["bottom"] <= scheme["height"] + 0.5, where
            if e["tag"] == "text":
                room = min(rooms, key=lambda r: abs(r["left"] - e["left"]))
                assert e["right"] <= room["right"] + 25, where  # before the next column
        labels = [e for e in scheme["all"] if e["kind"] == "in"]
        assert labels and all("�" not in e["text"] for e in labels)
        for one, two in zip(labels, labels[1:]):
            assert one["left"] != two["left"] or two["bottom"] <= one["top"] + 2, "labels overlap"


def test_it_can_be_read(drawn):
    _, _, found = drawn
    for scheme in found.values():
        back = next(e for e in scheme["all"] if e["kind"] == "back")["fill"]
        blocks = {e["fill"] for e in scheme["all"] if e["kind"] in ("m0", "m1")}
        for e in scheme["all"]:
            if e["tag"] == "text":
                for behind in blocks if e["kind"] == "in" else {back}:
                    assert contrast(e["fill"], behind) >= 4.5, (e["text"], e["fill"], behind)
        assert all(contrast(b, back) >= 1.8 for b in blocks)
    backs = [next(e for e in scheme["all"] if e["kind"] == "back")["fill"] for scheme in found.values()]
    assert contrast(*backs) > 10, "light and dark are alike"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_not_blank(drawn, scratch, dark):
    _, picture, found = drawn
    scheme, shot = found[dark], scratch / "plan.png"
    browse(dark, f"--window-size={int(scheme['width'])},{int(scheme['height'])}", f"--screenshot={shot}", f"file://{picture}")
    rows = pixels(shot)
    blocks = {color(e["fill"]) for e in scheme["all"] if e["kind"] in ("m0", "m1")}
    area = sum((e["right"] - e["left"]) * (e["bottom"] - e["top"]) for e in scheme["all"] if e["kind"] in ("m0", "m1"))
    painted = sum(pixel in blocks for row in rows for pixel in row)
    assert 0.75 * area < painted < 1.1 * area + 500, (painted, area)  # labels and lines are on them
    back = color(next(e for e in scheme["all"] if e["kind"] == "back")["fill"])
    assert rows[2][2] == back
