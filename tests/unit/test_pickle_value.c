/* The whole value of a pickle, on pickles written by hand: which parts it has, how its tensors are called,
 * what is refused and at which byte, that shared values cost nothing, and what the public function gives. */
#include "support.h"
#include "support_pickle.h"

#include <stdlib.h>

static heft_ctx *ctx;

#define V2(key, grad)                                                                              \
    "ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE(key, "\4") "K\0K\4\x85K\1\x85" grad             \
                                                              "ccollections\nOrderedDict\n)RtR"
#define TENSOR(key) V2(key, "\x89")
#define ORDERED "ccollections\nOrderedDict\n)R"

/* ---- making ---------------------------------------------------------------------------------- */
static heft_status build(heft_ctx *on, struct built *built, const void *bytes, size_t length,
                         heft_error *err)
{
    return test_pickle_build(on, true, built, bytes, length, err);
}

/* ---- writing a value as text ------------------------------------------------------------------- */
static const char *const words[] = {
    [HEFT_VALUE_END] = "]",
    [HEFT_VALUE_NONE] = "None",
    [HEFT_VALUE_BOOL] = "bool",
    [HEFT_VALUE_INTEGER] = "int",
    [HEFT_VALUE_BIG_INTEGER] = "big",
    [HEFT_VALUE_FLOAT] = "float",
    [HEFT_VALUE_COMPLEX] = "complex",
    [HEFT_VALUE_TEXT] = "text",
    [HEFT_VALUE_STRING] = "string",
    [HEFT_VALUE_BYTES] = "bytes",
    [HEFT_VALUE_BYTE_ARRAY] = "array",
    [HEFT_VALUE_DTYPE] = "dtype",
    [HEFT_VALUE_SCHEME] = "scheme",
    [HEFT_VALUE_LAYOUT] = "layout",
    [HEFT_VALUE_DEVICE] = "device",
    [HEFT_VALUE_TYPE] = "type",
    [HEFT_VALUE_TENSOR] = "tensor",
    [HEFT_VALUE_STORAGE] = "storage",
    [HEFT_VALUE_OBJECT] = "object",
    [HEFT_VALUE_SAME] = "same",
    [HEFT_VALUE_LIST] = "list",
    [HEFT_VALUE_TUPLE] = "tuple",
    [HEFT_VALUE_SET] = "set",
    [HEFT_VALUE_FROZEN_SET] = "frozenset",
    [HEFT_VALUE_SIZE] = "size",
    [HEFT_VALUE_DICT] = "dict",
    [HEFT_VALUE_ORDERED_DICT] = "odict",
    [HEFT_VALUE_COUNTER] = "counter",
    [HEFT_VALUE_DEFAULT_DICT] = "defaultdict",
};

static size_t write_part(char *out, size_t room, const heft_value *value)
{
    const char *word = words[value->kind];
    size_t used = (size_t)snprintf(out, room, "%s%s%s%s", word, value->parameter ? "!" : "",
                                   value->requires_grad ? "~" : "", value->attributes ? "+" : "");
    char *at = out + used;
    room -= used;
    if (value->kind == HEFT_VALUE_BOOL || value->kind == HEFT_VALUE_INTEGER) {
        used += (size_t)snprintf(at, room, "=%lld", (long long)value->integer);
    } else if (value->kind == HEFT_VALUE_FLOAT) {
        used += (size_t)snprintf(at, room, "=%g", value->real);
    } else if (value->kind == HEFT_VALUE_COMPLEX) {
        used += (size_t)snprintf(at, room, "=%g,%g", value->real, value->imaginary);
    } else if (value->kind == HEFT_VALUE_SAME || value->kind == HEFT_VALUE_STORAGE ||
               value->kind == HEFT_VALUE_TENSOR) {
        used += (size_t)snprintf(at, room, "=%llu%s", (unsigned long long)value->number,
                                 value->kind == HEFT_VALUE_TENSOR && value->attributes ? "[" : "");
    } else if (value->kind >= HEFT_VALUE_LIST) {
        used += (size_t)snprintf(at, room, "[%llu", (unsigned long long)value->count);
    } else if (value->text) {
        used += (size_t)snprintf(at, room, "=%.*s", (int)value->length, value->text);
    }
    return used + (size_t)snprintf(out + used, 2, " ");
}

