/* strangers.c - files that are taken for weights and are not, or not for heft: by their first bytes, and
 * by their names.
 *
 * The first bytes decide; a name matters where the content says nothing (ONNX, TensorFlow), or where the
 * content would be misunderstood (a .distcp file of a torch.distributed checkpoint is a zip as torch.save
 * writes it, with a part of some tensors). Source: docs/formats/README.md. */
#include "format/format.h"

/* ---- by content ------------------------------------------------------------------------------ */
#define ANY NULL
#define JSON_NEXT " \t\r\n\"}"
#define PICKLE_NEXT "\1\2\3\4\5"

static const struct head {
    const char *start;
    const char *next; /* characters of which one must follow; ANY */
    const char *what;
} heads[] = {
    {"GGUF",                         ANY,         "a GGUF file"                                             },
    {"tjgg",                         ANY,         "a GGML file, from before GGUF"                           },
    {"fmgg",                         ANY,         "a GGML file, from before GGUF"                           },
    {"lmgg",                         ANY,         "a GGML file, from before GGUF"                           },
    {"version https://git-lfs",      ANY,         "a Git LFS pointer, not the file itself: run git lfs pull"},
    {"version https://hawser",       ANY,         "a Git LFS pointer, not the file itself: run git lfs pull"},
    {"PYTORCH1",                     ANY,         "a file in PyTorch's preview container format"            },
    {"L119547037146038801333356L\n", ANY,         "a PyTorch file with a pickle of protocol 0 or 1"         },
    {"<!DOCTYPE",                    ANY,         "a web page"                                              },
    {"<!doctype",                    ANY,         "a web page"                                              },
    {"<html",                        ANY,         "a web page"                                              },
    {"<HTML",                        ANY,         "a web page"                                              },
    {"<?xml",                        ANY,         "an XML document, perhaps an error of a server"           },
    {"Entry not found",              ANY,         "the message of a server that did not find the file"      },
    {"Repository not found",         ANY,         "the message of a server that did not find the file"      },
    {"Invalid username or password", ANY,         "the message of a server that refused the download"       },
    {"Access to model ",             ANY,         "the message of a server that refused the download"       },
    {"\x89HDF",                      ANY,         "an HDF5 file"                                            },
    {"\x93NUMPY",                    ANY,         "a NumPy file"                                            },
    {"\x1f\x8b",                     ANY,         "a gzip file"                                             },
    {"BZh",                          ANY,         "a bzip2 file"                                            },
    {"\xfd"
     "7zXZ",                    ANY,         "an xz file"                                              },
    {"\x28\xb5\x2f\xfd",             ANY,         "a Zstandard file"                                        },
    {"7z\xbc\xaf",                   ANY,         "a 7z archive"                                            },
    {"Rar!",                         ANY,         "a RAR archive"                                           },
    {"{",                            JSON_NEXT,   "a JSON file"                                             },
    {"\x80",                         PICKLE_NEXT, "a pickle not written by torch.save"                      },
};

/* Text may begin with a byte order mark and white space. */
static size_t skip_blank(const uint8_t *head, size_t length)
{
    size_t at = length >= 3 && memcmp(head, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    while (at < length && head[at] && strchr(" \t\r\n", head[at])) {
        at++;
    }
    return at < length && (head[at] == '<' || head[at] == '{') ? at : 0;
}

const char *heft__stranger_by_head(const uint8_t *head, size_t length)
{
    const size_t blank = skip_blank(head, length);
    if (blank > 0) {
        return heft__stranger_by_head(head + blank, length - blank);
    }
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        const size_t start = strlen(heads[i].start);
        if (length >= start && memcmp(head, heads[i].start, start) == 0 &&
            (!heads[i].next ||
             (length > start && head[start] && strchr(heads[i].next, head[start])))) {
            return heads[i].what;
        }
    }
    size_t zeros = 0;
    while (zeros < length && head[zeros] == 0) {
        zeros++;
    }
    return zeros == HEFT__HEAD_BYTES ? "a file that begins with 512 zeros, perhaps of an "
                                       "unfinished download"
                                     : NULL;
}

/* ---- by what follows the name of a weight file ------------------------------------------------ */
#define UNFINISHED "an unfinished download"
#define COPY "a copy of a weight file under another name: rename it if it is the one to load"

static const struct tail {
    const char *end, *what;
    bool whatever; /* the content is not asked */
} tails[] = {
    {".filepart",    UNFINISHED,                                                              true },
    {".opdownload",  UNFINISHED " of a browser",                                              true },
    {".download",    UNFINISHED " of a browser",                                              true },
    {".aria2__temp", "the state of " UNFINISHED " of aria2",                                  true },
    {".st",          "the state of " UNFINISHED " of axel",                                   true },
    {".!qB",         UNFINISHED " of a torrent",                                              true },
    {".tmp",         "a temporary file, perhaps of " UNFINISHED " or of an interrupted save", false},
    {".temp",        "a temporary file, perhaps of " UNFINISHED " or of an interrupted save", false},
    {".bak",         COPY,                                                                    false},
    {".old",         COPY,                                                                    false},
    {".orig",        COPY,                                                                    false},
    {".save",        COPY,                                                                    false},
    {".copy",        COPY,                                                                    false},
    {"~",            COPY,                                                                    false},
};

/* Of "model.safetensors.part" the length of "model.safetensors"; 0 for other names. */
static size_t weight_part(const char *name)
{
    static const char *const extensions[] = {".safetensors", ".bin",  ".pt",        ".pth",
                                             ".ckpt",        ".gguf", ".index.json"};
    size_t most = 0;
    for (size_t e = 0; e < sizeof extensions / sizeof extensions[0]; e++) {
        const size_t length = strlen(extensions[e]);
        for (const char *at = strstr(name, extensions[e]); at; at = strstr(at + 1, extensions[e])) {
            const size_t end = (size_t)(at - name) + length;
            const bool whole = name[end] == '\0' || strchr(".~ ", name[end]);
            most = at > name && whole && end > most ? end : most;
        }
    }
    return most;
}

