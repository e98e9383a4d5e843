/* run_talk.c - `heft run --chat` on a terminal: a conversation, line by line.
 *
 *   messages -> template -> ids     [ in the cache already | new: computed | the answer: computed as it is made ]
 *
 * The cache keeps the tokens of the conversation. Of a turn's ids, those that the cache begins with are kept: as a
 * rule all of the earlier turns, unless the template or the tokenizer writes them in another way now. The cache holds
 * more tokens than there are; when it is full, a larger one is computed anew. */
#include "cli/running.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE_MOST ((size_t)1 << 20)
#define CHUNK ((size_t)512) /* tokens, after which an interrupt is seen */
#define CAPACITY_LEAST ((uint64_t)2048)

struct line {
    char *text; /* [cap] bytes that were read */
    size_t used, cap;
    size_t taken; /* of the line that was returned last, with its end */
    bool over;
};

struct talk {
    cli_run *run;
    cli_talk *how;
    cli_message *messages; /* [count] texts are owned */
    size_t count, cap;
    heft_sequence *sequence; /* NULL: none yet */
    uint64_t capacity;
    bool largest; /* there is no room for a larger one */
    int32_t *ids; /* [id_count] in the sequence */
    size_t id_count, id_cap;
    int32_t *answer; /* [new_tokens] */
    size_t answered;
};

static heft_status no_memory(heft_error *err)
{
    cli_refuse(err, "", "not enough memory for the conversation");
    err->status = HEFT_NOMEM;
    return HEFT_NOMEM;
}

/* ---- lines ---------------------------------------------------------------------------------------- */
/* Read some bytes more; false at the end, after a signal, or if the line is too long. */
static bool read_more(struct line *line)
{
    if (line->used + 1 >= line->cap) {
        const size_t cap = line->cap ? 2 * line->cap : 4096;
        char *text = cap <= LINE_MOST ? realloc(line->text, cap) : NULL;
        if (!text) {
            return false;
        }
        line->text = text;
        line->cap = cap;
    }
    if (!cli_interrupts_await(STDIN_FILENO)) {
        return false;
    }
    const ssize_t got = read(STDIN_FILENO, line->text + line->used, line->cap - line->used - 1);
    line->used += got > 0 ? (size_t)got : 0;
    return got > 0;
}

/* The next line without its end, borrowed until the next call; NULL: there is none. */
static char *next_line(struct line *line)
{
    char *end = NULL;
    if (line->taken > 0) {
        memmove(line->text, line->text + line->taken, line->used - line->taken);
        line->used -= line->taken;
        line->taken = 0;
    }
    while (!line->over && !(end = line->used ? memchr(line->text, '\n', line->used) : NULL)) {
        line->over = !read_more(line);
    }
    if (!end && (line->used == 0 || cli_interrupts() > 0)) {
        return NULL;
    }
    end = end ? end : line->text + line->used; /* the last one may lack its end */
    line->taken = (size_t)(end - line->text) + ((size_t)(end - line->text) < line->used);
    *end = '\0';
    return line->text;
}

/* ---- messages ------------------------------------------------------------------------------------- */
static bool add_message(struct talk *t, const char *role, const char *text, size_t length)
{
    if (t->count == t->cap) {
        const size_t cap = t->cap ? 2 * t->cap : 16;
        cli_message *messages = realloc(t->messages, cap * sizeof *messages);
        if (!messages) {
            return false;
        }
        t->messages = messages;
        t->cap = cap;
    }
    char *own = strndup(text, length);
    if (own) {
        t->messages[t->count++] = (cli_message){role, own};
    }
    return own != NULL;
}

static void drop_message(struct talk *t)
{
    free((char *)(uintptr_t)t->messages[--t->count].text);
}

