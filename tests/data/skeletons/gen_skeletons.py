#!/usr/bin/env python3
"""Write the skeletons of BERT classes that the other files here do not cover: names, shapes, ties, buffers, modules.

    python3 gen_skeletons.py [FOLDER]        (default: beside this script)

Made with transformers 5.23.0 and torch 2.13.0+cpu. One file a case, as the others: `config` is read as config.json is;
`saved` is the state dict without tied copies, `params` the state dict where it differs; `sha256` is over lines
`name TAB dtype TAB d0xd1 NEWLINE` of `saved`, `sha256_in_memory` of the state dict; `modules` are the modules that hold
parameters or buffers and their ancestors, in order of registration.
"""
import hashlib
import json
import pathlib
import sys

import torch
import transformers

SMALL = {
    "model_type": "bert", "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 40, "max_position_embeddings": 20, "type_vocab_size": 2, "pad_token_id": 0,
}
HEADS = ["BertModel", "BertForPreTraining", "BertLMHeadModel", "BertForMaskedLM", "BertForNextSentencePrediction",
         "BertForSequenceClassification", "BertForMultipleChoice", "BertForTokenClassification",
         "BertForQuestionAnswering"]
CASES = {
    "heads": (SMALL, HEADS),
    "heads_untied": ({**SMALL, "tie_word_embeddings": False}, ["BertForPreTraining", "BertLMHeadModel"]),
    "num_labels": ({**SMALL, "num_labels": 5}, ["BertForSequenceClassification", "BertForTokenClassification",
                                                "BertForQuestionAnswering"]),
    "one_label": ({**SMALL, "id2label": {"0": "X"}, "label2id": {"X": 0}},
                  ["BertForSequenceClassification", "BertForQuestionAnswering"]),
    "decoder": ({**SMALL, "is_decoder": True, "add_cross_attention": True},
                ["BertModel", "BertLMHeadModel", "BertForMaskedLM"]),
    "decoder_only": ({**SMALL, "is_decoder": True}, ["BertLMHeadModel"]),
}
DTYPES = {torch.float32: "F32", torch.int64: "I64"}


def row(name, tensor):
    return [name, list(tensor.shape), DTYPES[tensor.dtype]]


def digest(rows):
    text = "".join(f"{name}\t{dtype}\t{'x'.join(map(str, shape))}\n" for name, shape, dtype in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def modules_of(model):
    holders = [name for name, module in model.named_modules()
               if list(module.parameters(recurse=False)) or list(module.buffers(recurse=False))]
    return [name for name, _ in model.named_modules()
            if name == "" or any(h == name or h.startswith(name + ".") for h in holders)]


def describe(class_name, config):
    model = getattr(transformers, class_name)(transformers.BertConfig.from_dict(dict(config)))
    state = model.state_dict()
    tied = {t: s for t, s in (model.all_tied_weights_keys or {}).items()}
    for target, source in tied.items():
        assert state[target].data_ptr() == state[source].data_ptr()
    params = [row(name, tensor) for name, tensor in state.items()]
    saved = [r for r in params if r[0] not in tied]
    buffers = dict(model.named_buffers())
    groups = {}
    for target, source in tied.items():
        groups.setdefault(source, [source]).append(target)
    facts = {
        "class": class_name,
        "base_model_prefix": model.base_model_prefix,
        "num_parameters": model.num_parameters(),
        "num_saved_tensors": len(saved),
        "saved_bytes": sum(state[r[0]].nbytes for r in saved),
        "sha256": digest(saved),
        "sha256_in_memory": digest(params),
        "tied_weights_keys": tied,
        "tied_groups": list(groups.values()),
        "no_split_modules": sorted(model._no_split_modules),
        "buffers": {
            "persistent": [row(n, b) for n, b in buffers.items() if n in state],
            "non_persistent": [row(n, b) for n, b in buffers.items() if n not in state],
        },
        "saved": saved,
        "modules": modules_of(model),
    }
    if params != saved:
        facts["params"] = params
    return facts


def write(path, case, config, classes):
    lines = json.dumps({"model_type": "bert", "case": case, "config": config, "classes": classes}, indent=1)
    path.write_text(lines + "\n")


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    for case, (config, names) in CASES.items():
        classes = {name: describe(name, config) for name in names}
        write(folder / f"bert__{case}.json", case, config, classes)


if __name__ == "__main__":
    main()
