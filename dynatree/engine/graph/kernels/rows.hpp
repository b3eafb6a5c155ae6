// Rows of a table of successors as a context has them (engine/context.py), and which logits are near the best (rows.py): few
// operations on little memory, of which numpy's steps take most of the time between two forwards.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>

#include "drawing.hpp"

namespace dynatree {

// Tokens of which it is asked together whether noise prefers any.
constexpr int64_t PREFERRED = 64;

// A number in half precision, which is finite.
inline float half(uint16_t bits) {
#ifdef __F16C__
    return _cvtsh_ss(bits);
#else
    const uint32_t moved = uint32_t(bits & 0x7FFF) << 13, sign = uint32_t(bits & 0x8000) << 16;
    float value;
    std::memcpy(&value, &moved, sizeof(value));
    value *= 0x1p112f;
    uint32_t found;
    std::memcpy(&found, &value, sizeof(found));
    found |= sign;
    std::memcpy(&value, &found, sizeof(value));
    return value;
#endif
}

inline Vec load_halves(const uint16_t* from) {
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
    return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    Vec found;
    for (int lane = 0; lane < LANES; ++lane)
        found[lane] = half(from[lane]);
    return found;
#endif
}

// The product of weights in half precision and x.
inline float dot(const uint16_t* weights, const float* x, int64_t size) {
    Vec sums[2] = {};
    int64_t at = 0;
    for (; at + 2 * LANES <= size; at += 2 * LANES)
        for (int part = 0; part < 2; ++part)
            sums[part] = fma(load_halves(weights + at + part * LANES), load(x + at + part * LANES), sums[part]);
    float sum = joined(sums[0] + sums[1], [](float x, float y) { return x + y; });
    for (; at < size; ++at)
        sum = fma(half(weights[at]), x[at], sum);
    return sum;
}

constexpr float NONE = -std::numeric_limits<float>::infinity();

// So many of them, at most a vector's, the rest like nothing.
inline Vec some(const float* from, int64_t size) {
    if (size >= LANES)
        return load(from);
    Vec value = all(NONE);
    for (int64_t lane = 0; lane < size; ++lane)
        value[lane] = from[lane];
    return value;
}

// By vectors: compilers keep to the order of one after the other, which takes four times as long.
inline float greatest(const float* scores, int64_t count) {
    Vec best = all(NONE);
    for (int64_t at = 0; at < count; at += LANES) {
        const Vec x = some(scores + at, count - at);
        best = x > best ? x : best;
    }
    return joined(best, [](float x, float y) { return x > y ? x : y; });
}

// The logarithm of the sum of the exponentials; 0 where none of them is anything.
inline float together(const float* scores, int64_t count) {
    const float most = greatest(scores, count);
    if (most == NONE)
        return 0.0f;
    Vec sums = {};
    for (int64_t at = 0; at < count; at += LANES) {
        const Vec x = some(scores + at, count - at);
        sums += x > all(NONE) ? exponential(x - all(most)) : Vec{};
    }
    return most + std::log(joined(sums, [](float x, float y) { return x + y; }));
}

// The Gumbel noise of so many tokens, at most a vector's, by their random words (sampling.py).
inline Vec noise(const uint32_t* words, const int64_t* tokens, int64_t size) {
    Unsigned word = {};
    for (int64_t lane = 0; lane < std::min<int64_t>(size, LANES); ++lane)
        word[lane] = words[tokens[lane]];
    Vec u = (__builtin_convertvector(word, Vec) + 0.5f) * 0x1p-32f;
    const Vec most = all(1.0f - 0x1p-24f);
    u = u > most ? most : u;
    // -ln(1 - u), which is u where that is lost in the difference.
    const Vec rest = 1.0f - u;
    return -logarithm(rest == 1.0f ? u : logarithm(rest) * u / (rest - 1.0f));
}

// What stays of a context: in half precision what each of v tokens is as a successor [v, rank] and what the hidden state says
// of it [rank, width]; how likely each is anywhere [v]; and `count` tokens that are usual.
struct Known {
    const uint16_t *successors, *hidden;
    const float* usual;
    const int32_t* common;
    int64_t rank, width, count;
};

}  // namespace dynatree

