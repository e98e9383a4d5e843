/* keep_f32.c - which tensors Transformers keeps in float32 whatever the dtype, by the model types in a config.
 *
 * Of a model that heft builds, the family knows (heft__family.keep_f32). For a class that only the model's own code
 * has, and for a model type without a family, the lists of all model types in the config count, as Transformers
 * joins those of all modules: an InstructBLIP on a T5 keeps the T5's `wo`. As in Transformers, an entry is found
 * anywhere in a name, and a `.` in it stands for any character.
 *
 * Source: _keep_in_fp32_modules and _keep_in_fp32_modules_strict of Transformers 5.23; docs/loading.md [4]. */
#include "model/model.h"

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

/* clang-format off */
/* Model types without a family. half: for float16; both: for bfloat16, too. */
static const struct {
    const char *const *types, *const *half, *const *both;
} without_family[] = {
    {LIST("axk1", "dots1", "dots3_note", "dots3_note_text", "dots3_note_vision_encoder",
          "exaone_moe", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm4v_moe_text",
          "glm4v_moe_vision", "hy_v3", "kolibri1", "mimo_v2_flash", "nemotron_h", "solar_open"),
     NULL,
     LIST("e_score_correction_bias")},
    {LIST("ernie4_5_moe", "ernie4_5_vl_moe", "ernie4_5_vl_moe_text", "ernie4_5_vl_moe_vision"),
     NULL,
     LIST("gate.weight", "moe_statics")},
    {LIST("inkling_audio", "inkling_mm_model", "inkling_text", "inkling_vision"),
     NULL,
     LIST("attn_sconv", "e_score_correction_bias", "gate.global_scale", "k_sconv", "mlp_sconv",
          "v_sconv")},
    {LIST("mt5", "pop2piano", "udop", "umt5"),
     LIST("wo"),
     NULL},
    {LIST("muse_spark", "muse_spark_audio", "muse_spark_text", "muse_spark_vision"),
     NULL,
     LIST("e_score_correction_bias", "mlp.gate.weight", "post_attention_residual_gate",
          "post_feedforward_residual_gate")},
    {LIST("axk2", "deepseek_v32", "glm_moe_dsa"),
     LIST("indexer.weights_proj"),
     LIST("e_score_correction_bias")},
    {LIST("glm5_next", "glm5_next_text", "glm5_next_vision"),
     NULL,
     LIST("A_log", "attn_hc.base", "attn_hc.scale", "conv1d", "dt_bias",
          "e_score_correction_bias", "ffn_hc.base", "ffn_hc.scale")},
    {LIST("inkling2", "inkling2_text", "inkling2_vision"),
     NULL,
     LIST("attention_input", "e_score_correction_bias", "final_input", "k_sconv.conv1d",
          "mlp.gate.weight", "mlp_input", "post_attention_convolution", "post_mlp_convolution",
          "v_sconv.conv1d")},
    {LIST("gradium_phonon_tts", "pocket_tts"),
     NULL,
     LIST("freqs", "latent_mean", "latent_std")},
    {LIST("granite_speech5_ctc", "granite_speech5_encoder"),
     NULL,
     LIST("conv.norm")},
    {LIST("instructblip", "instructblipvideo"),
     LIST("query_tokens"),
     NULL},
    {LIST("mistral_large4", "mistral_large4_text"),
     LIST("indexer.weights_proj"),
     LIST("mlp.gate.weight", "rotary_emb")},
    {LIST("slanext", "slanext_vision"),
     NULL,
     LIST("structure_attention_cell", "structure_generator")},
    {LIST("afmoe"),
     LIST("expert_bias", "input_layernorm", "k_norm", "norm", "post_attention_layernorm",
          "post_mlp_layernorm", "pre_mlp_layernorm", "q_norm"),
     NULL},
    {LIST("bailing_hybrid"),
     NULL,
     LIST("A_log", "conv1d", "dt_bias", "e_score_correction_bias")},
    {LIST("beam"),
     NULL,
     LIST("e_score_correction_bias", "mlp.gate.weight")},
    {LIST("blip-2"),
     LIST("qformer", "query_tokens"),
     NULL},
    {LIST("deepseek_v4"),
     LIST("self_attn.compressor.gate_proj", "self_attn.compressor.indexer.gate_proj",
          "self_attn.compressor.indexer.kv_proj",
          "self_attn.compressor.indexer.scorer.weights_proj", "self_attn.compressor.kv_proj"),
     LIST("attn_hc", "e_score_correction_bias", "ffn_hc", "hc_head", "input_layernorm",
          "kv_norm", "norm", "position_bias", "post_attention_layernorm", "q_a_norm", "sinks")},
    {LIST("esmfold2"),
     NULL,
     LIST("boundaries", "distogram_head", "fourier", "norm.bias", "norm.weight", "norm_mix",
          "norm_single", "norm_start")},
    {LIST("flint"),
     NULL,
     LIST("gate.weight", "sinks")},
    {LIST("hy_v4"),
     NULL,
     LIST("base", "e_score_correction_bias", "fn", "hc_base", "hc_fn", "hc_scale", "k_norm",
          "lm_head", "scale", "sinks", "weights_proj")},
    {LIST("kyutai_speech_to_text"),
     NULL,
     LIST("codec_model")},
    {LIST("longcat_flash"),
     LIST("classifier.weight"),
     NULL},
    {LIST("nemo_speechlm"),
     NULL,
     LIST("audio_tower", "multi_modal_projector")},
    {LIST("openai_privacy_filter"),
     NULL,
     LIST("sinks")},
    {LIST("rwkv"),
     LIST("time_decay", "time_first"),
     NULL},
    {LIST("voxtral"),
     NULL,
     LIST("embed_positions")},
};
/* clang-format on */

