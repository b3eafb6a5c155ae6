// Products of a few rows with weights of 8 or 4 bits as one operation of an OpenVINO graph, for processors that multiply
// bytes (AVX-512 VNNI).
//
// Weights are packed (packing.py) in tiles of 16 outputs, which are read once, in order, for up to 8 rows at a time:
// a product of that many takes as long as memory gives the weights. Activations become 8-bit integers in groups of 32,
// as those of llama.cpp and OpenVINO. Sums within a group are of integers, and groups are added in their order, so that a
// row's bits do not depend on what is beside it.

#pragma once

#include <algorithm>
#include <cmath>
#include <memory>

#include "common.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

namespace dynatree {

// Inputs of a group, outputs of a tile, and rows that read a tile together.
constexpr int GROUP = 32, OUTPUTS = 16, TOGETHER = 8;
// A group of a tile: codes, and in 4 bits scales and least values in float16; in 8 bits a tile ends with its scales.
constexpr int64_t FOUR_BITS = OUTPUTS * GROUP / 2 + 2 * OUTPUTS * 2, EIGHT_BITS = OUTPUTS * GROUP, SCALES = OUTPUTS * 4;
// Bytes that are asked for in advance: the processor by itself stops to, where many rows make a group long.
constexpr int64_t AHEAD = 5120;
// Groups of tiles and rows that are worth two threads.
constexpr int64_t WORTH_TWO = 128;
// Rows that are worth two threads where each has little to do.
constexpr int64_t SEVERAL = 12;

// Packed weights (packing.py), and what is added to their products: of each row `step` floats further on.
struct Weights {
    const uint8_t* packed;
    int64_t outputs, bits;
    const float* beside = nullptr;
    int64_t step = 0;

    int64_t tiles() const {
        return (outputs + OUTPUTS - 1) / OUTPUTS;
    }
    // Bytes of a tile of so many groups.
    int64_t tile(int64_t groups) const {
        return bits == 4 ? groups * FOUR_BITS : groups * EIGHT_BITS + SCALES;
    }
};

// A group of a row of activations: bytes, four together; their scale, the sum of its values, and -128 times the sum of its
// bytes, as weights of 8 bits are held with 128 added.
struct Activations {
    int32_t four[GROUP / 4];
    float scale, sum;
    int32_t offset;
};

// Rows of activations, [groups, n]: those that a product reads together side by side, at distances that are known.
struct Rows {
    int64_t count, groups;
    Activations* held;

    Activations& at(int64_t row, int64_t group) const {
        return held[group * count + row];
    }
};

// A row's groups from `first` to `last`, of which `from` gives the values, halves of a group.
template <typename From>
void quantise(int64_t row, int64_t first, int64_t last, const Rows& to, const From& from) {
    for (int64_t group = first; group < last; ++group) {
        Activations& found = to.at(row, group);
        const __m512 low = (__m512)from(group * GROUP), high = (__m512)from(group * GROUP + LANES);
        const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
        const __m512 factor = _mm512_set1_ps(most > 0.0f ? 127.0f / most : 0.0f);
        const __m512i begin = _mm512_cvtps_epi32(_mm512_mul_ps(low, factor));
        const __m512i end = _mm512_cvtps_epi32(_mm512_mul_ps(high, factor));
        __m128i* bytes = reinterpret_cast<__m128i*>(found.four);
        _mm_storeu_si128(bytes, _mm512_cvtsepi32_epi8(begin));
        _mm_storeu_si128(bytes + 1, _mm512_cvtsepi32_epi8(end));
        const int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(begin, end));
        found.scale = most / 127.0f;
        found.sum = found.scale * static_cast<float>(sum);
        found.offset = -128 * sum;
    }
}

// Rows x [n, inputs], of root mean square 1 with `norm` [inputs] (or none), as they are multiplied.
void quantise_rows(Team& team, const float* x, const float* norm, float eps, const Rows& to) {
    const int64_t size = to.groups * GROUP;
    team.share(to.count, to.count >= SEVERAL, [&](int64_t row) {
        const float* of = x + row * size;
        if (norm == nullptr) {
            quantise(row, 0, to.groups, to, [&](int64_t at) { return load(of + at); });
            return;
        }
        Vec squares[2] = {};
        for (int64_t at = 0; at < size; at += GROUP)
            for (int half = 0; half < 2; ++half) {
                const Vec part = load(of + at + half * LANES);
                squares[half] = fma(part, part, squares[half]);
            }
        const float sum = joined(squares[0] + squares[1], [](float x, float y) { return x + y; });
        const Vec factor = all(1.0f / std::sqrt(sum / static_cast<float>(size) + eps));
        quantise(row, 0, to.groups, to, [&](int64_t at) { return load(of + at) * factor * load(norm + at); });
    });
}

