/* arena.c - memory that is freed in one call, growing buffers, growing arrays and lists of
 * warnings.
 *
 * Chunks double from 4 KiB to 1 MiB, so a small file costs little and a large one few calls. A block
 * that would take much of a chunk has one of its own, so that large arrays waste nothing. */
#include "base/base.h"

#include <stdalign.h>

struct heft__arena_chunk {
    struct heft__arena_chunk *next;
    size_t bytes; /* of the whole chunk, this head included */
};

#define ALIGNMENT alignof(max_align_t)
#define CHUNK_HEAD ((sizeof(struct heft__arena_chunk) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT)
#define CHUNK_LEAST ((size_t)4 << 10)
#define CHUNK_MOST ((size_t)1 << 20)

void heft__arena_init(heft__arena *arena, heft_ctx *ctx)
{
    *arena = (heft__arena){.ctx = ctx};
}

void heft__arena_fini(heft__arena *arena)
{
    struct heft__arena_chunk *chunk = arena->chunks;
    while (chunk) {
        struct heft__arena_chunk *next = chunk->next;
        heft__free(arena->ctx, chunk, chunk->bytes);
        chunk = next;
    }
    arena->chunks = NULL;
    arena->used = arena->cap = 0;
}

void heft__free_with_arena(heft__arena *arena, void *memory, size_t bytes)
{
    heft_ctx *ctx = arena->ctx;
    heft__arena_fini(arena);
    heft__free(ctx, memory, bytes);
    heft_ctx_free(ctx);
}

static struct heft__arena_chunk *new_chunk(heft__arena *arena, size_t bytes)
{
    struct heft__arena_chunk *chunk = heft__alloc(arena->ctx, bytes);
    if (chunk) {
        *chunk = (struct heft__arena_chunk){.bytes = bytes};
    }
    return chunk;
}

/* A large block has a chunk of its own, after the first one: that stays in use. */
static void *alloc_alone(heft__arena *arena, size_t bytes)
{
    struct heft__arena_chunk *chunk = new_chunk(arena, bytes + CHUNK_HEAD);
    if (chunk) {
        chunk->next = arena->chunks->next;
        arena->chunks->next = chunk;
    }
    return chunk ? (uint8_t *)chunk + CHUNK_HEAD : NULL;
}

static void *alloc_aligned(heft__arena *arena, size_t bytes, size_t align)
{
    size_t start = (arena->used + align - 1) / align * align;
    if (!arena->chunks || start > arena->cap || arena->cap - start < bytes) {
        size_t chunk_bytes = arena->chunks ? arena->cap * 2 : CHUNK_LEAST;
        chunk_bytes = chunk_bytes > CHUNK_MOST ? CHUNK_MOST : chunk_bytes;
        if (bytes > SIZE_MAX - CHUNK_HEAD) {
            return NULL;
        }
        if (arena->chunks && bytes > chunk_bytes / 4 && bytes > CHUNK_LEAST) {
            return alloc_alone(arena, bytes);
        }
        if (chunk_bytes < bytes + CHUNK_HEAD) {
            chunk_bytes = bytes + CHUNK_HEAD;
        }
        struct heft__arena_chunk *chunk = new_chunk(arena, chunk_bytes);
        if (!chunk) {
            return NULL;
        }
        chunk->next = arena->chunks;
        arena->chunks = chunk;
        arena->cap = chunk_bytes;
        start = CHUNK_HEAD;
    }
    arena->used = start + bytes;
    return (uint8_t *)arena->chunks + start;
}

void *heft__arena_alloc(heft__arena *arena, size_t bytes)
{
    return alloc_aligned(arena, bytes, ALIGNMENT);
}

void *heft__arena_words(heft__arena *arena, size_t bytes)
{
    return alloc_aligned(arena, bytes, sizeof(uint64_t));
}

void *heft__arena_array(heft__arena *arena, uint64_t count, size_t size)
{
    uint64_t total;
    size_t bytes;
    if (!heft__mul_u64(count, size, &total) || !heft__to_size(total, &bytes)) {
        return NULL;
    }
    void *block = heft__arena_alloc(arena, bytes);
    if (block) {
        memset(block, 0, bytes);
    }
    return block;
}

char *heft__arena_text(heft__arena *arena, const char *bytes, size_t length)
{
    char *text = length < SIZE_MAX ? alloc_aligned(arena, length + 1, 1) : NULL;
    if (text) {
        if (length) { /* bytes may be NULL then */
            memcpy(text, bytes, length);
        }
        text[length] = '\0';
    }
    return text;
}