/* The ids of all messages and of what begins the answer; free them with heft_tokenizer_free_ids(). */
static heft_status encode(const struct talk *t, uint32_t **ids, size_t *count, heft_error *err)
{
    const cli_talk *how = t->how;
    char *rendered = NULL;
    size_t bytes = 0, length = 0;
    char *json = cli_chat_messages(t->messages, t->count, &bytes);
    heft_status status =
        json ? heft_chat_render(how->chat, json, bytes, NULL, &rendered, &length, err)
             : no_memory(err);
    free(json);
    if (status == HEFT_OK) {
        status = heft_tokenizer_encode(how->tokenizer, rendered, length, false, ids, count, err);
    }
    heft_chat_free_text(how->chat, rendered, length);
    if (status == HEFT_OK && *count == 0) {
        heft_tokenizer_free_ids(how->tokenizer, *ids, 0);
        cli_refuse(err, "", "the messages have no tokens");
        status = HEFT_INVALID_ARG;
    }
    return status;
}

/* ---- the cache ------------------------------------------------------------------------------------ */
static void drop_sequence(struct talk *t)
{
    heft_sequence_free(t->sequence);
    t->sequence = NULL;
    t->capacity = t->id_count = 0;
}

/* Have an empty sequence of this capacity instead, beside which the budget has room for weights. */
static heft_status try_capacity(struct talk *t, uint64_t capacity, heft_error *err)
{
    const heft_pass_shape last =
        HEFT_OPTIONS(heft_pass_shape, .sequences = 1, .tokens = 1, .kept = capacity - 1);
    heft_prediction ignored = HEFT_SIZED(heft_prediction);
    heft_status status =
        t->how->has_budget ? heft_session_predict(t->how->session, &last, &ignored, err) : HEFT_OK;
    heft_sequence *sequence = NULL;
    if (status == HEFT_OK) {
        status = heft_sequence_new(t->how->session, capacity, 0, &sequence, err);
    }
    if (status == HEFT_LIMIT && t->sequence) { /* not beside the other one */
        drop_sequence(t);
        return try_capacity(t, capacity, err);
    }
    if (status == HEFT_OK) {
        drop_sequence(t);
        t->sequence = sequence;
        t->capacity = capacity;
    }
    return status;
}

/* Room for a turn's tokens and a whole answer, if there is so much; for one more token at least. */
static heft_status have_room(struct talk *t, size_t count, heft_error *err)
{
    const uint64_t wanted = (uint64_t)count + t->how->new_tokens;
    uint64_t low = count, high = 2 * wanted > CAPACITY_LEAST ? 2 * wanted : CAPACITY_LEAST;
    if (t->sequence && (t->capacity >= wanted || (t->largest && t->capacity >= count))) {
        return HEFT_OK;
    }
    heft_status status = try_capacity(t, high, err);
    t->largest = status != HEFT_OK;
    if (status == HEFT_OK || status == HEFT_CANCELLED) {
        return status;
    }
    while (high - low > 1) { /* `low` has not been tried yet */
        const uint64_t middle = low + (high - low) / 2;
        status = try_capacity(t, middle, err);
        low = status == HEFT_OK ? middle : low;
        high = status == HEFT_OK ? high : middle;
    }
    return t->sequence && t->capacity == low ? HEFT_OK : try_capacity(t, low, err);
}

/* Keep of the cache what these ids begin with too, but compute at least the last one. */
static heft_status go_back(struct talk *t, const uint32_t *ids, size_t count, heft_error *err)
{
    size_t same = 0;
    while (same < t->id_count && same + 1 < count && t->ids[same] == (int32_t)ids[same]) {
        same++;
    }
    if (same == t->id_count) {
        return HEFT_OK;
    }
    if (heft_sequence_truncate(t->sequence, same, NULL) == HEFT_OK) {
        t->id_count = same;
        return HEFT_OK;
    }
    const uint64_t capacity = t->capacity; /* a window has left what would be needed */
    return try_capacity(t, capacity, err);
}

/* ---- computing ------------------------------------------------------------------------------------ */
/* Compute ids behind those in the cache; `last`: their logits are needed. */
static heft_status feed(struct talk *t, const int32_t *ids, size_t count, bool last,
                        heft_error *err)
{
    static const char *const wanted[] = {"logits"};
    const heft_input input =
        HEFT_OPTIONS(heft_input, .sequence = t->sequence, .ids = ids, .count = count,
                     .logits = last ? HEFT_LOGITS_LAST : HEFT_LOGITS_NONE);
    if (t->id_cap < t->id_count + count) {
        const size_t cap = 2 * (t->id_count + count);
        int32_t *more = realloc(t->ids, cap * sizeof *more);
        if (!more) {
            return no_memory(err);
        }
        t->ids = more;
        t->id_cap = cap;
    }
    const heft_status status = heft_session_run(t->how->session, &input, 1, wanted, last, err);
    if (status == HEFT_OK) {
        memcpy(t->ids + t->id_count, ids, count * sizeof *ids);
        t->id_count += count;
    } else {
        drop_sequence(t); /* it has failed with the pass */
    }
    return status;
}

