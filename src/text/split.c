/* split.c - splitting pieces at matches: what becomes of a match is the behavior.
 *
 *     text "a--b", matches '-':   removed a|b        isolated a|-|-|b     contiguous a|--|b
 *                                 merged with previous a-|-|b     merged with next a|-|-b
 *
 * Matches and what is between them come one after the other; one segment is held back, since the next one may
 * be joined to it. */
#include "text/tokenizer.h"

struct splitting {
    heft__text_work *work;
    heft__split_behavior behavior;
    bool invert;
    size_t base,
        origin; /* of the piece in the text: what is added to a segment's place; where it begins */
    bool first;
    bool held, held_matches, previous; /* previous: whether the segment before is a match */
    size_t start, end;                 /* of the segment that is held */
};

static void emit(struct splitting *s)
{
    if (s->held) {
        const size_t start = s->base + s->start;
        heft__add_piece(
            s->work, &s->work->next,
            (heft__piece){start, s->base + s->end, HEFT__NO_ID, s->first && start == s->origin});
        s->held = false;
    }
}

/* The next segment of the piece. */
static void add_segment(struct splitting *s, size_t start, size_t end, bool matches)
{
    matches = matches != s->invert;
    bool join = false;
    switch (s->behavior) {
    case HEFT__SPLIT_REMOVED:
        emit(s);
        if (matches) {
            return;
        }
        break;
    case HEFT__SPLIT_ISOLATED:
        break;
    case HEFT__SPLIT_MERGED_WITH_PREVIOUS:
        join = matches && !s->previous;
        break;
    case HEFT__SPLIT_MERGED_WITH_NEXT:
        join = !matches && s->previous;
        break;
    case HEFT__SPLIT_CONTIGUOUS:
        join = matches == s->previous;
        break;
    }
    if (join && s->held) {
        s->end = end;
    } else {
        emit(s);
        s->held = true;
        s->start = start;
        s->end = end;
    }
    s->previous = matches;
}

static void begin_piece(struct splitting *s, const heft__piece *piece)
{
    s->base = s->origin = piece->start;
    s->first = piece->first;
    s->held = s->previous = false;
}

/* Pass on a token; false for text. */
static bool pass_token(heft__text_work *work, const heft__piece *piece)
{
    if (piece->id != HEFT__NO_ID) {
        heft__add_piece(work, &work->next, *piece);
    }
    return piece->id != HEFT__NO_ID;
}

heft_status heft__split_codes(heft__text_work *work, heft__code_fn matches, uint32_t argument,
                              heft__split_behavior behavior, heft_error *err)
{
    struct splitting s = {.work = work, .behavior = behavior};
    for (size_t p = 0; p < work->pieces.count; p++) {
        const heft__piece *piece = &work->pieces.list[p];
        if (pass_token(work, piece)) {
            continue;
        }
        const char *text = (const char *)work->text.data + piece->start;
        const size_t length = piece->end - piece->start;
        size_t from = 0;
        begin_piece(&s, piece);
        for (size_t i = 0, size; i < length; i += size) {
            if (matches(heft__utf8_get(text + i, &size), argument)) {
                if (from < i) {
                    add_segment(&s, from, i, false);
                }
                add_segment(&s, i, i + size, true);
                from = i + size;
            }
        }
        if (from < length) {
            add_segment(&s, from, length, false);
        }
        emit(&s);
    }
    heft__work_turn_pieces(work);
    return heft__work_check(work, &work->text, err);
}

heft_status heft__split_pattern(heft__text_work *work, const heft__pattern *pattern,
                                heft__split_behavior behavior, bool invert, heft_error *err)
{
    struct splitting s = {.work = work, .behavior = behavior, .invert = invert};
    for (size_t p = 0; p < work->pieces.count; p++) {
        const heft__piece *piece = &work->pieces.list[p];
        if (pass_token(work, piece)) {
            continue;
        }
        const heft__string text = {(const char *)work->text.data + piece->start,
                                   piece->end - piece->start};
        heft__matches matches = {pattern, &work->searcher, text, 0, SIZE_MAX};
        size_t from = 0, start = 0, end = 0;
        begin_piece(&s, piece);
        for (bool found = true; found;) {
            heft_status status = heft__next_match(&matches, &found, &start, &end, err);
            if (status != HEFT_OK) {
                return status;
            }
            if (found) {
                if (from < start) {
                    add_segment(&s, from, start, false);
                }
                add_segment(&s, start, end, true);
                from = end;
            }
        }
        if (from < text.length) {
            add_segment(&s, from, text.length, false);
        }
        emit(&s);
    }
    heft__work_turn_pieces(work);
    return heft__work_check(work, &work->text, err);
}
