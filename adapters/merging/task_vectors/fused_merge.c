/* The task-vector family as one pass over memory: every expert is read once, the merge is written once.

   The operations on an entry, and their order, are those of `fuse` in torch_kernel.py; compiled without
   contraction of multiplications and additions they give its results bit for bit. Entries are taken in blocks
   whose intermediate values stay in the first-level cache, so that no combination of methods, dtypes and number of
   experts needs a kernel of its own. The layout of the structures is repeated in fused.py.

   Where a method keeps the largest entries, the last that is kept is known to lie within a bracket of a few hundred
   (ranks.py). The pass decides by a guess and collects the bracket's entries; when all are there, the guess is made
   exact and the few blocks in which it was wrong are merged again. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One library serves every processor of its architecture: the loader takes each function's clone for the vectors that
   the processor has. On arm64 these are always NEON's. A call from clone to clone goes through a table, so that what is
   called for every block is INLINE. */
#if defined(__x86_64__) && defined(__gnu_linux__)
#define CLONED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONED
#endif

enum { FLOAT32, BFLOAT16, FLOAT16 };
enum { ALL, LARGEST, WINDOW, RANDOM, RANKED };
enum { BLOCK = 512, LANES = 16, PIECE = 1 << 17, BLOCKS = PIECE / BLOCK, STRIP = 64 };
enum { FINENESS = 12, FEW = 4 }; /* of counting: bits of a magnitude that are left out first, and a short search */

typedef struct {
    const float *left, *right; /* of every matrix: rows x rank, and rank x columns */
    int64_t rows, columns;
    int32_t rank;
    float scaling;
} Factors; /* of a LoRA, whose product times `scaling` is a task vector */

typedef struct {
    const void *entries;   /* the expert's entries, or its task vector where is_delta; NULL where it has factors */
    const void *row_ranks; /* RANKED: int16 or int32 (rank_bytes) per entry */
    Factors factors;
    int64_t least_position, above_position;
    int32_t dtype, is_delta, mode, rank_bytes;
    float factor, weight, least_value, above_value, start, slope;
    int32_t key_1, key_2, threshold;
    int32_t least_bracket, above_bracket, unused; /* numbers of brackets; -1: the rank is exact */
} Term;

typedef struct {
    const void *base;
    void *out;
    int32_t base_dtype, out_dtype, first_term, terms, consensus, normalize;
    float scale, divisor;
    int32_t kept_dtype, bracketed; /* a float32 `out` gets the digits that this dtype has */
    int32_t factored, unused;      /* whether terms have factors */
    int64_t size, first_piece;
} Tensor;

typedef struct {
    int64_t tensor, start, end;
    double norm; /* result: L1 norm of what was added to the base */
} Piece;

typedef struct {
    int64_t lower, upper;          /* keys from lower to below upper are inside */
    int64_t inside, wanted, first; /* how many; the place, from the largest, of the one looked for; room in `keys` */
    int64_t found;
} Bracket;

typedef struct {
    const Tensor *tensors;
    Term *terms;
    Piece *pieces;
    Bracket *brackets;
    int64_t *keys; /* of the entries that were found inside */
    double *norms; /* of every block, BLOCKS to a piece */
    int64_t tensor_count, piece_count, most_terms, most_factors; /* the most terms of a tensor, and with factors */
} Batch;

/* A thread's room: BLOCK floats for every term and four more; for a tensor's terms with factors their entries of a
   span, and the terms with these entries. */
typedef struct {
    float *blocks, *spans;
    Term *terms;
    int64_t span; /* entries */
} Room;

typedef struct {
    const void *entries, *base;
    Factors factors;
    const int64_t *splitters; /* keys, ascending */
    int64_t *counts;          /* result: entries below the first, ..., from the last on */
    int64_t size;
    int32_t dtype, base_dtype, is_delta, number;
} Counting;

typedef struct {
    Factors factors;
    float *out;
    int64_t size;
} Expansion;

#define INLINE static inline __attribute__((always_inline))

INLINE float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* float16 by integer operations: every compiler makes vectors of them. Scaling by 2^112 moves the exponent's bias, and
   normalises what float16 has without a leading one. */
