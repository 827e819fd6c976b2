/* The task-vector family as one pass over memory: every expert is read once, the merge is written once.

   The operations on an entry, and their order, are those of `fuse` in task_vectors.py; compiled without
   contraction of multiplications and additions they give its results bit for bit. Entries are taken in blocks
   whose intermediate values stay in the first-level cache, so that no combination of methods, dtypes and number of
   experts needs a kernel of its own. The layout of the structures is repeated in fused.py. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { FLOAT32, BFLOAT16, FLOAT16 };
enum { ALL, LARGEST, WINDOW, RANDOM, RANKED };
enum { BLOCK = 512, LANES = 16 };

typedef struct {
    const void *entries;   /* the expert's entries, or its task vector where is_delta */
    const void *row_ranks; /* RANKED: int16 or int32 (rank_bytes) per entry */
    int64_t least_position, above_position;
    int32_t dtype, is_delta, mode, rank_bytes;
    float factor, weight, least_value, above_value, start, slope;
    int32_t key_1, key_2, threshold, unused;
} Term;

typedef struct {
    const void *base;
    void *out;
    int32_t base_dtype, out_dtype, first_term, terms, consensus, normalize;
    float scale, divisor;
    int32_t kept_dtype, unused; /* a float32 `out` gets the digits that this dtype has */
} Tensor;

typedef struct {
    int64_t tensor, start, end;
    double norm; /* result: L1 norm of what was added to the base */
} Piece;

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

/* random_levels of masks.py */
INLINE int32_t random_level(int32_t index, int32_t key_1, int32_t key_2) {
    uint32_t mixed = (uint32_t)(index ^ key_1);
    mixed ^= mixed >> 16;
    mixed *= 0x7FEB352Du;
    mixed ^= mixed >> 15;
    mixed = (mixed ^ (uint32_t)key_2) * 0x846CA68Bu;
    return (int32_t)(mixed >> 16);
}

INLINE int32_t within(int64_t position, int64_t start, int32_t count) {
    int64_t local = position - start;
    return local < -1 ? -1 : local > count ? count : (int32_t)local;
}

/* part = factor * sparsified task vector for entries from..to of a block that begins at entry `at`. */
INLINE void weigh_stretch(const Term *term, const float *restrict origin, float *restrict part, int64_t at, int from,
                          int to, int dtype, int is_delta, int mode, int equal_kept) {
    const float factor = term->factor, least = term->least_value, above = term->above_value;
    const float start = term->start, slope = term->slope;
    const int32_t key_1 = term->key_1, key_2 = term->key_2, threshold = term->threshold;
    const int32_t least_at = within(term->least_position, at, BLOCK), above_at = within(term->above_position, at, BLOCK);
    const int16_t *short_ranks = term->row_ranks;
    const int32_t *long_ranks = term->row_ranks;
    const int short_rank = term->rank_bytes == 2;
    for (int i = from; i < to; i++) {
        float delta = entry_at(term->entries, dtype, at + i);
        if (!is_delta) delta -= origin[i];
        int keep = 1;
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
}

INLINE void weigh_mode(const Term *term, const float *restrict origin, float *restrict part, int64_t at, int count,
                       int dtype, int is_delta) {
    switch (term->mode) {
    case ALL: weigh_stretch(term, origin, part, at, 0, count, dtype, is_delta, ALL, 0); break;
    case LARGEST: {
        /* Of equal magnitudes the first are kept: one comparison up to the last that is kept, another after it. */
        int32_t last = within(term->least_position, at, count) + 1;
        int kept = last < count ? last : count;
        weigh_stretch(term, origin, part, at, 0, kept, dtype, is_delta, LARGEST, 1);
        weigh_stretch(term, origin, part, at, kept, count, dtype, is_delta, LARGEST, 0);
        break;
    }
    case WINDOW: weigh_stretch(term, origin, part, at, 0, count, dtype, is_delta, WINDOW, 0); break;
    case RANDOM: weigh_stretch(term, origin, part, at, 0, count, dtype, is_delta, RANDOM, 0); break;
    default: weigh_stretch(term, origin, part, at, 0, count, dtype, is_delta, RANKED, 0);
    }
}

static void weigh(const Term *term, const float *restrict origin, float *restrict part, int64_t at, int count) {
    switch (term->dtype * 2 + term->is_delta) {
    case FLOAT32 * 2: weigh_mode(term, origin, part, at, count, FLOAT32, 0); break;
    case FLOAT32 * 2 + 1: weigh_mode(term, origin, part, at, count, FLOAT32, 1); break;
    case BFLOAT16 * 2: weigh_mode(term, origin, part, at, count, BFLOAT16, 0); break;
    case BFLOAT16 * 2 + 1: weigh_mode(term, origin, part, at, count, BFLOAT16, 1); break;
    case FLOAT16 * 2: weigh_mode(term, origin, part, at, count, FLOAT16, 0); break;
    default: weigh_mode(term, origin, part, at, count, FLOAT16, 1);
    }
}

/* total = sum of the parts; then, with consensus, of those alone whose sign is that sum's (zero counts as positive),
   over the sum of their weights where `normalize`. `divisor` is scratch. */
static void mix(const Tensor *tensor, const Term *terms, const float *restrict parts, float *restrict total,
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
static double sum_of(const float *restrict values, int count) {
    float lanes[LANES] = {0};
    int i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int lane = 0; lane < LANES; lane++) lanes[lane] += values[i + lane];
    double sum = 0.0;
    for (; i < count; i++) sum += values[i];
    for (int lane = 0; lane < LANES; lane++) sum += lanes[lane];
    return sum;
}

INLINE void read_base(const Tensor *tensor, float *restrict origin, int64_t at, int count, int dtype) {
    for (int i = 0; i < count; i++) origin[i] = entry_at(tensor->base, dtype, at + i);
}

static double merge_block(const Tensor *tensor, const Term *terms, float *restrict buffers, int64_t at, int count) {
    float *origin = buffers, *total = buffers + BLOCK, *sum = buffers + 2 * BLOCK, *divisor = buffers + 3 * BLOCK;
    float *parts = buffers + 4 * BLOCK;
    switch (tensor->base_dtype) {
    case FLOAT32: read_base(tensor, origin, at, count, FLOAT32); break;
    case BFLOAT16: read_base(tensor, origin, at, count, BFLOAT16); break;
    default: read_base(tensor, origin, at, count, FLOAT16);
    }
    for (int m = 0; m < tensor->terms; m++) weigh(terms + m, origin, parts + m * BLOCK, at, count);
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

/* Merge pieces until none is left. Threads share `next`, the first piece that nobody took. Returns 0, or 1 when
   there was no memory. */
int merge_pieces(const Tensor *tensors, const Term *terms, Piece *pieces, int64_t count, int64_t most_terms,
                 int64_t *next) {
    float *buffers = aligned_alloc(64, sizeof(float) * BLOCK * (size_t)(4 + most_terms));
    if (buffers == NULL) return 1;
    for (;;) {
        int64_t mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        if (mine >= count) break;
        Piece *piece = pieces + mine;
        const Tensor *tensor = tensors + piece->tensor;
        double norm = 0.0;
        for (int64_t at = piece->start; at < piece->end; at += BLOCK) {
            int64_t left = piece->end - at;
            norm += merge_block(tensor, terms + tensor->first_term, buffers, at, left < BLOCK ? (int)left : BLOCK);
        }
        piece->norm = norm;
    }
    free(buffers);
    return 0;
}
