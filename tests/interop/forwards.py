"""Small random models made by Transformers, run by `heft run` and by the library: what the tests of forward passes share."""

import subprocess

import numpy as np
import torch
from helpers import HEFT, heft
from safetensors.numpy import load_file, save_file

BASE = dict(vocab_size=120, pad_token_id=0, bos_token_id=1, eos_token_id=2)
SMALL = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64, **BASE)
ROPE = {"rope_type": "default", "rope_theta": 1000.0}
DECODER_HEADS = [
    "AutoModelForCausalLM",
    "AutoModel",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
]
OUTPUTS = (
    "logits last_hidden_state pooler_output start_logits end_logits encoder_last_hidden_state prediction_logits "
    "seq_relationship_logits sop_logits image_embeds text_embeds logits_per_image logits_per_text"
).split()
HIDDEN = "hidden_states", "encoder_hidden_states", "decoder_hidden_states"


def make(head, config, seed=0, factor=4):
    """A model whose outputs are far from zero, in float32; None if there is no such class. `factor`: of its matrices."""
    import transformers

    config.num_labels = 2 if "Question" in head else 3
    torch.manual_seed(seed)
    try:
        model = getattr(transformers, head).from_config(config) if head.startswith("Auto") else getattr(transformers, head)(config)
    except ValueError as error:
        assert "Unrecognized configuration class" in str(error)
        return None
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(factor)
    return model.eval()


def padded(pad, rows=2, tokens=11, last=110, seed=1):
    """input_ids and attention_mask; `pad`: none, right or left of the second row."""
    torch.manual_seed(seed)
    ids, mask = torch.randint(3, last, (rows, tokens)), torch.ones((rows, tokens), dtype=torch.long)
    if pad != "none":
        where = slice(tokens - 4, None) if pad == "right" else slice(0, 4)
        ids[1, where], mask[1, where] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def positions(inputs):
    """As generate() numbers tokens where padding stands in front."""
    return (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)


def run(folder, inputs, outputs, *arguments):
    """The outputs of one forward pass by the command."""
    save_file({name: np.ascontiguousarray(value.numpy()) for name, value in inputs.items()}, folder / "in.safetensors")
    heft("run", folder, "--ids-file", folder / "in.safetensors", "--save", folder / "out.safetensors", "--outputs", ",".join(outputs), *arguments)
    return load_file(folder / "out.safetensors")


def compare(found, expected, mask, atol=1e-4, rtol=1e-3):
    """Equal within the library's own noise, but for padding."""
    for name, value in expected.items():
        other = found[name]
        assert other.shape == value.shape, f"{name}: {other.shape} instead of {value.shape}"
        weight = np.ones(value.shape, dtype=np.float32)
        if mask is not None and value.ndim > 1 and value.shape[:2] == mask.shape and name != "pooler_output":
            weight = weight * mask.numpy().reshape(mask.shape + (1,) * (value.ndim - 2))
        excess = (np.abs(other - value) * weight / (atol + rtol * np.abs(value))).max()
        assert excess <= 1, f"{name}: {excess:.2f} times the tolerance"


def check(model, folder, inputs, mask=None, **more):
    """Run both on the same inputs; `more` goes to the library only."""
    with torch.no_grad():
        result = model(**inputs, **more, output_hidden_states=True)
    expected = {name: getattr(result, name).float().numpy() for name in OUTPUTS if getattr(result, name, None) is not None}
    assert expected
    for name in HIDDEN:
        for i, state in enumerate(getattr(result, name, None) or ()):
            expected[f"{name}.{i}"] = state.float().numpy()
    compare(run(folder, inputs, expected), expected, mask)


def check_greedy(model, folder, inputs, count=10):
    """The same tokens as generate(), or both at a point where two tokens are as good as equal."""
    with torch.no_grad():
        expected = model.generate(**inputs, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0)[:, -count:]
    save_file({name: np.ascontiguousarray(value.numpy()) for name, value in inputs.items()}, folder / "in.safetensors")
    found = heft("run", folder, "--ids-file", folder / "in.safetensors", "--new-tokens", count, "--ignore-eos")["ids"]
    assert found == expected.tolist()


def refused(folder, *arguments):
    """The exit code and the line of a run that fails."""
    done = subprocess.run([HEFT, "run", str(folder), *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stderr.strip()
