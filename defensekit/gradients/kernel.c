/* S += sum over samples of (g_n^T x_n)^2, without a per-sample product ever reaching memory.

   Rows are tokens. A tile of the product stays in registers while the rows of one sample are summed, is squared, and
   added to a tile of S that stays in the first-level cache while all samples pass, as does a sample's panel of inputs
   while all tiles beside each other pass over it. A tile of S belongs to one thread and its samples come in order: the
   result does not depend on the number of threads. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Lanes of a vector, vectors of inputs and outputs of a tile: as many as the registers hold, less what a step needs. */
#if defined(__AVX512F__)
enum { LANES = 16, VECTORS = 3, OUTPUTS = 8 };
#elif defined(__AVX2__)
enum { LANES = 8, VECTORS = 2, OUTPUTS = 6 };
#else
enum { LANES = 4, VECTORS = 2, OUTPUTS = 4 };
#endif
enum { INPUTS = LANES * VECTORS };
/* Rows packed at a time: a panel of inputs stays in the second-level cache. */
enum { CHUNK = 2048 };
/* Rows copied at a time, so that they are read once. */
enum { BLOCK = 8 };
/* Tiles of outputs that make one piece of work for a thread; with a sample's inputs they fill the first-level cache. */
enum { GROUP = 16 };

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Columns summed at a time, by one thread. */
enum { SLAB = 64 };

/* Memory for so many numbers, at the beginning of a cache line: a vector across two of them is read twice. */
static float *lines(int64_t many) { return aligned_alloc(64, (many * sizeof(float) + 63) / 64 * 64); }

/* Panel p holds the columns p * width to (p + 1) * width of the indexed rows, one row after the other; zeros beyond.
   It has room for an odd number of rows: panels a power of two apart would fight for the same lines of the cache. */
static inline void pack(const float *from, const int64_t *index, float *to, int64_t rows, int64_t room, int64_t columns,
                        const int64_t width) {
    int64_t whole = columns / width, rest = columns % width;
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < rows; block += BLOCK) {
        int64_t last = block + BLOCK < rows ? block + BLOCK : rows;
        for (int64_t p = 0; p < whole; p++)
            for (int64_t t = block; t < last; t++)
                memcpy(to + (p * room + t) * width, from + index[t] * columns + p * width, width * sizeof(float));
        if (rest)
            for (int64_t t = block; t < last; t++) {
                float *row = to + (whole * room + t) * width;
                memset(row, 0, width * sizeof(float));
                memcpy(row, from + index[t] * columns + whole * width, rest * sizeof(float));
            }
    }
}

/* One sample's product of OUTPUTS rows of g and INPUTS of x, squared and added. */
static inline void tile(const float *g, const float *x, int64_t rows, vector *sum, vector *norm) {
    vector product[OUTPUTS][VECTORS] = {0}, squares[VECTORS] = {0};
    for (int64_t t = 0; t < rows; t++) {
        vector inputs[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) inputs[v] = *(const vector *)(x + t * INPUTS + v * LANES);
#pragma GCC unroll 8
        for (int o = 0; o < OUTPUTS; o++) {
            vector gradient = g[t * OUTPUTS + o] - (vector){0};
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) product[o][v] += gradient * inputs[v];
        }
    }
#pragma GCC unroll 8
    for (int o = 0; o < OUTPUTS; o++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            sum[o * VECTORS + v] += product[o][v] * product[o][v];
            squares[v] += product[o][v] * product[o][v];
        }
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) *norm += squares[v];
}