// Memory of so many rows, kept from call to call.
class Quantised {
public:
    Quantised(int64_t count, int64_t inputs)
        : m_count(count),
          m_held(count * inputs / GROUP) {}

    // For rows of so many values, `behind` so many others of each.
    Rows rows(int64_t inputs, int64_t behind = 0) {
        return {m_count, inputs / GROUP, m_held.data() + m_count * behind / GROUP};
    }

private:
    int64_t m_count;
    Kept<Activations> m_held;
};

// What a thread reads, one after the other: up to an end, and then from elsewhere on, if it is known.
struct Course {
    const uint8_t *end, *next;

    // What is read so many bytes behind `from`.
    const uint8_t* behind(const uint8_t* from, int64_t bytes) const {
        const int64_t over = bytes - (end - from);
        return over < 0 ? from + bytes : next ? next + over : from;
    }
};

// The weights of a group, a byte each: of 16 outputs four inputs in each vector. If they are read but `once`, those ahead
// are asked for past the caches, which have other things to hold.
template <bool FOUR>
void unpack(const uint8_t* from, const Course& course, bool once, __m512i* codes) {
    const char* ahead = reinterpret_cast<const char*>(course.behind(from, AHEAD));
    for (int64_t line = 0; line < (FOUR ? FOUR_BITS : EIGHT_BITS); line += 64)
        if (once)
            _mm_prefetch(ahead + line, _MM_HINT_NTA);
        else
            _mm_prefetch(ahead + line, _MM_HINT_T0);
    if constexpr (FOUR) {
        const __m512i low = _mm512_set1_epi8(15);
        for (int place = 0; place < 4; ++place) {
            const __m512i both = _mm512_load_si512(from + 64 * place);
            codes[2 * place] = _mm512_and_si512(both, low);
            codes[2 * place + 1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
        }
    } else {
        for (int place = 0; place < 8; ++place)
            codes[place] = _mm512_load_si512(from + 64 * place);
    }
}

__m512 halves(const uint8_t* from) {
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(from)));
}

// N rows from `first` on by one tile.
template <bool FOUR, int N>
void multiply(const uint8_t* tile, const Course& course, const Rows& rows, int64_t first, float* out, const Weights& by,
              int64_t output) {
    __m512 sums[N];
    for (int n = 0; n < N; ++n)
        sums[n] = _mm512_setzero_ps();
    for (int64_t group = 0; group < rows.groups; ++group, tile += FOUR ? FOUR_BITS : EIGHT_BITS) {
        __m512i codes[8];
        unpack<FOUR>(tile, course, rows.count <= TOGETHER, codes);
        __m512 scale, least;
        if constexpr (FOUR) {
            scale = halves(tile + OUTPUTS * GROUP / 2);
            least = halves(tile + OUTPUTS * GROUP / 2 + OUTPUTS * 2);
        }
        for (int n = 0; n < N; ++n) {
            // Its numbers are broadcast where they are: out of general registers that took longer than the products.
            const Activations& of = (&rows.at(first, group))[n];
            // Two sums: one by itself would wait for its own products.
            __m512i even = FOUR ? _mm512_setzero_si512() : _mm512_set1_epi32(of.offset);
            __m512i odd = _mm512_setzero_si512();
            for (int place = 0; place < 8; place += 2) {
                even = _mm512_dpbusd_epi32(even, codes[place], _mm512_set1_epi32(of.four[place]));
                odd = _mm512_dpbusd_epi32(odd, codes[place + 1], _mm512_set1_epi32(of.four[place + 1]));
            }
            const __m512 product = _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd)), by_row = _mm512_set1_ps(of.scale);
            sums[n] = _mm512_fmadd_ps(product, FOUR ? _mm512_mul_ps(scale, by_row) : by_row, sums[n]);
            if constexpr (FOUR)
                sums[n] = _mm512_fmadd_ps(least, _mm512_set1_ps(of.sum), sums[n]);
        }
    }
    const int64_t left = std::min<int64_t>(OUTPUTS, by.outputs - output);
    const __mmask16 kept = static_cast<__mmask16>((1u << left) - 1);
    for (int n = 0; n < N; ++n) {
        if constexpr (!FOUR)
            sums[n] = _mm512_mul_ps(sums[n], _mm512_load_ps(tile));
        if (by.beside)
            sums[n] = _mm512_add_ps(sums[n], _mm512_maskz_loadu_ps(kept, by.beside + (first + n) * by.step + output));
        _mm512_mask_storeu_ps(out + (first + n) * by.outputs + output, kept, sums[n]);
    }
}

