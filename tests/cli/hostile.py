#!/usr/bin/env python3
"""Hostile checkpoints, and the memory and processor time that each command takes for them.

    tests/cli/hostile.py build/release/heft                 every kind with every command: a table
    tests/cli/hostile.py build/release/heft --memory        the same, and fails for a peak over the bound
    tests/cli/hostile.py build/release/heft --only PATTERN  kinds that match a regular expression
    tests/cli/hostile.py --make KIND FOLDER                 one of them

A command may take 64 MB and twice the bytes of the files, those of both sides for `diff`. The peak is the process's resident memory (ru_maxrss)
beyond that of `heft --version`. Times are for the reader: they depend on the machine and are not judged.
"""
import argparse, io, json, os, re, shutil, struct, subprocess, sys, tempfile, zipfile

BASE = 64_000_000
EXITS = {0, 1, 3, 4, 5, 6, 7, 8, 9}
KINDS = {}


def kind(*commands):
    """Register a maker of a checkpoint; it gets a folder and returns the path to open (None: the folder)."""
    def register(make):
        KINDS[make.__name__] = (make, commands or STANDARD)
        return make
    return register


def words(text):
    return tuple(line.split() for line in text.strip().splitlines())


STANDARD = words("""
    inspect @
    inspect @ --json
    verify @
    verify @ --deep
    diff @ @
    load @
    load @ --mode copy --touch --json
    plan @
    convert @ OUT
    convert @ OUT --dequantize --format bin
""")
OPENING = words("""
    inspect @
    verify @ --deep
    load @
    convert @ OUT
""")
CONFIG_ONLY = words("""
    inspect @
    inspect @ --json
    inspect @ --tree
    plan @
    plan @ --json
    plan @ --strategy balanced --max-memory 0=1GB,1=1GB,cpu=100GB
    init @ OUT
""")

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1,
         "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": 8}
MIXTRAL = dict(LLAMA, model_type="mixtral", architectures=["MixtralForCausalLM"], num_local_experts=1)
DEEPSEEK = {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 8, "intermediate_size": 8,
            "moe_intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": 8,
            "n_routed_experts": 4, "kv_lora_rank": 4, "q_lora_rank": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4,
            "n_group": 1, "topk_group": 1, "num_experts_per_tok": 1, "first_k_dense_replace": 0}


# ---- files -----------------------------------------------------------------------------------------------
def write(folder, name, data):
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)


def config(folder, value=LLAMA, name="config.json"):
    write(folder, name, json.dumps(value).encode())


def safetensors(folder, entries, data=b"", name="model.safetensors", with_config=LLAMA):
    head = b"{" + b",".join(entries) + b"}"
    head += b" " * (-len(head) % 8)
    write(folder, name, struct.pack("<Q", len(head)) + head + data)
    if with_config is not None:
        config(folder, with_config)


EMPTY = b'"%d":{"dtype":"F4","shape":[0],"data_offsets":[0,0]}'


def legacy(folder, pickle, keys=b"]", storages=b""):
    """A stream of torch before 1.6."""
    head = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
    write(folder, "pytorch_model.bin", head + b"\x80\x02" + pickle + b"." + b"\x80\x02" + keys + b"." + storages)
    config(folder)


def zipped(folder, pickle, records=(), deflate=True, name="pytorch_model.bin"):
    method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(os.path.join(folder, name), "w", zipfile.ZIP_STORED) as out:
        out.writestr("a/data.pkl", b"\x80\x02" + pickle + b".", method)
        out.writestr("a/version", b"3\n")
        for key, data in records:
            out.writestr(f"a/data/{key}", data, method)
    config(folder)


def text(value):
    value = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(value)) + value


def put(index):
    return b"r" + struct.pack("<I", index)


def get(index):
    return b"j" + struct.pack("<I", index)


def i32(value):
    return b"J" + struct.pack("<i", value)


REBUILD, ORDERED = b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"


def persid(key, numel, storage=b"ctorch\nFloatStorage\n", legacy_form=False):
    return b"(" + text("storage") + storage + text(key) + text("cpu") + i32(numel) + (b"N" if legacy_form else b"") + b"tQ"