INLINE float from_float16(uint16_t half) {
    uint32_t magnitude = (uint32_t)(half & 0x7FFF) << 13;
    uint32_t bits = to_bits(from_bits(magnitude) * 0x1p112f);
    bits |= magnitude >= 0x0F800000 ? 0x7F800000u : 0u; /* infinity and NaN */
    return from_bits(bits | (uint32_t)(half & 0x8000) << 16);
}

/* To the nearest float16, ties to even. Below the smallest normal number the sum with 0.5 puts the digits that
   float16 has into the last ones of a float32, rounded by the addition. */
INLINE uint16_t to_float16(float value) {
    uint32_t bits = to_bits(value), sign = bits & 0x80000000u, magnitude = bits ^ sign;
    uint32_t normal = (magnitude - (112u << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
    uint32_t small = to_bits(from_bits(magnitude) + 0.5f) - to_bits(0.5f);
    uint32_t special = magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u;
    uint32_t half = magnitude < (113u << 23) ? small : normal;
    return (uint16_t)((magnitude >= (143u << 23) ? special : half) | sign >> 16);
}

INLINE float entry_at(const void *entries, int dtype, int64_t i) {
    if (dtype == FLOAT32) return ((const float *)entries)[i];
    if (dtype == BFLOAT16) return from_bits((uint32_t)((const uint16_t *)entries)[i] << 16);
    return from_float16(((const uint16_t *)entries)[i]);
}

/* To the nearest bfloat16, ties to even; NaN stays NaN. */
INLINE uint16_t to_bfloat16(float value) {
    uint32_t bits = to_bits(value);
    uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return value == value ? (uint16_t)rounded : 0x7FC0;
}

/* A strip of a row of a product: sums over the rank in order, fused, from zero, as matrix products are made. */
INLINE void multiply(const Factors *factors, const float *left, const float *right, float *restrict out, int width) {
    float sums[STRIP] = {0.0f};
    for (int k = 0; k < factors->rank; k++, right += factors->columns)
        for (int i = 0; i < width; i++) sums[i] = fmaf(left[k], right[i], sums[i]);
    for (int i = 0; i < width; i++) out[i] = sums[i] * factors->scaling;
}

/* The entries from `at` of a task vector that is a product of factors. Rows take turns at a strip of columns, so that
   the strip's part of the right factor stays in the first-level cache. */
CLONED static void expand(const Factors *factors, float *restrict out, int64_t at, int64_t count) {
    const int64_t columns = factors->columns, rank = factors->rank, end = at + count;
    for (int64_t column = 0; column < columns; column += STRIP) {
        const int64_t width = columns - column < STRIP ? columns - column : STRIP;
        for (int64_t row = at / columns; row * columns < end; row++) {
            const int64_t begin = row * columns, own = begin + column;
            const int64_t first = own > at ? own : at, last = own + width < end ? own + width : end;
            const float *left = factors->left + row * rank;
            const float *right = factors->right + row / factors->rows * rank * columns + (first - begin);
            if (last - first == STRIP) multiply(factors, left, right, out + (first - at), STRIP);
            else if (last > first) multiply(factors, left, right, out + (first - at), (int)(last - first));
        }
    }
}

/* random_levels of masks.py */
INLINE int32_t random_level(int32_t index, int32_t key_1, int32_t key_2) {
    uint32_t mixed = (uint32_t)(index ^ key_1);
    mixed ^= mixed >> 16;
    mixed *= 0x7FEB352Du;
    mixed ^= mixed >> 15;
    mixed = (mixed ^ (uint32_t)key_2) * 0x846CA68Bu;
    return (int32_t)(mixed >> 16);
}

/* ranks.py: the larger a key, the earlier its entry among the largest */
INLINE int64_t key_of(uint32_t bits, int64_t position) {
    return ((int64_t)bits - (1 << 30)) * ((int64_t)1 << 33) + (((int64_t)1 << 33) - 1 - position);
}

INLINE uint32_t bits_of(int64_t key) { return (uint32_t)((key >> 33) + (1 << 30)); }

INLINE int64_t position_of(int64_t key) { return ((int64_t)1 << 33) - 1 - (key & (((int64_t)1 << 33) - 1)); }

/* Magnitudes' bits from `low` to `low + span` may be inside a bracket for entries of a block that begins at `at`. */
typedef struct {
    uint32_t low, span;
} Range;

static Range range_in(const Bracket *brackets, int32_t number, int64_t at, int count) {
    const Range none = {0x80000000u, 0};
    if (number < 0) return none;
    const Bracket *bracket = brackets + number;
    uint32_t low = bits_of(bracket->lower) + (at > position_of(bracket->lower));
    int64_t high = (int64_t)bits_of(bracket->upper) - (at + count - 1 <= position_of(bracket->upper));
    if (high < low) return none;
    Range range = {low, (uint32_t)high - low};
    return range;
}

INLINE uint32_t nearer(uint32_t one, uint32_t other) { return other < one ? other : one; }

INLINE int32_t within(int64_t position, int64_t start, int32_t count) {
    int64_t local = position - start;
    return local < -1 ? -1 : local > count ? count : (int32_t)local;
}

/* part = factor * sparsified task vector for entries from..to of a block that begins at entry `at`. Returns whether
   one of them may be inside a bracket. */
INLINE int weigh_stretch(const Term *term, const float *restrict origin, float *restrict part, int64_t at, int from,
                         int to, int dtype, int is_delta, int mode, int equal_kept, Range of_least, Range of_above) {
    const float factor = term->factor, least = term->least_value, above = term->above_value;
    const float start = term->start, slope = term->slope;
    const int32_t key_1 = term->key_1, key_2 = term->key_2, threshold = term->threshold;
    const int32_t least_at = within(term->least_position, at, BLOCK), above_at = within(term->above_position, at, BLOCK);
    const int16_t *short_ranks = term->row_ranks;
    const int32_t *long_ranks = term->row_ranks;
    const int short_rank = term->rank_bytes == 2;
    uint32_t from_least = UINT32_MAX, from_above = UINT32_MAX; /* how far the nearest is above a range's low end */
    for (int i = from; i < to; i++) {
        float delta = entry_at(term->entries, dtype, at + i);
        if (!is_delta) delta -= origin[i];
        int keep = 1;
        if (mode == LARGEST || mode == WINDOW) from_least = nearer(from_least, to_bits(fabsf(delta)) - of_least.low);
        if (mode == WINDOW) from_above = nearer(from_above, to_bits(fabsf(delta)) - of_above.low);
        if (mode == LARGEST) {
            keep = equal_kept ? fabsf(delta) >= least : fabsf(delta) > least;
        } else if (mode == WINDOW) {
            float magnitude = fabsf(delta);
            int among = (magnitude > least) | ((magnitude == least) & (i <= least_at));
            int dropped = (magnitude > above) | ((magnitude == above) & (i <= above_at));
            keep = among & !dropped;
        } else if (mode == RANDOM) {
            keep = random_level((int32_t)((at + i) & 0x7FFFFFFF), key_1, key_2) < threshold;
        } else if (mode == RANKED) {
            float rank = short_rank ? (float)short_ranks[at + i] : (float)long_ranks[at + i];
            float probability = slope * rank;
            probability = start + probability;
            keep = (float)random_level((int32_t)((at + i) & 0x7FFFFFFF), key_1, key_2) < probability;
        }
        part[i] = (keep ? delta : 0.0f) * factor;
    }
    return from_least <= of_least.span || from_above <= of_above.span;
}

INLINE int weigh_mode(const Term *term, const float *restrict origin, float *restrict part, int64_t at, int count,
                      int dtype, int is_delta, Range least, Range above) {
    switch (term->mode) {
    case ALL: return weigh_stretch(term, origin, part, at, 0, count, dtype, is_delta, ALL, 0, least, above);
    case LARGEST: {
        /* Of equal magnitudes the first are kept: one comparison up to the last that is kept, another after it. */
        int32_t last = within(term->least_position, at, count) + 1;
        int kept = last < count ? last : count;
        int near = weigh_stretch(term, origin, part, at, 0, kept, dtype, is_delta, LARGEST, 1, least, above);
        return near | weigh_stretch(term, origin, part, at, kept, count, dtype, is_delta, LARGEST, 0, least, above);
    }
    case WINDOW: return weigh_stretch(term, origin, part, at, 0, count, dtype, is_delta, WINDOW, 0, least, above);
    case RANDOM: return weigh_stretch(term, origin, part, at, 0, count, dtype, is_delta, RANDOM, 0, least, above);
    default: return weigh_stretch(term, origin, part, at, 0, count, dtype, is_delta, RANKED, 0, least, above);
    }
}

INLINE int weigh(const Term *term, const float *restrict origin, float *restrict part, int64_t at, int count,
                 Range least, Range above) {
    switch (term->dtype * 2 + term->is_delta) {
    case FLOAT32 * 2: return weigh_mode(term, origin, part, at, count, FLOAT32, 0, least, above);
    case FLOAT32 * 2 + 1: return weigh_mode(term, origin, part, at, count, FLOAT32, 1, least, above);
    case BFLOAT16 * 2: return weigh_mode(term, origin, part, at, count, BFLOAT16, 0, least, above);
    case BFLOAT16 * 2 + 1: return weigh_mode(term, origin, part, at, count, BFLOAT16, 1, least, above);
    case FLOAT16 * 2: return weigh_mode(term, origin, part, at, count, FLOAT16, 0, least, above);
    default: return weigh_mode(term, origin, part, at, count, FLOAT16, 1, least, above);
    }
}

INLINE void read_entries(const void *entries, float *restrict values, int64_t at, int count, int dtype) {
    for (int i = 0; i < count; i++) values[i] = entry_at(entries, dtype, at + i);
}

INLINE void read_floats(const void *entries, float *restrict values, int64_t at, int count, int dtype) {
    switch (dtype) {
    case FLOAT32: read_entries(entries, values, at, count, FLOAT32); break;
    case BFLOAT16: read_entries(entries, values, at, count, BFLOAT16); break;
    default: read_entries(entries, values, at, count, FLOAT16);
    }
}

/* The bits of the magnitudes of a task vector's block. */
INLINE void magnitudes(const void *entries, int dtype, int is_delta, const float *restrict origin, float *restrict delta,
                       uint32_t *restrict bits, int64_t at, int count) {
    read_floats(entries, delta, at, count, dtype);
    if (!is_delta)
        for (int i = 0; i < count; i++) delta[i] -= origin[i];
    for (int i = 0; i < count; i++) bits[i] = to_bits(fabsf(delta[i]));
}

/* Note the entries of a block that are inside a term's brackets. */
CLONED static void collect(const Batch *batch, const Term *term, const float *restrict origin, int64_t at,
                           int count) {
    float delta[BLOCK];
    uint32_t bits[BLOCK];
    magnitudes(term->entries, term->dtype, term->is_delta, origin, delta, bits, at, count);
    const int32_t numbers[] = {term->least_bracket, term->above_bracket};
    for (int side = 0; side < 2; side++) {
        if (numbers[side] < 0) continue;
        Bracket *bracket = batch->brackets + numbers[side];
        const Range range = range_in(batch->brackets, numbers[side], at, count);
        uint32_t near = 0; /* a bit for each group of LANES entries */
        for (int i = 0; i < count; i++) near |= bits[i] - range.low <= range.span ? 1u << (i / LANES) : 0u;
        for (; near; near &= near - 1) {
            const int from = __builtin_ctz(near) * LANES, to = from + LANES < count ? from + LANES : count;
            for (int i = from; i < to; i++) {
                const int64_t key = key_of(bits[i], at + i);
                if (key < bracket->lower || key >= bracket->upper) continue;
                const int64_t place = __atomic_fetch_add(&bracket->found, 1, __ATOMIC_RELAXED);
                if (place < bracket->inside) batch->keys[bracket->first + place] = key;
            }
        }
    }
}

/* total = sum of the parts; then, with consensus, of those alone whose sign is that sum's (zero counts as positive),
   over the sum of their weights where `normalize`. `divisor` is scratch. */
INLINE void mix(const Tensor *tensor, const Term *terms, const float *restrict parts, float *restrict total,
                float *restrict sum, float *restrict divisor, int count) {
    const int experts = tensor->terms;
    memcpy(sum, parts, sizeof(float) * (size_t)count);
    for (int m = 1; m < experts; m++) {
        const float *restrict part = parts + m * BLOCK;
        for (int i = 0; i < count; i++) sum[i] += part[i];
    }
    if (!tensor->consensus) {
        const float by = tensor->normalize ? tensor->divisor : 1.0f;
        for (int i = 0; i < count; i++) total[i] = sum[i] / by;
        return;
    }
    for (int i = 0; i < count; i++) total[i] = divisor[i] = 0.0f;
    for (int m = 0; m < experts; m++) {
        const float *restrict part = parts + m * BLOCK;
        const float weight = terms[m].weight;
        for (int i = 0; i < count; i++) {
            /* the part's sign is the majority's: both positive, or both negative */
            const int agrees = sum[i] >= 0.0f ? part[i] > 0.0f : part[i] < 0.0f;
            total[i] += agrees ? part[i] : 0.0f;
            divisor[i] += agrees ? weight : 0.0f;
        }
    }
    if (tensor->normalize)
        for (int i = 0; i < count; i++) total[i] /= divisor[i] == 0.0f ? 1.0f : divisor[i];
}

INLINE void add(const Tensor *tensor, const float *restrict origin, float *restrict total, int64_t at, int count,
                int dtype, int kept) {
    const float scale = tensor->scale;
    float *floats = (float *)tensor->out + at;
    uint16_t *bfloats = (uint16_t *)tensor->out + at;
    uint16_t *halves = (uint16_t *)tensor->out + at;
    for (int i = 0; i < count; i++) {
        float added = total[i] * scale;
        float merged = origin[i] + added;
        total[i] = fabsf(added);
        if (dtype == FLOAT32 && kept == FLOAT32) floats[i] = merged;
        if (dtype == FLOAT32 && kept == BFLOAT16) floats[i] = from_bits((uint32_t)to_bfloat16(merged) << 16);
        if (dtype == FLOAT32 && kept == FLOAT16) floats[i] = from_float16(to_float16(merged));
        if (dtype == BFLOAT16) bfloats[i] = to_bfloat16(merged);
        if (dtype == FLOAT16) halves[i] = to_float16(merged);
    }
}

/* In lanes, so that the compiler may add many at once without changing the order of a sum. */
INLINE double sum_of(const float *restrict values, int count) {
    float lanes[LANES] = {0};
    int i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int lane = 0; lane < LANES; lane++) lanes[lane] += values[i + lane];
    double sum = 0.0;
    for (; i < count; i++) sum += values[i];
    for (int lane = 0; lane < LANES; lane++) sum += lanes[lane];
    return sum;
}

/* A tensor's terms, with entries from `at` (at most a span) where they have factors. */
static const Term *expanded(const Batch *batch, const Tensor *tensor, const Room *room, int64_t at, int64_t count) {
    const Term *terms = batch->terms + tensor->first_term;
    float *span = room->spans;
    if (!tensor->factored) return terms;
    memcpy(room->terms, terms, sizeof *terms * (size_t)tensor->terms);
    for (int m = 0; m < tensor->terms; m++) {
        if (terms[m].entries != NULL) continue;
        expand(&terms[m].factors, span, at, count);
        room->terms[m].entries = (const void *)((uintptr_t)span - sizeof(float) * (uintptr_t)at);
        span += room->span;
    }
    return room->terms;
}

CLONED static double merge_block(const Batch *batch, const Tensor *tensor, const Term *terms, float *restrict buffers,
                                 int64_t at, int count) {
    float *origin = buffers, *total = buffers + BLOCK, *sum = buffers + 2 * BLOCK, *divisor = buffers + 3 * BLOCK;
    float *parts = buffers + 4 * BLOCK;
    read_floats(tensor->base, origin, at, count, tensor->base_dtype);
    for (int m = 0; m < tensor->terms; m++) {
        const Range least = range_in(batch->brackets, terms[m].least_bracket, at, count);
        const Range above = range_in(batch->brackets, terms[m].above_bracket, at, count);
        if (weigh(terms + m, origin, parts + m * BLOCK, at, count, least, above))
            collect(batch, terms + m, origin, at, count);
    }
    mix(tensor, terms, parts, total, sum, divisor, count);
    switch (tensor->out_dtype == FLOAT32 ? tensor->kept_dtype : 3 + tensor->out_dtype) {
    case FLOAT32: add(tensor, origin, total, at, count, FLOAT32, FLOAT32); break;
    case BFLOAT16: add(tensor, origin, total, at, count, FLOAT32, BFLOAT16); break;
    case FLOAT16: add(tensor, origin, total, at, count, FLOAT32, FLOAT16); break;
    case 3 + BFLOAT16: add(tensor, origin, total, at, count, BFLOAT16, BFLOAT16); break;
    default: add(tensor, origin, total, at, count, FLOAT16, FLOAT16);
    }
    return sum_of(total, count);
}

static void free_room(Room *room) {
    free(room->blocks);
    free(room->spans);
    free(room->terms);
}

/* Returns 0, or 1 when there was no memory. */
static int make_room(const Batch *batch, Room *room) {
    const int64_t factors = batch->most_factors, fair = PIECE / (factors > 0 ? factors : 1) / BLOCK * BLOCK;
    room->span = fair < BLOCK ? BLOCK : fair;
    room->blocks = aligned_alloc(64, sizeof(float) * BLOCK * (size_t)(4 + batch->most_terms));
    room->spans = aligned_alloc(64, sizeof(float) * (size_t)(room->span * (factors > 0 ? factors : 1)));
    room->terms = malloc(sizeof(Term) * (size_t)batch->most_terms);
    if (room->blocks != NULL && room->spans != NULL && room->terms != NULL) return 0;
    free_room(room);
    return 1;
}

/* Merge pieces until none is left. Threads share `next`, the first piece that nobody took. Returns 0, or 1 when
   there was no memory. */
CLONED int merge_pieces(const Batch *batch, int64_t *next) {
    Room room;
    if (make_room(batch, &room)) return 1;
    for (;;) {
        int64_t mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (mine >= batch->piece_count) break;
        Piece *piece = batch->pieces + mine;
        const Tensor *tensor = batch->tensors + piece->tensor;
        const int64_t span = tensor->factored ? room.span : PIECE;
        double *norms = batch->norms + mine * BLOCKS;
        double norm = 0.0;
        for (int64_t from = piece->start; from < piece->end; from += span) {
            const int64_t to = from + span < piece->end ? from + span : piece->end;
            const Term *terms = expanded(batch, tensor, &room, from, to - from);
            for (int64_t at = from; at < to; at += BLOCK) {
                const int count = to - at < BLOCK ? (int)(to - at) : BLOCK;
                norm += *norms++ = merge_block(batch, tensor, terms, room.blocks, at, count);
            }
        }
        piece->norm = norm;
    }
    free_room(&room);
    return 0;
}

INLINE double norm_of(const float *restrict values, int count) {
    double lanes[LANES] = {0};
    int i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int lane = 0; lane < LANES; lane++) lanes[lane] += fabsf(values[i + lane]);
    for (; i < count; i++) lanes[0] += fabsf(values[i]);
    double sum = 0.0;
    for (int lane = 0; lane < LANES; lane++) sum += lanes[lane];
    return sum;
}

