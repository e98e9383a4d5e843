#!/usr/bin/env bash
# test_plan - heft plan: maps, budgets, dtypes, pictures, and what it refuses.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

json() { # json EXPRESSION: of the document in $out, as `d`
    python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); assert eval(sys.argv[2]), (sys.argv[2], d)' "$out" "$1" ||
        fail "not so: $1"
}

config=$source_dir/examples/llama-3b/config.json

# ---- a lone config ----------------------------------------------------------------------------------------
for strategy in auto balanced balanced_low_0 sequential best; do
    run 0 plan "$config" --json --strategy "$strategy" --max-memory 0=3GB,1=6GB,cpu=8GB
    silent "$err"
    json 'd["class"] == "LlamaForCausalLM"'
    json 'sum(d["placed_bytes"].values()) >= 6425499648'
    json 'all(d["placed_bytes"][k] <= (d["max_memory"][k] or 1e99) for k in d["placed_bytes"])'
    json 'd["largest_block"]["name"] == "model.embed_tokens"'
    # a tie stays together
    json 'd["device_map"].get("lm_head", d["device_map"].get("")) == d["device_map"].get("model.embed_tokens", d["device_map"].get("model", d["device_map"].get("")))'
done
json '[r["dtype"] for r in d["dtypes"]] == ["float32", "bfloat16", "float16", "int8", "int4"]'
json 'd["dtypes"][0]["total_bytes"] > 1.99 * d["dtypes"][1]["total_bytes"]'
json 'd["dtypes"][0]["training_bytes"] == 4 * d["dtypes"][0]["total_bytes"]'
json 'd["dtypes"][3]["training_bytes"] is None'

# best leaves no more than the others
run 0 plan "$config" --json --strategy best --max-memory 0=3GB,1=3GB,cpu=8GB
json 'd["placed_bytes"]["cpu"] + d["placed_bytes"]["disk"] < 1.6e9'

# what the machine has
run 0 plan "$config" --json
json 'd["budget"] != "given" and set(d["max_memory"]) == {"cpu", "disk"}'
run 0 plan "$config" --json --dtype float16 --max-memory disk
json 'd["device_map"] == {"": "disk"}'

# text folds numbers
run 0 plan "$config" --max-memory 0=4GB,cpu=8GB
shows "$out" '^  model\.layers\.\{0\.\.[0-9]+\} → 0$'
shows "$out" '^  model\.layers\.\{[0-9]+\.\.27\} → cpu$'

# ---- a checkpoint, and one of a type that is not known -------------------------------------------------------
cp -r "$source_dir/tests/data/loading/moe_per_expert" "$work/known"
run 0 plan "$work/known" --json --strategy best --max-memory 0=20KB
json '{d["device_map"]["model.layers.0"], d["device_map"]["model.layers.1"]} == {0, "disk"}'
cp -r "$work/known" "$work/unknown"
sed -i 's/"model_type": *"[^"]*"/"model_type": "quux"/' "$work/unknown/config.json"
run 0 plan "$work/unknown" --json --strategy best --max-memory 0=20KB
json 'd["model_type"] == "quux" and {d["device_map"]["model.layers.0"], d["device_map"]["model.layers.1"]} == {0, "disk"}'
run 0 plan "$work/unknown" --json --max-memory 0=28KB --no-split self_attn,model.layers.0
json 'd["device_map"].get("model.layers.0") is not None and "model.layers.1.self_attn" in d["device_map"]'

# ---- the picture ----------------------------------------------------------------------------------------------
run 0 plan "$config" -q --max-memory 0=4GB,cpu=8GB --svg "$work/plan.svg"
silent "$out"
python3 -c 'import sys, xml.dom.minidom as x; d = x.parse(sys.argv[1]); assert len(d.getElementsByTagName("rect")) > 30' "$work/plan.svg" ||
    fail "the picture is no picture"

# ---- dtypes by name, warnings -----------------------------------------------------------------------------------
run 0 plan "$config" --json --dtype float16 --max-memory disk
cp "$out" "$work/plain"
run 0 plan "$config" --json --dtype float16 --max-memory disk --dtype-of 'model.layers.*=f32,norm=float16'
python3 -c 'import json, sys; a, b = (json.load(open(f))["placed_bytes"]["disk"] for f in sys.argv[1:]); assert 1.8 * a < b < 2 * a, (a, b)' \
    "$work/plain" "$out" || fail "the layers are not twice as large"