static void write_value(const heft__file *file, char *out, size_t room)
{
    size_t used = 0;
    heft_value value = {0};
    out[0] = '\0';
    for (size_t i = 0; heft__file_value_at(file, i, &value) && used + 200 < room; i++) {
        used += write_part(out + used, room - used, &value);
        value = (heft_value){0};
    }
}

/* ---- values ---------------------------------------------------------------------------------- */
/* clang-format off */
static const struct value_row {
    const char *name;
    const char *bytes;
    size_t length;
    const char *value, *tensors; /* names with a comma behind each */
} value_rows[] = {
    {"none",              PK("N."), "None ", ""},
    {"numbers",           PK("](\x88\x89K\1J\xff\xff\xff\xffG\x3f\xe0\0\0\0\0\0\0e."), "list[5 bool=1 bool=0 int=1 int=-1 float=0.5 ] ", ""},
    {"big_integer",       PK("\x8a\x09" "abcdefghi."), "big=abcdefghi ", ""},
    {"texts",             PK("](X\1\0\0\0aU\1bC\1c\x96\1\0\0\0\0\0\0\0de."), "list[4 text=a string=b bytes=c array=d ] ", ""},
    {"python_2_by_memo",  PK("](U\1bq\1h\1e."), "list[2 string=b string=b ] ", ""},
    {"bytes_protocol_2",  PK("c_codecs\nencode\nX\5\0\0\0a\xc3\xa4\xc2\x80" "X\6\0\0\0latin1\x86R."), "bytes=a\xe4\x80 ", ""},
    {"bytearray",         PK("](cbuiltins\nbytearray\n)Rcbuiltins\nbytearray\nC\2xy\x85Rcbuiltins\nbytearray\nc_codecs\nencode\n"
                             "X\1\0\0\0aX\6\0\0\0latin1\x86R\x85Re."), "list[3 array= array=xy array=a ] ", ""},
    {"complex",           PK("cbuiltins\ncomplex\nG\x3f\xf0\0\0\0\0\0\0G\xbf\xf0\0\0\0\0\0\0\x86R."), "complex=1,-1 ", ""},
    {"training",          PK("}(" KEY("\5", "epoch") "K\3" KEY("\5", "model") "}" NAME("w") TENSOR("0") "s" KEY("\5", "state") "}K\0}" NAME("m")
                             TENSOR("1") "ss" KEY("\5", "group") "]}" NAME("l") "G\x3f\xe0\0\0\0\0\0\0sau."),
                          "dict[8 text=epoch int=3 text=model dict[2 text=w tensor=0 ] text=state dict[2 int=0 dict[2 text=m tensor=1 ] ] "
                          "text=group list[1 dict[2 text=l float=0.5 ] ] ] ", "model.w,state.0.m,"},
    {"bare_tensor",       PK(TENSOR("0") "."), "tensor=0 ", ","},
    {"shared_tensor",     PK("](" TENSOR("0") "q\1h\1" TENSOR("0") "e."), "list[3 tensor=0 same=1 tensor=1 ] ", "0,2,"},
    {"shared_list",       PK("](]q\1K\1ah\1h\1\x85" "e."), "list[3 list[1 int=1 ] same=1 tuple[1 same=1 ] ] ", ""},
    {"empty_tuples",      PK("]())e."), "list[2 tuple[0 ] same=1 ] ", ""},
    {"key_twice",         PK("}(" NAME("a") "K\1" NAME("a") "K\2u."), "dict[4 text=a int=1 text=a int=2 ] ", ""},
    {"odd_keys",          PK("}(K\1NNNK\2K\3\x86N\x88Nu."), "dict[8 int=1 None None None tuple[2 int=2 int=3 ] None bool=1 None ] ", ""},
    {"names_that_collide", PK("}(" KEY("\3", "a.b") TENSOR("0") NAME("a") "}" NAME("b") TENSOR("1") "s" KEY("\2", "#1") TENSOR("2") "u."),
                          "dict[6 text=a.b tensor=0 text=a dict[2 text=b tensor=1 ] text=#1 tensor=2 ] ", "a.b,#1,#2,"},
    {"names_that_are_none", PK("}(" KEY("\2", "a\0") TENSOR("0") KEY("\1", "\xff") TENSOR("1") "NN\x86" TENSOR("2") "u."),
                          "dict[6 text=a tensor=0 text=\xff tensor=1 tuple[2 None None ] tensor=2 ] ", "#0,#1,<a tuple>,"},
    {"ordered_dict",      PK(ORDERED NAME("a") "K\1s}" NAME("m") "K\2sb."), "odict+[3 text=a int=1 dict[2 text=m int=2 ] ] ", ""},
    {"counter",           PK("ccollections\nCounter\n}" NAME("a") "K\2s\x85R."), "counter[2 text=a int=2 ] ", ""},
    {"defaultdict",       PK("ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R(" NAME("a") "]u."), "defaultdict[3 type=list text=a list[0 ] ] ", ""},
    {"defaultdict_none",  PK("ccollections\ndefaultdict\n)R."), "defaultdict[1 None ] ", ""},
    {"defaultdict_object", PK("ccollections\ndefaultdict\nca\nB\n\x85R."), "defaultdict[1 object=a.B ] ", ""},
    {"sets",              PK("](c__builtin__\nset\n](K\1K\2e\x85R\x8f(K\3\x90(K\4\x91" "cbuiltins\nset\n)Rcbuiltins\nfrozenset\n]K\5a\x85Re."),
                          "list[5 set[2 int=1 int=2 ] set[1 int=3 ] frozenset[1 int=4 ] set[0 ] frozenset[1 int=5 ] ] ", ""},
    {"size",              PK("ctorch\nSize\nK\2K\3\x86\x85R."), "size[2 int=2 int=3 ] ", ""},
    {"devices",           PK("](ctorch\ndevice\nX\4\0\0\0cudaK\1\x86Rctorch\ndevice\nX\3\0\0\0cpu\x85Re."), "list[2 device=cuda:1 device=cpu ] ", ""},
    {"dtype_and_scheme",  PK("](ctorch\nfloat16\nctorch\nper_tensor_affine\nctorch.serialization\n_get_layout\nX\1\0\0\0x\x85Re."),
                          "list[3 dtype=float16 scheme=per_tensor_affine layout=x ] ", ""},
    {"parameter",         PK("ctorch._utils\n_rebuild_parameter\n" TENSOR("0") "\x88" ORDERED "\x87R."), "tensor!~=0 ", ","},
    {"parameter_frozen",  PK("ctorch._utils\n_rebuild_parameter\n" V2("0", "\x88") "\x89" ORDERED "\x87R."), "tensor!=0 ", ","},
    {"parameter_state",   PK("ctorch._utils\n_rebuild_parameter_with_state\n(" TENSOR("0") "\x89" ORDERED "}" NAME("a") TENSOR("1") "stR."),
                          "tensor!+=0[ dict[2 text=a tensor=1 ] ] ", ",a,"},
    {"requires_grad",     PK(V2("0", "\x88") "."), "tensor~=0 ", ","},
    {"attributes",        PK("ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\n(" STORAGE("0", "\4")
                             "K\0K\4\x85K\1\x85\x89" ORDERED "t}" NAME("k") "K\1stR."), "tensor+=0[ dict[2 text=k int=1 ] ] ", ","},
    {"storage",           PK("](" STORAGE("0", "\4") TENSOR("0") "e."), "list[2 storage=0 tensor=1 ] ", "0,1,"},
    {"object",            PK("](ca\nB\n)\x81q\1}" NAME("v") TENSOR("1") "sbh\1ca\nB\n)Re."), "list[3 object=a.B same=1 object=a.B ] ", ""},
    {"class_by_itself",   PK("](ca\nB\nctorch\nTensor\nctorch\nFloatStorage\ne."), "list[3 object=a.B object=Tensor object=FloatStorage ] ", ""},
    {"sparse",            PK("]ctorch._utils\n_rebuild_sparse_tensor\n)Ra."), "list[1 object=_rebuild_sparse_tensor ] ", ""},
    {"module",            PK(MODULE("}(" NAME("w") TENSOR("0") NAME("n") "Nu", "}" NAME("b") TENSOR("1") "s",
                                    "}" NAME("m") MODULE("}" NAME("w") TENSOR("0") "s", "}", "}", "") "s", "") "."),
                          "odict[6 text=w tensor=0 text=b tensor=1 text=m.w tensor=2 ] ", "w,b,m.w,"},
    {"module_inside",     PK("}(" NAME("a") MODULE("}" NAME("w") TENSOR("0") "s", "}(" NAME("b") TENSOR("1") NAME("c") TENSOR("1") "u", "}",
                                    KEY("\x1b", "_non_persistent_buffers_set") "cbuiltins\nset\n]" NAME("b") "a\x85R") "q\1" NAME("b") "h\1u."),
                          "dict[4 text=a odict[4 text=w tensor=0 text=c tensor=1 ] text=b same=2 ] ", "a.w,a.c,"},
    {"module_twice_inside", PK(MODULE("}", "}", "}(" NAME("x") MODULE("}" NAME("w") TENSOR("0") "q\2s", "}", "}", "") "q\1" NAME("y") "h\1u", "") "."),
                          "odict[4 text=x.w tensor=0 text=y.w same=2 ] ", "x.w,"},
    {"empty_module",      PK(MODULE("}", "}", "}", "") "."), "odict[0 ] ", ""},
};
/* clang-format on */

