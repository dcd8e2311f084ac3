// An immutable set of words as a tree over alphabet symbols.
//
// The children of a node lie side by side, sorted by symbol, so a node is a few numbers and no pointer. For alphabets of
// up to 64 symbols a bit mask says which children there are, and counting its bits which of them is meant.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace earsight {

using Symbols = std::vector<int32_t>;

constexpr int32_t NOWHERE = -1;  // the state outside a tree or automaton

class Trie {
  public:
    static constexpr int32_t ROOT = 0;

    struct Entry {
        Symbols symbols;
        uint32_t word;  // any number but 0
        float score;
    };

    Trie(std::vector<Entry> entries, size_t symbols) {
        std::sort(entries.begin(), entries.end(),
                  [](const Entry& a, const Entry& b) { return a.symbols < b.symbols; });
        // Breadth first: each queue item is a node with the range of entries below it and their common length.
        struct Item {
            size_t from, to, depth;
        };
        std::vector<Item> queue{{0, entries.size(), 0}};
        symbols_.push_back(-1);
        for (size_t node = 0; node < queue.size(); ++node) {
            auto [from, to, depth] = queue[node];
            uint32_t word = 0;
            float best = -std::numeric_limits<float>::infinity();
            for (size_t i = from; i < to; ++i) best = std::max(best, entries[i].score);
            for (; from < to && entries[from].symbols.size() == depth; ++from) word = entries[from].word;
            first_.push_back(static_cast<int32_t>(queue.size()));
            words_.push_back(word);
            best_.push_back(best);
            while (from < to) {
                const int32_t symbol = entries[from].symbols[depth];
                size_t end = from;
                while (end < to && entries[end].symbols[depth] == symbol) ++end;
                queue.push_back({from, end, depth + 1});
                symbols_.push_back(symbol);
                from = end;
            }
        }
        first_.push_back(static_cast<int32_t>(queue.size()));
        if (symbols > 64) return;
        masks_.resize(queue.size());
        for (size_t node = 0; node < queue.size(); ++node)
            for (int32_t child = first_[node]; child < first_[node + 1]; ++child)
                masks_[node] |= uint64_t{1} << symbols_[child];
        symbols_ = {};
    }

    // NOWHERE when no word goes on like this, and from NOWHERE.
    int32_t child(int32_t node, int32_t symbol) const {
        if (node == NOWHERE) return NOWHERE;
        if (!masks_.empty()) {
            const uint64_t bit = uint64_t{1} << symbol, mask = masks_[node];
            return mask & bit ? first_[node] + __builtin_popcountll(mask & (bit - 1)) : NOWHERE;
        }
        const auto begin = symbols_.begin() + first_[node], end = symbols_.begin() + first_[node + 1];
        const auto found = std::lower_bound(begin, end, symbol);
        return found != end && *found == symbol ? static_cast<int32_t>(found - symbols_.begin()) : NOWHERE;
    }

    size_t size() const { return words_.size(); }

    // The number of the word that ends here, 0 where none does.
    uint32_t word(int32_t node) const { return node == NOWHERE ? 0 : words_[node]; }

    // The highest score of the words that begin like this.
    double best(int32_t node) const { return best_[node]; }

  private:
    std::vector<uint64_t> masks_;   // the symbols of its children, by node
    std::vector<int32_t> symbols_;  // what leads to a node, where there are no masks
    std::vector<int32_t> first_;    // where its children begin; those of the next node begin where they end
    std::vector<uint32_t> words_;
    std::vector<float> best_;
};

}  // namespace earsight
