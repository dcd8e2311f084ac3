// CTC prefix beam search of one stream; asr_server/reference_search.py says what it computes, in the same words.
//
// Four things make it fast:
//
// * Sums of paths are plain numbers, not logarithms: a sum is an addition and a frame a multiplication. What the
//   language model, the words and the hot words add to a prefix (its bonus, a logarithm) is multiplied in, so one number
//   ranks it; a power of two taken out of all of them after each frame keeps them in range.
// * The beam is kept in order and so are the symbols of a frame, so the continuations that cannot reach the beam are
//   never looked at, and only those that do become nodes of the tree.
// * A path's emission times are a list shared with the path it came from. Lists and tree are arrays that grow; what no
//   prefix of the beam reaches any more is swept out when an array has doubled.
// * A word is scored when its end could reach the beam, not before, and then once.
#pragma once

#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "hot_words.hpp"
#include "language_model.hpp"
#include "options.hpp"
#include "shortlist.hpp"

namespace earsight {

struct Span {
    int64_t start, end;  // frames
};

struct Word {
    std::string text;
    std::vector<Span> letters;
    double confidence;
};

struct Hypothesis {
    std::vector<Word> words;
    double score, acoustic_score, lm_score, word_score, boost_score;
    double confidence, stability;
};

class Search {
  public:
    Search(Options options, Labels labels, std::shared_ptr<const LanguageModel> model,
           std::shared_ptr<const HotWords> hot_words);

    // `log_probs`: frames x symbols, row by row. Throws std::invalid_argument and leaves the search as it was.
    // Frames are counted from `first` in what it says.
    template <typename Real>
    void advance(const Real* log_probs, size_t frames, size_t first = 0);

    Hypothesis best() const;
    std::vector<Hypothesis> finish() const;
    std::vector<Word> take_committed();

    size_t symbols() const { return labels_.size(); }
    size_t bytes() const;  // held by the stream

  private:
    // A prefix of the tree, in one cache line. Parents stand before their children in the array.
    struct alignas(64) Node {
        int32_t parent = NOWHERE, first_child = NOWHERE, next_sibling = NOWHERE;
        int32_t slot = -1;                // its place in the beam
        int32_t context = 0;              // the record of the completed words
        int32_t lexicon, hot_lexicon, hot;  // where its last word stands in the word lists, and the text among phrases
        int32_t symbol;
        int32_t live = 0;  // 1 for being in the beam, and 1 for each child that is live
        double scale;       // 1 / the weight of its unfinished word and phrase
        double gain;        // the factor between its sums and its parent's, besides the probability of its symbol
        float word_gain = UNASKED;  // ln of what the last word is worth when completed, once that was needed; rounded
        float kept = 1;  // the share that was not lost to prefixes that branched off here and fell out of the beam
    };
    static constexpr float UNASKED = std::numeric_limits<float>::infinity();

    // The completed words of a prefix.
    struct Record {
        double lm_score;
        double boost;  // of the hot words
        double gain;   // ln of what the last of them is worth
        int32_t count, letters;
        LanguageModel::State state;
    };

    // A letter on a path: where it begins, and where the letter before it ends.
    struct Cell {
        int32_t before;
        int32_t depth;  // letters up to and with this one, since the stream began
        int32_t start, before_end;
    };

    // All paths of a prefix: the sums by how they end, and of each its best path.
    struct alignas(64) Paths {
        double total = 0, blank = 0, label = 0;
        double best_blank = 0, best_label = 0;
        int32_t node = NOWHERE;
        int32_t blank_cell = NOWHERE, label_cell = NOWHERE;
        int32_t blank_end = 0, label_end = 0;

        double best() const { return std::max(best_blank, best_label); }
        bool best_is_blank() const { return best_blank >= best_label; }
        int32_t cell() const { return best_is_blank() ? blank_cell : label_cell; }
        int32_t end() const { return best_is_blank() ? blank_end : label_end; }
    };

    // What a prefix becomes by one more symbol.
    struct Child {
        int32_t lexicon, hot_lexicon, hot;
        double weight;  // of the unfinished word, by its likeliest ending, and of the phrase that is being spelled
        double gain;
    };

    struct Ending;  // a hypothesis before it is compared with the others
    struct Spot;