static bool listed(const char *const *list, const char *text)
{
    for (; *list; list++) {
        if (strcmp(*list, text) == 0) {
            return true;
        }
    }
    return false;
}

/* Each list once. */
static heft_status add(const char *const *half, const char *const *both, heft__arena *arena,
                       heft__float32_list **kept, heft_error *err)
{
    for (const heft__float32_list *k = *kept; k; k = k->next) {
        if (k->half == half && k->both == both) {
            return HEFT_OK;
        }
    }
    heft__float32_list *new = half || both ? heft__arena_alloc(arena, sizeof *new) : NULL;
    if (new) {
        *new = (heft__float32_list){half, both, *kept};
        *kept = new;
    }
    return new || (!half && !both) ? HEFT_OK : heft__fail_nomem(err, sizeof *new);
}

static heft_status add_type(const char *type, heft__arena *arena, heft__float32_list **kept,
                            heft_error *err)
{
    const heft__family *family = heft__family_find(type);
    if (family) {
        return add(family->keep_f32, family->keep_f32_strict, arena, kept, err);
    }
    for (size_t i = 0; i < sizeof without_family / sizeof *without_family; i++) {
        if (listed(without_family[i].types, type)) {
            return add(without_family[i].half, without_family[i].both, arena, kept, err);
        }
    }
    return HEFT_OK;
}

/* As deep as the file is nested, which the reader has bounded. */
static heft_status add_object(const heft__json_value *object, heft__arena *arena,
                              heft__float32_list **kept, heft_error *err)
{
    const heft__json_value *type = heft__json_member(object, "model_type");
    heft_status status = type && type->type == HEFT__JSON_TYPE_STRING
                             ? add_type(type->text, arena, kept, err)
                             : HEFT_OK;
    for (const heft__json_value *m = object->first; m && status == HEFT_OK; m = m->next) {
        if (m->type == HEFT__JSON_TYPE_OBJECT) {
            status = add_object(m, arena, kept, err);
        }
    }
    return status;
}

heft_status heft__config_float32(const heft_config *config, heft__arena *arena,
                                 const heft__float32_list **out, heft_error *err)
{
    heft__float32_list *kept = NULL;
    const heft_status status = config ? add_object(config->root, arena, &kept, err) : HEFT_OK;
    *out = kept;
    return status;
}

static bool begins(const char *text, const char *entry)
{
    for (; *entry && *text && (*entry == '.' || *entry == *text); entry++, text++) {
    }
    return !*entry;
}

static bool within(const char *name, const char *const *list)
{
    for (; list && *list; list++) {
        for (const char *at = name; *at; at++) {
            if (begins(at, *list)) {
                return true;
            }
        }
    }
    return false;
}

bool heft__stays_float32(const heft__float32_list *kept, heft_dtype dtype, const char *name)
{
    const bool half = dtype == HEFT_DTYPE_F16, brain = dtype == HEFT_DTYPE_BF16;
    for (; kept && (half || brain); kept = kept->next) {
        if ((half && within(name, kept->half)) || within(name, kept->both)) {
            return true;
        }
    }
    return false;
}
