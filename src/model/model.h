/* The internal header of the model layer.
 *
 * What it does: determines what a model needs before any weight is read. It contains config.json
 * with typed lookups, a builder with which an architecture file lists its parameters, the registry
 * of families and classes, and the rules for initial values. It knows names and shapes, but no file
 * that holds weights.
 * May include: base, io (to read config.json), json, tensor, kernel.
 * Rules: creating a model costs metadata only; values of a config are checked before any allocation
 * is based on them; errors are kept in the builder and checked once. A family is one file in arch/
 * and one line in registry.c. */
#ifndef HEFT__MODEL_MODEL_H
#define HEFT__MODEL_MODEL_H

#include <heft/model.h>

#include "tensor/tensor.h"
#include "json/json.h"

/* ---- config ---------------------------------------------------------------------------------- */
struct heft_config {
    heft_ctx *ctx;
    heft__arena arena;
    heft__json_value *root; /* an object */
    const char *path;       /* for messages */
    bool is_file;           /* it was read from there */
};

/* From text in memory; `path` is for messages. Text is borrowed. */
heft_status heft__config_parse(heft_ctx *ctx, const char *path, const void *text, size_t length,
                               heft_config **out, heft_error *err);
/* Its values keep the byte at which they stood in the file: errors found later still name it. */
heft_status heft__config_copy(const heft_config *config, heft_config **out, heft_error *err);
/* The text that Transformers would write: sorted keys, two spaces, final newline; with
 * `architectures`, `dtype` (and no `torch_dtype`) set to those of the model. Keys of one run of the
 * reference (`_name_or_path`) are left out. */
heft_status heft__config_write(const heft_config *config, const char *class_name, heft_dtype dtype,
                               heft__buffer *out, heft_error *err);

/* ---- initial values -------------------------------------------------------------------------- */
typedef enum heft__init_kind {
    HEFT__INIT_CONSTANT,     /* a */
    HEFT__INIT_NORMAL,       /* mean a, std b */
    HEFT__INIT_TRUNC_NORMAL, /* mean a, std b, bounds low, high */
    HEFT__INIT_UNIFORM,      /* from a to b */
    HEFT__INIT_ARANGE,       /* 0, 1, 2, ... along the last dimension */
    HEFT__INIT_SINUSOID,     /* rows of sines and cosines; `a` picks the layout, see initialize.c */
    HEFT__INIT_ROTARY        /* frequencies of a rotary embedding, see rotary.c */
} heft__init_kind;

typedef struct heft__rotary heft__rotary; /* rotary.c */

typedef struct heft__init_rule {
    heft__init_kind kind;
    float a, b, low, high;
    int64_t zero_row;           /* row (first dimension) set to zero afterwards; -1 for none */
    const heft__rotary *rotary; /* of INIT_ROTARY; lent by the model */
} heft__init_rule;

/* Write elements first .. first + count - 1 of a parameter's initial values in its dtype: made in
 * float32, then cast; integers directly. `scratch` has room for count floats. A function of its
 * arguments only. */
heft_status heft__init_fill(const heft_parameter *parameter, const heft__init_rule *rule,
                            uint64_t seed, uint64_t first, size_t count, float *scratch, void *dst,
                            heft_error *err);

/* Frequencies first .. first + count - 1. */
void heft__rotary_fill(const heft__rotary *rotary, uint64_t first, float *dst, size_t count);

/* ---- model ----------------------------------------------------------------------------------- */
typedef struct heft__binding {
    heft_storage *storage; /* owned reference, NULL while absent */
    uint64_t byte_offset;  /* elements follow row by row from here */
    bool given;            /* by heft_model_set(): it is not what its file holds */
} heft__binding;

/* A tensor of Transformers' memory whose parts, or whose whole, its files hold under other names:
 * all experts of a layer are one tensor there. */
typedef struct heft__inner {
    const char *name;
    const uint64_t *shape; /* [rank] */
    uint32_t rank;
    uint32_t parts;  /* how many parameters are parts of it */
    uint32_t number; /* among the model's inner tensors */
} heft__inner;