/* Of tensors of one term each, whose factor is 1: the L1 norm of what the term keeps of a piece, into its `norm`, and
   that of the whole piece, into the first of its `norms`. Threads share `next`, as above. */
CLONED int measure_pieces(const Batch *batch, int64_t *next) {
    const Range none = {0x80000000u, 0};
    Room room;
    if (make_room(batch, &room)) return 1;
    float *origin = room.blocks, *part = room.blocks + BLOCK;
    for (;;) {
        int64_t mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (mine >= batch->piece_count) break;
        Piece *piece = batch->pieces + mine;
        const Tensor *tensor = batch->tensors + piece->tensor;
        const int64_t span = tensor->factored ? room.span : PIECE;
        double norms[] = {0.0, 0.0};
        for (int64_t from = piece->start; from < piece->end; from += span) {
            const int64_t to = from + span < piece->end ? from + span : piece->end;
            const Term *term = expanded(batch, tensor, &room, from, to - from);
            Term whole = *term;
            whole.mode = ALL;
            const Term *measured[] = {term, &whole};
            for (int64_t at = from; at < to; at += BLOCK) {
                const int count = to - at < BLOCK ? (int)(to - at) : BLOCK;
                read_floats(tensor->base, origin, at, count, tensor->base_dtype);
                for (int i = 0; i < 2; i++) {
                    weigh(measured[i], origin, part, at, count, none, none);
                    norms[i] += norm_of(part, count);
                }
            }
        }
        piece->norm = norms[0];
        batch->norms[mine * BLOCKS] = norms[1];
    }
    free_room(&room);
    return 0;
}