// All rows by the tiles from `first` to `last`, behind which what is at `next` is read, if it is known.
template <bool FOUR>
void multiply(const Weights& by, const Rows& rows, int64_t first, int64_t last, const uint8_t* next, float* out) {
    const int64_t bytes = by.tile(rows.groups);
    const Course course{by.packed + last * bytes, next};
    for (int64_t place = first; place < last; ++place) {
        const uint8_t* tile = by.packed + place * bytes;
        const int64_t output = place * OUTPUTS;
        int64_t row = 0;
        for (; rows.count - row >= TOGETHER; row += TOGETHER)
            multiply<FOUR, TOGETHER>(tile, course, rows, row, out, by, output);
        [&]<int... N>(std::integer_sequence<int, N...>) {
            ((rows.count - row == N + 1 ? multiply<FOUR, N + 1>(tile, course, rows, row, out, by, output) : void()), ...);
        }(std::make_integer_sequence<int, TOGETHER - 1>());
    }
}

void multiply(const Weights& by, const Rows& rows, int64_t first, int64_t last, const uint8_t* next, float* out) {
    if (by.bits == 4)
        multiply<true>(by, rows, first, last, next, out);
    else
        multiply<false>(by, rows, first, last, next, out);
}

// Which part of so many a thread computes, of so many in all: one each, since where a part ends what was asked for ahead is
// another thread's.
struct Share {
    int64_t part, parts;

    int64_t first(int64_t count) const {
        return count * part / parts;
    }
    int64_t last(int64_t count) const {
        return count * (part + 1) / parts;
    }
};

// `rows` by weights: out [n, outputs]. `next` says where the same share begins of what is multiplied next.
template <typename Next>
void multiply(Team& team, const Weights& by, const Rows& rows, float* out, const Next& next) {
    const int64_t tiles = by.tiles(), parts = std::min(team.size(), tiles);
    team.share(parts, tiles * rows.groups * rows.count >= WORTH_TWO, [&](int64_t part) {
        const Share share{part, parts};
        multiply(by, rows, share.first(tiles), share.last(tiles), next(share), out);
    });
}

// The same, with nothing behind it.
void multiply(Team& team, const Weights& by, const Rows& rows, float* out) {
    multiply(team, by, rows, out, [](const Share&) { return nullptr; });
}

// Inputs: x [n, inputs], weights [bytes] as packing.py has them, and the weights [inputs] of a norm, if x is to be of root
// mean square 1 first. Output: [n, outputs]. By so many `threads` of our own, or those that OpenVINO has.
class Product : public ov::op::Op {
public:
    OPENVINO_OP("Product", "dynatree");

    Product() = default;
    Product(const ov::OutputVector& inputs, int64_t outputs, int64_t bits, float eps, int64_t threads)
        : Op(inputs),
          m_outputs(outputs),
          m_bits(bits),
          m_threads(threads),
          m_eps(eps) {
        constructor_validate_and_infer_types();
    }

    void validate_and_infer_types() override {
        set_output_type(0, ov::element::f32, ov::PartialShape{get_input_partial_shape(0)[0], m_outputs});
    }

    std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
        return std::make_shared<Product>(inputs, m_outputs, m_bits, m_eps, m_threads);
    }

    bool visit_attributes(ov::AttributeVisitor& visitor) override {
        visitor.on_attribute("outputs", m_outputs);
        visitor.on_attribute("bits", m_bits);
        visitor.on_attribute("eps", m_eps);
        visitor.on_attribute("threads", m_threads);
        return true;
    }

    bool has_evaluate() const override {
        return true;
    }

    bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
        const int64_t count = inputs[0].get_shape()[0], size = inputs[0].get_shape()[1];
        Quantised memory(count, size);
        const Rows rows = memory.rows(size);
        outputs[0].set_shape({static_cast<size_t>(count), static_cast<size_t>(m_outputs)});
        const Weights by{static_cast<const uint8_t*>(inputs[1].data()), m_outputs, m_bits};
        const float* norm = inputs.size() > 2 ? floats(inputs[2]) : nullptr;
        Team::gather(m_threads, count * size * m_outputs >= WORTH_TWO * GROUP * OUTPUTS, [&](Team& team) {
            quantise_rows(team, floats(inputs[0]), norm, m_eps, rows);
            multiply(team, by, rows, floats(outputs[0]));
        });
        return true;
    }

private:
    int64_t m_outputs = 1, m_bits = 8, m_threads = 0;
    float m_eps = 0.0f;
};

}  // namespace dynatree

#endif
