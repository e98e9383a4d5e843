/* The pickle machine and the walk, on pickles written by hand: what is refused and at which byte,
 * what values come out, how tensors are named, and that shared and nested values cost little. */
#include "support.h"
#include "support_pickle.h"

#include <stdlib.h>

static heft_ctx *ctx;

/* ---- the machine ----------------------------------------------------------------------------- */
/* clang-format off */
static const struct machine_row {
    const char *name;
    const char *bytes;
    size_t length;
    heft_status status;
    uint64_t offset;
    const char *words;
} machine_rows[] = {
    {"empty_stream",                 PK(""),                                  HEFT_FORMAT,      0,  "without STOP"},
    {"stop_with_nothing",            PK("\x80\x02."),                         HEFT_FORMAT,      2,  "STOP with 0 items"},
    {"stop_with_two",                PK("\x80\x02NN."),                       HEFT_FORMAT,      4,  "STOP with 2 items"},
    {"no_proto_is_fine",             PK("N."),                                HEFT_OK,          0,  ""},
    {"proto_inside",                 PK("N\x80\x02."),                        HEFT_FORMAT,      1,  "PROTO occurs inside"},
    {"proto_6",                      PK("\x80\x06N."),                        HEFT_UNSUPPORTED, 0,  "protocol 6"},
    {"proto_without_number",         PK("\x80"),                              HEFT_FORMAT,      0,  "operand of PROTO needs 1 bytes, 0 left"},
    {"frame_fits",                   PK("\x80\x04\x95\2\0\0\0\0\0\0\0N."),    HEFT_OK,          0,  ""},
    {"frame_one_too_long",           PK("\x80\x04\x95\3\0\0\0\0\0\0\0N."),    HEFT_FORMAT,      2,  "frame of 3 bytes, 2 left"},
    {"frame_inside_frame",           PK("\x80\x04\x95\x0a\0\0\0\0\0\0\0\x95\0\0\0\0\0\0\0\0N."), HEFT_FORMAT, 11, "FRAME occurs inside a frame"},
    {"operand_across_frame_end",     PK("\x80\x04\x95\2\0\0\0\0\0\0\0X\1\0\0\0a."), HEFT_FORMAT, 11, "operand of BINUNICODE needs 4 bytes, 1 left"},
    {"pop_empty",                    PK("0N."),                               HEFT_FORMAT,      0,  "POP needs 1 item"},
    {"pop_takes_mark",               PK("(0N."),                              HEFT_OK,          0,  ""},
    {"pop_mark",                     PK("(NN1N."),                            HEFT_OK,          0,  ""},
    {"mark_first",                   PK("(t."),                               HEFT_OK,          0,  ""},
    {"pop_mark_without_mark",        PK("1N."),                               HEFT_FORMAT,      0,  "POP_MARK without MARK"},
    {"dup",                          PK("N2\x86."),                           HEFT_OK,          0,  ""},
    {"below_the_mark",               PK("N(\x85."),                           HEFT_FORMAT,      2,  "TUPLE1 needs 1 items, stack has 0"},
    {"setitem_on_list",              PK("]NNs."),                             HEFT_FORMAT,      3,  "SETITEM on a list"},
    {"append_on_tuple",              PK(")Na."),                              HEFT_FORMAT,      2,  "APPEND on a tuple"},
    {"key_without_value",            PK("}(Nu."),                             HEFT_FORMAT,      3,  "key without a value"},
    {"empty_batch",                  PK("}(u."),                              HEFT_OK,          0,  ""},
    {"additems",                     PK("\x8f(NN\x90."),                      HEFT_OK,          0,  ""},
    {"frozenset",                    PK("(NN\x91."),                          HEFT_OK,          0,  ""},
    {"memo_not_set",                 PK("h\0."),                              HEFT_FORMAT,      0,  "memo 0 is not set"},
    {"memoize_counts",               PK("N\x94h\0\x86."),                     HEFT_OK,          0,  ""},
    {"memo_on_nothing",              PK("q\0N."),                             HEFT_FORMAT,      0,  "BINPUT needs 1 items"},
    {"long1_of_0_bytes",             PK("\x8a\0."),                           HEFT_OK,          0,  ""},
    {"long4_negative",               PK("\x8b\xff\xff\xff\xff."),             HEFT_FORMAT,      0,  "length -1 is negative"},
    {"string_across_end",            PK("U\5ab."),                            HEFT_FORMAT,      0,  "string of 5 bytes, 3 left"},
    {"global_without_line_end",      PK("cos"),                               HEFT_FORMAT,      0,  "GLOBAL has no line end"},
    {"global_os_system",             PK("cos\nsystem\n."),                    HEFT_REFUSED,     0,  "pickle global 'os.system' is refused"},
    {"global_in_the_list",           PK("ctorch\nFloatStorage\n."),           HEFT_OK,          0,  ""},
    {"global_not_in_the_list",       PK("ctorch\nnn.Module\n."),              HEFT_OK,          0,  ""},
    {"global_eval",                  PK("cbuiltins\neval\n."),                HEFT_REFUSED,     0,  "'builtins.eval' is refused"},
    {"global_below_a_module",        PK("cos.path\njoin\n."),                 HEFT_REFUSED,     0,  "'os.path.join' is refused"},
    {"global_like_a_module",         PK("cosprey.net\nNet\n."),               HEFT_OK,          0,  ""},
    {"global_by_stack",              PK("U\5posixU\6system\x93."),            HEFT_REFUSED,     15, "'posix.system' is refused"},
    {"global_python_2_set",          PK("c__builtin__\nset\n."),              HEFT_OK,          0,  ""},
    {"global_getattr",               PK("cbuiltins\ngetattr\n."),             HEFT_OK,          0,  ""}, /* of enums */
    {"global_dtype",                 PK("ctorch\nbfloat16\n."),               HEFT_OK,          0,  ""},
    {"stack_global_of_numbers",      PK("K\1K\2\x93."),                       HEFT_FORMAT,      4,  "STACK_GLOBAL needs two strings"},
    {"reduce_on_dtype",              PK("ctorch\nbfloat16\n)R."),             HEFT_FORMAT,      17, "REDUCE on a global"},
    {"reduce_without_tuple",         PK("ctorch\nSize\nNR."),                 HEFT_FORMAT,      13, "needs a tuple of arguments, found None"},
    {"ordered_dict_of_a_number",     PK("ccollections\nOrderedDict\nK\1\x85R."), HEFT_FORMAT,   28, "of a dict class"},
    {"build_on_dict",                PK("}}b."),                              HEFT_FORMAT,      2,  "BUILD on a dict"},
    {"build_on_ordered_dict",        PK("ccollections\nOrderedDict\n)R}b."),  HEFT_OK,          0,  ""},
    {"build_with_list",              PK("ccollections\nOrderedDict\n)R]b."),  HEFT_FORMAT,      28, "BUILD of an OrderedDict with a list"},
    {"newobj",                       PK("ctorch.nn.parameter\nParameter\n)\x81."), HEFT_REFUSED, 31, "NEWOBJ of global 'Parameter'"},
    {"newobj_of_nothing_known",      PK("N)\x81."),                           HEFT_REFUSED,     2,  "opcode NEWOBJ is refused"},
    {"opaque_newobj",                PK("ca\nB\n)\x81."),                     HEFT_OK,          0,  ""},
    {"opaque_newobj_ex",             PK("ca\nB\n)}\x92."),                    HEFT_OK,          0,  ""},
    {"opaque_build",                 PK("ca\nB\n)\x81}b."),                   HEFT_OK,          0,  ""},
    {"opaque_build_with_a_tuple",    PK("ca\nB\n)R)bNb."),                    HEFT_OK,          0,  ""},
    {"opaque_is_filled",             PK("ca\nB\n)\x81(NNuNNs(NeNa(N\x90."),   HEFT_OK,          0,  ""},
    {"opaque_key_without_value",     PK("ca\nB\n)\x81(Nu."),                  HEFT_FORMAT,      9,  "key without a value"},
    {"opaque_returns_opaque",        PK("ca\nB\n)R)R)R."),                    HEFT_OK,          0,  ""},
    {"opaque_is_a_class",            PK("ca\nB\n)R)\x81."),                   HEFT_OK,          0,  ""}, /* getattr() returned it */
    {"opaque_class_with_keywords",   PK("ca\nB\n)R)}\x92."),                  HEFT_OK,          0,  ""},
    {"known_call_is_not_called",     PK("ctorch\nSize\n)\x85R)R."),           HEFT_FORMAT,      16, "REDUCE on an object"},
    {"build_on_known_call",          PK("ctorch\nSize\n)\x85R}b."),           HEFT_FORMAT,      16, "BUILD on an object"},
    {"defaultdict",                  PK("ccollections\ndefaultdict\nca\nB\n\x85R(NNu."), HEFT_OK, 0, ""},
    {"defaultdict_of_two",           PK("ccollections\ndefaultdict\nNN\x86R."), HEFT_FORMAT,    28, "of a dict class"},
    {"inst",                         PK("(ios\nsystem\n."),                   HEFT_REFUSED,     1,  "INST of global 'os.system'"},
    {"obj",                          PK("(No."),                              HEFT_REFUSED,     2,  "opcode OBJ"},
    {"ext2",                         PK("\x83\1\0."),                         HEFT_REFUSED,     0,  "opcode EXT2"},
    {"text_integer",                 PK("I01\n."),                            HEFT_REFUSED,     0,  "opcode INT"},
    {"buffer",                       PK("\x97."),                             HEFT_REFUSED,     0,  "opcode NEXT_BUFFER"},
    {"persid_where_there_are_none",  PK("NQ."),                               HEFT_FORMAT,      1,  "persistent id"},
    {"unknown_opcode",               PK("\x99."),                             HEFT_FORMAT,      0,  "unknown pickle opcode 0x99"},
    {"bytes_behind_stop",            PK("N.garbage"),                         HEFT_OK,          0,  ""},
};
/* clang-format on */