/* The key at a place, counted from the largest (1); the keys are put into another order. */
static int64_t select_key(int64_t *keys, int64_t count, int64_t place) {
    int64_t first = 0, last = count - 1, wanted = place - 1;
    while (first < last) {
        const int64_t pivot = keys[first + (last - first) / 2];
        int64_t i = first, j = last;
        while (i <= j) {
            while (keys[i] > pivot) i++;
            while (keys[j] < pivot) j--;
            if (i > j) break;
            const int64_t held = keys[i];
            keys[i++] = keys[j];
            keys[j--] = held;
        }
        if (wanted <= j) last = j;
        else if (wanted >= i) first = i;
        else break;
    }
    return keys[wanted];
}

/* Make a term's rank exact. The norms of blocks that were merged by another are set to -1. Returns 0, or 1 where
   the entries inside are not those that were counted. */
static int settle(const Batch *batch, const Tensor *tensor, int32_t *number, float *value, int64_t *position) {
    if (*number < 0) return 0;
    const Bracket *bracket = batch->brackets + *number;
    if (bracket->found != bracket->inside) return 1;
    int64_t *keys = batch->keys + bracket->first;
    const int64_t guess = key_of(to_bits(*value), *position);
    const int64_t exact = select_key(keys, bracket->inside, bracket->wanted);
    for (int64_t i = 0; i < bracket->inside; i++)
        if ((keys[i] >= guess) != (keys[i] >= exact))
            batch->norms[tensor->first_piece * BLOCKS + position_of(keys[i]) / BLOCK] = -1.0;
    *value = from_bits(bits_of(exact));
    *position = position_of(exact);
    *number = -1;
    return 0;
}