/* All of a turn's ids that are not in the cache. *stopped: an interrupt came before the end. */
static heft_status feed_turn(struct talk *t, const uint32_t *ids, size_t count, bool *stopped,
                             heft_error *err)
{
    heft_status status = HEFT_OK;
    int32_t part[CHUNK];
    *stopped = false;
    while (status == HEFT_OK && t->id_count < count && !*stopped) {
        const size_t first = t->id_count, left = count - first, some = left < CHUNK ? left : CHUNK;
        for (size_t i = 0; i < some; i++) {
            part[i] = (int32_t)ids[first + i];
        }
        status = feed(t, part, some, some == left, err);
        *stopped = cli_interrupts() > 0;
    }
    return status;
}

static bool is_stop(const cli_talk *how, int32_t id)
{
    bool found = id == how->turn_end;
    for (size_t i = 0; i < how->stop_count && !found; i++) {
        found = how->stops[i] == id;
    }
    return found && !how->ignore_eos;
}

static heft_status sample(const struct talk *t, int32_t *id, heft_error *err)
{
    heft_output logits = HEFT_SIZED(heft_output);
    heft_status status = heft_session_output(t->how->session, "logits", &logits, err);
    if (status == HEFT_OK && logits.kind != HEFT_OUTPUT_LOGITS) {
        cli_refuse(err, "--chat", "the model is not a language model");
        return HEFT_UNSUPPORTED;
    }
    heft_sampling sampling = *t->how->sampling;
    sampling.prompt_count = t->id_count - t->answered;
    sampling.most_count = sampling.prompt_count + t->how->new_tokens;
    return status == HEFT_OK
               ? heft_session_sample(t->how->session, &sampling, logits.data, logits.width, t->ids,
                                     t->id_count, t->id_count, id, err)
               : status;
}

static void put(const char *text, size_t length)
{
    fwrite(text, 1, length, stdout);
    fflush(stdout);
}

/* Choose, print and compute tokens, until the answer ends or an interrupt comes. */
static heft_status answer(struct talk *t, heft_error *err)
{
    heft_text_stream *stream = NULL;
    const char *text;
    size_t length;
    const double started = cli_now();
    heft_status status = heft_text_stream_new(t->how->tokenizer, true, &stream, err);
    bool going = true;
    t->answered = 0;
    while (status == HEFT_OK && going && cli_interrupts() == 0) {
        int32_t id = 0;
        status = sample(t, &id, err);
        if (status != HEFT_OK || is_stop(t->how, id)) {
            break;
        }
        t->answer[t->answered++] = id;
        status = heft_text_stream_add(stream, (uint32_t)id, &text, &length, err);
        put(text, status == HEFT_OK ? length : 0);
        going = t->answered < t->how->new_tokens && t->id_count < t->capacity;
        if (status == HEFT_OK && going) {
            status = feed(t, &id, 1, true, err);
            t->how->steps += status == HEFT_OK;
        }
    }
    if (stream && heft_text_stream_finish(stream, &text, &length, NULL) == HEFT_OK) {
        put(text, length);
    }
    put("\n", t->answered > 0);
    heft_text_stream_free(stream);
    t->how->step_seconds += cli_now() - started;
    if (going || t->answered == t->how->new_tokens || t->run->quiet) {
        return status;
    }
    cli_warn(t->run, "the answer ends here: there is no room for a longer conversation");
    return status;
}