static void values_are_described(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof value_rows / sizeof value_rows[0]; i++) {
        const struct value_row *row = &value_rows[i];
        char value[2048], tensors[256] = "";
        struct built built;
        heft_error err;
        test_expect_status(build(ctx, &built, row->bytes, row->length, &err), HEFT_OK, &err,
                           row->name);
        write_value(&built.file, value, sizeof value);
        for (size_t t = 0; t < built.file.tensor_count; t++) {
            snprintf(tensors + strlen(tensors), sizeof tensors - strlen(tensors), "%s,",
                     built.file.tensors[t].name);
        }
        if (strcmp(value, row->value) != 0 || strcmp(tensors, row->tensors) != 0) {
            fail_msg("%s: %s tensors %s", row->name, value, tensors);
        }
        test_pickle_unbuild(&built);
    }
}

/* ---- what is refused --------------------------------------------------------------------------- */
/* clang-format off */
static const struct refused_row {
    const char *name;
    const char *bytes;
    size_t length;
    heft_status status;
    uint64_t offset;
    const char *words;
} refused_rows[] = {
    {"list_in_itself",      PK("]q\0h\0a."),                      HEFT_FORMAT, 3, "a list contains itself"},
    {"dict_in_itself",      PK("}q\0(NN]h\0aNu."),                HEFT_FORMAT, 7, "a dict contains itself"},
    {"key_of_itself",       PK("}q\0h\0Ns."),                     HEFT_FORMAT, 3, "a dict contains itself"},
    {"attributes_of_itself", PK(ORDERED "q\0}" NAME("a") "h\0sb."), HEFT_FORMAT, 36, "contains itself"},
    {"module_in_itself",    PK("ca\nNet\n)\x81q\0}(" KEY("\x0b", "_parameters") "}" KEY("\x08", "_buffers") "}" KEY("\x08", "_modules")
                               "}" NAME("m") "h\0sub."),          HEFT_FORMAT, 64, "contains itself"},
    {"object_at_the_top",   PK("ca\nB\n)\x81."),                  HEFT_UNSUPPORTED, 6, "a pickled object of class 'a.B'"},
    {"attack_below",        PK("}" NAME("a") "]cos\nsystem\n)Ras."), HEFT_REFUSED, 8, "'os.system' is refused"},
    {"attributes_twice",    PK(ORDERED "}" NAME("a") "Nsb}" NAME("b") "Nsb."), HEFT_UNSUPPORTED, 26, "attributes twice"},
    {"record_is_missing",   PK("]" TENSOR("z") "a."),             HEFT_FORMAT, UINT64_MAX, "not found"},
    {"unused_storage",      PK("]" STORAGE("z", "\4") "0."),      HEFT_FORMAT, UINT64_MAX, "not found"},
    {"size_of_a_text",      PK("ctorch\nSize\nX\1\0\0\0a\x85\x85R."), HEFT_FORMAT, 20, "'Size' are of wrong types"},
    {"device_of_a_number",  PK("ctorch\ndevice\nK\1\x85R."),      HEFT_FORMAT, 17, "'device' are of wrong types"},
    {"device_of_a_long_text", PK("ctorch\ndevice\nX\x21\0\0\0aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\x85R."), HEFT_FORMAT, 53, "'device'"},
    {"complex_of_one",      PK("cbuiltins\ncomplex\nG\0\0\0\0\0\0\0\0\x85R."), HEFT_FORMAT, 28, "'complex' are of wrong types"},
    {"set_of_a_number",     PK("cbuiltins\nset\nK\1\x85R."),      HEFT_FORMAT, 17, "'set' are of wrong types"},
    {"frozenset_of_a_number", PK("]cbuiltins\nfrozenset\nK\1\x85Ra."), HEFT_FORMAT, 24, "'builtins.frozenset' are of wrong types"},
    {"frozenset_of_two",    PK("]cbuiltins\nfrozenset\n))\x86Ra."), HEFT_FORMAT, 24, "'builtins.frozenset' are of wrong types"},
    {"new_frozenset_of_text", PK("]c__builtin__\nfrozenset\nX\1\0\0\0a\x85\x81" "a."), HEFT_FORMAT, 31, "'__builtin__.frozenset' are of wrong types"},
    {"layout_of_nothing",   PK("ctorch.serialization\n_get_layout\n)R."), HEFT_FORMAT, 34, "'_get_layout'"},
    {"encode_of_utf8",      PK("c_codecs\nencode\nX\1\0\0\0aX\5\0\0\0utf-8\x86R."), HEFT_FORMAT, 33, "'encode' are of wrong types"},
    {"encode_beyond",       PK("c_codecs\nencode\nX\3\0\0\0\xe2\x82\xacX\6\0\0\0latin1\x86R."), HEFT_FORMAT, 36, "not Latin-1"},
    {"encode_cut",          PK("c_codecs\nencode\nX\1\0\0\0\xc3X\6\0\0\0latin1\x86R."), HEFT_FORMAT, 34, "not Latin-1"},
    {"grad_is_a_number",    PK("ctorch._utils\n_rebuild_parameter\n" TENSOR("0") "K\1" ORDERED "\x87R."), HEFT_FORMAT, UINT64_MAX, "requires_grad must be a bool"},
    {"class_is_a_dtype",    PK("ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nctorch\nfloat32\n(" STORAGE("0", "\4")
                               "K\0K\4\x85K\1\x85\x89" ORDERED "tNtR."), HEFT_FORMAT, UINT64_MAX, "of a tensor class"},
};
/* clang-format on */