def tensor(storage, sizes=(1,), strides=(1,), offset=0):
    def tuple_of(values):
        return b"(" + b"".join(i32(v) for v in values) + b"t"
    return REBUILD + b"(" + storage + i32(offset) + tuple_of(sizes) + tuple_of(strides) + b"\x89" + ORDERED + b")RtR"


# the memo: 0 rebuild, 1 storage, 2 empty ordered dict, 3 size and stride (1,)
def shared_tensors(count, key="0", legacy_form=False, name=lambda i: f"{i}"):
    """Many tensors on one storage by as few bytes as can be."""
    out = [b"}("]
    for i in range(count):
        if i == 0:
            out.append(text(name(0)) + REBUILD + put(0) + b"(" + persid(key, 1, legacy_form=legacy_form) + put(1) +
                       b"K\0(K\x01t" + put(3) + b"h\x03\x89" + ORDERED + b")R" + put(2) + b"tR" + put(4))
        else:
            out.append(text(name(i)) + b"h\x00(h\x01K\0h\x03h\x03\x89h\x02tR")
    return b"".join(out) + b"u"


# ---- safetensors -----------------------------------------------------------------------------------------
@kind()
def st_million_tensors(folder):
    safetensors(folder, [EMPTY % i for i in range(1_000_000)])


@kind()
def st_81000_tensors(folder):
    safetensors(folder, [EMPTY % i for i in range(81_000)])


@kind()
def st_100000_tensors_unordered(folder):
    safetensors(folder, [EMPTY % (i * 7919 % 100_000) for i in range(100_000)])


@kind()
def st_100000_scalars(folder):
    safetensors(folder, [b'"model.layers.%d.w":{"dtype":"F32","shape":[],"data_offsets":[%d,%d]}' % (i, 4 * i, 4 * i + 4)
                         for i in range(100_000)], b"\0" * 400_000)


@kind()
def st_million_metadata(folder):
    safetensors(folder, [b'"__metadata__":{' + b",".join(b'"%d":""' % i for i in range(1_000_000)) + b"}"])


@kind()
def st_long_metadata(folder):
    safetensors(folder, [b'"__metadata__":{"a":"' + b"x" * 30_000_000 + b'"}'])


@kind()
def st_escaped_metadata(folder):
    safetensors(folder, [b'"__metadata__":{"a":"' + b"\\u0061" * 5_000_000 + b'"}'])


@kind()
def st_64_dimensions(folder):
    safetensors(folder, [b'"%d":{"dtype":"F4","shape":[%s],"data_offsets":[0,0]}' % (i, b",".join([b"0"] * 64)) for i in range(50_000)])


@kind()
def st_9_dimensions(folder):
    safetensors(folder, [b'"%d":{"dtype":"F4","shape":[%s],"data_offsets":[0,0]}' % (i, b",".join([b"0"] * 9)) for i in range(80_000)])


@kind(*OPENING)
def st_million_dimensions(folder):
    safetensors(folder, [b'"a":{"dtype":"F4","shape":[' + b",".join([b"0"] * 1_000_000) + b'],"data_offsets":[0,0]}'])


@kind(*OPENING)
def st_deep(folder):
    safetensors(folder, [b'"a":{"x":' + b"[" * 5_000_000 + b"]" * 5_000_000 + b"}"])


@kind(*OPENING)
def st_unknown_fields(folder):
    safetensors(folder, [b'"a":{"dtype":"F4","shape":[0],"data_offsets":[0,0],' + b",".join(b'"%d":0' % i for i in range(1_000_000)) + b"}"])


@kind(*OPENING)
def st_header_of_spaces(folder):
    safetensors(folder, [b" " * 60_000_000])


@kind(*OPENING)
def st_long_names(folder):
    safetensors(folder, [b'"%05d%s":{"dtype":"F4","shape":[0],"data_offsets":[0,0]}' % (i, b"n" * 65_000) for i in range(500)])


@kind(*OPENING)
def st_many_parts(folder):  # names that make a deep tree of modules
    safetensors(folder, [b'"%d.%s":{"dtype":"F4","shape":[0],"data_offsets":[0,0]}' % (i, b".".join(b"%d" % (j % 10) for j in range(2_000)))
                         for i in range(1_000)])


