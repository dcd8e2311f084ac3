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
// * A language model score is asked for once a node, and only if the word's end could reach the beam.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "hot_words.hpp"
#include "language_model.hpp"
#include "options.hpp"

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
    template <typename Real>
    void advance(const Real* log_probs, size_t frames);

    Hypothesis best() const;
    std::vector<Hypothesis> finish();  // writes nothing but its cache of language model scores
    std::vector<Word> take_committed();

    size_t symbols() const { return labels_.size(); }
    size_t bytes() const;  // held by the stream

  private:
    // A prefix of the tree. Parents stand before their children in the array.
    struct Node {
        int32_t parent, first_child, next_sibling;
        int32_t symbol;
        int32_t slot = -1;       // its place in the beam
        int32_t live = 0;        // 1 for being in the beam, and 1 for each child that is live
        int32_t context;         // the record of the completed words
        int32_t completed = -1;  // the record in which the last word is completed, too, once that was needed
        int32_t lexicon, hot_lexicon, hot;
        double boost = 0;  // of the hot words completed so far
        double scale;      // 1 / the weight of its unfinished word and phrase
        double gain;       // the factor between its sums and its parent's, besides the probability of its symbol
        double kept = 1;   // the share that was not lost to prefixes that branched off here and fell out of the beam
    };

    // The completed words of a prefix.
    struct Record {
        double lm_score;
        int64_t count;
        double gain;  // the factor that the last word is worth
        LanguageModel::State state;
    };

    // A letter on a path: where it begins, and where the letter before it ends.
    struct Cell {
        int32_t before;
        int32_t depth;  // letters up to and with this one, since the stream began
        int64_t start, before_end;
    };

    // All paths of a prefix: the sums by how they end, and of each its best path.
    struct Paths {
        double total = 0, blank = 0, label = 0;
        double best_blank = 0, best_label = 0;
        int32_t node = -1;
        int32_t blank_cell = -1, label_cell = -1;
        int64_t blank_end = 0, label_end = 0;

        double best() const { return std::max(best_blank, best_label); }
        bool best_is_blank() const { return best_blank >= best_label; }
        int32_t cell() const { return best_is_blank() ? blank_cell : label_cell; }
        int64_t end() const { return best_is_blank() ? blank_end : label_end; }
    };

    struct Candidate {
        double rank;
        int32_t slot;
        int32_t symbol;  // STAY, or what makes the prefix longer
    };

    // What a prefix becomes by one more symbol.
    struct Child {
        int32_t lexicon, hot_lexicon, hot;
        double weight;  // of the unfinished word, by its likeliest ending, and of the phrase that is being spelled
        double gain;
    };

    struct Ending;  // a hypothesis before it is compared with the others

    void step(const double* probabilities);
    void rank_symbols(const double* probabilities);
    void stay(const double* probabilities);
    void extend(const double* probabilities);
    void consider(size_t slot, int32_t symbol, double rank);
    void select();
    void rebuild(const double* probabilities);
    Paths grown(const Candidate& candidate, const double* probabilities);
    void account();
    void give_up_rivals();

    bool child_of(int32_t node, int32_t symbol, Child& child);
    bool letter(const Node& parent, int32_t symbol, Child& child) const;
    bool space(int32_t node, Child& child);
    double letter_gain(const Node& parent, int32_t symbol) const;
    double headroom(const Node& node, int32_t symbol) const;
    double unknown_offset(int32_t hot_lexicon) const;
    double bonus(const Node& node) const;
    int32_t find(int32_t parent, int32_t symbol) const;
    int32_t create(int32_t parent, int32_t symbol, const Child& child);
    int32_t complete(int32_t node);
    Record closed(int32_t node) const;
    int32_t add_record(const Record& record);
    bool may_end(const Node& node) const;
    bool in_word(const Node& node) const { return node.symbol != space_; }

    int32_t extended(int32_t cell, int64_t end);
    void enter(int32_t node);
    void leave(int32_t node);
    void sweep();

    std::string spelled(int32_t node) const;
    std::vector<Word> words_of(int32_t node, int32_t cell, int64_t end) const;
    Ending ending(int32_t node, const Record& record, double boost, double log_sum, const Paths& paths) const;
    std::vector<Hypothesis> hypotheses(std::vector<Ending> endings, size_t count) const;
    double kept_share(int32_t node) const;
    double acoustic(const Paths& paths) const;

    static constexpr int32_t STAY = -1;

    Options options_;
    Labels labels_;
    std::shared_ptr<const LanguageModel> model_;
    std::shared_ptr<const HotWords> hot_words_;
    int32_t space_;
    bool plain_letters_;    // a letter changes no bonus and is never forbidden
    const Trie* lexicon_;   // the model's word list, where it has one
    LanguageModel::Weights weights_;  // of its beginnings of words, where unfinished words are ranked by them
    double unknown_weight_ = 1;       // of the beginnings of other words
    double prune_;       // ranks below this share of the best are dropped
    double word_worth_;  // exp(beta)

    std::vector<Node> nodes_;
    std::vector<Record> records_;
    std::vector<Cell> cells_;
    std::vector<Paths> beam_;  // best first
    int32_t root_ = 0;
    size_t full_nodes_ = 0, full_cells_ = 0;  // sizes at which the next sweep is due
    int64_t frame_ = 0;
    double log_scale_ = 0;  // of the factors taken out of the sums so far
    int32_t committed_depth_ = 0;  // letters
    double committed_kept_ = 1;

    // Scratch of one frame.
    std::vector<double> probabilities_;
    std::vector<std::pair<double, int32_t>> ranked_;  // the symbols worth following, likeliest first
    std::vector<Paths> stays_, fresh_;
    std::vector<Candidate> candidates_;
    std::vector<uint64_t> taken_;  // of each slot, a bit a symbol: the child is in the beam
    std::vector<char> staying_;
    double floor_ = 0;  // the rank that no continuation below can reach the beam with
};

}  // namespace earsight