static int chunk(const float *g, const float *x, const int64_t *index, const int64_t *offsets, int64_t samples,
                 int64_t outputs, int64_t inputs, float *sums, double *norms) {
    int64_t rows = offsets[samples] - offsets[0], room = rows + 1 + rows % 2;
    if (rows == 0) return 0;
    int64_t tiles = (outputs + OUTPUTS - 1) / OUTPUTS, panels = (inputs + INPUTS - 1) / INPUTS;
    int64_t groups = (tiles + GROUP - 1) / GROUP;
    float *gs = lines(room * tiles * OUTPUTS), *xs = lines(room * panels * INPUTS);
    double *parts = malloc(panels * groups * samples * sizeof(double));
    int failed = !gs || !xs || !parts;
    if (!failed) {
        pack(g, index + offsets[0], gs, rows, room, outputs, OUTPUTS);
        pack(x, index + offsets[0], xs, rows, room, inputs, INPUTS);
#pragma omp parallel for schedule(dynamic) reduction(| : failed)
        for (int64_t work = 0; work < panels * groups; work++) {
            int64_t panel = work / groups, first = work % groups * GROUP;
            int64_t last = first + GROUP < tiles ? first + GROUP : tiles;
            int64_t left = panel * INPUTS, wide = inputs - left < INPUTS ? inputs - left : INPUTS;
            vector *squares = calloc(samples, sizeof(vector));
            if (!squares) {
                failed = 1;
                continue;
            }
            float here[GROUP][OUTPUTS * INPUTS] __attribute__((aligned(64)));
            memset(here, 0, sizeof here);
            for (int64_t o = first; o < last; o++)
                for (int64_t r = 0; r < OUTPUTS && o * OUTPUTS + r < outputs; r++)
                    memcpy(here[o - first] + r * INPUTS, sums + (o * OUTPUTS + r) * inputs + left, wide * sizeof(float));
            for (int64_t n = 0; n < samples; n++) {
                int64_t begin = offsets[n] - offsets[0], many = offsets[n + 1] - offsets[n];
                for (int64_t o = first; o < last; o++)
                    tile(gs + (o * room + begin) * OUTPUTS, xs + (panel * room + begin) * INPUTS, many, (vector *)here[o - first], squares + n);
            }
            for (int64_t o = first; o < last; o++)
                for (int64_t r = 0; r < OUTPUTS && o * OUTPUTS + r < outputs; r++)
                    memcpy(sums + (o * OUTPUTS + r) * inputs + left, here[o - first] + r * INPUTS, wide * sizeof(float));
            for (int64_t n = 0; n < samples; n++) {
                double total = 0;
                for (int i = 0; i < LANES; i++) total += squares[n][i];
                parts[work * samples + n] = total;
            }
            free(squares);
        }
        if (!failed)
            for (int64_t work = 0; work < panels * groups; work++)
                for (int64_t n = 0; n < samples; n++) norms[n] += parts[work * samples + n];
    }
    free(gs);
    free(xs);
    free(parts);
    return failed;
}

/* g: (samples, tokens, outputs), x: (samples, tokens, inputs), used: (samples, tokens), which rows count; sums:
   (outputs, inputs), norms: (samples,); all contiguous; sums and norms are added to. Returns 0, or 1 where memory was
   refused. */
int squared_products(const float *g, const float *x, const uint8_t *used, int64_t samples, int64_t tokens,
                     int64_t outputs, int64_t inputs, float *sums, double *norms) {
    /* The rows that count, sample by sample; sample n has its entries offsets[n] to offsets[n + 1]. */
    int64_t *index = malloc((samples * tokens + samples + 1) * sizeof(int64_t)), *offsets = index + samples * tokens;
    int failed = !index;
    if (!failed) {
        int64_t found = 0;
        for (int64_t n = 0; n < samples; n++) {
            offsets[n] = found;
            for (int64_t t = n * tokens; t < (n + 1) * tokens; t++)
                if (used[t]) index[found++] = t;
        }
        offsets[samples] = found;
        for (int64_t first = 0, last; first < samples && !failed; first = last) {
            for (last = first + 1; last < samples && offsets[last + 1] - offsets[first] <= CHUNK;) last++;
            failed = chunk(g, x, index, offsets + first, last - first, outputs, inputs, sums, norms + first);
        }
    }
    free(index);
    return failed;
}

/* S[c] += sum over n of s(n, c)^2 and norms[n] += sum over c of it, where s(n, c) is the sum over t of g[n, t, c], or of
   g[n, t, c] * f[n, t, c] where there is an f; all contiguous. Returns 0, or 1 where memory was refused. */
int squared_sums(const float *g, const float *f, int64_t samples, int64_t tokens, int64_t columns, float *sums,
                 double *norms) {
    int64_t slabs = (columns + SLAB - 1) / SLAB;
    double *parts = calloc(slabs * samples, sizeof(double));
    if (!parts) return 1;
#pragma omp parallel for schedule(static)
    for (int64_t slab = 0; slab < slabs; slab++) {
        int64_t left = slab * SLAB, wide = columns - left < SLAB ? columns - left : SLAB;
        for (int64_t n = 0; n < samples; n++) {
            float sum[SLAB] = {0};
            for (int64_t t = n * tokens; t < (n + 1) * tokens; t++) {
                const float *row = g + t * columns + left, *with = f ? f + t * columns + left : NULL;
                if (with)
                    for (int64_t c = 0; c < wide; c++) sum[c] += row[c] * with[c];
                else
                    for (int64_t c = 0; c < wide; c++) sum[c] += row[c];
            }
            for (int64_t c = 0; c < wide; c++) {
                sums[left + c] += sum[c] * sum[c];
                parts[slab * samples + n] += (double)sum[c] * sum[c];
            }
        }
    }
    for (int64_t slab = 0; slab < slabs; slab++)
        for (int64_t n = 0; n < samples; n++) norms[n] += parts[slab * samples + n];
    free(parts);
    return 0;
}

/* Which rows hold anything but 0; a row is left at the first entry that does. */
void used_rows(const float *g, int64_t rows, int64_t columns, uint8_t *used) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < rows; t++) {
        int64_t i = 0;
        while (i < columns && g[t * columns + i] == 0) i++;
        used[t] = i < columns;
    }
}
