/* fuzz_pickle.c - a pickle alone, as data.pkl of a zip that is in order: the machine, the walk and
 * the views. Records data/0 to data/3 have 64 bytes each; no record has a CRC. */
#include "fuzz.h"

#define RECORDS 6

struct record {
    const char *name;
    const uint8_t *bytes;
    size_t size, at;
};

static size_t put(uint8_t *dst, size_t at, const void *bytes, size_t length)
{
    if (length > 0) {
        memcpy(dst + at, bytes, length);
    }
    return at + length;
}

/* Local header (30 bytes) or directory entry (46), then the name. */
static size_t put_header(uint8_t *dst, size_t at, const struct record *record, bool central)
{
    uint8_t head[46] = {0};
    uint8_t *from_flags = head + (central ? 8 : 6);
    heft__put_le32(head, central ? 0x02014b50 : 0x04034b50);
    heft__put_le32(from_flags + 12, (uint32_t)record->size);
    heft__put_le32(from_flags + 16, (uint32_t)record->size);
    heft__put_le16(from_flags + 20, (uint16_t)strlen(record->name));
    if (central) {
        heft__put_le32(head + 42, (uint32_t)record->at);
    }
    at = put(dst, at, head, central ? 46 : 30);
    return put(dst, at, record->name, strlen(record->name));
}

/* The zip around a pickle, malloced. */
static uint8_t *wrap(const uint8_t *data, size_t size, size_t *length)
{
    static const uint8_t zeros[64];
    static const uint8_t version[1] = {'3'};
    struct record records[RECORDS] = {
        {"a/data.pkl", data,    size, 0},
        {"a/version",  version, 1,    0},
        {"a/data/0",   zeros,   64,   0},
        {"a/data/1",   zeros,   64,   0},
        {"a/data/2",   zeros,   64,   0},
        {"a/data/3",   zeros,   64,   0}
    };
    uint8_t end[22] = {'P', 'K', 5, 6};
    uint8_t *zip = malloc(size + RECORDS * 200);
    size_t at = 0;
    if (!zip) {
        return NULL;
    }
    for (size_t i = 0; i < RECORDS; i++) {
        records[i].at = at;
        at = put_header(zip, at, &records[i], false);
        at = put(zip, at, records[i].bytes, records[i].size);
    }
    heft__put_le32(end + 16, (uint32_t)at);
    for (size_t i = 0; i < RECORDS; i++) {
        at = put_header(zip, at, &records[i], true);
    }
    heft__put_le16(end + 8, RECORDS);
    heft__put_le16(end + 10, RECORDS);
    heft__put_le32(end + 12, (uint32_t)at - heft__le32(end + 16));
    *length = put(zip, at, end, sizeof end);
    return zip;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t length = 0;
    uint8_t *zip = wrap(data, size, &length);
    if (zip) {
        fuzz_file(zip, length, HEFT_FORMAT_TORCH);
        free(zip);
    }
    return 0;
}