static void faults_are_at_their_byte(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused_rows / sizeof refused_rows[0]; i++) {
        const struct refused_row *row = &refused_rows[i];
        struct built built;
        heft_error err = {.offset = HEFT_NO_OFFSET};
        test_expect_status(build(ctx, &built, row->bytes, row->length, &err), row->status, &err,
                           row->name);
        if (!strstr(err.message, row->words) ||
            (row->offset != UINT64_MAX && err.offset != row->offset)) {
            fail_msg("%s: byte %lld: %s", row->name, (long long)err.offset, err.message);
        }
        test_pickle_unbuild(&built);
    }
}

/* ---- warnings -------------------------------------------------------------------------------- */
static void each_class_is_told_once(void **state)
{
    static const char bytes[] = "](ca\nB\n)Rca\nC\n)Rca\nB\n)Rca\nB\n)Rca\nB\n)RctOrch\nX\n)R"
                                "ctorch._utils\n_rebuild_qtensor\n)Re.";
    struct built built;
    heft_error err;
    (void)state;
    assert_int_equal(build(ctx, &built, bytes, sizeof bytes - 1, &err), HEFT_OK);
    assert_int_equal(built.file.warnings.count, 4);
    assert_string_equal(built.file.warnings.lines[0],
                        "4 objects of 'a.B' are not read, and no code is run: '0', '2', '3', ...");
    assert_string_equal(built.file.warnings.lines[1],
                        "1 object of 'a.C' is not read, and no code is run: '1'");
    assert_string_equal(built.file.warnings.lines[3],
                        "1 object of '_rebuild_qtensor' is not read, and no code is run: '6'");
    test_pickle_unbuild(&built);
}