static void machine_refuses_at_the_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof machine_rows / sizeof machine_rows[0]; i++) {
        const struct machine_row *row = &machine_rows[i];
        heft__pickle pickle;
        heft_error err = {0};
        uint8_t *copy =
            malloc(row->length + 1); /* exact, so that a sanitizer sees a read behind it */
        uint8_t *exact = realloc(copy, row->length ? row->length : 1);
        memcpy(exact, row->bytes, row->length);
        heft_status status = heft__pickle_run(ctx, exact, row->length, 100, row->length,
                                              HEFT__PK_IDS_NONE, &pickle, &err);
        heft__pickle_fini(&pickle);
        free(exact);
        test_expect_status(status, row->status, &err, row->name);
        if (status != HEFT_OK &&
            (err.offset != row->offset + 100 || !strstr(err.message, row->words))) {
            fail_msg("%s: byte %lld: %s", row->name, (long long)err.offset - 100, err.message);
        }
    }
}

static void integers_have_their_values(void **state)
{
    static const struct {
        const char *bytes;
        size_t length;
        int64_t value;
    } rows[] = {
        {PK("K\xff."),                      255             },
        {PK("M\xff\xff."),                  65535           },
        {PK("J\xff\xff\xff\xff."),          -1              },
        {PK("J\0\0\0\x80."),                INT32_MIN       },
        {PK("\x8a\0."),                     0               },
        {PK("\x8a\1\xff."),                 -1              },
        {PK("\x8a\2\xff\0."),               255             },
        {PK("\x8a\5\0\0\0\x80\0."),         INT64_C(1) << 31},
        {PK("\x8a\x08\0\0\0\0\0\0\0\x80."), INT64_MIN       },
        {PK("\x8b\1\0\0\0\x7f."),           127             },
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft__pickle pickle;
        heft_error err;
        assert_int_equal(heft__pickle_run(ctx, (const uint8_t *)rows[i].bytes, rows[i].length, 0,
                                          rows[i].length, HEFT__PK_IDS_NONE, &pickle, &err),
                         HEFT_OK);
        assert_int_equal(pickle.top.kind, HEFT__PK_INT);
        assert_int_equal(pickle.top.as.integer, rows[i].value);
        heft__pickle_fini(&pickle);
    }
}

