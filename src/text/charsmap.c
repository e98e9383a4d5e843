/* charsmap.c - the Precompiled normalizer: sentencepiece's table of replacements.
 *
 *     base64 of: u32 size, size bytes of a double array (Darts) of u32 units, texts that end with NUL
 *
 * A unit: bits 0-7 label, bit 8 "has a value", bits 10-30 offset, which bit 9 scales by 256; the unit of a
 * value is bits 0-30. What is looked up is the shortest word that a text begins with. As `tokenizers` does, a
 * grapheme cluster of at most 5 bytes is looked up as a whole first, then code point by code point.
 * Trusted: nothing; each index is checked.
 * Source: sentencepiece, src/normalizer.cc; Darts-clone, https://github.com/s-yata/darts-clone. */
#include "text/tokenizer.h"

static int base64_digit(char c)
{
    if (c >= 'A' && c <= 'Z') {
        return c - 'A';
    }
    if (c >= 'a' && c <= 'z') {
        return c - 'a' + 26;
    }
    if (c >= '0' && c <= '9') {
        return c - '0' + 52;
    }
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Bytes of a text of whole groups of four; false if it is not base64. */
static bool decode_base64(heft__string text, uint8_t *out, size_t *length)
{
    size_t made = 0;
    if (text.length % 4 != 0) {
        return false;
    }
    for (size_t i = 0; i < text.length; i += 4) {
        uint32_t group = 0;
        int pads = 0;
        for (size_t k = 0; k < 4; k++) {
            const char c = text.text[i + k];
            const bool pad = c == '=' && k >= 2 && i + 4 == text.length;
            const int digit = pad ? 0 : base64_digit(c);
            if (digit < 0 || (pads > 0 && !pad)) {
                return false;
            }
            pads += pad;
            group = group << 6 | (uint32_t)digit;
        }
        for (int k = 0; k < 3 - pads; k++) {
            out[made++] = (uint8_t)(group >> (16 - 8 * k));
        }
    }
    *length = made;
    return true;
}

heft_status heft__charsmap_read(heft__arena *arena, heft__string base64, uint64_t offset,
                                heft__charsmap *out, heft_error *err)
{
    size_t length = 0;
    uint8_t *bytes = heft__arena_alloc(arena, base64.length / 4 * 3 + 1);
    if (!bytes) {
        return heft__fail_nomem(err, base64.length);
    }
    if (!decode_base64(base64, bytes, &length)) {
        return heft__fail_at(err, HEFT_FORMAT, offset, "a precompiled_charsmap that is not base64");
    }
    const uint32_t size = length >= 4 ? heft__le32(bytes) : 0;
    if (length < 4 || size % 4 != 0 || size > length - 4) {
        return heft__fail_at(err, HEFT_FORMAT, offset,
                             "a precompiled_charsmap of %zu bytes with a table of %u", length,
                             size);
    }
    const char *texts = (const char *)bytes + 4 + size;
    const size_t texts_length = length - 4 - size;
    const size_t invalid = heft__utf8_invalid_at((const uint8_t *)texts, texts_length);
    if (invalid < texts_length) {
        return heft__fail_at(err, HEFT_FORMAT, offset,
                             "a precompiled_charsmap whose texts are not UTF-8");
    }
    *out = (heft__charsmap){bytes + 4, size / 4, texts, texts_length};
    return HEFT_OK;
}

static uint32_t unit_offset(uint32_t unit)
{
    return (unit >> 10) << ((unit & (1u << 9)) >> 6);
}

/* The unit at a place; one that leads nowhere if there is no such place. */
static uint32_t unit_at(const heft__charsmap *map, uint32_t at)
{
    return at < map->unit_count ? heft__le32(map->units + (size_t)at * 4) : 1u << 31;
}

/* What stands for the shortest word at the beginning of a text; text NULL if none does. */
static heft__string look_up(const heft__charsmap *map, const char *text, size_t length)
{
    if (map->unit_count == 0) {
        return (heft__string){0};
    }
    uint32_t at = unit_offset(unit_at(map, 0));
    for (size_t i = 0; i < length && text[i] != '\0'; i++) {
        const uint8_t byte = (uint8_t)text[i];
        at ^= byte;
        const uint32_t unit = unit_at(map, at);
        if ((unit & (1u << 31 | 0xFF)) != byte) {
            break;
        }
        at ^= unit_offset(unit);
        if (unit >> 8 & 1) {
            const uint32_t value = unit_at(map, at) & 0x7FFFFFFF;
            if (value >= map->texts_length) {
                return (heft__string){0};
            }
            const char *begin = map->texts + value;
            return (heft__string){begin, strnlen(begin, map->texts_length - value)};
        }
    }
    return (heft__string){0};
}

static void append_each(const heft__charsmap *map, heft__string cluster, heft__buffer *out)
{
    if (cluster.length < 6) {
        const heft__string whole = look_up(map, cluster.text, cluster.length);
        if (whole.text) {
            heft__buffer_append(out, whole.text, whole.length);
            return;
        }
    }
    for (size_t i = 0, size; i < cluster.length; i += size) {
        (void)heft__utf8_get(cluster.text + i, &size);
        const heft__string one = look_up(map, cluster.text + i, size);
        heft__buffer_append(out, one.text ? one.text : cluster.text + i,
                            one.text ? one.length : size);
    }
}

heft_status heft__charsmap_apply(const heft__charsmap *map, heft__string text,
                                 heft__text_work *work, heft__buffer *out, heft_error *err)
{
    int32_t state = 0;
    size_t start = 0;
    for (size_t i = 0, size; i < text.length && out->size <= work->text_limit; i += size) {
        const uint32_t code = heft__utf8_get(text.text + i, &size);
        size_t next_size;
        const bool last = i + size == text.length;
        if (last ||
            heft__grapheme_ends(code, heft__utf8_get(text.text + i + size, &next_size), &state)) {
            append_each(map, (heft__string){text.text + start, i + size - start}, out);
            start = i + size;
        }
    }
    return heft__work_check(work, out, err);
}
