/* fuzz_config.c - config.json, and the empty model that it asks for. */
#include "fuzz.h"

#include "model/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    heft_config *config = NULL;
    heft_model *model = NULL;
    heft_error err;
    if (heft__config_parse(fuzz_ctx(), "config.json", data, size, &config, &err) == HEFT_OK) {
        if (heft_model_new(fuzz_ctx(), config, NULL, HEFT_DTYPE_NONE, &model, &err) == HEFT_OK) {
            heft_model_free(model);
        }
        heft_config_free(config);
    }
    return 0;
}