/* ---- turns ---------------------------------------------------------------------------------------- */
/* The answer becomes a message, as the template will need it. */
static heft_status keep_answer(struct talk *t, heft_error *err)
{
    char *text = NULL;
    size_t length = 0;
    uint32_t *ids = malloc(t->answered * sizeof *ids);
    heft_status status = ids ? HEFT_OK : no_memory(err);
    for (size_t i = 0; ids && i < t->answered; i++) {
        ids[i] = (uint32_t)t->answer[i];
    }
    if (status == HEFT_OK) {
        status =
            heft_tokenizer_decode(t->how->tokenizer, ids, t->answered, true, &text, &length, err);
    }
    if (status == HEFT_OK && !add_message(t, "assistant", text, length)) {
        status = no_memory(err);
    }
    heft_tokenizer_free_text(t->how->tokenizer, text, length);
    free(ids);
    return status;
}

static heft_status compute(struct talk *t, const uint32_t *ids, size_t count, heft_error *err)
{
    bool stopped = false;
    const double started = cli_now();
    heft_status status = have_room(t, count, err);
    if (status == HEFT_OK) {
        status = go_back(t, ids, count, err);
    }
    const size_t kept = t->id_count;
    if (status == HEFT_OK) {
        status = feed_turn(t, ids, count, &stopped, err);
    }
    if (t->run->verbose && status == HEFT_OK) {
        fprintf(stderr, "heft run: %zu tokens in the cache, %zu computed in %.3f s\n", kept,
                t->id_count - kept, cli_now() - started);
    }
    t->answered = 0;
    return status == HEFT_OK && !stopped ? answer(t, err) : status;
}

/* One message and its answer. Without an answer, the message is not kept either. */
static heft_status turn(struct talk *t, const char *text, heft_error *err)
{
    uint32_t *ids = NULL;
    size_t count = 0;
    if (!cli_is_utf8(text)) {
        cli_refuse(err, "", "the text is not UTF-8");
        return HEFT_INVALID_ARG;
    }
    if (!add_message(t, "user", text, strlen(text))) {
        return no_memory(err);
    }
    heft_status status = encode(t, &ids, &count, err);
    t->answered = 0;
    if (status == HEFT_OK) {
        status = compute(t, ids, count, err);
        heft_tokenizer_free_ids(t->how->tokenizer, ids, count);
    }
    if (t->answered > 0 && (status == HEFT_OK || status == HEFT_CANCELLED)) {
        const heft_status kept = keep_answer(t, err);
        status = kept == HEFT_OK ? status : kept;
    } else {
        drop_message(t);
    }
    return status;
}

/* Whether the next message may do: this one was refused, or its answer was not awaited. */
static bool may_go_on(heft_status status)
{
    return status == HEFT_INVALID_ARG || status == HEFT_LIMIT ||
           (status == HEFT_CANCELLED && !cli_signals_end());
}

heft_status cli_talk_run(cli_run *run, cli_talk *how, heft_error *err)
{
    struct talk t = {.run = run, .how = how};
    struct line line = {0};
    heft_status status = HEFT_OK;
    t.answer = malloc((size_t)how->new_tokens * sizeof *t.answer);
    if (!t.answer ||
        (how->system && !add_message(&t, "system", how->system, strlen(how->system)))) {
        status = no_memory(err);
    }
    cli_progress_clear(run);
    run->progress.on = false; /* answers are shown as they grow */
    cli_interrupts_catch();
    while (status == HEFT_OK) {
        cli_interrupts_clear();
        fputs(run->quiet ? "" : "> ", stderr);
        fflush(stderr);
        const char *text = next_line(&line);
        if (!text) {
            fputs(run->quiet ? "" : "\n", stderr);
            break;
        }
        if (*text) {
            status = turn(&t, text, err);
        }
        if (status != HEFT_OK && may_go_on(status)) {
            if (status != HEFT_CANCELLED) {
                (void)cli_fail(run, err);
            }
            status = HEFT_OK;
        }
    }
    if (status == HEFT_OK && cli_signals_end()) {
        cli_refuse(err, "", "cancelled");
        status = err->status = HEFT_CANCELLED;
    }
    while (t.count > 0) {
        drop_message(&t);
    }
    drop_sequence(&t);
    free(t.messages);
    free(t.ids);
    free(t.answer);
    free(line.text);
    return status;
}