/* ---- bounds ---------------------------------------------------------------------------------- */
/* Lists of which each holds the one before twice: 2^200 values. */
static void shared_values_do_not_spread_out(void **state)
{
    char bytes[4096] = "]q", *at = bytes + 2;
    struct built built;
    heft_error err;
    (void)state;
    *at++ = '\0';
    for (int i = 0; i < 200; i++) {
        at += sprintf(at, "0](h%c", 'x');
        at[-1] = (char)i;
        *at++ = 'h', *at++ = (char)i, *at++ = 'e', *at++ = 'q', *at++ = (char)(i + 1);
    }
    *at++ = '.';
    test_expect_status(build(ctx, &built, bytes, (size_t)(at - bytes), &err), HEFT_OK, &err,
                       "lists");
    assert_int_equal(built.file.value_count, 200 * 3 + 2);
    test_pickle_unbuild(&built);
}

/* Modules of which each has the one before twice: a state dict of 2^100 names. */
static void shared_modules_are_bounded(void **state)
{
    static const char head[] = "ca\nM\n)\x81}(" KEY("\x0b", "_parameters") "}" NAME("w")
        TENSOR("0") "s" KEY("\x08", "_buffers") "}" KEY("\x08", "_modules") "}ubq\0";
    static const char one[] = "0ca\nM\n)\x81}(" KEY("\x0b", "_parameters") "}" KEY(
        "\x08", "_buffers") "}" KEY("\x08", "_modules") "}(" NAME("a") "h?" NAME("b") "h?uubq?";
    uint8_t bytes[16384];
    size_t length = sizeof head - 1;
    struct built built;
    heft_error err;
    (void)state;
    memcpy(bytes, head, length);
    for (uint8_t i = 0; i < 100; i++) {
        size_t marks = 0;
        memcpy(bytes + length, one, sizeof one - 1);
        for (size_t j = 0; j < sizeof one - 1; j++) {
            if (one[j] == '?') {
                bytes[length + j] = (uint8_t)(i + (marks++ == 2));
            }
        }
        length += sizeof one - 1;
    }
    bytes[length++] = '.';
    test_expect_status(build(ctx, &built, bytes, length, &err), HEFT_LIMIT, &err, "modules");
    test_pickle_unbuild(&built);
}