/* A parameter's place there. */
typedef struct heft__place {
    const heft__inner *inner; /* NULL: a tensor of the same name and shape */
    uint32_t part;            /* index of the part, in parts of its own size */
    uint32_t turn;            /* 0 .. parts - 1: among the parts of `inner` as they are saved */
} heft__place;

typedef struct heft__kept_file { /* of the folder that a model was loaded from, for a save */
    const char *name, *text;
    size_t length;
} heft__kept_file;

/* What an attention keeps of the tokens that it has seen, in each sequence. */
typedef struct heft__cache {
    uint32_t module;      /* the attention */
    uint64_t token_elems; /* of one token: its keys and values, or what they are computed from */
    uint64_t least, most; /* tokens that it keeps, whatever the context is; most 0: all */
} heft__cache;

struct heft_model {
    heft_ctx *ctx;
    heft__arena arena;   /* all names and arrays */
    heft_config *config; /* owned copy */
    const char *class_name, *model_type;
    const char *base_prefix; /* "bert"; "" if none */
    const struct heft__family *family;
    heft_dtype dtype;
    bool keep_f32;         /* what the family keeps in float32 is float32: loaded models */
    bool packed;           /* made of what a checkpoint stores quantized: heft__packing */
    uint64_t packed_elems; /* of its weights when they are plain, once it is loaded; 0: not known */
    bool known_family;     /* false: the skeleton is a list of names (named.c) */
    bool has_ties;         /* or had: false only if no parameter is tied */
    heft_parameter *parameters; /* [count], in the state dict's order; transient buffers after all
                                   that is in it */
    const heft__init_rule **rules; /* [count] equal ones are one */
    heft__binding *bindings;       /* [count] */
    /* [count] of those whose memory has them in compact form; NULL: of none. heft_session_compact() makes them. */
    const struct heft__compact **compact;
    heft__place *places; /* [count]; NULL: all tensors are the same there */
    /* In pre-order and the order of registration: those that hold parameters or buffers, and their
     * ancestors. Transformers' `_metadata` lists modules without any (dropout, activations) too. */
    heft_module *modules;      /* [module_count] */
    size_t *module_parameters; /* [count] lists of all modules, one after the other */
    size_t count, module_count;
    heft__cache *caches; /* [cache_count] in the order of the modules */
    size_t cache_count;
    uint64_t widest;      /* in + out of the widest matrix in a layer; 0: not known */
    uint32_t inner_count; /* tensors of Transformers' memory that have another name or parts */
    uint32_t
        *name_slots; /* [name_slot_count], a power of two: number + 1, 0 free; heft_model_find */
    size_t name_slot_count;
    const char *const *no_split; /* [no_split_count] class names */
    size_t no_split_count;
    heft__kept_file *kept; /* [kept_count] */
    size_t kept_count;
    struct heft__text_pair *kept_pairs; /* metadata of its files, if weights stay quantized */
    size_t kept_pair_count;
    const char *machine; /* lent; as that of its source: only tests set it */
    void *homes; /* backing of parameters that stay in their files, owned by layer load; or NULL */
    void (*free_homes)(void *homes);
};

/* Drop a parameter's binding and take a new one: takes the caller's reference on storage. */
void heft__model_bind(heft_model *model, size_t i, heft_storage *storage, uint64_t byte_offset,
                      heft_parameter_state state);

/* The compact form that a parameter has in its memory; NULL: elements lie row by row. */
static inline const struct heft__compact *heft__model_compact(const heft_model *model, size_t i)
{
    return model->compact ? model->compact[i] : NULL;
}
#define HEFT__IS_COMPACT "is stored for sessions only (heft_session_compact)"

/* The model's own copy of its config; lent. */
const heft_config *heft__model_config(const heft_model *model);
/* ---- modules.c: the tree
 *
 * Mark the outermost modules of the classes in the model's `no_split`, and the units: those, the
 * outermost layers, and every expert. */