@kind(*OPENING)
def st_other_model(folder):  # nothing fits the model: long lists of unexpected names
    safetensors(folder, [b'"model.layers.%d.w":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}' % (i, 4 * i, 4 * i + 4)
                         for i in range(80_000)], b"\0" * 320_000)


# ---- pickles ---------------------------------------------------------------------------------------------
PICKLES = {
    "nested_lists": lambda n: b"]" * n + b"a" * (n - 1),
    "nested_tuples": lambda n: b")" + b"\x85" * n,
    "many_dicts": lambda n: b"(" + b"}" * n + b"t",
    "many_sets": lambda n: b"(" + b"\x8f" * n + b"t",
    "nones": lambda n: b"(" + b"N" * n + b"t",
    "marks": lambda n: b"(" * n,
    "marks_and_nones": lambda n: b"(N" * (n // 2),
    "memoized": lambda n: b"N" + b"\x94" * n,
    "memoized_dicts": lambda n: b"(" + b"}\x94" * (n // 2) + b"t",
    "copies": lambda n: b"]" + b"2" * n,
    "grown_list": lambda n: b"]" + b"Na" * (n // 2),
    "grown_lists": lambda n: b"]" + b"]NaNaNa0" * (n // 8),
    "grown_dict": lambda n: b"}" + b"".join(b"J" + struct.pack("<i", i) + b"Ns" for i in range(n // 7)),
    "empty_tuples_in_calls": lambda n: b"]" + b"ca\nb\n" + put(0) + b"a" + b"h\x00)Ra" * (n // 5),
    "unknown_names": lambda n: b"(" + b"ca\nb\n" * (n // 5) + b"t",
    "unknown_objects": lambda n: b"}(" + b"".join(text("%d" % i) + b"ca\nb\n)R" for i in range(n // 17)) + b"u",
    "texts": lambda n: b"(" + b"U\0" * (n // 2) + b"t",
    "big_integers": lambda n: b"(" + (b"\x8a\x09" + b"\x01" * 9) * (n // 11) + b"t",
    "skipped_values": lambda n: b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(n // 6)) + b"u",
    "shared_doubling": lambda n: b")" + b"".join(put(i) + get(i) + b"\x86" for i in range(60)) + b"0" + b"N0" * (n // 2) + b"}",
    "shared_dicts": lambda n: b"}" + b"".join(put(i) + b"}(" + text("a" * 60) + get(i) + text("b" * 60) + get(i) + b"u" for i in range(40)),
    "long_key": lambda n: b"}" + text(b"k" * n) + b"Ns",
    "shared_long_names": lambda n: long_names(n),
}


def long_names(n):
    """One dict of 200 tensors under names of 30 KB each, by one text in the memo."""
    inner = shared_tensors(200)
    out = inner + put(9)
    keys = b"".join(text("k" * 20_000 + str(i)) + get(9) for i in range(20))
    return b"}(" + text("first") + out + keys + b"u"


def add_pickles():
    sizes = {"legacy": 1_000_000, "legacy_8m": 8_000_000, "zip": 30_000_000, "zip_2m": 2_000_000}
    for name, make in PICKLES.items():
        for where, count in sizes.items():
            def build(folder, make=make, where=where, count=count):
                (zipped if where.startswith("zip") else legacy)(folder, make(count))
            build.__name__ = f"{where}_{name}"
            kind(*OPENING)(build)


add_pickles()


@kind()
def legacy_100000_tensors(folder):
    legacy(folder, shared_tensors(100_000, legacy_form=True), b"]" + text("0") + b"a", struct.pack("<q", 1) + b"\0" * 4)


@kind()
def legacy_80000_tensors(folder):
    legacy(folder, shared_tensors(80_000, legacy_form=True), b"]" + text("0") + b"a", struct.pack("<q", 1) + b"\0" * 4)


@kind()
def zip_100000_tensors(folder):
    zipped(folder, shared_tensors(100_000), [("0", b"\0" * 4)])


@kind()
def zip_million_tensors(folder):
    zipped(folder, shared_tensors(1_000_000), [("0", b"\0" * 4)])


@kind()
def zip_storages(folder):
    pickle = b"}(" + b"".join(text(f"{i}") + tensor(persid(i, 1)) for i in map(str, range(20_000))) + b"u"
    zipped(folder, pickle, [(str(i), b"\0" * 4) for i in range(20_000)], deflate=False)


@kind(*OPENING)
def zip_many_ids(folder):
    zipped(folder, b"(" + persid("0", 1) * 300_000 + b"t", [("0", b"\0" * 4)])


@kind(*OPENING)
def zip_many_same_id(folder):  # one tuple, many persistent ids of it
    zipped(folder, b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + i32(1) + b"t" + put(0) + b"0" +
           b"(" + b"h\0Q" * 1_000_000 + b"t", [("0", b"\0" * 4)])


@kind(*OPENING)
def zip_many_records(folder):
    with zipfile.ZipFile(os.path.join(folder, "pytorch_model.bin"), "w") as out:
        for i in range(60_000):
            out.writestr(f"a/{i}", b"")
    config(folder)


@kind()
def zip_expanded_views(folder):
    n = 2_000
    pickle = b"}(" + b"".join(text(f"{i}") + tensor(persid("0", 16), (1 << 28 - (i & 1),), (0,)) for i in range(n)) + b"u"
    zipped(folder, pickle, [("0", b"\0" * 64)])


@kind()
def zip_overlapping_views(folder):
    n = 8_000
    pickle = b"}(" + b"".join(text(f"{i}") + tensor(persid("0", n), (n - i,), (1,), i) for i in range(n)) + b"u"
    zipped(folder, pickle, [("0", b"\0" * (4 * n))])


@kind()
def zip_expanded_just_below(folder):  # 31 MiB of one element
    zipped(folder, b"}" + text("a") + tensor(persid("0", 1), (31 << 18,), (0,)) + b"s", [("0", b"\0" * 4)])


@kind()
def zip_odd_strides(folder):
    n = 1 << 21
    zipped(folder, b"}(" + text("a") + tensor(persid("0", n), (1024, 2048), (1, 1024)) + b"u", [("0", b"\0" * (4 * n))])


@kind()
def zip_deflated_storages(folder):
    n = 7 << 20
    zipped(folder, b"}(" + text("a") + tensor(persid("0", n), (n,), (1,)) + b"u", [("0", b"\0" * (4 * n))])


@kind(*OPENING)
def zip_deflated_storage_too_large(folder):
    n = 64 << 20
    zipped(folder, b"}(" + text("a") + tensor(persid("0", n), (n,), (1,)) + b"u", [("0", b"\0" * (4 * n))])


@kind(*OPENING)
def zip_64_dimensions(folder):
    one = b"(" + b"K\x01" * 64 + b"t"
    pickle = (b"}(" + text("a") + REBUILD + put(0) + b"(" + persid("0", 1) + put(1) + b"K\0" + one + put(3) + b"h\3\x89" + ORDERED + b")R" + put(2) +
              b"tR" + b"".join(text(f"{i}") + b"h\0(h\1K\0h\3h\3\x89h\2tR" for i in range(70_000)) + b"u")
    zipped(folder, pickle, [("0", b"\0" * 4)])


def tar_of(folder, members):
    import tarfile
    with tarfile.open(os.path.join(folder, "pytorch_model.bin"), "w") as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    config(folder)


def tar_tensors(folder, count):
    def pickled(body):
        return b"\x80\x02" + body + b"."
    storages = pickled(i32(1)) + pickled(b"(K\x01" + text("cpu") + b"ctorch\nFloatStorage\nt") + struct.pack("<Q", 1) + b"\0" * 4 + pickled(b"]")
    tensors = pickled(i32(count)) + b"".join(
        pickled(b"(" + i32(10 + i) + b"K\x01ctorch\nFloatTensor\nt") + struct.pack("<IIQQq", 1, 0, 1, 1, 0) for i in range(count))
    pickle = pickled(b"}(" + b"".join(text(f"{i}") + i32(10 + i) + b"Q" for i in range(count)) + b"u")
    tar_of(folder, [("storages", storages), ("tensors", tensors), ("pickle", pickle)])


@kind()
def tar_30000_tensors(folder):
    tar_tensors(folder, 30_000)


@kind(*OPENING)
def tar_100000_tensors(folder):
    tar_tensors(folder, 100_000)


@kind(*OPENING)
def tar_nested(folder):
    empty = b"\x80\x02K\0.\x80\x02]."
    tar_of(folder, [("storages", empty), ("tensors", b"\x80\x02K\0."), ("pickle", b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".")])


@kind(*OPENING)
def tar_many_members(folder):
    tar_of(folder, [(f"{i}", b"") for i in range(100_000)])


# ---- indexes ---------------------------------------------------------------------------------------------
def index(folder, pairs, metadata=b"{}"):
    write(folder, "model.safetensors.index.json",
          b'{"metadata":' + metadata + b',"weight_map":{' + b",".join(b'"%s":"%s"' % pair for pair in pairs) + b"}}")
    config(folder)


@kind()
def index_million_keys(folder):
    safetensors(folder, [EMPTY % 0], name="m.safetensors")
    index(folder, ((b"%d" % i, b"m.safetensors") for i in range(1_000_000)))


@kind()
def index_million_keys_unordered(folder):
    safetensors(folder, [EMPTY % 0], name="m.safetensors")
    index(folder, ((b"%d" % (i * 7919 % 1_000_000), b"m.safetensors") for i in range(1_000_000)))


@kind()
def index_150000_keys(folder):  # names that no file has: as many findings
    safetensors(folder, [EMPTY % 0], name="m.safetensors")
    index(folder, ((b"x%d" % i, b"m.safetensors") for i in range(150_000)))


@kind()
def index_missing_files(folder):
    index(folder, ((b"%d" % i, b"m%d.safetensors" % i) for i in range(100_000)))


@kind()
def index_hard_links(folder):
    safetensors(folder, [EMPTY % i for i in range(20_000)], name="0.safetensors")
    for i in range(1, 500):
        os.link(os.path.join(folder, "0.safetensors"), os.path.join(folder, f"{i}.safetensors"))
    index(folder, ((b"%d" % i, b"%d.safetensors" % i) for i in range(500)))


@kind()
def index_symlinks(folder):
    safetensors(folder, [EMPTY % i for i in range(20_000)], name="0.safetensors")
    for i in range(1, 500):
        os.symlink("0.safetensors", os.path.join(folder, f"{i}.safetensors"))
    index(folder, ((b"%d" % i, b"%d.safetensors" % i) for i in range(500)))


@kind()
def index_linked_bytes(folder):  # the same 4 MB under 100 names: no 400 MB of files
    safetensors(folder, [b'"0":{"dtype":"U8","shape":[4000000],"data_offsets":[0,4000000]}'], b"\0" * 4_000_000, name="0.safetensors")
    for i in range(1, 100):
        os.symlink("0.safetensors", os.path.join(folder, f"{i}.safetensors"))
    index(folder, ((b"%d" % i, b"%d.safetensors" % i) for i in range(100)))


@kind()
def index_same_pickle(folder):
    zipped(folder, shared_tensors(20_000), [("0", b"\0" * 4)], name="0.bin")
    for i in range(1, 300):
        os.symlink("0.bin", os.path.join(folder, f"{i}.bin"))
    write(folder, "pytorch_model.bin.index.json", b'{"weight_map":{' + b",".join(b'"%d":"%d.bin"' % (i, i) for i in range(300)) + b"}}")


@kind()
def index_many_small_files(folder):
    for i in range(5_000):
        safetensors(folder, [b'"%d":{"dtype":"F4","shape":[0],"data_offsets":[0,0]}' % i], name=f"{i}.safetensors", with_config=None)
    index(folder, ((b"%d" % i, b"%d.safetensors" % i) for i in range(5_000)))


@kind()
def index_many_nested_pickles(folder):  # each within the bound, all of them together
    for i in range(40):
        zipped(folder, shared_tensors(1, name=lambda _, i=i: f"{i}") + b"0" + b"]" * 300_000 + b"0" * 300_000 + b"}", [("0", b"\0" * 4)], name=f"{i}.bin")
    write(folder, "pytorch_model.bin.index.json", b'{"weight_map":{' + b",".join(b'"%d":"%d.bin"' % (i, i) for i in range(40)) + b"}}")


@kind()
def index_of_large_files(folder):  # a table of tensors for each of 50 files of 50,000 tensors
    for f in range(50):
        safetensors(folder, [b'"%d.%d":{"dtype":"F4","shape":[0],"data_offsets":[0,0]}' % (f, i) for i in range(50_000)], name=f"{f}.safetensors",
                    with_config=None)
    index(folder, ((b"%d.0" % f, b"%d.safetensors" % f) for f in range(50)))


@kind(*OPENING)
def index_metadata_tree(folder):
    safetensors(folder, [EMPTY % 0], name="m.safetensors")
    index(folder, [(b"0", b"m.safetensors")], b'{"a":[' + b",".join([b"0"] * 5_000_000) + b"]}")


@kind(*OPENING)
def index_bare(folder):
    write(folder, "model.safetensors.index.json", b"{" + b",".join(b'"%d":"m%d.safetensors"' % (i, i % 7) for i in range(500_000)) + b"}")
    config(folder)


@kind()
def offload_index(folder):
    write(folder, "0.dat", b"\0" * 4)
    write(folder, "index.json", b"{" + b",".join(b'"%d":{"dtype":"float32","shape":[1]}' % i for i in range(200_000)) + b"}")
    config(folder)


@kind()
def offload_safetensors(folder):  # every name is in the same file
    path = os.path.join(folder, "m.safetensors").encode()
    safetensors(folder, [b'"0":{"dtype":"U8","shape":[4000],"data_offsets":[0,4000]}'], b"\0" * 4_000, name="m.safetensors")
    write(folder, "index.json", b"{" + b",".join(b'"%d":{"safetensors_file":"%s","weight_name":"0","dtype":"uint8"}' % (i, path)
                                                 for i in range(60_000)) + b"}")


# ---- configs ---------------------------------------------------------------------------------------------
@kind(*CONFIG_ONLY)
def config_layers(folder):
    config(folder, dict(LLAMA, num_hidden_layers=2_000_000_000))


@kind(*CONFIG_ONLY)
def config_experts(folder):
    config(folder, dict(MIXTRAL, num_hidden_layers=1_000, num_local_experts=1_000_000))


@kind(*CONFIG_ONLY)
def config_near_the_limit(folder):
    config(folder, dict(MIXTRAL, num_hidden_layers=188, num_local_experts=127))


@kind(*CONFIG_ONLY)
def config_layers_near_the_limit(folder):
    config(folder, dict(LLAMA, num_hidden_layers=7_000))


@kind(*CONFIG_ONLY)
def config_deepseek(folder):
    config(folder, dict(DEEPSEEK, num_hidden_layers=61, n_routed_experts=384))


@kind(*CONFIG_ONLY)
def config_wide_tree(folder):
    write(folder, "config.json", b'{"model_type":"llama","x":[' + b",".join([b"0"] * 8_000_000) + b"]}")


@kind(*CONFIG_ONLY)
def config_wide_tree_2m(folder):
    write(folder, "config.json", b'{"model_type":"llama","x":[' + b",".join([b"0"] * 1_000_000) + b"]}")


@kind(*CONFIG_ONLY)
def config_many_keys(folder):
    write(folder, "config.json", b'{"model_type":"llama",' + b",".join(b'"%d":0' % i for i in range(1_000_000)) + b"}")


@kind(*CONFIG_ONLY)
def config_empty_lists(folder):
    write(folder, "config.json", b'{"model_type":"llama","x":[' + b",".join([b"[]"] * 5_000_000) + b"]}")


@kind(*CONFIG_ONLY)
def config_escaped(folder):
    write(folder, "config.json", json.dumps(LLAMA).encode()[:-1] + b',"x":"' + b"\\u0061" * 2_500_000 + b'"}')


@kind(*CONFIG_ONLY)
def config_labels(folder):
    config(folder, dict(LLAMA, architectures=["LlamaForSequenceClassification"], id2label={str(i): str(i) for i in range(300_000)}))


@kind()
def load_near_the_limit(folder):  # a model of 98,000 modules, and one tensor
    safetensors(folder, [EMPTY % 0], with_config=dict(MIXTRAL, num_hidden_layers=188, num_local_experts=127))


@kind(*words("load @\n load @ --mode copy\n load @ --dtype float32 --mode copy\n convert @ OUT --dtype float32\n convert @ OUT --format bin"))
def cast_by_config(folder):  # float8 to what the config says
    n = 40_000_000
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        head = b'{"model.embed_tokens.weight":{"dtype":"F8_E4M3","shape":[%d,8],"data_offsets":[0,%d]}}' % (n // 8, n)
        head += b" " * (-len(head) % 8)
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + n)
    config(folder, dict(LLAMA, vocab_size=n // 8, torch_dtype="float64", dtype="float64"))


# ---- quantized and other folders -------------------------------------------------------------------------
@kind()
def quantized_tiny(folder):
    entries, at = [], 0
    for i in range(13_000):
        for name, dtype, shape, size in ((b"qweight", b"I32", b"[1,8]", 32), (b"qzeros", b"I32", b"[1,1]", 4), (b"scales", b"F16", b"[1,8]", 16),
                                         (b"g_idx", b"I32", b"[8]", 32)):
            entries.append(b'"l.%d.%s":{"dtype":"%s","shape":%s,"data_offsets":[%d,%d]}' % (i, name, dtype, shape, at, at + size))
            at += size
    safetensors(folder, entries, b"\0" * at,
                with_config=dict(LLAMA, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": False}))


@kind()
def quantized_fp8(folder):  # DeepSeek's form: a weight and a scale for each expert
    entries, at = [], 0
    for i in range(33_000):
        for name, dtype, size in ((b"weight", b"F8_E4M3", 1), (b"weight_scale_inv", b"F32", 4)):
            entries.append(b'"l.%d.%s":{"dtype":"%s","shape":[1,1],"data_offsets":[%d,%d]}' % (i, name, dtype, at, at + size))
            at += size
    safetensors(folder, entries, b"\0" * at,
                with_config=dict(LLAMA, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]}))


@kind()
def quantized_expanding(folder):  # one scale group makes 4 bits of nothing into much
    entries, at = [], 0
    for i in range(200):
        for name, dtype, shape, size in ((b"qweight", b"I32", b"[4096,8]", 4096 * 32), (b"qzeros", b"I32", b"[1,1]", 4), (b"scales", b"F16", b"[1,8]", 16)):
            entries.append(b'"l.%d.%s":{"dtype":"%s","shape":%s,"data_offsets":[%d,%d]}' % (i, name, dtype, shape, at, at + size))
            at += size
    safetensors(folder, entries, b"\0" * at,
                with_config=dict(LLAMA, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": False}))


@kind()
def quantized_torchao(folder):  # metadata that is a tree for each weight
    tree = b'{\\"_type\\":\\"Float8Tensor\\",\\"x\\":[' + b",".join([b"0"] * 10_000) + b"]}"
    entries, at = [b'"__metadata__":{' + b",".join(b'"l.%d.weight":"%s"' % (i, tree) for i in range(300)) + b"}"], 0
    for i in range(300):
        for name, dtype, size in ((b"qdata", b"F8_E4M3", 1), (b"scale", b"F32", 4)):
            entries.append(b'"l.%d._weight_%s":{"dtype":"%s","shape":[1,1],"data_offsets":[%d,%d]}' % (i, name, dtype, at, at + size))
            at += size
    safetensors(folder, entries, b"\0" * at, with_config=dict(LLAMA, quantization_config={"quant_method": "torchao"}))


@kind()
def quantized_bnb4(folder):  # the same, as bitsandbytes stores it
    tree = b'{"blocksize":64,"shape":[2,1],"dtype":"float16","quant_type":"nf4","x":[' + b",".join([b"0"] * 10_000) + b"]}"
    entries, data, at = [], [], 0
    for i in range(300):
        for name, dtype, value in ((b"", b"U8", b"\0"), (b".absmax", b"F32", b"\0" * 4), (b".quant_map", b"F32", b"\0" * 64),
                                   (b".quant_state.bitsandbytes__nf4", b"U8", tree)):
            shape = b"[1,1]" if not name else b"[%d]" % (len(value) // (4 if dtype == b"F32" else 1))
            entries.append(b'"l.%d.weight%s":{"dtype":"%s","shape":%s,"data_offsets":[%d,%d]}' % (i, name, dtype, shape, at, at + len(value)))
            data.append(value)
            at += len(value)
    safetensors(folder, entries, b"".join(data), with_config=dict(LLAMA, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}))


@kind()
def adapter(folder):
    safetensors(folder, [EMPTY % i for i in range(80_000)], name="adapter_model.safetensors", with_config=None)
    config(folder, {"peft_type": "LORA", "target_modules": [str(i) for i in range(100_000)]}, "adapter_config.json")


@kind()
def diffusers(folder):
    safetensors(folder, [EMPTY % i for i in range(80_000)], name="diffusion_pytorch_model.safetensors", with_config=None)
    config(folder, {"_class_name": "UNet2DConditionModel", "block_out_channels": list(range(300_000))})


@kind(*OPENING)
def folder_of_names(folder):
    safetensors(folder, [EMPTY % 0])
    for i in range(50_000):
        os.symlink("model.safetensors", os.path.join(folder, f"model-{i:05d}-of-50000.safetensors"))


@kind(*words("verify @ --manifest MANIFEST"))
def manifest(folder):
    safetensors(folder, [EMPTY % 0])
    write(folder, "manifest.json", b'{"files":{' + b",".join(b'"%d":{"size":1,"sha256":"00"}' % i for i in range(500_000)) + b"}}")


# ---- measuring -------------------------------------------------------------------------------------------
def measure(command):
    """Exit code, peak of resident bytes, seconds of processor time, stderr."""
    with tempfile.NamedTemporaryFile("r") as facts, tempfile.TemporaryFile() as err:
        helper = os.path.join(os.path.dirname(command[0]), "tests", "measure_peak")
        subprocess.run([helper, facts.name] + command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err, check=True)
        code, peak, seconds = facts.read().split()
        err.seek(0)
        return int(code), int(peak), float(seconds), err.read(300).decode(errors="replace").strip()


def folder_bytes(folder):
    seen = {}
    for root, _, names in os.walk(folder):
        for name in names:
            facts = os.stat(os.path.join(root, name), follow_symlinks=False)
            seen[facts.st_dev, facts.st_ino] = facts.st_size
    return sum(seen.values())


def try_kind(heft, name, work, floor, options):
    folder, out = os.path.join(work, "in"), os.path.join(work, "out")
    os.mkdir(folder)
    subprocess.run([sys.executable, __file__, "--make", name, folder], check=True)
    size, failed = folder_bytes(folder), 0
    for command in KINDS[name][1]:
        places = {"@": folder, "OUT": out, "MANIFEST": os.path.join(folder, "manifest.json")}
        most = BASE + 2 * size * max(command.count("@"), 1)
        code, peak, seconds, err = measure([heft] + [places.get(word, word) for word in command])
        wrong = ("EXIT " if code not in EXITS else "") + ("MEMORY " if peak - floor > most else "")
        slow = "SLOW " if seconds > 1 else ""
        failed += bool(wrong)
        if wrong or slow or options.all:
            shown = " ".join(command[:1] + command[2:])
            print(f"{name:32} {shown:42} {code:3} {(peak - floor) / 1e6:7.1f} of {most / 1e6:6.1f} MB {seconds:6.2f} s  {wrong}{slow}{err[:options.width]}",
                  flush=True)
        shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(folder)
    return failed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("heft", nargs="?")
    parser.add_argument("--make", nargs=2)
    parser.add_argument("--only", default="")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--all", action="store_true", help="print every row")
    parser.add_argument("--width", type=int, default=0, help="characters of stderr to print")
    options = parser.parse_args()
    if options.make:
        KINDS[options.make[0]][0](options.make[1])
        return 0
    heft, failed, count = os.path.realpath(options.heft), 0, 0
    floor = measure([heft, "--version"])[1]
    for name in KINDS:
        if re.search(options.only, name):
            with tempfile.TemporaryDirectory() as work:
                failed += try_kind(heft, name, work, floor, options)
                count += 1
    print(f"{count} kinds, {failed} failures")
    return 1 if failed and options.memory else 0


if __name__ == "__main__":
    sys.exit(main())
