/* repair.h - restores checksums and lengths that a mutation broke and that a parser checks first, so that
 * inputs get past these checks. Fields that cannot be right are left alone. */
#ifndef HEFT_FUZZ_REPAIR_H
#define HEFT_FUZZ_REPAIR_H

#include "fuzz.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t cap);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t cap, unsigned int seed);

/* CRC-32 of one stored record, into its directory entry and its local header. */
static inline void repair_record(uint8_t *data, size_t size, uint8_t *central)
{
    const size_t header = heft__le32(central + 42), stored = heft__le32(central + 20);
    if (heft__le16(central + 10) != 0 || size < 30 || header > size - 30) {
        return;
    }
    const size_t start =
        header + 30 + heft__le16(data + header + 26) + heft__le16(data + header + 28);
    if (start > size || stored > size - start) {
        return;
    }
    const uint32_t crc = heft__crc32(0, data + start, stored);
    heft__put_le32(central + 16, crc);
    if (!(heft__le16(data + header + 6) & 8)) { /* no descriptor: the local header has it too */
        heft__put_le32(data + header + 14, crc);
    }
}

static inline void repair_zip(uint8_t *data, size_t size)
{
    for (size_t at = 0; at + 46 <= size; at++) {
        if (memcmp(data + at, "PK\1\2", 4) == 0) {
            repair_record(data, size, data + at);
        }
    }
}

/* Sums of the headers, member after member as far as their sizes can be read. */
static inline void repair_tar(uint8_t *data, size_t size)
{
    for (size_t at = 0; at + 512 <= size && data[at];) {
        uint64_t bytes = 0;
        unsigned sum = 8 * ' ';
        char text[13];
        for (size_t i = 0; i < 512; i++) {
            sum += i >= 148 && i < 156 ? 0 : data[at + i];
        }
        snprintf((char *)data + at + 148, 8, "%06o", sum);
        data[at + 155] = ' ';
        memcpy(text, data + at + 124, 12);
        text[12] = '\0';
        bytes = strtoull(text, NULL, 8);
        if (bytes > size) {
            break;
        }
        at += 512 + (size_t)(bytes + 511) / 512 * 512;
    }
}

/* The length in front of a safetensors header: to its last brace. */
static inline void repair_header(uint8_t *data, size_t size)
{
    const uint8_t *brace = size > 8 ? memrchr(data + 8, '}', size - 8) : NULL;
    if (brace) {
        heft__put_le64(data, (uint64_t)(brace + 1 - (data + 8)));
    }
}

#endif
