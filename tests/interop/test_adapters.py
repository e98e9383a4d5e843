"""An adapter of PEFT beside the model that it is for: Transformers applies it, heft says that it does not."""

import peft
import torch
from helpers import heft
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


def test_an_adapter_beside_a_model_is_told_and_kept(tmp_path):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    folder, ids = tmp_path / "both", torch.tensor([[1, 2, 3]])
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=16)).eval()
    model.save_pretrained(folder)
    plain = model(ids).logits
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj", "lm_head"], lora_alpha=64, init_lora_weights=False)
    adapted = peft.get_peft_model(model, settings)
    adapted.peft_config["default"].base_model_name_or_path = str(folder)
    adapted.save_pretrained(folder)

    applied = AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
    assert (applied - plain).abs().max() > 1e-2  # so what heft would compute is another model
    for command in ("load", "plan", "inspect"):
        assert any("adapter_config.json: an adapter" in line for line in heft(command, folder)["warnings"])
    assert "heft does not apply it" in heft("run", folder, "--ids", "1,2,3", expect=7)["error"]["message"]

    heft("convert", folder, tmp_path / "copy", "--format", "bin")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "copy" / name).read_bytes()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "copy").eval()(ids).logits
    assert torch.equal(again, applied)