static const char *by_tail(const char *name, bool whatever)
{
    const size_t length = weight_part(name);
    const char *tail = name + length;
    for (size_t i = 0; length && i < sizeof tails / sizeof tails[0]; i++) {
        if (strcmp(tail, tails[i].end) == 0 && (tails[i].whatever || !whatever)) {
            return tails[i].what;
        }
    }
    if (length == 0 || whatever || tail[0] != '.' || tail[1] == '\0' ||
        tail[1 + strspn(tail + 1, "0123456789")] != '\0') {
        return NULL;
    }
    return "a second download of wget, which leaves an older file of that name as it was";
}

bool heft__is_browser_copy(const char *name)
{
    const char *at = strstr(name, " (");
    at = at ? at + 2 : "";
    const size_t digits = strspn(at, "0123456789");
    return digits > 0 && at[digits] == ')' && at[digits + 1] == '.';
}

/* ---- by name --------------------------------------------------------------------------------- */
static const struct named {
    const char *start, *end, *what;
    bool whatever; /* the content is not asked */
} named[] = {
    {"",              ".distcp",
     "a part of a torch.distributed checkpoint (DCP): python -m "
     "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt makes one file of "
     "them",                                                                                                                 true },
    {".metadata",     "",
     "the index of a torch.distributed checkpoint (DCP), whose parts are the .distcp files beside "
     "it",                                                                                                                   true },
    {"shard-",        ".safetensors",
     "a part of a torch.distributed checkpoint (DCP) in safetensors files, with parts of tensors",                           false},
    {"",              "_optim_states.pt",
     "a part of a DeepSpeed ZeRO checkpoint: its zero_to_fp32.py makes one checkpoint of them",                              false},
    {"mp_rank_",      ".pt",
     "a part of a DeepSpeed ZeRO checkpoint: its zero_to_fp32.py makes one checkpoint of them",                              false},
    {"zero_pp_rank_", ".pt",
     "a part of a DeepSpeed ZeRO checkpoint: its zero_to_fp32.py makes one checkpoint of them",                              false},
    {"",              ".gguf",            "a GGUF file, which llama.cpp runs and from_pretrained(gguf_file=...) reads",
     false                                                                                                                        },
    {"",              ".onnx",            "an ONNX file, which ONNX Runtime runs",                                           false},
    {"",              ".onnx_data",       "data of an ONNX file, which ONNX Runtime runs",                                   false},
    {"",              ".h5",              "TensorFlow weights, which from_pretrained(from_tf=True) of Transformers 4 reads",
     false                                                                                                                        },
    {"",              ".keras",           "a Keras file, which TensorFlow reads",                                            true },
    {"",              ".ckpt.index",
     "a TensorFlow 1 checkpoint, which from_pretrained(from_tf=True) of Transformers 4 reads",                               false},
    {"",              ".msgpack",         "Flax weights, which from_pretrained(from_flax=True) of Transformers 4 reads",
     false                                                                                                                        },
    {"",              ".incomplete",      UNFINISHED " of huggingface_hub",                                                  true },
    {"",              ".part",            UNFINISHED,                                                                        true },
    {"",              ".partial",         UNFINISHED,                                                                        true },
    {"",              ".crdownload",      UNFINISHED " of a browser",                                                        true },
    {"",              ".aria2",           "the state of " UNFINISHED " of aria2, which continues it with -c",                true },
    {"openvino_",     ".bin",             "weights of an OpenVINO model",                                                    false},
    {"openvino_",     ".xml",             "an OpenVINO model",                                                               false},
    {"",              ".tflite",          "a TensorFlow Lite file",                                                          false},
    {"",              ".mlmodel",         "a Core ML file",                                                                  false},
    {"",              ".ot",              "weights for rust-bert",                                                           false},
    {"",              ".npz",             "NumPy arrays",                                                                    true },
    {"",              ".nemo",            "a NeMo archive: unpack it with tar",                                              true },
    {"",              ".tar",             "an archive: unpack it",                                                           false},
    {"",              ".tar.gz",          "an archive: unpack it",                                                           false},
    {"",              ".tgz",             "an archive: unpack it",                                                           false},
    {"",              ".zip",             "an archive: unpack it",                                                           false},
};

/* What torch.save() writes in training scripts, by custom: no archive of tar. */
static bool is_torch_tar(const char *name)
{
    return heft__ends_with(name, ".pth.tar") || heft__ends_with(name, ".pt.tar");
}

const char *heft__stranger_by_name(const char *name, bool whatever)
{
    if (is_torch_tar(name)) {
        return NULL;
    }
    for (size_t i = 0; i < sizeof named / sizeof named[0]; i++) {
        const size_t start = strlen(named[i].start);
        if (strncmp(name, named[i].start, start) == 0 && heft__ends_with(name, named[i].end) &&
            (*named[i].end || !name[start]) && (named[i].whatever || !whatever)) {
            return named[i].what;
        }
    }
    return by_tail(name, whatever);
}

/* What a training run leaves beside the weights. */
bool heft__is_training_state(const char *name)
{
    static const char *const starts[] = {
        "training_args", "optimizer", "scheduler", "rng_state",         "random_states",
        "scaler",        "sampler",   "dl_state",  "custom_checkpoint", "trainer_state"};
    for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++) {
        if (strncmp(name, starts[i], strlen(starts[i])) == 0) {
            return true;
        }
    }
    return false;
}
