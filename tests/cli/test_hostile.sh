#!/usr/bin/env bash
# test_hostile - small files that multiply: refused with the name of the limit, before memory is taken.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
[ -n "$sanitized" ] || ulimit -v 4000000 # a net; sanitizers reserve more than this

# A stream of torch before 1.6: one storage of 4 floats, one tensor of 2^28 - 1 elements, all of them the first.
mkdir "$work/expanded"
cp "$config" "$work/expanded/config.json"
{
    printf '\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.'
    printf '\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n'
    printf 'X\x01\0\0\0000X\x03\0\0\0cpuK\x04NtQK\0J\xff\xff\xff\x0f\x85K\0\x85\x89ccollections\nOrderedDict\n)RtRs.'
    printf '\x80\x02]X\x01\0\0\0000a.\x04\0\0\0\0\0\0\0'
    head -c 16 /dev/zero
} >"$work/expanded/pytorch_model.bin"
for command in inspect load plan; do
    fails 9 'expand to 1073741820 bytes.*expanded_bytes' "$command" "$work/expanded"
done
fails 9 'expanded_bytes' load "$work/expanded" --mode copy --touch
fails 9 'expanded_bytes' convert "$work/expanded" "$work/out"
[ ! -e "$work/out" ]
run 1 verify --deep "$work/expanded"
shows "$out" 'expanded_bytes'

# A config beside two numbers: 80,000 experts; tables of 131 GB.
small() { # small FOLDER MEMBERS
    mkdir "$work/$1"
    echo "{\"num_attention_heads\": 4, \"num_key_value_heads\": 4, $2}" >"$work/$1/config.json"
    header='{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    { printf '\x36\0\0\0\0\0\0\0%s' "$header" && head -c 8 /dev/zero; } >"$work/$1/model.safetensors"
}
small experts '"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 64, "vocab_size": 10,
    "intermediate_size": 64, "num_hidden_layers": 100, "num_local_experts": 800'
fails 9 'the limit modules, 98304' load "$work/experts"
fails 9 'the limit modules, 98304' plan "$work/experts"
small table '"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 65536, "vocab_size": 1000000,
    "intermediate_size": 64, "num_hidden_layers": 1'
fails 9 'bytes are missing.*missing_bytes' load "$work/table"

# A pickle of 64 MiB, deflated to 64 KB.
mkdir "$work/deflated"
cp "$config" "$work/deflated/config.json"
python3 - "$work/deflated/pytorch_model.bin" <<'END'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w", zipfile.ZIP_DEFLATED) as out:
    out.writestr("archive/data.pkl", b"\x80\x02X\0\0\0\x04" + b"a" * (64 << 20) + b".")
    out.writestr("archive/version", b"3\n")
END
for command in inspect load plan; do
    fails 9 'data.pkl: .*record has 67108872 bytes, the limit is 25.*; --limit value_bytes=N raises it' "$command" "$work/deflated"
done
run 1 verify "$work/deflated"
shows "$out" 'the limit is'