void heft__modules_mark(heft_model *model);
/* Sum up the bytes of all modules; again whenever ties have changed. */
heft_status heft__modules_measure(heft_model *model, heft_error *err);

/* The place of a parameter in Transformers' memory; `first`: the element of its inner tensor with
 * which it begins. */
static inline heft__place heft__model_place(const heft_model *model, size_t i)
{
    return model->places ? model->places[i] : (heft__place){0};
}
static inline uint64_t heft__model_place_first(const heft_model *model, size_t i)
{
    uint64_t elems = 0;
    const heft_parameter *parameter = &model->parameters[i];
    (void)heft__shape_elems(parameter->shape, parameter->rank, &elems);
    return heft__model_place(model, i).part * elems; /* within `inner`, which the builder bounded */
}

/* What to say of a parameter that has no bytes. */
const char *heft__why_absent(heft_parameter_state state);

/* ---- skeleton builder: used by arch/
 *
 * A class's build
 * function runs twice: once to count, when nothing is allocated by values of the config, and once
 * to fill arrays of the right size. It must do the same both times. */
typedef struct heft__skeleton heft__skeleton;
/* Errors stick; nothing is added after the first. Names are relative to the current module. */
/* Enter a child module. Its class is that of Transformers: static text; a leading '*' stands for the
 * family's prefix: "*Attention"; "" where Transformers has no such module. A name of several parts,
 * "layers.0", enters lists (ModuleList) on the way. */
void heft__sk_enter(heft__skeleton *s, heft_module_kind kind, const char *class_name,
                    const char *format, ...) __attribute__((format(printf, 4, 5)));
/* Enter the body below a head: a module of the family's first class. */
void heft__sk_enter_body(heft__skeleton *s, const char *name);
void heft__sk_leave(heft__skeleton *s);
void heft__sk_parameter(heft__skeleton *s, const char *name, const uint64_t *shape, uint32_t rank,
                        heft__init_rule rule);
void heft__sk_buffer(heft__skeleton *s, const char *name, heft_dtype dtype, const uint64_t *shape,
                     uint32_t rank, bool persistent, heft__init_rule rule);
/* The attention that is entered keeps so many elements of each token: of the last `window` tokens, or (0)
 * of all. Fixed: of `tokens` tokens, such as the frames of a sound, whatever the context is. */
void heft__sk_cache(heft__skeleton *s, uint64_t token_elems, uint64_t window);
void heft__sk_cache_fixed(heft__skeleton *s, uint64_t token_elems, uint64_t tokens);
/* The two names (full, from the root) share one storage; the source is the one saved. */
void heft__sk_tie(heft__skeleton *s, const char *target, const char *source);
/* A tensor that Transformers makes of several of a file's, named from the module that is entered;
 * NULL in the run that counts. Then its parts, each with its place. */
const heft__inner *heft__sk_inner(heft__skeleton *s, const char *name, const uint64_t *shape,
                                  uint32_t rank, uint32_t parts);
void heft__sk_part(heft__skeleton *s, const char *name, const uint64_t *shape, uint32_t rank,
                   heft__init_rule rule, heft__place place);
/* The class is saved in the natural order of its inner names, as Transformers does wherever it
 * renames or makes parts of tensors. */