/* ---- tensors from pickles -------------------------------------------------------------------- */
#define TENSOR_OF(key, numel, offset, size, stride)                                                \
    "ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE(key, numel) "K" offset size stride "\x89"       \
                                                               "ccollections\nOrderedDict\n)RtR"
#define TENSOR(key) TENSOR_OF(key, "\4", "\0", "K\4\x85", "K\1\x85")

static heft_status build(heft_ctx *on, struct built *built, const void *bytes, size_t length,
                         heft_error *err)
{
    return test_pickle_build(on, false, built, bytes, length, err);
}

/* clang-format off */
static const struct name_row {
    const char *name;
    const char *bytes;
    size_t length;
    const char *tensors, *skipped; /* names with a comma behind each */
} name_rows[] = {
    {"plain_dict",              PK("}(" NAME("a") TENSOR("0") NAME("b") TENSOR("1") "u."), "a,b,", ""},
    {"bare_tensor",             PK(TENSOR("0") "."), ",", ""},
    {"list",                    PK("](" TENSOR("0") "N" TENSOR("0") "e."), "0,2,", "1,"},
    {"empty_name",              PK("}X\0\0\0\0" TENSOR("0") "s."), ",", ""},
    {"integer_keys",            PK("}(K\7" TENSOR("0") "J\xff\xff\xff\xff" TENSOR("0") "u."), "7,-1,", ""},
    {"key_twice_last_wins",     PK("}(" NAME("a") "N" NAME("b") TENSOR("0") NAME("a") TENSOR("1") "u."), "a,b,", ""},
    {"nested",                  PK("}(" NAME("a") "}" NAME("b") "]" TENSOR("0") "asu."), "a.b.0,", ""},
    {"state_dict_found",        PK("}(X\5\0\0\0epochK\1X\x0a\0\0\0state_dict}" NAME("w") TENSOR("0") "s"
                                   NAME("o") "}" NAME("m") TENSOR("1") "su."), "w,", "epoch,o.m,"},
    {"module_found",            PK("}X\6\0\0\0module}" NAME("w") TENSOR("0") "ss."), "w,", ""},
    {"model_with_dicts_stays",  PK("}X\5\0\0\0model}" NAME("a") "}" NAME("w") TENSOR("0") "sss."), "model.a.w,", ""},
    {"object_beside",           PK("}(" NAME("w") TENSOR("0") NAME("a") "ca\nB\n)\x81}" NAME("v") TENSOR("1") "sbu."), "w,", "a,"},
    {"object_in_a_list",        PK("](" TENSOR("0") "ca\nB\n)Re."), "0,", "1,"},
    {"class_as_key",            PK("}(" NAME("w") TENSOR("0") "ca\nB\n}" NAME("v") TENSOR("1") "su."), "w,", "<a global>,"},
    {"tuple_as_key",            PK("}(" NAME("w") TENSOR("0") "NN\x86" TENSOR("1") "u."), "w,", "<a tuple>,"},
    {"shared_with_an_object",   PK("}(" NAME("a") "ca\nB\n)\x81}q\0" NAME("v") TENSOR("1") "sb" NAME("b") "h\0u."), "b.v,", "a,"},
    {"scalar_beside",           PK("}(" KEY("\5", "model") "}(" KEY("\3", "a.w") TENSOR("0") KEY("\3", "a.b") TENSOR("0") "u"
                                   NAME("s") TENSOR("1") "u."), "a.w,a.b,", "s,"},
    {"dotted_beside",           PK("}(" KEY("\5", "model") "}(" KEY("\3", "a.w") TENSOR("0") KEY("\3", "a.b") TENSOR("0") "u"
                                   KEY("\3", "c.w") TENSOR("1") "u."), "model.a.w,model.a.b,c.w,", ""},
    {"sparse_is_left",          PK("}(" NAME("w") TENSOR("0") NAME("s") "ctorch._utils\n_rebuild_sparse_tensor\n)Ru."), "w,", "s,"},
    {"subclass_is_left",        PK("}(" NAME("w") TENSOR("0") NAME("s") "ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n"
                                   "_rebuild_tensor_v2\nca\nB\n)}tRu."), "w,", "s,"},
    {"parameter_of_an_object",  PK("}(" NAME("w") TENSOR("0") NAME("s") "ctorch._utils\n_rebuild_parameter\nca\nB\n)R\x89N\x87Ru."),
                                "w,", "s,"},
    {"module",                  PK(MODULE("}" NAME("w") TENSOR("0") "s", "}" NAME("b") TENSOR("1") "s",
                                          "}" NAME("m") MODULE("}" NAME("w") TENSOR("0") "s", "}", "}", "") "s", "") "."), "w,b,m.w,", ""},
    {"module_in_a_checkpoint",  PK("}(" KEY("\5", "model") MODULE("}" NAME("w") TENSOR("0") "s", "}", "}", "") "u."), "w,", ""},
    {"module_transient",        PK(MODULE("}" NAME("w") TENSOR("0") "s", "}(" NAME("b") TENSOR("1") NAME("c") TENSOR("1") "u", "}",
                                          KEY("\x1b", "_non_persistent_buffers_set") "cbuiltins\nset\n]" NAME("b") "a\x85R") "."),
                                "w,c,", ""},
    {"module_in_part",          PK("}(" NAME("w") TENSOR("0") NAME("m") "ca\nB\n)\x81}(" KEY("\x0b", "_parameters") "}" NAME("w") TENSOR("0")
                                   "subu."), "w,", "m,"},
    {"tensors_beside_a_model",  PK("}(" NAME("w") TENSOR("0") "X\5\0\0\0model}" NAME("v") TENSOR("0") "su."), "w,model.v,", ""},
    {"both_state_dict_first",   PK("}(X\5\0\0\0model}" NAME("m") TENSOR("0") "sX\x0a\0\0\0state_dict}" NAME("w") TENSOR("0")
                                   "su."), "w,", "model.m,"},
    {"metadata_by_build",       PK("ccollections\nOrderedDict\n)R(" NAME("w") TENSOR("0") "u}X\x09\0\0\0_metadata}sb."), "w,", ""},
    {"shared_dict_twice",       PK("}(" NAME("a") "}q\0" NAME("w") TENSOR("0") "s" NAME("b") "h\0u."), "a.w,b.w,", ""},
    {"python_2_ordered_dict",   PK("ccollections\nOrderedDict\n](](" NAME("w") TENSOR("0") "ee\x85R."), "w,", ""},
    {"storage_alone",           PK("}(" NAME("s") STORAGE("0", "\4") NAME("w") TENSOR("0") "u."), "w,", "s,"},
};
/* clang-format on */