/* Make the ranks of all tensors exact, once their pieces are merged. Threads share `next`. Returns 0, or 1 when there
   was no memory, or 2 when a task vector is not the one that was counted. */
CLONED int settle_tensors(const Batch *batch, int64_t *next) {
    Room room;
    if (make_room(batch, &room)) return 1;
    int changed = 0;
    for (;;) {
        int64_t mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (mine >= batch->tensor_count) break;
        const Tensor *tensor = batch->tensors + mine;
        if (!tensor->bracketed) continue;
        for (int m = 0; m < tensor->terms; m++) {
            Term *term = batch->terms + tensor->first_term + m;
            changed |= settle(batch, tensor, &term->least_bracket, &term->least_value, &term->least_position);
            changed |= settle(batch, tensor, &term->above_bracket, &term->above_value, &term->above_position);
        }
        double *norms = batch->norms + tensor->first_piece * BLOCKS;
        Piece *piece = batch->pieces + tensor->first_piece;
        for (int64_t at = 0; at < tensor->size; piece++) {
            piece->norm = 0.0;
            for (; at < piece->end; at += BLOCK, norms++) {
                const int count = piece->end - at < BLOCK ? (int)(piece->end - at) : BLOCK;
                if (*norms < 0.0) {
                    const Term *terms = expanded(batch, tensor, &room, at, count);
                    *norms = merge_block(batch, tensor, terms, room.blocks, at, count);
                }
                piece->norm += *norms;
            }
        }
    }
    free_room(&room);
    return changed ? 2 : 0;
}

