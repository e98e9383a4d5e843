/* heft/place.h - which module lives where: budgets, device maps, and what they need. */
#ifndef HEFT_PLACE_H
#define HEFT_PLACE_H

#include <heft/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Accelerators are numbered from 0. */
#define HEFT_DEVICE_CPU (-1)
#define HEFT_DEVICE_DISK (-2)
#define HEFT_DEVICE_MPS (-3)

typedef struct heft_budget {
    int32_t device;
    double bytes; /* a whole number, but where a share of one was taken */
} heft_budget;

typedef enum heft_strategy {
    HEFT_STRATEGY_AUTO, /* balanced */
    HEFT_STRATEGY_BALANCED,
    HEFT_STRATEGY_BALANCED_LOW_0, /* leaves room on accelerator 0 */
    HEFT_STRATEGY_SEQUENTIAL,     /* fills one device after the other */
    HEFT_STRATEGY_BEST            /* heft's own */
} heft_strategy;

#ifdef __cplusplus
}
#endif
#endif