// A hidden state [rows]: x / (1 + exp(-x)) of weights [rows, size] by `before` [size], of root mean square 1 first if `eps` is
// not 0, and of what is added of a `bias` and a `token`.
extern "C" void dynatree_hidden(const uint16_t* weights, const float* bias, const uint16_t* token, const float* before,
                                int64_t rows, int64_t size, float eps, float* hidden) {
    float factor = 1.0f;
    if (eps > 0.0f) {
        float squares = 0.0f;
        for (int64_t at = 0; at < size; ++at)
            squares = dynatree::fma(before[at], before[at], squares);
        factor = 1.0f / std::sqrt(squares / float(size) + eps);
    }
    for (int64_t row = 0; row < rows; ++row) {
        const float sum = dynatree::dot(weights + row * size, before, size) * factor + bias[row] + dynatree::half(token[row]);
        hidden[row] = sum / (1.0f + std::exp(-sum));
    }
}

// How many successors there are in `ids`, with `scores`, which begin with `kept` and have room for all. With `words`, the common
// tokens whose words are at `most` [count] come behind these, with their usual scores and `unseen`. What the `hidden` state says
// is added to all, which together are as likely as before.
extern "C" int64_t dynatree_row(const dynatree::Known* of, const float* hidden, const uint32_t* words, const uint32_t* most,
                                float unseen, int64_t kept, int64_t* ids, float* scores) {
    int64_t count = kept;
    for (int64_t begin = 0; words && begin < of->count; begin += dynatree::PREFERRED) {
        const int64_t end = std::min(begin + dynatree::PREFERRED, of->count);
        int any = 0;
        for (int64_t at = begin; at < end; ++at)
            any |= words[of->common[at]] <= most[at];
        for (int64_t at = begin; any && at < end; ++at) {
            const int64_t token = of->common[at];
            if (words[token] <= most[at] && std::find(ids, ids + kept, token) == ids + kept)
                ids[count] = token, scores[count++] = of->usual[token] + unseen;
        }
    }
    dynatree::Kept<float> memory(of->rank + count);
    float *said = memory.data(), *read = said + of->rank;
    for (int64_t row = 0; row < of->rank; ++row)
        said[row] = dynatree::dot(of->hidden + row * of->width, hidden, of->width);
    for (int64_t at = 0; at < count; ++at)
        read[at] = scores[at] + dynatree::dot(of->successors + ids[at] * of->rank, said, of->rank);
    const float rest = dynatree::together(scores, count) - dynatree::together(read, count);
    for (int64_t at = 0; at < count; ++at)
        scores[at] = read[at] + rest;
    return count;
}

// The `few` best of `count` scores, of tokens `ids`, with the noise of their `words`, if there are any: so many of them are
// there, with their places and what is found of each, best first; if these are the `whole`, as log-probabilities.
extern "C" int64_t dynatree_best(const float* scores, const int64_t* ids, const uint32_t* words, int64_t count, int64_t whole,
                                 int64_t few, int64_t* places, float* found) {
    using dynatree::LANES, dynatree::NONE, dynatree::Vec;
    dynatree::Kept<float> memory(count + LANES);
    float* sums = memory.data();
    for (int64_t at = 0; at < count; at += LANES) {
        const Vec x = dynatree::some(scores + at, count - at);
        const Vec sum = words ? x + dynatree::noise(words, ids + at, count - at) : x;
        // What is no number is nothing.
        dynatree::store(sums + at, sum == sum ? sum : dynatree::all(NONE));
    }
    few = std::min(few, count);
    const float all = whole ? dynatree::together(sums, count) : 0.0f;
    dynatree::Kept<int64_t> order(count);
    std::iota(order.data(), order.data() + count, 0);
    // Of equal ones the first.
    const auto before = [&](int64_t x, int64_t y) { return sums[x] != sums[y] ? sums[x] > sums[y] : x < y; };
    std::partial_sort(order.data(), order.data() + few, order.data() + count, before);
    for (int64_t rank = 0; rank < few; ++rank)
        places[rank] = order.data()[rank], found[rank] = sums[places[rank]] - all;
    return few;
}

// How many of `size` scores are less than `behind` the best: in order in `found`, of which there are no more than `most`.
extern "C" int64_t dynatree_near(const float* scores, int64_t size, float behind, int64_t* found, int64_t most) {
    const float least = dynatree::greatest(scores, size) - behind;
    int64_t count = 0;
    for (int64_t begin = 0; begin < size; begin += dynatree::PREFERRED) {
        const int64_t end = std::min(begin + dynatree::PREFERRED, size);
        int any = 0;
        for (int64_t at = begin; at < end; ++at)
            any |= scores[at] > least;
        for (int64_t at = begin; any && at < end; ++at)
            if (scores[at] > least) {
                if (count < most)
                    found[count] = at;
                ++count;
            }
    }
    return count;
}