/* Count a task vector's entries between splitters. Threads share `next`, as above. */
CLONED int count_entries(const Counting *counting, int64_t *next) {
    const int64_t *splitters = counting->splitters;
    const int number = counting->number;
    const uint32_t low = bits_of(splitters[0]) >> FINENESS, high = bits_of(splitters[number - 1]) >> FINENESS;
    /* Splitters between sentinels, how many have smaller leading bits than an entry, and what was found for an entry of
       these bits last: of many equal entries the next is most often in the same place. */
    int64_t *ends = malloc(sizeof *ends * (size_t)(number + 1 + FEW));
    uint16_t *before = malloc(sizeof *before * (high - low + 2)), *last = malloc(sizeof *last * (high - low + 1));
    int64_t *counts = calloc((size_t)number + 1, sizeof *counts);
    float *made = counting->entries == NULL ? malloc(sizeof *made * PIECE) : NULL;
    const int failed = ends == NULL || before == NULL || last == NULL || counts == NULL ||
                       (counting->entries == NULL && made == NULL);
    if (failed) goto done;
    ends[0] = INT64_MIN;
    memcpy(ends + 1, splitters, sizeof *ends * (size_t)number);
    for (int i = 0; i < FEW; i++) ends[number + 1 + i] = INT64_MAX;
    for (uint32_t bin = low, seen = 0; bin <= high + 1; bin++) {
        while (seen < (uint32_t)number && bits_of(splitters[seen]) >> FINENESS < bin) seen++;
        before[bin - low] = (uint16_t)seen;
        if (bin <= high) last[bin - low] = (uint16_t)seen;
    }
    float origin[BLOCK], delta[BLOCK];
    uint32_t bits[BLOCK];
    for (;;) {
        const int64_t start = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED) * PIECE;
        if (start >= counting->size) break;
        const int64_t end = start + PIECE < counting->size ? start + PIECE : counting->size;
        const void *entries = counting->entries;
        if (made != NULL) {
            expand(&counting->factors, made, start, end - start);
            entries = (const void *)((uintptr_t)made - sizeof(float) * (uintptr_t)start);
        }
        for (int64_t at = start; at < end; at += BLOCK) {
            const int count = end - at < BLOCK ? (int)(end - at) : BLOCK;
            if (!counting->is_delta) read_floats(counting->base, origin, at, count, counting->base_dtype);
            magnitudes(entries, counting->dtype, counting->is_delta, origin, delta, bits, at, count);
            for (int i = 0; i < count; i++) {
                uint32_t bin = bits[i] >> FINENESS;
                const int64_t key = key_of(bits[i], at + i);
                bin = bin < low ? low : bin > high ? high : bin;
                int first = before[bin - low], after = before[bin - low + 1];
                if (after - first <= FEW) {
                    int smaller = 0;
                    for (int j = 1; j <= FEW; j++) smaller += ends[first + j] <= key;
                    counts[first + smaller]++;
                    continue;
                }
                const int known = last[bin - low];
                if (ends[known] <= key && key < ends[known + 1]) {
                    counts[known]++;
                    continue;
                }
                while (first < after) {
                    const int middle = (first + after) / 2;
                    if (splitters[middle] <= key) first = middle + 1;
                    else after = middle;
                }
                last[bin - low] = (uint16_t)first;
                counts[first]++;
            }
        }
    }
    for (int i = 0; i <= number; i++) __atomic_fetch_add(counting->counts + i, counts[i], __ATOMIC_RELAXED);
done:
    free(ends);
    free(before);
    free(last);
    free(counts);
    free(made);
    return failed;
}

/* The task vector that is a product of factors. Threads share `next`, as above. */
CLONED int expand_factors(const Expansion *expansion, int64_t *next) {
    for (;;) {
        const int64_t start = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED) * PIECE;
        if (start >= expansion->size) return 0;
        const int64_t left = expansion->size - start;
        expand(&expansion->factors, expansion->out + start, start, left < PIECE ? left : PIECE);
    }
}