json 'd["warnings"] == []'
run 0 plan "$config" --json --max-memory 0=600MB,cpu=8GB --strategy sequential
silent "$err"
json 'len(d["warnings"]) == 1 and "\n  - 0: 989343744 bytes required\n" in d["warnings"][0]'
run 0 plan "$config" --max-memory 0=600MB,cpu=8GB --strategy sequential
lines "$err" 3
shows "$err" '^heft plan: warning: Based on the current allocation process'
shows "$err" '^heft plan: warning:   - 0: 989\.3 MB required$'
run 0 plan "$config" -q --max-memory 0=600MB,cpu=8GB --strategy sequential
silent "$err"
run 0 plan "$config" --json --max-memory 0=600MB,cpu=8GB --strategy sequential --fallback-allocation
json 'd["placed_bytes"]["0"] == 0 and len(d["warnings"]) == 1' # nothing else would leave room for the embeddings
run 0 plan "$config" --json --max-memory 0=1GB,cpu=8GB --strategy best --dtype-of lm_head=int8
json 'd["device_map"]["lm_head"] == d["device_map"]["model.embed_tokens"]'

# buffers on the CPU that fit on no accelerator: the rotary frequencies, 2 times 64 in float32
run 0 plan "$config" --max-memory 0=1,cpu=8GB --strategy best
shows "$err" '^heft plan: warning: Current model requires 512 B of buffer for offloaded layers'
run 0 plan "$config" --max-memory 0=1,cpu=8GB --strategy best --offload-buffers
silent "$err"

# a type that is not known, whose config wants a tie that the checkpoint does not have
python3 - "$work/unknown/config.json" <<'END'
import json, sys
config = json.load(open(sys.argv[1]))
config["tie_word_embeddings"] = True
json.dump(config, open(sys.argv[1], "w"))
END
run 0 plan "$work/unknown" --max-memory disk
shows "$err" '^heft plan: warning: The model weights are not tied\.'

# ---- what the machine allows: a container's limit less what is used but for its cache, 16 MiB and 1/256 -----------
export groups=''
if unshare -m true 2>/dev/null; then
    container() { # container FILE=TEXT...: heft plan where these are what the kernel says of the group; /proc/self/cgroup is $groups
        # shellcheck disable=SC2016 # for the inner shell
        unshare -m bash -c 'mount -t tmpfs tmpfs /sys/fs/cgroup && cd /sys/fs/cgroup && heft=$1 config=$2 out=$3 && shift 3 &&
            for file in "$@"; do mkdir -p "$(dirname "$file")"; printf "%b" "${file#*=}" >"${file%%=*}"; done &&
            if [ -n "$groups" ]; then printf "%b" "$groups" >groups && mount --bind groups "/proc/$$/cgroup"; fi &&
            exec "$heft" plan "$config" --json >"$out"' \
            bash "$heft" "$config" "$out" "$@" || fail "in a container: exit $?"
    }
    container memory.max=1000000000 memory.current=300000000 'memory.stat=anon 5\nfile 250000000\nshmem 50000000\ninactive_file 150000000\nactive_file 50000000\n'
    json 'd["budget"] == "the container\x27s limit (cgroup v2)" and d["max_memory"]["cpu"] == 900000000 - 16 * 1024**2 - 900000000 // 256'
    container memory/memory.limit_in_bytes=500000000 memory/memory.usage_in_bytes=400000000 'memory/memory.stat=total_cache 350000000\ntotal_inactive_file 100000000\ntotal_active_file 200000000\n'
    json 'd["budget"] == "the container\x27s limit (cgroup v1)" and d["max_memory"]["cpu"] == 400000000 - 16 * 1024**2 - 400000000 // 256'
    container memory.max=max memory/memory.limit_in_bytes=9223372036854771712
    json 'd["budget"] == "available memory"'
    if unshare -m sh -c 'mount --bind /dev/null "/proc/$$/cgroup"' 2>/dev/null; then
        long=$(printf '/%0250d/%0250d/%0250d' 1 2 3) # the group's path may be as long as it likes
        groups="11:memory$long:/none\n4:cpu,memory:$long\n0::$long\n"
        container "${long#/}/memory.max=1000000000"
        json 'd["budget"] == "the container\x27s limit (cgroup v2)" and d["max_memory"]["cpu"] == 10**9 - 16 * 1024**2 - 10**9 // 256'
        container "memory$long/memory.limit_in_bytes=500000000"
        json 'd["budget"] == "the container\x27s limit (cgroup v1)"'
        groups='5:name=0::/odd:/odd\n4:memory:/in\n0::/in\n' # and may hold what looks like another's
        container in/memory.max=900000000 odd/memory.max=1
        json 'd["max_memory"]["cpu"] > 800000000'
        groups=''
    else
        skip "a container's group: nothing can be mounted on files of /proc"
    fi
