/* probe_files.c - how fast a residency's weights are read: some of them are, as the residency does it.
 *
 * Requests are those of bring.c: up to 16 MB, past the page cache unless most of a range is there, on the same
 * number of threads, cast as they are needed. They come from eight places of the files in turn, neighbors
 * together, because some of the files may be in the page cache. A disk that is slow gets smaller requests,
 * so that the probe ends in time.
 * Not done here: units that are used in place in the page cache: those cost nothing but their faults. */
#include "run/predict.h"

#define PROBE_SECONDS 0.2
#define REQUEST_SECONDS 0.04 /* of one request on a slow disk */
#define FIRST_BYTES ((size_t)1 << 20)
#define LEAST_BYTES ((size_t)256 << 10)
#define PLACES ((size_t)8)
#define LANES_MOST ((size_t)16)

struct slice { /* of a parameter */
    const heft__brought *brought;
    uint64_t first, elems;
};

struct reading {
    heft_residency *r;
    struct slice *slices; /* [count] by files and offsets */
    size_t count, cap;
    uint8_t *memory; /* [lanes][lane_bytes] */
    size_t lanes, lane_bytes;
    atomic_bool taken[LANES_MOST];
    double started, deadline;
    pthread_mutex_t lock; /* guards the rest */
    double bytes, cached, seconds;
};

static size_t reading_lanes(const heft_residency *r)
{
    const size_t threads = heft__reading_threads(r->ctx, true);
    return threads < LANES_MOST ? threads : LANES_MOST;
}

/* Whether any elements of it can be read, and how many bytes each of them has: here and in its file. */
static bool is_plain(const heft_residency *r, const heft__brought *brought, uint64_t bytes[2])
{
    const heft__homes *homes = heft__model_homes(r->model);
    const size_t tensor = homes->source[brought->parameter];
    bytes[0] = heft_dtype_bits(r->model->parameters[brought->parameter].dtype) / 8;
    bytes[1] = heft_dtype_bits(homes->ckpt->infos[tensor].dtype) / 8;
    return bytes[0] > 0 && bytes[1] > 0 && brought->offset != HEFT_NO_OFFSET;
}

/* Cut all that is brought in into requests of at most so many bytes. */
static heft_status cut(struct reading *reading, size_t most, heft_error *err)
{
    const heft_residency *r = reading->r;
    reading->count = 0;
    for (size_t i = 0; i < r->placed_count; i++) {
        const size_t parameter = r->placed[i];
        const heft__unit *unit = &r->units[r->unit_of[parameter]];
        const heft__brought *brought = &unit->brought[r->brought_at[parameter]];
        uint64_t each[2];
        if (!is_plain(r, brought, each)) {
            continue;
        }
        const uint64_t step = most / (each[0] > each[1] ? each[0] : each[1]);
        const uint64_t elems = r->views[parameter].size_bytes / each[0];
        for (uint64_t first = 0; first < elems; first += step) {
            if (!heft__array_reserve(r->ctx, (void **)&reading->slices, reading->count,
                                     &reading->cap, sizeof *reading->slices)) {
                return heft__fail_nomem(err, sizeof *reading->slices);
            }
            reading->slices[reading->count++] =
                (struct slice){brought, first, elems - first < step ? elems - first : step};
        }
    }
    return HEFT_OK;
}

static uint8_t *take_lane(struct reading *reading)
{
    for (size_t i = 0;; i = (i + 1) % reading->lanes) { /* as many as threads: one is free */
        bool taken = false;
        if (atomic_compare_exchange_strong(&reading->taken[i], &taken, true)) {
            return reading->memory + i * reading->lane_bytes;
        }
    }
}

static void give_lane(struct reading *reading, const uint8_t *lane)
{
    atomic_store(&reading->taken[(size_t)(lane - reading->memory) / reading->lane_bytes], false);
}