static void append_name(char *out, size_t cap, const char *name)
{
    size_t used = strlen(out);
    snprintf(out + used, cap - used, "%s,", name);
}

static void names_are_paths(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof name_rows / sizeof name_rows[0]; i++) {
        const struct name_row *row = &name_rows[i];
        char tensors[256] = "", skipped[256] = "";
        struct built built;
        heft_error err;
        test_expect_status(build(ctx, &built, row->bytes, row->length, &err), HEFT_OK, &err,
                           row->name);
        for (size_t t = 0; t < built.file.tensor_count; t++) {
            append_name(tensors, sizeof tensors, built.file.tensors[t].name);
        }
        for (size_t t = 0; t < built.file.skipped_count; t++) {
            append_name(skipped, sizeof skipped, built.file.skipped[t]);
        }
        if (strcmp(tensors, row->tensors) != 0 || strcmp(skipped, row->skipped) != 0) {
            fail_msg("%s: tensors %s skipped %s", row->name, tensors, skipped);
        }
        test_pickle_unbuild(&built);
    }
}

/* ---- versions of modules ---------------------------------------------------------------------- */
#define VERSION(n) "}" KEY("\x07", "version") "K" n "s"
#define WITH_METADATA(metadata)                                                                    \
    "ccollections\nOrderedDict\n)R(" NAME("w") TENSOR("0") "u}" KEY("\x09", "_metadata") metadata  \
        "sb"