else
    skip "a container's limits: no mounts of one's own here"
fi
if [ -z "$sanitized" ]; then
    (
        ulimit -v 3000000
        run 0 plan "$config" --json
        json 'd["budget"] == "the address space limit (ulimit -v)" and d["max_memory"]["cpu"] < 3072000000'
    )
fi

# ---- what loading will take -----------------------------------------------------------------------------------
run 0 plan "$config" --json --strategy best --max-memory cpu=2GB,disk
json 'd["peak"]["resident_bytes"] <= d["placed_bytes"]["cpu"] + 1024 and d["peak"]["mapped_bytes"] >= d["placed_bytes"]["disk"] - 1024'
json 'd["peak_bytes"] == sum(d["peak"][k] for k in ("resident_bytes", "beside_bytes", "staging_bytes", "program_bytes"))'
json '0 < d["least_bytes"] < d["peak_bytes"] and d["least_bytes"] == d["peak"]["resident_bytes"]'
json 'd["stream"]["least_bytes"] == d["least_bytes"] + d["stream"]["one_bytes"] < d["stream"]["peak_bytes"]'
json '0 < d["stream"]["one_bytes"] <= d["stream"]["budget_bytes"] <= 2000000000 - d["placed_bytes"]["cpu"]'
run 0 plan "$config" --strategy best --max-memory cpu=2GB,disk
shows "$out" '^loading +[0-9.]+ GB at most, [0-9.]+ GB at least: '
shows "$out" '^streaming +[0-9.]+ MB more at most, for two units at a time$'
run 0 plan "$config" --json --strategy best --max-memory 0=8GB
json 'd["peak"]["away_bytes"] > 6e9 and d["peak_bytes"] < 100e6'
printf '{"": "disk", "lm_head": "cpu", "model.embed_tokens": "cpu"}' >"$work/plan.json"
run 0 plan "$config" --json --strategy "$work/plan.json"
json 'set(d["device_map"].values()) == {"cpu", "disk"} and d["placed_bytes"]["cpu"] == d["largest_block"]["bytes"]'

