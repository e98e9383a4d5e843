/* probe_files.c - how fast a residency's weights are read: some of them are, as the residency does it.
 *
 * A unit is read after the other, small ones together, by requests as those of bring.c: up to 16 MB, past the
 * page cache unless most of a range is there, on the same number of threads, cast as they are needed. The
 * units come from eight places of the model in turn, because some of the files may be in the page cache. A disk
 * that is slow gets smaller requests, so that the probe ends in time.
 * Not done here: units that are used in place in the page cache, which costs their faults only; weights that
 * are computed, as those that were stored quantized. */
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

struct group { /* of slices that are read together */
    size_t first, count;
};

struct reading {
    heft_residency *r;
    struct slice *slices; /* [count] by units */
    size_t count, cap;
    struct group *groups; /* [group_count] */
    size_t group_count, group_cap;
    size_t first;    /* slice of the group that is being read */
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
    const size_t tensor = homes->source[heft__whole_of(r, brought->parameter)];
    bytes[0] = heft_dtype_bits(r->views[brought->parameter].dtype) / 8;
    bytes[1] = heft_dtype_bits(homes->ckpt->infos[tensor].dtype) / 8;
    return bytes[0] > 0 && bytes[1] > 0 && brought->offset != HEFT_NO_OFFSET;
}

/* Cut what a unit brings in into requests of at most so many bytes. */
static heft_status cut_unit(struct reading *reading, const heft__unit *unit, size_t most,
                            heft_error *err)
{
    const heft_residency *r = reading->r;
    for (size_t i = 0; i < unit->brought_count; i++) {
        const heft__brought *brought = &unit->brought[i];
        uint64_t each[2];
        if (!is_plain(r, brought, each)) {
            continue;
        }
        const uint64_t step = most / (each[0] > each[1] ? each[0] : each[1]);
        const uint64_t elems = r->views[brought->parameter].size_bytes / each[0];
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

static heft_status cut(struct reading *reading, size_t most, heft_error *err)
{
    const heft_residency *r = reading->r;
    heft_status status = HEFT_OK;
    uint64_t bytes = 0;
    size_t first = 0;
    reading->count = reading->group_count = 0;
    for (size_t i = 0; i < r->unit_count && status == HEFT_OK; i++) {
        status = cut_unit(reading, &r->units[i], most, err);
        bytes += r->units[i].shown.brought_bytes;
        if (reading->count == first || (bytes < HEFT__READ_BYTES && i + 1 < r->unit_count)) {
            continue; /* small ones come together */
        }
        if (!heft__array_reserve(r->ctx, (void **)&reading->groups, reading->group_count,
                                 &reading->group_cap, sizeof *reading->groups)) {
            return heft__fail_nomem(err, sizeof *reading->groups);
        }
        reading->groups[reading->group_count++] = (struct group){first, reading->count - first};
        first = reading->count;
        bytes = 0;
    }
    return status;
}

static uint8_t *take_lane(struct reading *reading)
{
    return reading->memory + heft__lane_take(reading->taken, reading->lanes) * reading->lane_bytes;
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
    const size_t tensor = homes->source[heft__whole_of(r, slice->brought->parameter)];
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

static heft_status read_item(void *user, size_t item, heft_error *err)
{
    struct reading *reading = user;
    const struct slice *slice = &reading->slices[reading->first + item];
    const heft_tensor *shown = &reading->r->views[slice->brought->parameter];
    const double bytes = (double)(slice->elems * (heft_dtype_bits(shown->dtype) / 8));
    double cached = 0;
    if (heft__probe_clock() > reading->deadline) {
        return HEFT_OK;
    }
    uint8_t *lane = take_lane(reading);
    const heft_status status = read_slice(reading, slice, lane, &cached, err);
    give_lane(reading, lane);
    pthread_mutex_lock(&reading->lock);
    reading->bytes += bytes;
    reading->cached += bytes * cached;
    reading->seconds = heft__probe_clock() - reading->started;
    pthread_mutex_unlock(&reading->lock);
    return status;
}

static void begin(struct reading *reading)
{
    reading->bytes = reading->cached = reading->seconds = 0;
    reading->started = heft__probe_clock();
    reading->deadline = reading->started + PROBE_SECONDS;
}

/* Groups from all places in turn, until the time is over. */
static heft_status read_groups(struct reading *reading, heft_error *err)
{
    const size_t step = reading->group_count > PLACES ? reading->group_count / PLACES : 1;
    heft_status status = HEFT_OK;
    begin(reading);
    for (size_t start = 0; start < step; start++) {
        for (size_t g = start; g < reading->group_count; g += step) {
            if (status != HEFT_OK || heft__probe_clock() > reading->deadline) {
                return status;
            }
            reading->first = reading->groups[g].first;
            status = heft__parallel_on(reading->r->ctx, reading->lanes, reading->groups[g].count,
                                       read_item, reading, err);
        }
    }
    return status;
}

/* The first request alone, to know how large the others may be. */
static heft_status read_first(struct reading *reading, size_t most, heft_error *err)
{
    heft_status status = cut(reading, most, err);
    begin(reading);
    reading->first = 0;
    return status == HEFT_OK && reading->count > 0 ? read_item(reading, 0, err) : status;
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
    heft_status status = read_first(&reading, most < FIRST_BYTES ? most : FIRST_BYTES, err);
    if (status == HEFT_OK && reading.count > 0) {
        const double slowest = (double)most / reading.bytes * reading.seconds;
        if (slowest > REQUEST_SECONDS) {
            const size_t fewer = (size_t)((double)most * REQUEST_SECONDS / slowest);
            most = fewer > LEAST_BYTES ? fewer : most < LEAST_BYTES ? most : LEAST_BYTES;
        }
        status = cut(&reading, most, err);
        status = status == HEFT_OK ? read_groups(&reading, err) : status;
    }
    if (status == HEFT_OK && reading.seconds > 0) {
        rates->read = reading.bytes / reading.seconds;
        rates->cached = reading.cached / reading.bytes;
    }
    pthread_mutex_destroy(&reading.lock);
    heft__free(r->ctx, reading.slices, reading.cap * sizeof *reading.slices);
    heft__free(r->ctx, reading.groups, reading.group_cap * sizeof *reading.groups);
    return status;
}