static void nesting_is_bounded(void **state)
{
    char bytes[4096];
    struct built built;
    heft_error err;
    (void)state;
    for (size_t depth = 1000; depth <= 1001; depth++) {
        memset(bytes, ']', depth);
        memset(bytes + depth, 'a', depth - 1);
        bytes[2 * depth - 1] = '.';
        test_expect_status(build(ctx, &built, bytes, 2 * depth, &err),
                           depth == 1000 ? HEFT_OK : HEFT_LIMIT, &err, "nested lists");
        test_pickle_unbuild(&built);
    }
}

/* A key of 1 MiB around everything, and again around that, and so on. */
static void long_paths_are_left_out(void **state)
{
    const size_t key = 1 << 20, room = key + 8192;
    uint8_t *bytes = malloc(room);
    size_t length = 0;
    struct built built;
    heft_error err;
    (void)state;
    bytes[length++] = 'X';
    heft__put_le32(bytes + length, (uint32_t)key);
    memset(bytes + length + 4, 'k', key);
    length += 4 + key;
    memcpy(bytes + length,
           "q\0"
           "0",
           3);
    length += 3;
    for (int i = 0; i < 900; i++) {
        memcpy(bytes + length, "}h\0", 3);
        length += 3;
    }
    memcpy(bytes + length, TENSOR("0"), sizeof TENSOR("0") - 1);
    length += sizeof TENSOR("0") - 1;
    memset(bytes + length, 's', 900);
    length += 900;
    bytes[length++] = '.';
    test_expect_status(build(ctx, &built, bytes, length, &err), HEFT_OK, &err, "long keys");
    assert_string_equal(built.file.tensors[0].name, "#0");
    test_pickle_unbuild(&built);
    free(bytes);
}