# ---- does it fit ----------------------------------------------------------------------------------------------
# 28 layers of 8 heads of 128, keys and values in 16 bits; activations: twice in + out of the widest matrix
run 0 plan "$config" --json --check --context 1000 --batch 2 --max-memory 0=9GB
json 'd["fits"] is True and d["missing_bytes"] == 0'
json 'd["reserve"]["0"] == {"cache_bytes": 2 * 1000 * 28 * 2 * 8 * 128 * 2, "activation_bytes": 2 * 1000 * 2 * (3072 + 8192) * 2, "free_bytes": 0, "given_bytes": 9000000000}'
json 'd["reserve_bytes"] == sum(v for r in d["reserve"].values() for k, v in r.items() if k != "given_bytes")'
json 'd["max_memory"]["0"] == 9000000000 - d["reserve"]["0"]["activation_bytes"]'
run 1 plan "$config" --json --check --context 100000 --max-memory 0=9GB
json 'd["fits"] is False and d["missing_bytes"] == d["placed_bytes"]["disk"] > 0'
run 0 plan "$config" --json --context 100000 --max-memory 0=9GB # the code is --check's
json 'd["fits"] is False'
run 1 plan "$config" --check -q --max-memory 0=2GB,disk
silent "$out"
run 1 plan "$config" --check --max-memory 0=2GB,disk
shows "$out" '^fits +no: [0-9.]+ GB would be on disk$'
run 0 plan "$config" --check --max-memory 0=7GiB
shows "$out" '^fits +yes$'
shows "$out" '^reserve +0: 716\.8 MiB stay free$' # a tenth; answered in the units of the question
shows "$out" '^0 +6\.0 GiB of 6\.3 GiB$'
run 0 plan "$config" --json --reserve 1GB --max-memory 0=8GB
json 'd["reserve"]["0"]["free_bytes"] == 1000000000 and d["max_memory"]["0"] == 7000000000'
run 0 plan "$config" --json --reserve 0 --max-memory 0=8GB
json 'd["reserve_bytes"] == 0 and d["max_memory"]["0"] == 8000000000'
run 1 plan "$config" --json --check --strategy cuda:0 --max-memory 0=2GB # a map heeds no budget
json 'd["fits"] is False and d["missing_bytes"] == d["placed_bytes"]["0"] + 200000000 - 2000000000'
run 1 plan "$config" --json --check --strategy cuda:0
json 'd["fits"] is None'
shows "$out" '"fits": null'
run 0 plan "$work/unknown" --context 10
shows "$err" '^heft plan: warning: the cache of this model type is unknown'
for wrong in '--context 0' '--context -1' '--context 1e3' '--context 9999999999' '--batch 2' '--reserve x'; do
    # shellcheck disable=SC2086 # an option and its value
    run 2 plan "$config" $wrong
done

# ---- what it would take quantized -------------------------------------------------------------------------------
for dtype in int4 int8 fp8; do
    run 0 plan "$config" --json --dtype $dtype --max-memory cpu=20GB
    cp "$out" "$work/$dtype"
    json 'd["quantize"]["dtype"] and d["quantize"]["plain_dtype"] == "bfloat16" and d["peak_bytes"] is None'