/* clang-format off */
static const struct module_row {
    const char *name;
    const char *bytes;
    size_t length;
    const char *modules;
} module_rows[] = {
    {"two_modules",          PK(WITH_METADATA("}(" KEY("\0", "") VERSION("\1") NAME("a") VERSION("\2") "u") "."), "=1 a=2 "},
    {"below_state_dict",     PK("}" KEY("\x0a", "state_dict") WITH_METADATA("}" NAME("a") VERSION("\2") "s") "s."), "a=2 "},
    {"not_the_state_dict's", PK("}(" KEY("\x0a", "state_dict") "}" NAME("v") TENSOR("0") "s" NAME("b")
                                WITH_METADATA("}" NAME("a") VERSION("\2") "s") "u."), ""},
    {"an_ordered_dict",      PK(WITH_METADATA("ccollections\nOrderedDict\n)R" NAME("a") VERSION("\7") "s") "."), "a=7 "},
    {"no_dict",              PK(WITH_METADATA("]") "."), ""},
    {"facts_are_no_dict",    PK(WITH_METADATA("}(" NAME("a") "K\1" NAME("b") VERSION("\2") "u") "."), "b=2 "},
    {"key_is_no_text",       PK(WITH_METADATA("}(K\1" VERSION("\1") "u") "."), ""},
    {"version_is_a_text",    PK(WITH_METADATA("}" NAME("a") "}" KEY("\x07", "version") NAME("1") "ss") "."), ""},
    {"version_is_negative",  PK(WITH_METADATA("}" NAME("a") "}" KEY("\x07", "version") "J\xff\xff\xff\xffss") "."), ""},
    {"version_of_33_bits",   PK(WITH_METADATA("}" NAME("a") "}" KEY("\x07", "version") "\x8a\5\0\0\0\0\1ss") "."), ""},
    {"path_with_a_nul",      PK(WITH_METADATA("}" KEY("\2", "a\0") VERSION("\1") "s") "."), ""},
    {"path_is_no_utf8",      PK(WITH_METADATA("}" KEY("\1", "\xff") VERSION("\1") "s") "."), ""},
    {"other_attributes",     PK("ccollections\nOrderedDict\n)R" NAME("w") TENSOR("0") "s}" NAME("x") "K\1sb."), ""},
};
/* clang-format on */

static void versions_of_modules_are_read(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof module_rows / sizeof module_rows[0]; i++) {
        const struct module_row *row = &module_rows[i];
        char found[64] = "";
        struct built built;
        heft_error err;
        test_expect_status(build(ctx, &built, row->bytes, row->length, &err), HEFT_OK, &err,
                           row->name);
        for (size_t m = 0; m < built.file.module_count; m++) {
            const heft__file_module *module = &built.file.modules[m];
            snprintf(found + strlen(found), sizeof found - strlen(found), "%s=%u ", module->path,
                     (unsigned)module->version);
        }
        if (strcmp(found, row->modules) != 0) {
            fail_msg("%s: modules %s", row->name, found);
        }
        test_pickle_unbuild(&built);
    }
}

