#include "support_model.h"
#include "support.h"

#include <stdlib.h>

heft__json_value *test_read_json(heft__arena *arena, const char *path)
{
    size_t length;
    heft_error err;
    heft__json_value *root = NULL;
    char *text = test_read_file(path, &length);
    test_expect_status(heft__json_parse(arena, text, length, 128, &root, &err), HEFT_OK, &err,
                       path);
    free(text);
    return root;
}

heft_model *test_make_model(heft_ctx *ctx, const heft__json_value *config, const char *class_name,
                            heft_dtype dtype, const char *what)
{
    heft__buffer text;
    heft_config *parsed = NULL;
    heft_model *model = NULL;
    heft_error err;
    heft__buffer_init(&text, ctx);
    heft__json_write_compact(&text, config);
    test_expect_status(heft__config_parse(ctx, what, text.data, text.size, &parsed, &err), HEFT_OK,
                       &err, what);
    test_expect_status(heft_model_create(ctx, parsed, class_name, dtype, &model, &err), HEFT_OK,
                       &err, what);
    heft_config_free(parsed);
    heft__buffer_fini(&text);
    return model;
}

heft_model *test_model_from_text(heft_ctx *with, const char *text, const char *class_name)
{
    heft_config *config = NULL;
    heft_model *model = NULL;
    heft_error err;
    heft_status status = heft__config_parse(with, "config.json", text, strlen(text), &config, &err);
    test_expect_status(status, HEFT_OK, &err, text);
    status = heft_model_create(with, config, class_name, HEFT_DTYPE_NONE, &model, &err);
    test_expect_status(status, HEFT_OK, &err, text);
    heft_config_free(config);
    return model;
}