/* ---- memory ---------------------------------------------------------------------------------- */
/* clang-format off */
static const char everything[] =
    "}(" NAME("a") TENSOR("0") "q\1" NAME("b") "h\1"
    NAME("c") ORDERED NAME("w") TENSOR("1") "s}" NAME("m") "K\1sb"
    NAME("d") "ca\nB\n)R"
    NAME("e") "cbuiltins\ncomplex\nG\0\0\0\0\0\0\0\0G\0\0\0\0\0\0\0\0\x86R"
    NAME("f") "c_codecs\nencode\nX\1\0\0\0aX\6\0\0\0latin1\x86R"
    NAME("g") "ctorch\ndevice\nX\3\0\0\0cpu\x85R"
    NAME("h") "ccollections\ndefaultdict\ncbuiltins\nlist\n\x85R"
    NAME("i") STORAGE("2", "\4")
    NAME("j") MODULE("}" NAME("w") TENSOR("0") "s", "}",
                     "}" NAME("m") MODULE("}" NAME("w") TENSOR("3") "s", "}", "}", "") "s", "")
    "u.";
/* clang-format on */

static heft_status build_once(heft_ctx *on, void *user, heft_error *err)
{
    struct built built;
    (void)user;
    heft_status status = build(on, &built, everything, sizeof everything - 1, err);
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
    for (size_t length = 0; length < sizeof everything - 1; length++) {
        struct built built;
        heft_error err;
        uint8_t *exact = malloc(length + 1);
        uint8_t *cut = realloc(exact, length ? length : 1);
        memcpy(cut, everything, length);
        assert_int_equal(build(ctx, &built, cut, length, &err), HEFT_FORMAT);
        test_pickle_unbuild(&built);
        free(cut);
    }
}

/* ---- the public function ----------------------------------------------------------------------- */
static void a_checkpoint_gives_its_parts(void **state)
{
    const char *path = HEFT_TEST_DATA "/formats/zip_int_keys.pt";
    const heft_checkpoint_options whole =
        HEFT_OPTIONS(heft_checkpoint_options, .whole_value = true);
    heft_checkpoint *ckpt = NULL;
    heft_error err;
    heft_value value = HEFT_SIZED(heft_value), none = {0};
    (void)state;
    assert_int_equal(heft_checkpoint_open(ctx, path, NULL, &ckpt, &err), HEFT_OK);
    assert_false(heft_checkpoint_value(ckpt, 0, &value));
    heft_checkpoint_close(ckpt);
    assert_int_equal(heft_checkpoint_open(ctx, path, &whole, &ckpt, &err), HEFT_OK);
    assert_false(heft_checkpoint_value(ckpt, 0, &none));
    assert_false(heft_checkpoint_value(ckpt, 0, NULL));
    assert_false(heft_checkpoint_value(NULL, 0, &value));
    assert_true(heft_checkpoint_value(ckpt, 0, &value));
    assert_int_equal(value.kind, HEFT_VALUE_DICT);
    assert_int_equal(value.struct_size, sizeof value);
    size_t tensors = 0, depth = 0, count = 0;
    for (; heft_checkpoint_value(ckpt, count, &value); count++) {
        tensors += value.kind == HEFT_VALUE_TENSOR;
        depth += value.kind >= HEFT_VALUE_LIST;
        depth -= value.kind == HEFT_VALUE_END;
    }
    assert_true(count > 2 && depth == 0);
    assert_int_equal(tensors, heft_checkpoint_count(ckpt));
    assert_false(heft_checkpoint_value(ckpt, SIZE_MAX, &value));
    heft_checkpoint_close(ckpt);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_described),
        cmocka_unit_test(faults_are_at_their_byte),
        cmocka_unit_test(each_class_is_told_once),
        cmocka_unit_test(shared_values_do_not_spread_out),
        cmocka_unit_test(shared_modules_are_bounded),
        cmocka_unit_test(nesting_is_bounded),
        cmocka_unit_test(long_paths_are_left_out),
        cmocka_unit_test(failing_allocations_leave_nothing),
        cmocka_unit_test(every_prefix_is_refused),
        cmocka_unit_test(a_checkpoint_gives_its_parts),
    };
    ctx = heft_ctx_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    heft_ctx_free(ctx);
    return failed;
}