    void step(const double* probabilities);
    void rank_symbols(const double* probabilities);
    void stay(const double* probabilities);
    void extend(const double* probabilities);
    void rebuild(const std::vector<Candidate>& best, const double* probabilities);
    Paths grown(const Candidate& candidate, const double* probabilities);
    void account();
    void give_up_rivals();

    bool letter(const Node& parent, int32_t symbol, double reach, double floor, Child& child) const;
    bool space(size_t slot, Child& child);
    double headroom(const Node& node, int32_t symbol) const;
    double weight(int32_t lexicon, int32_t hot_lexicon) const;
    double bonus(int32_t index) const;
    double rewards(const Record& record) const;
    int32_t letters(int32_t node) const;
    int32_t find(int32_t parent, int32_t symbol) const;
    int32_t create(int32_t parent, int32_t symbol, const Child& child, int32_t context);
    Record completed(int32_t node) const;
    Record spelled_on(int32_t context, int32_t symbol) const;
    int32_t add_record(const Record& record);
    bool may_end(const Node& node) const;
    bool in_word(const Node& node) const { return node.symbol != space_; }

    int32_t extended(int32_t cell, int32_t end);
    void enter(int32_t node);
    void leave(int32_t node);
    void sweep();

    std::string spelled(int32_t node) const;
    std::vector<Word> words_of(int32_t node, int32_t cell, int32_t end) const;
    Ending ending(int32_t node, const Record& record, double log_sum, const Paths& paths) const;
    std::vector<Hypothesis> hypotheses(std::vector<Ending> endings, size_t count) const;
    int32_t text_of(int32_t node) const;
    void spots(const Ending& ending, std::vector<Spot>& spots) const;
    bool begins(int32_t node, int32_t with) const;
    static void agree(const std::vector<Spot>& ours, const std::vector<Spot>& theirs, double share,
                      std::vector<double>& shares);
    double acoustic(const Paths& paths) const;

    static constexpr int32_t STAY = -1;  // the symbol of a candidate that is in the beam already

    Options options_;
    Labels labels_;
    std::shared_ptr<const LanguageModel> model_;
    std::shared_ptr<const HotWords> hot_words_;
    int32_t space_;
    bool spells_;         // the model is one of characters
    bool plain_letters_;  // there is nothing to know of a letter
    const Trie* lexicon_;   // the model's word list, where it has one
    LanguageModel::Weights weights_;  // of its beginnings of words, where unfinished words are ranked by them
    double unknown_weight_ = 1, hot_weight_ = 1;  // of the beginnings of other words, and of hot ones among those
    double letter_gain_;     // what a letter is worth
    double space_headroom_;  // the factor by which a space can at most raise a rank that counts its word's weight
    double prune_;           // ranks below this share of the best are dropped

    std::vector<Node> nodes_;
    std::vector<Record> records_;
    std::vector<Cell> cells_;
    std::vector<Paths> beam_;  // the best first, the others roughly in order
    int32_t root_ = 0;
    size_t full_nodes_ = 0, full_cells_ = 0;  // sizes at which the next sweep is due
    int32_t frame_ = 0;
    double log_scale_ = 0;  // of the factors taken out of the sums so far
    int32_t committed_depth_ = 0;  // letters
    double committed_kept_ = 1;

    // What one call needs and no stream keeps: a thread has it once, so that many streams share it in its cache.
    struct Scratch {
        std::vector<double> probabilities;
        std::vector<std::pair<double, int32_t>> ranked;  // the symbols worth following, likeliest first
        std::vector<Paths> stays, fresh;
        std::vector<char> staying;  // of each of the stays: it is in the new beam
        Shortlist shortlist;
        std::vector<Record> completed;  // of the slots whose `is_completed` is set: its last word is completed
        std::vector<char> is_completed;
        std::vector<uint64_t> taken;  // of each slot, a bit a symbol: the child is in the beam
        std::vector<int32_t> node_place, record_place, cell_place;  // where they stand after a sweep
    };
    static thread_local Scratch scratch_of_thread_;
    Scratch* scratch_;  // that of the thread in whose call we are
};

// The weight of an unfinished word, by its likeliest ending.
inline double Search::weight(int32_t lexicon, int32_t hot_lexicon) const {
    if (!weights_) return 1;
    const double listed = lexicon == NOWHERE ? unknown_weight_ : (*weights_)[lexicon];
    return hot_lexicon == NOWHERE ? listed : std::max(listed, hot_weight_);
}

}  // namespace earsight