/* clang-format off */
static const struct tensor_row {
    const char *name;
    const char *bytes;
    size_t length;
    heft_status status;
    const char *item, *words;
} tensor_rows[] = {
    {"extent_is_just_the_storage", PK("}" NAME("w") TENSOR_OF("0", "\6", "\0", "K\2K\3\x86", "K\3K\1\x86") "s."), HEFT_OK, "", ""},
    {"extent_one_past",            PK("}" NAME("w") TENSOR_OF("0", "\6", "\1", "K\2K\3\x86", "K\3K\1\x86") "s."), HEFT_FORMAT, "w",
     "needs 7 elements of float32, the storage has 6"},
    {"empty_far_behind",           PK("}" NAME("w") TENSOR_OF("0", "\6", "\x7f", "K\0K\3\x86", "K\3K\1\x86") "s."), HEFT_OK, "", ""},
    {"strides_a_list",             PK("}" NAME("w") TENSOR_OF("0", "\6", "\0", "]K\2a", "]K\1a") "s."), HEFT_OK, "", ""},
    {"size_a_torch_size",          PK("}" NAME("w") TENSOR_OF("0", "\6", "\0", "ctorch\nSize\nK\2\x85\x85R", "K\1\x85") "s."), HEFT_OK, "", ""},
    {"size_a_device",              PK("}" NAME("w") TENSOR_OF("0", "\6", "\0", "ctorch\ndevice\nK\2\x85\x85R", "K\1\x85") "s."),
     HEFT_FORMAT, "w", "size must be a tuple, found an object"},
    {"size_of_a_string",           PK("}" NAME("w") TENSOR_OF("0", "\6", "\0", NAME("2") "\x85", "K\1\x85") "s."), HEFT_FORMAT, "w",
     "size[0] must be an integer, found a string"},
    {"size_over_64_bits",          PK("}" NAME("w") TENSOR_OF("0", "\6", "\0", "\x8a\x09\0\0\0\0\0\0\0\0\1\x85", "K\1\x85") "s."),
     HEFT_FORMAT, "w", "an integer of more than 64 bits"},
    {"no_record",                  PK("}" NAME("w") TENSOR("z") "s."), HEFT_FORMAT, "w", "record 'data/z' not found"},
    {"unused_id_is_checked",       PK("}(" NAME("w") TENSOR("0") NAME("s") STORAGE("z", "\4") "u."), HEFT_FORMAT, "",
     "record 'data/z' not found"},
    {"two_sizes_for_a_key",        PK("}(" NAME("w") TENSOR("0") NAME("v") TENSOR_OF("0", "\5", "\0", "K\4\x85", "K\1\x85") "u."),
     HEFT_FORMAT, "v", "storage '0' has 5 elements of float32 here, 4 of float32 before"},
    {"key_with_a_slash",           PK("}" NAME("w") TENSOR("/") "s."), HEFT_REFUSED, "w", "contains path characters"},
    {"key_of_a_dot",               PK("}" NAME("w") TENSOR(".") "s."), HEFT_REFUSED, "w", "contains path characters"},
    {"hooks_a_number",             PK("}" NAME("w") "ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE("0", "\4")
                                      "K\0K\4\x85K\1\x85\x89K\1tRs."), HEFT_FORMAT, "w", "hooks must be a dict"},
    {"no_storage",                 PK("}" NAME("w") "ctorch._utils\n_rebuild_tensor_v2\n(NK\0K\4\x85K\1\x85\x89NtRs."), HEFT_FORMAT,
     "w", "argument 0 of a tensor must be a storage, found None"},
    {"too_few_arguments",          PK("}" NAME("w") "ctorch._utils\n_rebuild_tensor_v2\n)Rs."), HEFT_FORMAT, "w", "0 arguments"},
    {"old_rebuild",                PK("}" NAME("w") "ctorch._utils\n_rebuild_tensor\n(" STORAGE("0", "\4") "K\0K\4\x85K\1\x85tRs."),
     HEFT_OK, "", ""},
    {"neg_view_of_float",          PK("}" NAME("w") "ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE("0", "\4")
                                      "K\0K\4\x85K\1\x85\x89N}X\3\0\0\0neg\x88stRs."), HEFT_OK, "", ""},
    {"conj_view_of_float",         PK("}" NAME("w") "ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE("0", "\4")
                                      "K\0K\4\x85K\1\x85\x89N}X\4\0\0\0conj\x88stRs."), HEFT_UNSUPPORTED, "w", "a conj view of float32"},
    {"parameter_of_a_number",      PK("}" NAME("w") "ctorch._utils\n_rebuild_parameter\nK\1\x88N\x87Rs."), HEFT_FORMAT, "w",
     "a parameter wraps an integer"},
    {"v3_with_typed_storage",      PK("}" NAME("w") "ctorch._utils\n_rebuild_tensor_v3\n(" STORAGE("0", "\4")
                                      "K\0K\4\x85K\1\x85\x89Nctorch\nfloat32\ntRs."), HEFT_FORMAT, "w", "a typed storage and a separate dtype"},
    {"meta_tensor",                PK("}" NAME("w") "ctorch._utils\n_rebuild_meta_tensor_no_storage\n)Rs."), HEFT_UNSUPPORTED, "w",
     "'w' (_rebuild_meta_tensor_no_storage)"},
    {"object_at_the_top",          PK("ca.b\nC\n)\x81."), HEFT_UNSUPPORTED, "", "a pickled object of class 'a.b.C'"},
    {"all_in_an_object",           PK("}" NAME("w") "ca.b\nC\n)\x81}" NAME("v") TENSOR("0") "sbs."), HEFT_UNSUPPORTED, "",
     "1 are inside objects of unknown classes or have no name: 'w' (a.b.C)"},
    {"object_that_holds_itself",   PK("}(" NAME("w") TENSOR("0") NAME("s") "ca.b\nC\n)\x81q\0}" NAME("a") "h\0sbu."), HEFT_OK, "", ""},
    {"module_that_holds_itself",   PK("ca\nN\n)\x81q\0}(" KEY("\x0b", "_parameters") "}" KEY("\x08", "_buffers") "}" KEY("\x08", "_modules") "}"
                                      NAME("m") "h\0sub."), HEFT_FORMAT, "", "a dict contains itself"},
    {"name_with_nul",              PK("}X\3\0\0\0a\0b" TENSOR("0") "s."), HEFT_FORMAT, "", "contains a NUL"},
    {"name_lone_surrogate",        PK("}X\3\0\0\0\xed\xa0\x80" TENSOR("0") "s."), HEFT_FORMAT, "", "not valid UTF-8"},
    {"name_twice_by_dots",         PK("}(X\3\0\0\0a.b" TENSOR("0") NAME("a") "}" NAME("b") TENSOR("0") "su."), HEFT_FORMAT, "a.b",
     "duplicate tensor name"},
    {"name_twice_by_number",       PK("}(K\1" TENSOR("0") NAME("1") TENSOR("0") "u."), HEFT_FORMAT, "1", "duplicate tensor name"},
    {"key_none",                   PK("}N" TENSOR("0") "s."), HEFT_UNSUPPORTED, "", "1 are inside objects of unknown classes or have no name"},
    {"dict_contains_itself",       PK("}q\0" NAME("a") "h\0s."), HEFT_FORMAT, "", "a dict contains itself"},
    {"list_in_dict_in_list",       PK("]q\0}" NAME("a") "h\0sa."), HEFT_FORMAT, "", "a list contains itself"},
    {"tensor_by_its_class", PK("}" NAME("w") "ctorch\nTensor\n)\x81(" STORAGE("0", "\4") "K\0K\4\x85K\1\x85tbs."), HEFT_OK, "", ""},
    {"tensor_called", PK("}" NAME("w") "ctorch\nFloatTensor\n)R(" STORAGE("0", "\4") "K\0K\4\x85K\1\x85tbs."), HEFT_OK, "", ""},
    {"tensor_of_another_storage", PK("}" NAME("w") "ctorch\nDoubleTensor\n)\x81(" STORAGE("0", "\4") "K\0K\4\x85K\1\x85tbs."), HEFT_FORMAT, "", "BUILD of a tensor needs its storage"},
    {"tensor_with_three_values", PK("}" NAME("w") "ctorch\nTensor\n)\x81(" STORAGE("0", "\4") "K\0K\4\x85tbs."), HEFT_FORMAT, "", "BUILD of a tensor needs its storage"},
    {"tensor_built_twice", PK("}" NAME("w") "ctorch\nTensor\n)\x81(" STORAGE("0", "\4") "K\0K\4\x85K\1\x85tbNbs."), HEFT_FORMAT, "", "BUILD on an object"},
    {"tensor_built_of_none", PK("}" NAME("w") "ctorch\nTensor\n)\x81Nbs."), HEFT_FORMAT, "", "BUILD of a tensor needs"},
    {"top_a_number",               PK("K\1."), HEFT_UNSUPPORTED, "", "top-level value is an integer, expected a dict"},
    {"top_a_list_of_numbers",      PK("]K\1a."), HEFT_UNSUPPORTED, "", "a list without tensors"},
    {"dict_of_numbers",            PK("}" NAME("a") "K\1s."), HEFT_OK, "", ""},
};
/* clang-format on */

