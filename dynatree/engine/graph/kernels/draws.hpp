// What drawing a token takes besides its forward (draws.py): random words of a whole vocabulary, and which tokens come into
// question. Numpy finds the same, to the bit, in three times the time.

#pragma once

#include <algorithm>

#include "common.hpp"

namespace dynatree {

typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));

// Philox with four words of 64 bits and ten rounds (Salmon et al. 2011), as numpy has it: counters begin behind the given one.
void random_words(const uint64_t* key, const uint64_t* counter, int64_t blocks, uint64_t* out) {
    for (int64_t block = 0; block < blocks; ++block) {
        uint64_t a = counter[0] + 1 + block, b = counter[1], c = counter[2], d = counter[3], first = key[0], second = key[1];
        for (int round = 0; round < 10; ++round) {
            const auto left = static_cast<unsigned __int128>(a) * 0xD2E7470EE14C6C93u;
            const auto right = static_cast<unsigned __int128>(c) * 0xCA5A826395121157u;
            a = static_cast<uint64_t>(right >> 64) ^ b ^ first, b = static_cast<uint64_t>(right);
            c = static_cast<uint64_t>(left >> 64) ^ d ^ second, d = static_cast<uint64_t>(left);
            first += 0x9E3779B97F4A7C15u, second += 0xBB67AE8584CAA73Bu;
        }
        uint64_t* to = out + 4 * block;
        to[0] = a, to[1] = b, to[2] = c, to[3] = d;
    }
}

// One bit a lane.
inline uint32_t bits_of(Int mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#else
    uint32_t bits = 0;
    for (int lane = 0; lane < LANES; ++lane)
        bits |= uint32_t(mask[lane] != 0) << lane;
    return bits;
#endif
}

// The first of the greatest scores, or of those that are no numbers, if any is not; and the least word.
int64_t likeliest(const float* scores, const uint32_t* words, int64_t count, uint32_t* least) {
    const int64_t whole = count / LANES * LANES;
    Vec most = all(-INFINITY);
    Int wrong = {};
    Words low = ~Words{};
    for (int64_t at = 0; at < whole; at += LANES) {
        const Vec score = load(scores + at);
        Words word;
        std::memcpy(&word, words + at, sizeof(word));
        most = score > most ? score : most;
        wrong |= score != score;
        low = word < low ? word : low;
    }
    float greatest = -INFINITY;
    bool numbers = !bits_of(wrong);
    *least = ~uint32_t(0);
    for (int lane = 0; lane < LANES; ++lane)
        greatest = std::max(greatest, most[lane]), *least = std::min(*least, low[lane]);
    for (int64_t at = whole; at < count; ++at) {
        greatest = std::max(greatest, scores[at]), *least = std::min(*least, words[at]);
        numbers = numbers && scores[at] == scores[at];
    }
    return std::find_if(scores, scores + count,
                        [&](float score) { return numbers ? score == greatest : score != score; }) -
           scores;
}

// The places of scores of `bound` and more, ascending, at most so many; says how many there are.
int64_t at_least(const float* scores, int64_t count, float bound, int64_t most, int32_t* found) {
    const int64_t whole = count / LANES * LANES;
    int64_t number = 0;
    const auto add = [&](int64_t place) {
        if (number < most)
            found[number] = static_cast<int32_t>(place);
        ++number;
    };
    for (int64_t at = 0; at < whole; at += LANES)
        for (uint32_t bits = bits_of(load(scores + at) >= all(bound)); bits; bits &= bits - 1)
            add(at + __builtin_ctz(bits));
    for (int64_t at = whole; at < count; ++at)
        if (scores[at] >= bound)
            add(at);
    return number;
}

// Those of `ids` whose words are at `most`, of each its own; says how many there are.
int64_t among(const int64_t* ids, const uint32_t* most, int64_t count, const uint32_t* words, int64_t* found) {
    int64_t number = 0;
    for (int64_t at = 0; at < count; ++at) {
        found[number] = ids[at];
        number += words[ids[at]] <= most[at];
    }
    return number;
}

}  // namespace dynatree

extern "C" {

void dynatree_random_words(const uint64_t* key, const uint64_t* counter, int64_t blocks, uint64_t* out) {
    dynatree::random_words(key, counter, blocks, out);
}

int64_t dynatree_likeliest(const float* scores, const uint32_t* words, int64_t count, uint32_t* least) {
    return dynatree::likeliest(scores, words, count, least);
}

int64_t dynatree_at_least(const float* scores, int64_t count, float bound, int64_t most, int32_t* found) {
    return dynatree::at_least(scores, count, bound, most, found);
}

int64_t dynatree_among(const int64_t* ids, const uint32_t* most, int64_t count, const uint32_t* words, int64_t* found) {
    return dynatree::among(ids, most, count, words, found);
}
}