void heft__sk_natural_order(heft__skeleton *s);
void heft__sk_fail(heft__skeleton *s, heft_status status, const char *key, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* The parameters of a linear module or an embedding, in the module that is entered. */
void heft__sk_matrix(heft__skeleton *s, uint64_t in, uint64_t out, bool bias);
void heft__sk_table(heft__skeleton *s, uint64_t rows, uint64_t width, int64_t padding_row);
/* The usual modules: Linear, Embedding, LayerNorm and the family's RMSNorm. `name` is entered for the
 * time of the call. */
void heft__sk_linear(heft__skeleton *s, const char *name, uint64_t in, uint64_t out, bool bias);
void heft__sk_embedding(heft__skeleton *s, const char *name, uint64_t rows, uint64_t width,
                        int64_t padding_row);
void heft__sk_layer_norm(heft__skeleton *s, const char *name, uint64_t width, bool bias);
void heft__sk_rms_norm(heft__skeleton *s, const char *name, uint64_t width, float start);
/* The module "rotary_emb" with its two transient buffers of width / 2 frequencies, by
 * rope_parameters of 5.x (in it, those under `layer_type`, whose name the buffers bear then) or by
 * rope_theta and rope_scaling of 4.x. */
void heft__sk_rotary(heft__skeleton *s, const char *layer_type, uint64_t width);
/* The frequencies of the same embedding for texts of `length` tokens: frequencies[width / 2]. Types
 * "dynamic" and "longrope" depend on the length. Returns the factor of cosines and sines. */
float heft__sk_rotary_frequencies(heft__skeleton *s, const char *layer_type, uint64_t width,
                                  uint64_t length, float *frequencies);
/* DeepSeek: the factor, squared, of its attention's logits; 1 without mscale_all_dim. */
double heft__sk_rotary_mscale(heft__skeleton *s);
bool heft__sk_rotary_is_dynamic(const heft__skeleton *s);
/* Whether they depend on the length; and the length after which other ones hold, 0 for none. */
bool heft__sk_rotary_by_length(const heft__skeleton *s, const char *layer_type);
uint64_t heft__sk_rotary_turn(heft__skeleton *s, const char *layer_type);
/* How many of a head's `width` numbers are turned: by partial_rotary_factor, wherever the config
 * has it. */
uint64_t heft__sk_rotary_part(heft__skeleton *s, uint64_t width, double standard);
heft__init_rule heft__init_constant(float value);
heft__init_rule heft__sk_normal(const heft__skeleton *s); /* with the std of linear */
heft_dtype heft__sk_dtype(const heft__skeleton *s);       /* of the floating-point parameters */
/* For a model that is listed by something else than its config (named.c): what that is; a
 * parameter by its whole name, from which its modules are taken: names come in such an order that
 * those of one module's subtree are adjacent. Blocks are found by structure. */
const void *heft__sk_user(const heft__skeleton *s);
void heft__sk_named(heft__skeleton *s, const char *name, heft_dtype dtype, const uint64_t *shape,
                    uint32_t rank);
/* The class has another prefix than its family. */
void heft__sk_base_prefix(heft__skeleton *s, const char *prefix);
/* From here on look-ups read the object under a key of the config ("text_config"); where it is
 * missing, all keys are. Not nested; leave goes back to the whole config. */
void heft__sk_config_enter(heft__skeleton *s, const char *key);
void heft__sk_config_leave(heft__skeleton *s);
/* The name of the class that is listed. */
const char *heft__sk_class(const heft__skeleton *s);
/* Typed look-ups of the config; failures stick to the builder, with the key as item and the byte of
 * the value. A key that is absent is looked up by its other name, if the family has one for it. */
#define HEFT__LAYERS_MOST 10000
uint64_t heft__sk_count(heft__skeleton *s, const char *key,
                        uint64_t standard); /* 1 .. 2^31-1; standard for a missing key */
/* The same, where null is allowed and has its own meaning. */
uint64_t heft__sk_count_or(heft__skeleton *s, const char *key, uint64_t standard, uint64_t null);
uint64_t heft__sk_layers(heft__skeleton *s, const char *key,
                         uint64_t standard); /* the same, to HEFT__LAYERS_MOST: for loops */
/* For what no shape depends on, such as a window of attention: these never fail. The count; standard for a
 * missing key, 0 for null and everything else. Whether a key is true. Whether text i of a list is `text`;
 * `standard` if there is no such item. */
uint64_t heft__sk_count_if(const heft__skeleton *s, const char *key, uint64_t standard);
bool heft__sk_true(const heft__skeleton *s, const char *key);
bool heft__sk_list_is(const heft__skeleton *s, const char *key, uint64_t i, const char *text,
                      bool standard);
int64_t heft__sk_integer(heft__skeleton *s, const char *key,
                         int64_t standard); /* null gives standard */
bool heft__sk_flag(heft__skeleton *s, const char *key, bool standard);
/* The same; null is a value of its own. */
bool heft__sk_flag_or(heft__skeleton *s, const char *key, bool standard, bool null);
double heft__sk_real(heft__skeleton *s, const char *key, double standard);
/* The same two, where null has its own meaning. */
int64_t heft__sk_integer_or(heft__skeleton *s, const char *key, int64_t standard, int64_t null);
double heft__sk_real_or(heft__skeleton *s, const char *key, double standard, double null);
const char *heft__sk_text(heft__skeleton *s, const char *key, const char *standard);
uint64_t heft__sk_members(heft__skeleton *s, const char *key,
                          uint64_t standard);                /* of an object, such as id2label */
bool heft__sk_has(const heft__skeleton *s, const char *key); /* is there and not null */
/* A count, or a list of two: height and width. */
void heft__sk_pair(heft__skeleton *s, const char *key, uint64_t standard, uint64_t pair[2]);
/* Whether a list of integers, such as mlp_only_layers, holds one. */
bool heft__sk_list_has(heft__skeleton *s, const char *key, uint64_t wanted);
/* Text i of a list, such as layer_types; NULL without the list. FORMAT if it is shorter. */
const char *heft__sk_list_text(heft__skeleton *s, const char *key, uint64_t i);
/* What several families have: the row of an embedding that stays zero (-1 for none: null, or a
 * missing key with standard -1; negative numbers count from the end); the width of a classifier, by
 * num_labels, else id2label, else two. */
int64_t heft__sk_padding_row(heft__skeleton *s, const char *key, int64_t standard, uint64_t rows);
uint64_t heft__sk_labels(heft__skeleton *s);
uint64_t heft__sk_labels_or(heft__skeleton *s, uint64_t standard); /* instead of two */
bool heft__sk_going(
    const heft__skeleton *s); /* false after the first error: for loops over a config's counts */
/* Of linear and embedding from here on; 0.02 before. */
void heft__sk_std(heft__skeleton *s, double std);
/* The std by the config's key, `standard` without it; 0 counts as 0.02. */
void heft__sk_initializer_range(heft__skeleton *s, double standard);

/* Have a family's function read numbers from a finished model's config, with the look-ups that it builds
 * with: `read` fills `out` and lists nothing. Errors as of building. */
heft_status heft__model_read(const heft_model *model, void (*read)(heft__skeleton *s, void *out),
                             void *out, heft_error *err);

struct heft__pass; /* run/pass.h */
struct heft__rows;

/* ---- registry -------------------------------------------------------------------------------- */
typedef struct heft__class {
    const char *name;      /* "BertForMaskedLM" */
    const char *auto_name; /* "AutoModelForMaskedLM", NULL if no auto class leads to it */
    void (*build)(heft__skeleton *s);
    void (*forward)(
        struct heft__pass *p); /* over the same names (run/pass.h); NULL: there is none */
} heft__class;

typedef struct heft__family {
    const char *model_type;
    const char *base_prefix;
    const char *class_prefix;    /* of modules' classes: "Llama" */
    const char *file_prefix;     /* one that files may have and the model has not; NULL for none */
    const heft__class *classes;  /* base model first; ends with a NULL name */
    const char *const *no_split; /* NULL-terminated, like all lists here */
    const char *const *ignore_unexpected; /* ends of names that are ignored when unexpected */
    const char *const *ignore_missing;    /* when missing */
    /* Modules or parameters that stay float32 in a model of float16, and of bfloat16 as well: parts
     * of names between dots. */
    const char *const *keep_f32;
    const char *const *keep_f32_strict;
    const char *const (*other_keys)[2]; /* key of the config and its other name; ends with NULL */
    /* Modules between dots as files name them, and as Transformers does in memory; ends with NULL. */
    const char *const (*inner_names)[2];
    /* The base model's forward pass, for heads that call heft__body(): returns what they take. Of classes
     * with an encoder and a decoder it is the decoder's; encode is the encoder's. */
    struct heft__rows (*body)(struct heft__pass *p);
    void (*encode)(struct heft__pass *p);
    /* Of classes that take images or sound: the shape of one by the config, and how many tokens are made of
     * it. NULL: of none. */
    size_t (*features)(heft__skeleton *s, size_t shape[3]);
    double rope_theta;  /* of a config without one; 0: 10000 */
    double rope_length; /* max_position_embeddings of a config without it; 0: 2048 */
    /* Of a config without rope_parameters and rope_scaling: yarn with this factor, from so many tokens; 0: none. */
    double rope_factor, rope_original;
} heft__family;

const heft__family *heft__family_find(const char *model_type); /* NULL if unknown */
const heft__family *
heft__family_of_class(const char *class_name); /* by a concrete class; NULL if unknown */

/* Whether a model of the family that is loaded in that dtype keeps the parameter in float32. (skeleton.c) */
bool heft__family_keeps_float32(const heft__family *family, heft_dtype dtype, const char *name);

/* What stays float32 where names alone are known. (keep_f32.c) */
typedef struct heft__float32_list {
    const char *const *half, *const *both; /* in float16; in float16 and bfloat16 */
    const struct heft__float32_list *next;
} heft__float32_list;

/* The lists of all model types in a config, which may be NULL; in the arena. NULL: there are none. */
heft_status heft__config_float32(const heft_config *config, heft__arena *arena,
                                 const heft__float32_list **out, heft_error *err);
/* Whether a cast to that dtype keeps a tensor of the file in float32. */
bool heft__stays_float32(const heft__float32_list *kept, heft_dtype dtype, const char *name);
/* The family of a config, and the class by its name, its Auto name, or (NULL) the config's
 * architecture. */
heft_status heft__class_find(const heft_config *config, const char *class_name,
                             const heft__family **family, const heft__class **class,
                             heft_error *err);

/* Parameters that are stored otherwise than their family lists them: in the place of one come those that
 * its files have. Two that the family ties and that have the same list are tied, part by part. Lent. */
typedef struct heft__packed {
    const heft_parameter_spec *list; /* [count] names from the module of the parameter on */
    size_t count;
} heft__packed;

typedef struct heft__packing {
    heft__map names; /* the family's name of a parameter, whole -> number */
    const heft__packed *weights;
    heft__map modules;         /* the path of a module -> number */
    const heft__packed *state; /* what files have in these modules besides */
} heft__packing;

/* What heft__model_build makes a model of. The class need not be registered. */
typedef struct heft__recipe {
    const heft_config *config;
    const heft__family *family; /* lent to the model */
    const heft__class *class;
    heft_dtype dtype; /* NONE: float32 */
    bool keep_f32;    /* for weights to be loaded; Transformers keeps nothing in float32 where it
                         makes weights itself */
    const void *user; /* heft__sk_user */
    /* With heft__sk_named() for all: the number of each parameter, in the order of these calls; NULL:
     * that order is the numbers' */
    const size_t *numbers;
    const heft__packing *packing; /* NULL: none */
} heft__recipe;

/* The empty model. As heft_model_new. */
heft_status heft__model_build(heft_ctx *ctx, const heft__recipe *recipe, heft_model **out,
                              heft_error *err);

/* ---- named.c: a model of a list, of no family ------------------------------------------------- */
#define HEFT__UNKNOWN_CLASS "PreTrainedModel"        /* of a config without architectures */
#define HEFT__MODEL_BYTES ((uint64_t)INT64_MAX / 16) /* at most; sums of two of them still fit */

typedef struct heft__named {
    const heft_parameter_spec *list; /* [count] that can be; INVALID_ARG for two of one name */
    const size_t *first; /* [count] the one whose storage each shares, or its own number; NULL: no
                            ties */
    size_t count;
    bool keep_numbers; /* parameters are numbered as the list; false: in natural order of names */
    const heft_config *config;
    heft_dtype dtype; /* heft_model_dtype() */
} heft__named;

heft_status heft__named_model(heft_ctx *ctx, const heft__named *named, heft_model **out,
                              heft_error *err);

#endif
