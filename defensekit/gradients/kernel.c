/* S += sum over samples of (g_n^T x_n)^2, without a per-sample product ever reaching memory.

   Rows are tokens. ``index`` names those that are used, sample by sample; sample n has its entries offsets[n] to
   offsets[n + 1]. A tile of the product stays in registers while the rows of one sample are summed, is squared, and added to a tile of S that
   stays in the first-level cache while all samples pass. A tile of S belongs to one thread and its samples come in
   order: the result does not depend on the number of threads. */

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
/* Tiles of outputs that make one piece of work for a thread. */
enum { GROUP = 16 };

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Panel p holds the columns p * width to (p + 1) * width of the indexed rows, one row after the other; zeros beyond. */
static inline void pack(const float *from, const int64_t *index, float *to, int64_t rows, int64_t columns,
                        const int64_t width) {
    int64_t whole = columns / width, rest = columns % width;
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < rows; block += BLOCK) {
        int64_t last = block + BLOCK < rows ? block + BLOCK : rows;
        for (int64_t p = 0; p < whole; p++)
            for (int64_t t = block; t < last; t++)
                memcpy(to + (p * rows + t) * width, from + index[t] * columns + p * width, width * sizeof(float));
        if (rest)
            for (int64_t t = block; t < last; t++) {
                float *row = to + (whole * rows + t) * width;
                memset(row, 0, width * sizeof(float));
                memcpy(row, from + index[t] * columns + whole * width, rest * sizeof(float));
            }
    }
}

static void tile(const float *g, const float *x, const int64_t *offsets, int64_t samples, vector *sum, vector *norms) {
    int64_t start = offsets[0];
    for (int64_t n = 0; n < samples; n++) {
        vector product[OUTPUTS][VECTORS] = {0}, squares[VECTORS] = {0};
        for (int64_t t = offsets[n] - start; t < offsets[n + 1] - start; t++) {
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
        for (int v = 0; v < VECTORS; v++) norms[n] += squares[v];
    }
}

static int chunk(const float *g, const float *x, const int64_t *index, const int64_t *offsets, int64_t samples,
                 int64_t outputs, int64_t inputs, float *sums, double *norms) {
    int64_t rows = offsets[samples] - offsets[0];
    if (rows == 0) return 0;
    int64_t tiles = (outputs + OUTPUTS - 1) / OUTPUTS, panels = (inputs + INPUTS - 1) / INPUTS;
    int64_t groups = (tiles + GROUP - 1) / GROUP;
    float *gs = malloc(rows * tiles * OUTPUTS * sizeof(float)), *xs = malloc(rows * panels * INPUTS * sizeof(float));
    double *parts = malloc(panels * groups * samples * sizeof(double));
    int failed = !gs || !xs || !parts;
    if (!failed) {
        pack(g, index + offsets[0], gs, rows, outputs, OUTPUTS);
        pack(x, index + offsets[0], xs, rows, inputs, INPUTS);
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
            for (int64_t o = first; o < last; o++) {
                float here[OUTPUTS * INPUTS] __attribute__((aligned(64))) = {0};
                int64_t top = o * OUTPUTS, high = outputs - top < OUTPUTS ? outputs - top : OUTPUTS;
                for (int64_t r = 0; r < high; r++)
                    memcpy(here + r * INPUTS, sums + (top + r) * inputs + left, wide * sizeof(float));
                tile(gs + o * rows * OUTPUTS, xs + panel * rows * INPUTS, offsets, samples, (vector *)here, squares);
                for (int64_t r = 0; r < high; r++)
                    memcpy(sums + (top + r) * inputs + left, here + r * INPUTS, wide * sizeof(float));
            }
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

/* g: (all rows, outputs), x: (all rows, inputs), sums: (outputs, inputs), norms: (samples,), all contiguous; sums and
   norms are added to. Returns 0, or 1 where memory was refused. */
int squared_products(const float *g, const float *x, const int64_t *index, const int64_t *offsets, int64_t samples,
                     int64_t outputs, int64_t inputs, float *sums, double *norms) {
    for (int64_t first = 0, last; first < samples; first = last) {
        for (last = first + 1; last < samples && offsets[last + 1] - offsets[first] <= CHUNK;) last++;
        if (chunk(g, x, index, offsets + first, last - first, outputs, inputs, sums, norms + first)) return 1;
    }
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
