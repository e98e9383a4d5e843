/* device.c - the devices on which parameters can live, in this build.
 *
 * The CPU provides memory; the disk provides none, because its weights stay in their files. An accelerator
 * would be another row, with memory that pieces can be read into. */
#include "load/load.h"

static const heft__device devices[] = {
    {HEFT_DEVICE_CPU,  heft__storage_new},
    {HEFT_DEVICE_DISK, NULL             },
};

heft_status heft__device_find(int32_t number, const heft__device **out, heft_error *err)
{
    for (size_t i = 0; i < sizeof devices / sizeof devices[0]; i++) {
        if (devices[i].number == number) {
            *out = &devices[i];
            return HEFT_OK;
        }
    }
    if (number == HEFT_DEVICE_NONE) {
        return heft__fail(err, HEFT_UNSUPPORTED, "has no device in the device map");
    }
    return number == HEFT_DEVICE_MPS
               ? heft__fail(err, HEFT_UNSUPPORTED, "device mps is not supported by this build")
               : heft__fail(err, HEFT_UNSUPPORTED, "device %d is not supported by this build",
                            (int)number);
}
