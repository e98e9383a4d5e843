#include "support_pickle.h"

static heft_status place(void *user, const char *key, size_t length, heft__file_storage *storage,
                         heft_error *err)
{
    (void)user, (void)storage;
    if (length == 1 && *key == 'z') {
        return heft__fail(err, HEFT_FORMAT, "record 'data/z' not found");
    }
    return HEFT_OK;
}

heft_status test_pickle_build(heft_ctx *on, bool whole_value, struct built *built,
                              const void *bytes, size_t length, heft_error *err)
{
    heft__pickle_tensors tensors = {0};
    *built = (struct built){0};
    heft__arena_init(&built->file.arena, on);
    heft__warnings_init(&built->file.warnings, &built->file.arena);
    heft__quota_init(&built->quota, on, length);
    built->file.quota = &built->quota;
    built->file.whole_value = whole_value;
    heft_status status =
        heft__pickle_run(on, bytes, length, 0, length, HEFT__PK_IDS_ZIP, &built->pickle, err);
    if (status == HEFT_OK) {
        heft__pickle_tensors_init(&tensors, on, &built->file, &built->pickle, place, NULL);
        status = heft__pickle_tensors_walk(&tensors, err);
    }
    if (status == HEFT_OK) {
        status = heft__pickle_tensors_publish(&tensors, err);
    }
    heft__pickle_tensors_fini(&tensors);
    heft__pickle_fini(&built->pickle);
    heft__quota_fini(&built->quota);
    return status;
}

void test_pickle_unbuild(struct built *built)
{
    heft__arena_fini(&built->file.arena);
}