static void tensors_are_checked(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof tensor_rows / sizeof tensor_rows[0]; i++) {
        const struct tensor_row *row = &tensor_rows[i];
        struct built built;
        heft_error err = {0};
        heft_status status = build(ctx, &built, row->bytes, row->length, &err);
        test_pickle_unbuild(&built);
        test_expect_status(status, row->status, &err, row->name);
        if (status != HEFT_OK &&
            (!strstr(err.message, row->words) || strcmp(err.item, row->item) != 0)) {
            fail_msg("%s: %s: %s", row->name, err.item, err.message);
        }
    }
}

/* ---- what sharing could blow up -------------------------------------------------------------- */
/* {'a': v} where v is `levels` dicts, each twice the one below; at the bottom a tensor or a number.
 */
static uint8_t *doubled(int levels, const char *bottom, size_t bottom_length, size_t *length)
{
    uint8_t *bytes = malloc(bottom_length + (size_t)levels * 16 + 32);
    size_t at = 0;
    memcpy(bytes, bottom, bottom_length);
    at = bottom_length;
    for (int i = 0; i < levels; i++) {
        memcpy(bytes + at, "q\0h\0\x86", 5);
        bytes[at + 1] = bytes[at + 3] = (uint8_t)i;
        at += 5;
    }
    memcpy(bytes + at, "\x85.", 2);
    *length = at + 2;
    return bytes;
}