static heft_status read_slice(struct reading *reading, const struct slice *slice, uint8_t *lane,
                              double *cached, heft_error *err)
{
    const heft_residency *r = reading->r;
    const heft__homes *homes = heft__model_homes(r->model);
    const size_t tensor = homes->source[slice->brought->parameter];
    heft__input *input = heft__file_of(homes->ckpt, tensor)->source;
    uint64_t each[2];
    heft__pieces pieces;
    (void)is_plain(r, slice->brought, each);
    const uint64_t offset = slice->brought->offset + slice->first * each[1];
    *cached = heft__input_residency(input, offset, slice->elems * each[1]);
    heft__part part = heft__brought_part(r, slice->brought,
                                         *cached < HEFT__UNIT_COLD && !heft__input_network(input));
    part.first += slice->first;
    part.elems = slice->elems;
    heft__pieces_init(&pieces, homes->ckpt);
    heft_status status = heft__pieces_add(&pieces, &part, 0, err);
    uint8_t *to = part.spare ? heft__in_phase(lane, offset) : lane;
    for (size_t i = 0; i < pieces.count && status == HEFT_OK; i++) {
        status = heft__piece_read(&pieces, i, to, err);
    }
    heft__pieces_fini(&pieces);
    return status;
}

/* The next slice in turn: some neighbors at one place, then some at the next one. */
static heft_status read_item(void *user, size_t item, heft_error *err)
{
    struct reading *reading = user;
    const size_t lanes = reading->lanes, per = (reading->count + PLACES - 1) / PLACES;
    const size_t round = item / lanes, at = round / PLACES * lanes + item % lanes;
    const size_t i = round % PLACES * per + at;
    double cached = 0;
    if (at >= per || i >= reading->count || heft__probe_clock() > reading->deadline) {
        return HEFT_OK;
    }
    const struct slice *slice = &reading->slices[i];
    const double bytes =
        (double)slice->elems *
        (double)(heft_dtype_bits(reading->r->model->parameters[slice->brought->parameter].dtype) /
                 8);
    uint8_t *lane = take_lane(reading);
    heft_status status = read_slice(reading, slice, lane, &cached, err);
    give_lane(reading, lane);
    pthread_mutex_lock(&reading->lock);
    reading->bytes += bytes;
    reading->cached += bytes * cached;
    reading->seconds = heft__probe_clock() - reading->started;
    pthread_mutex_unlock(&reading->lock);
    return status;
}

static heft_status read_some(struct reading *reading, size_t most, bool one, heft_error *err)
{
    heft_status status = cut(reading, most, err);
    if (status != HEFT_OK || reading->count == 0) {
        return status;
    }
    const size_t per = (reading->count + PLACES - 1) / PLACES;
    const size_t rounds = (per + reading->lanes - 1) / reading->lanes * PLACES;
    reading->bytes = reading->cached = reading->seconds = 0;
    reading->started = heft__probe_clock();
    reading->deadline = reading->started + PROBE_SECONDS;
    return one ? read_item(reading, 0, err)
               : heft__parallel_on(reading->r->ctx, reading->lanes, rounds * reading->lanes,
                                   read_item, reading, err);
}

heft_status heft__probe_files(heft_residency *r, uint8_t *memory, size_t bytes, heft__rates *rates,
                              heft_error *err)
{
    struct reading reading = {.r = r, .memory = memory, .lanes = reading_lanes(r)};
    const size_t beside = HEFT__SPARE_BYTES + 64;
    size_t most = HEFT__READ_BYTES;
    rates->read = rates->cached = 0;
    reading.lane_bytes = bytes / reading.lanes / 64 * 64;
    if (r->placed_count == 0 || reading.lane_bytes < 2 * beside) {
        return HEFT_OK;
    }
    most = most < reading.lane_bytes - beside ? most : reading.lane_bytes - beside;
    pthread_mutex_init(&reading.lock, NULL);
    heft_status status = read_some(&reading, most < FIRST_BYTES ? most : FIRST_BYTES, true, err);
    if (status == HEFT_OK && reading.count > 0) {
        const double slowest = (double)most / reading.bytes * reading.seconds;
        if (slowest > REQUEST_SECONDS) {
            const size_t fewer = (size_t)((double)most * REQUEST_SECONDS / slowest);
            most = fewer > LEAST_BYTES ? fewer : most < LEAST_BYTES ? most : LEAST_BYTES;
        }
        status = read_some(&reading, most, false, err);
    }
    if (status == HEFT_OK && reading.seconds > 0) {
        rates->read = reading.bytes / reading.seconds;
        rates->cached = reading.cached / reading.bytes;
    }
    pthread_mutex_destroy(&reading.lock);
    heft__free(r->ctx, reading.slices, reading.cap * sizeof *reading.slices);
    return status;
}
