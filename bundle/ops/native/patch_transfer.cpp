// Transfer of the value patches that a patch search has found, divided by how many overlap:
//
//   out(p) = factor(p) sum_s value[index(p - s) + s]     factor = score(p) or 1, over the number of s with p - s inside
//
// over the nine offsets s of a 3x3 patch: unfold, gather and fold without the nine-fold copy. Pixels may be blocks as in
// patch_search.cpp; the maps are read and written in the order of their own pixels.

#include <cstdint>

#include "pool.h"
#include "simd.h"

struct IconetPatchTransfer {
    const float* value;    // (B, H, W, C); pixels are value_step floats apart
    const int64_t* index;  // (B, rows, columns) of blocks
    const float* score;    // the same
    float* out;            // (B, rows first to last in pixels, W, C)
    int64_t batch, height, width, channels, value_step;
    int64_t stride;       // side of a block
    int64_t first, last;  // rows of blocks; the index is read one row beyond them
    int64_t weighted;     // multiply by the score
};

namespace {

using namespace iconet;

// Sum of `count` vectors of channels times a factor.
void add_up(const float* const* sources, int count, int64_t channels, float factor, float* out) {
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
        vf sum = splat(0.0f);
        for (int i = 0; i < count; ++i) sum += load(sources[i] + c);
        store(out + c, sum * splat(factor));
    }
    if (c == channels) return;
    vf sum = splat(0.0f);
    for (int i = 0; i < count; ++i) sum += load_part(sources[i] + c, channels - c);
    store_part(out + c, sum * splat(factor), channels - c);
}

void transfer_row(const IconetPatchTransfer& p, int64_t rows, int64_t columns, int64_t image, int64_t y) {
    const int64_t* index = p.index + image * rows * columns;
    const float* value = p.value + image * p.height * p.width * p.value_step;
    const int64_t top = p.first * p.stride;
    const int64_t bottom = p.last * p.stride < p.height ? p.last * p.stride : p.height;
    float* out = p.out + image * (bottom - top) * p.width * p.channels;
    for (int64_t x = 0; x < columns; ++x) {
        int64_t source_y[9], source_x[9];
        int count = 0, overlap = 0;
        for (int64_t dy = -1; dy <= 1; ++dy)
            for (int64_t dx = -1; dx <= 1; ++dx) {
                if (y - dy < 0 || y - dy >= rows || x - dx < 0 || x - dx >= columns) continue;
                ++overlap;
                const int64_t match = index[(y - dy) * columns + x - dx];
                const int64_t sy = match / columns + dy, sx = match % columns + dx;
                if (sy < 0 || sy >= rows || sx < 0 || sx >= columns) continue;
                source_y[count] = sy, source_x[count++] = sx;
            }
        const float score = p.weighted ? p.score[(image * rows + y) * columns + x] : 1.0f;
        for (int64_t py = y * p.stride; py < (y + 1) * p.stride && py < p.height; ++py)
            for (int64_t px = x * p.stride; px < (x + 1) * p.stride && px < p.width; ++px) {
                const float* sources[9];
                for (int i = 0; i < count; ++i) {  // a block that is not full repeats the last row and column
                    const int64_t at_y = source_y[i] * p.stride + py - y * p.stride;
                    const int64_t at_x = source_x[i] * p.stride + px - x * p.stride;
                    const int64_t line = at_y < p.height ? at_y : p.height - 1;
                    sources[i] = value + (line * p.width + (at_x < p.width ? at_x : p.width - 1)) * p.value_step;
                }
                float* to = out + ((py - top) * p.width + px) * p.channels;
                add_up(sources, count, p.channels, score / float(overlap), to);
            }
    }
}

}  // namespace

extern "C" int iconet_patch_transfer(IconetPatchTransfer* p, int64_t threads) {
    const int64_t rows = (p->height + p->stride - 1) / p->stride, columns = (p->width + p->stride - 1) / p->stride;
    const int64_t wanted = p->last - p->first;
    return status_of([&] {
        return share(threads, p->batch * wanted, [&](Tasks& tasks) {
            for (int64_t i; (i = tasks.next()) >= 0;) transfer_row(*p, rows, columns, i / wanted, p->first + i % wanted);
            return true;
        });
    });
}
