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

const char *heft__stranger_by_head(const uint8_t *head, size_t length)
{
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
    {"",              ".incomplete",      "an unfinished download",                                                          true },
    {"",              ".part",            "an unfinished download",                                                          true },
    {"",              ".partial",         "an unfinished download",                                                          true },
    {"",              ".crdownload",      "an unfinished download",                                                          true },
    {"",              ".aria2",           "an unfinished download",                                                          true },
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

const char *heft__stranger_by_name(const char *name, bool whatever)
{
    for (size_t i = 0; i < sizeof named / sizeof named[0]; i++) {
        const size_t start = strlen(named[i].start);
        if (strncmp(name, named[i].start, start) == 0 && heft__ends_with(name, named[i].end) &&
            (*named[i].end || !name[start]) && (named[i].whatever || !whatever)) {
            return named[i].what;
        }
    }
    return NULL;
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