done
python3 - "$work" <<'END' || fail "the sizes of quantized weights"
import json, sys
size = {d: json.load(open(f"{sys.argv[1]}/{d}"))["placed_bytes"]["cpu"] for d in ("int4", "int8", "fp8")}
rows = [(3072, 3072), (1024, 3072), (1024, 3072), (3072, 3072), (8192, 3072), (8192, 3072), (3072, 8192)]
plain = 128256 * 3072 * 2 + (2 * 28 + 1) * 3072 * 2 + 2 * 64 * 4 # embeddings, norms, rotary frequencies
assert size["int4"] == plain + 28 * sum(r * c // 2 + r * c // 128 * 2 for r, c in rows), size
assert size["int8"] == plain + 28 * sum(r * c + 2 * r for r, c in rows), size
assert size["fp8"] == plain + 28 * sum(r * c + r * c // 128 // 128 * 4 for r, c in rows), size
END
run 0 plan "$config" --dtype int4 --max-memory cpu=20GB
shows "$out" '^quantized +matrices in the layers to int4, one 16-bit scale for each 128 weights of a row;$'
shows "$out" '^ +embeddings, norms, routers, biases and heads stay bfloat16$'

# ---- maps on the command line -------------------------------------------------------------------------------------
run 0 plan "$config" --json --strategy '{"": 0}'
json 'd["device_map"] == {"": 0}'
run 0 plan "$config" --json --strategy ' {"": "cuda:1", "lm_head": "cpu", "model.embed_tokens": "cpu"}'
json 'd["device_map"]["lm_head"] == "cpu" and d["device_map"]["model.norm"] == 1'
for one in cuda cuda:0 0; do
    run 0 plan "$config" --json --strategy "{\"\": \"$one\"}"
    json 'd["device_map"] == {"": 0}'
done
run 0 plan "$config" --json --strategy cuda
json 'd["device_map"] == {"": 0}'
run 0 plan "$config" --strategy '{"": "cpu", "nothing": 0, "model.layer.0": 1}'
shows "$err" '^heft plan: warning: The following device_map keys do not match any submodules in the model: nothing, model\.layer\.0$'
run 0 plan "$config" --json --strategy '{"": "cpu", "nothing": 0}'
json 'len(d["warnings"]) == 1'
run 5 plan "$config" --strategy '{"": "cpu"'
run 5 plan "$config" --strategy '{"": "gpu"}'
run 5 plan "$config" --strategy '{"": "cpu", "nothing": "gpu"}'
run 6 plan "$config" --strategy '{}'
run 0 plan "$config" --json --no-split '' --reserve 0 --max-memory 0=5.15GB,cpu=8GB
json 'any(k.count(".") > 2 for k in d["device_map"])' # a layer is split
json 'd["largest_block"]["name"] == "model.embed_tokens"'

# ---- refused --------------------------------------------------------------------------------------------------
for memory in x 0 0= =1GB cpu=1QB 0=1GB,,1=1GB 0=-1GB gpu=1GB 99999=1GB; do
    run 2 plan "$config" --max-memory "$memory"
    silent "$out"
    shows "$err" 'max-memory'
done
run 2 plan "$config" --max-memory 0=1GB,0=2GB
run 2 plan "$config" --strategy clever
for pairs in '' wo wo= '=,' wo=float33 'wo=float32,' ',wo=float32'; do
    run 2 plan "$config" --dtype-of "$pairs"
    silent "$out"
    shows "$err" '--dtype-of'
done
run 6 plan "$config" --dtype-of mlp=float32,mpl=float32
shows "$err" 'mpl: is not a module or tensor of the model'
run 3 plan "$config" --svg "$work/none/plan.svg"
run 4 plan "$work/nothing"

# ---- loading by a map -------------------------------------------------------------------------------------------
run 0 load "$work/known" --json --device-map best --max-memory cpu=20KB,disk
json 'set(d["device_map"].values()) == {"cpu", "disk"} and 0 < d["copied_bytes"] <= 20000 < d["mapped_bytes"] + 20000'
json '"device map" in d["strategy"]'
run 0 load "$work/unknown" --json --device-map best --max-memory cpu=20KB
json 'set(d["device_map"].values()) == {"cpu", "disk"}'
run 0 load "$work/known" --device-map sequential --max-memory cpu=100,disk
shows "$err" '^heft load: warning: Based on the current allocation process'
run 0 load "$work/known" --json --device-map sequential --max-memory cpu=100,disk
json 'len(d["warnings"]) == 1 and d["pass"] is None'
run 0 load "$work/known" --json --device-map best --max-memory cpu=20KB,disk --touch
json 'd["pass"]["blocks"] > 3 and d["pass"]["read_bytes"] + d["pass"]["mapped_bytes"] >= d["mapped_bytes"]'
run 7 load "$work/known" --max-memory 0=1GB
shows "$err" 'device 0 is not supported by this build'
run 2 load "$work/known" --device-map clever
printf '{"": "cpu", "model.layers": "disk", "model.layers.1.self_attn": "cpu"}' >"$work/map.json"
run 0 load "$work/known" --json --device-map "$work/map.json"
json 'd["device_map"]["model.layers.0"] == "disk" and d["device_map"]["model.layers.1.self_attn"] == "cpu"'
json 'd["device_map"]["lm_head"] == "cpu"'
bad_map() { # bad_map CODE WORDS JSON
    printf '%s' "$3" >"$work/bad.json"
    run "$1" load "$work/known" --device-map "$work/bad.json"
    shows "$err" "$2"
}
bad_map 6 'lm_head.weight: has no device' '{"model.layer": "cpu", "model": "cpu"}'
bad_map 6 'lm_head.weight: has no device' '{"model": "cpu"}'
bad_map 5 'lm_head: byte' '{"lm_head": "gpu", "model": "cpu"}'
bad_map 5 'expected an object' '["cpu"]'
bad_map 5 'bad.json' '{"a": '
run 4 load "$work/known" --device-map "$work/nothing.json"
run 2 load "$work/known" --max-memory cpu

# names of modules that stay whole, and that the model does not have; budgets that are told twice, or with spaces
run 0 plan "$config" --no-split Foo,LlamaDecoderLayer,self_attn
lines "$err" 1
shows "$err" "warning: no module of the model has the class or the name 'Foo'"
run 0 plan "$config" --no-split Foo --json
shows "$out" '"warnings": \["no module of the model has the class or the name .Foo.'
fails 2 "[-]-max-memory: '0=4GB,0=5GB' has two budgets for device 0" plan "$config" --max-memory 0=4GB,0=5GB
fails 2 "has two budgets for device cpu" plan "$config" --max-memory cpu=4GB,0=5GB,cpu=1GB
run 0 plan "$config" --reserve 0 --max-memory '0=4GB, cpu=8GB ,disk' --json
shows "$out" '"max_memory": [{]"0": 4000000000, "cpu": 8000000000, "disk": null[}]'
fails 2 'is not a list of budgets' plan "$config" --max-memory '0=4GB,'

# ---- how long a run takes -----------------------------------------------------------------------------------------
models=$source_dir/tests/data/models
bytes=$(stat -c %s "$models/llama_gqa/model.safetensors")
run 0 plan "$models/llama_gqa" --context 20 --json
json 'd["seconds"]["ready"] > 0 and d["seconds"]["per_token"] > 0 and d["seconds"]["prefill"] > 0'
json 'd["seconds"]["prefill_tokens"] == 20 and 1 <= d["seconds"]["best_batch"] <= 512'
json 'd["seconds"]["per_token_at_best_batch"] > 0 and d["seconds_unknown"] is None'
json 'd["run"]["weights"] == "memory" and d["run"]["bound"] in ("memory", "compute")'
json 'd["run"]["read_bytes_per_token"] == 0 and d["run"]["peak_bytes"] > '"$bytes"
json 'd["plan_seconds"] > 0'
run 0 plan "$models/llama_gqa" --context 20
shows "$out" '^running +ready in .*, 20 tokens of input in .*, then .* a token [(]'
shows "$out" ' of memory at most, weights in memory$'
run 0 plan "$models/llama_gqa" --json # more tokens than it has positions
json 'd["seconds"]["per_token"] > 0 and d["seconds"]["prefill"] is None'
run 0 plan "$models/bert_mlm" --context 20 --json # it does not generate
json 'd["seconds"]["per_token"] is None and d["seconds"]["best_batch"] is None and d["seconds"]["prefill"] > 0'
# there is none, and that is not an error
unknown() { # unknown TEXT ARGUMENTS...
    local why=$1
    shift
    run 0 plan "$@" --json
    json 'd["seconds"] is None and d["run"] is None and "'"$why"'" in d["seconds_unknown"]'
    run 0 plan "$@"
    shows "$out" "^running +unknown: .*$why"
}
unknown "without weights" "$config"
unknown "quantized" "$models/llama_gqa" --dtype int4
unknown "budget" "$models/llama_gqa" --memory 25168000
cp -r "$models/llama_gqa" "$work/lacks"
sed -i 's/"num_hidden_layers": [0-9]*/"num_hidden_layers": 5/' "$work/lacks/config.json"
unknown "lack weights" "$work/lacks"
fails 2 "24 MiB" plan "$models/llama_gqa" --memory 1MB
# a model that stays on the disk
cat >"$work/llama.json" <<EOF
{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 512, "intermediate_size": 1536,
 "num_hidden_layers": 12, "num_attention_heads": 8, "vocab_size": 4000, "max_position_embeddings": 64}
EOF
"$heft" init "$work/llama.json" "$work/streamed" -q
run 0 plan "$work/streamed" --memory 80MB --context 8 --json
json 'd["run"]["weights"] == "disk" and d["run"]["peak_bytes"] <= 80e6'
json '0 < d["run"]["read_bytes_per_token"] < 200e6 and d["run"]["disk_rate"] > 0 and d["seconds"]["best_batch"] >= 1'
run 0 plan "$work/streamed" --memory 80MB
shows "$out" ' of memory at most, weights stay in their files$'
run 0 run "$work/streamed" --ids 1,2,3 --new-tokens 3 --ignore-eos --memory 80MB --json
shows "$out" '"predicted_seconds_per_token": [0-9.e-]+[}]$'