static char *format_into(heft__arena *arena, const char *format, va_list args)
    __attribute__((format(printf, 2, 0)));
static char *format_into(heft__arena *arena, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, again);
    va_end(again);
    char *text = length >= 0 ? alloc_aligned(arena, (size_t)length + 1, 1) : NULL;
    if (text) {
        vsnprintf(text, (size_t)length + 1, format, args);
    }
    return text;
}

char *heft__arena_format(heft__arena *arena, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *text = format_into(arena, format, args);
    va_end(args);
    return text;
}

/* ---- buffer ---------------------------------------------------------------------------------- */
void heft__buffer_init(heft__buffer *buffer, heft_ctx *ctx)
{
    *buffer = (heft__buffer){.ctx = ctx};
}

void heft__buffer_fini(heft__buffer *buffer)
{
    heft__free(buffer->ctx, buffer->data, buffer->cap);
    buffer->data = NULL;
    buffer->size = buffer->cap = 0;
}

/* Room for `length` more bytes, or NULL (and the buffer has failed). */
static uint8_t *buffer_room(heft__buffer *buffer, size_t length)
{
    if (buffer->failed || length > SIZE_MAX / 2 - buffer->size) {
        buffer->failed = true;
        return NULL;
    }
    if (buffer->cap - buffer->size < length) {
        size_t cap = buffer->cap ? buffer->cap : 256;
        while (cap - buffer->size < length) {
            cap *= 2;
        }
        uint8_t *data = heft__resize(buffer->ctx, buffer->data, buffer->cap, cap);
        if (!data) {
            buffer->failed = true;
            return NULL;
        }
        buffer->data = data;
        buffer->cap = cap;
    }
    return buffer->data + buffer->size;
}

void heft__buffer_append(heft__buffer *buffer, const void *bytes, size_t length)
{
    uint8_t *room = length ? buffer_room(buffer, length) : NULL;
    if (room) {
        memcpy(room, bytes, length);
        buffer->size += length;
    }
}

void heft__buffer_text(heft__buffer *buffer, const char *text)
{
    heft__buffer_append(buffer, text, strlen(text));
}

void heft__buffer_byte(heft__buffer *buffer, uint8_t byte)
{
    heft__buffer_append(buffer, &byte, 1);
}

void heft__buffer_format(heft__buffer *buffer, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    va_list again;
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, again);
    va_end(again);
    uint8_t *room = length >= 0 ? buffer_room(buffer, (size_t)length + 1) : NULL;
    if (room) {
        vsnprintf((char *)room, (size_t)length + 1, format, args);
        buffer->size += (size_t)length;
    }
    va_end(args);
}

heft_status heft__buffer_check(const heft__buffer *buffer, heft_error *err)
{
    return buffer->failed ? heft__fail_nomem(err, buffer->size) : HEFT_OK;
}

bool heft__array_reserve(heft_ctx *ctx, void **array, size_t count, size_t *cap, size_t size)
{
    if (count < *cap) {
        return true;
    }
    size_t new_cap = *cap ? *cap * 2 : 16, bytes;
    if (new_cap < *cap || __builtin_mul_overflow(new_cap, size, &bytes)) {
        return false;
    }
    void *grown = heft__resize(ctx, *array, *cap * size, bytes);
    if (!grown) {
        return false;
    }
    *array = grown;
    *cap = new_cap;
    return true;
}

/* ---- warnings -------------------------------------------------------------------------------- */
void heft__warnings_init(heft__warnings *warnings, heft__arena *arena)
{
    *warnings = (heft__warnings){.arena = arena};
}

bool heft__warn(heft__warnings *warnings, const char *format, ...)
{
    if (warnings->count == warnings->cap) {
        size_t cap = warnings->cap ? warnings->cap * 2 : 8;
        const char **lines = heft__arena_array(warnings->arena, cap, sizeof *lines);
        if (!lines) {
            return false;
        }
        if (warnings->count) {
            memcpy(lines, warnings->lines, warnings->count * sizeof *lines);
        }
        warnings->lines = lines;
        warnings->cap = cap;
    }
    va_list args;
    va_start(args, format);
    const char *line = format_into(warnings->arena, format, args);
    va_end(args);
    if (!line) {
        return false;
    }
    warnings->lines[warnings->count++] = line;
    return true;
}