static void shared_values_do_not_spread_out(void **state)
{
    static const char tensor[] = TENSOR("0");
    struct built built;
    heft_error err;
    size_t length;
    test_heap heap = {.fail_at = -1};
    heft_ctx *counted = test_ctx_new(&heap);
    uint8_t *bytes = doubled(60, tensor, sizeof tensor - 1, &length);
    (void)state;
    assert_int_equal(build(counted, &built, bytes, length, &err), HEFT_LIMIT);
    test_pickle_unbuild(&built);
    free(bytes);
    assert_true(heap.peak < 64 << 20);
    bytes = doubled(8, tensor, sizeof tensor - 1, &length);
    test_expect_status(build(counted, &built, bytes, length, &err), HEFT_OK, &err,
                       "256 names of one tensor");
    assert_int_equal(built.file.tensor_count, 256);
    assert_int_equal(built.file.storage_count, 1);
    test_pickle_unbuild(&built);
    free(bytes);
    bytes = doubled(60, "]K\1a", 4, &length);
    assert_int_equal(build(counted, &built, bytes, length, &err),
                     HEFT_UNSUPPORTED); /* no tensors: at once */
    test_pickle_unbuild(&built);
    free(bytes);
    heft_ctx_free(counted);
    assert_int_equal(heap.blocks, 0);
}

/* A list of 10,000 numbers and a tensor, 10,000 times: 10^8 steps if nothing stopped it. */
static void shared_lists_are_bounded(void **state)
{
    struct built built;
    heft_error err;
    heft__buffer b;
    (void)state;
    heft__buffer_init(&b, ctx);
    heft__buffer_text(&b, "](](");
    for (int i = 0; i < 10000; i++) {
        heft__buffer_append(&b, "K\1", 2);
    }
    static const char tensor[] = TENSOR("0");
    heft__buffer_append(&b, tensor, sizeof tensor - 1);
    heft__buffer_append(&b, "eq\0", 3);
    for (int i = 0; i < 10000; i++) {
        heft__buffer_append(&b, "h\0", 2);
    }
    heft__buffer_text(&b, "e.");
    assert_int_equal(build(ctx, &built, b.data, b.size, &err), HEFT_LIMIT);
    assert_non_null(strstr(err.message, "shared values"));
    test_pickle_unbuild(&built);
    heft__buffer_fini(&b);
}

/* A long name in front of very many tensors. */
static void long_prefixes_are_bounded(void **state)
{
    struct built built;
    heft_error err;
    heft__buffer b;
    test_heap heap = {.fail_at = -1};
    heft_ctx *counted = test_ctx_new(&heap);
    (void)state;
    heft__buffer_init(&b, ctx);
    heft__buffer_append(&b, "}X\0\xf0\0\0", 6);
    for (int i = 0; i < 0xf000; i++) {
        heft__buffer_byte(&b, 'n');
    }
    static const char tensor[] = TENSOR("0");
    heft__buffer_text(&b, "](");
    heft__buffer_append(&b, tensor, sizeof tensor - 1);
    heft__buffer_append(&b, "q\0", 2);
    for (int i = 0; i < 5000; i++) {
        heft__buffer_append(&b, "h\0", 2);
    }
    heft__buffer_text(&b, "es.");
    assert_int_equal(build(counted, &built, b.data, b.size, &err), HEFT_LIMIT);
    assert_true(heap.peak < 64 << 20);
    test_pickle_unbuild(&built);
    heft__buffer_fini(&b);
    heft_ctx_free(counted);
}

/* ---- every failing allocation, every prefix -------------------------------------------------- */
static const char small[] = "}(X\5\0\0\0epochK\1X\x0a\0\0\0state_dict}q\x01(" NAME("w") TENSOR("0")
    NAME("v") TENSOR("1") "uu.";

static heft_status build_once(heft_ctx *on, void *user, heft_error *err)
{
    struct built built;
    (void)user;
    heft_status status = build(on, &built, small, sizeof small - 1, err);
    test_pickle_unbuild(&built);
    return status;
}

static void failing_allocations_leave_nothing(void **state)
{
    (void)state;
    test_oom_sweep(build_once, NULL);
}

static void every_prefix_is_refused(void **state)
{
    (void)state;
    for (size_t length = 0; length < sizeof small - 1; length++) {
        struct built built;
        heft_error err;
        uint8_t *exact = malloc(length + 1);
        uint8_t *cut = realloc(exact, length ? length : 1);
        memcpy(cut, small, length);
        assert_int_equal(build(ctx, &built, cut, length, &err), HEFT_FORMAT);
        assert_true(err.offset <= length);
        test_pickle_unbuild(&built);
        free(cut);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(machine_refuses_at_the_byte),
        cmocka_unit_test(integers_have_their_values),
        cmocka_unit_test(names_are_paths),
        cmocka_unit_test(versions_of_modules_are_read),
        cmocka_unit_test(tensors_are_checked),
        cmocka_unit_test(shared_values_do_not_spread_out),
        cmocka_unit_test(shared_lists_are_bounded),
        cmocka_unit_test(long_prefixes_are_bounded),
        cmocka_unit_test(failing_allocations_leave_nothing),
        cmocka_unit_test(every_prefix_is_refused),
    };
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
