// What a search has found so far: texts with scores, times and confidences.

#include <cmath>
#include <unordered_map>

#include "search.hpp"

namespace earsight {

// `words` stay unspelled until they are asked for: most endings are only compared with the few that are.
struct Search::Ending {
    int32_t text;  // the last letter's node, or the root
    int32_t cell, end;
    double weight;  // ln of its share, up to a constant
    double score, acoustic_score, lm_score, word_score, boost_score;
    double kept;
};

// A word as it is compared: equal words have equal keys.
struct Search::Spot {
    uint64_t key;
    int32_t start, end;
};

Hypothesis Search::best() const {
    std::vector<Ending> endings;
    for (const Paths& paths : beam_) {
        const int32_t context = nodes_[paths.node].context;
        endings.push_back(ending(paths.node, records_[context], acoustic(paths), paths));
        endings.back().weight = std::log(paths.total);
    }
    return hypotheses(std::move(endings), 1)[0];
}

std::vector<Hypothesis> Search::finish() const {
    struct Text {
        int32_t node;
        double log_sum;
        Paths paths;
        double log_best;
    };
    // A text with a space after it is the same text: the two add up, and the likelier path tells the times.
    std::vector<Text> texts;
    std::unordered_map<int32_t, size_t> places;
    for (const Paths& paths : beam_) {
        const int32_t text = text_of(paths.node);
        const double log_sum = acoustic(paths);
        const double log_best = std::log(paths.best()) - bonus(paths.node);
        const auto [place, added] = places.try_emplace(text, texts.size());
        if (added) {
            texts.push_back({text, log_sum, paths, log_best});
            continue;
        }
        Text& same = texts[place->second];
        const double high = std::max(same.log_sum, log_sum), low = std::min(same.log_sum, log_sum);
        same.log_sum = high + std::log1p(std::exp(low - high));
        if (log_best > same.log_best) {
            same.paths = paths;
            same.log_best = log_best;
        }
    }
    const auto ends = [&](const Text& text) { return may_end(nodes_[text.node]); };
    const bool any = std::any_of(texts.begin(), texts.end(), ends);
    std::vector<Ending> endings;
    for (const Text& text : texts) {
        if (any && !ends(text)) continue;
        Record record = completed(text.node);
        if (spells_ && in_word(nodes_[text.node])) {  // </s> follows, not the space that `completed` counts on
            const Record& open = records_[nodes_[text.node].context];
            record.lm_score = open.lm_score;
            record.state = open.state;
        }
        if (model_) record.lm_score += model_->score_end(record.state);
        endings.push_back(ending(text.node, record, text.log_sum, text.paths));
    }
    return hypotheses(std::move(endings), static_cast<size_t>(options_.n_best));
}

// The words that every prefix of the beam begins with, completed; they leave the search and cannot change any more.
std::vector<Word> Search::take_committed() {
    give_up_rivals();
    int32_t node = root_, last = root_;
    while (nodes_[node].slot < 0) {
        int32_t only = NOWHERE;
        bool parted = false;
        for (int32_t child = nodes_[node].first_child; child != NOWHERE; child = nodes_[child].next_sibling) {
            if (!nodes_[child].live) continue;
            parted = only != NOWHERE;
            if (parted) break;
            only = child;
        }
        if (parted) break;
        node = only;
        if (!in_word(nodes_[node])) last = node;
    }
    if (last == root_) return {};
    const Paths& best = beam_[0];
    std::vector<Word> words = words_of(best.node, best.cell(), best.end());
    size_t count = 0;
    for (int32_t above = last; above != root_; above = nodes_[above].parent) {
        count += !in_word(nodes_[above]);
        committed_depth_ += in_word(nodes_[above]);
        committed_kept_ *= nodes_[nodes_[above].parent].kept;
    }
    words.resize(count);
    root_ = last;
    nodes_[root_].parent = -1;
    return words;
}

// Keeps only what agrees with the leading text up to its last `horizon` words. What follows is worth the same to two
// texts that differ only so far back, so a rival that is behind stays behind; but an ambiguous word would hold both in
// the beam for ever.
void Search::give_up_rivals() {
    int32_t decided = beam_[0].node;
    for (int64_t words = 0; decided != NOWHERE; decided = nodes_[decided].parent)
        if (!in_word(nodes_[decided]) && words++ == options_.horizon) break;
    if (decided == NOWHERE) return;
    scratch_ = &scratch_of_thread_;
    scratch_->stays = beam_;
    scratch_->staying.assign(beam_.size(), 0);
    scratch_->fresh.clear();
    for (size_t slot = 0; slot < beam_.size(); ++slot) {
        int32_t node = beam_[slot].node;
        while (node > decided) node = nodes_[node].parent;  // parents stand before their children
        if (node != decided) continue;
        scratch_->staying[slot] = 1;
        scratch_->fresh.push_back(beam_[slot]);
    }
    account();
}

double Search::acoustic(const Paths& paths) const {
    return std::log(paths.total) + log_scale_ - bonus(paths.node);
}

std::string Search::spelled(int32_t node) const {
    std::vector<int32_t> symbols;
    for (; in_word(nodes_[node]); node = nodes_[node].parent) symbols.push_back(nodes_[node].symbol);
    std::string text;
    for (auto symbol = symbols.rbegin(); symbol != symbols.rend(); ++symbol) text += labels_[*symbol];
    return text;
}

// The words from the root to the node, timed by a path. A word keeps what its letters and the place before it kept.
std::vector<Word> Search::words_of(int32_t node, int32_t cell, int32_t end) const {
    std::vector<Word> words;
    bool open = false;
    for (; node != root_; node = nodes_[node].parent) {
        if (!in_word(nodes_[node])) {
            open = false;
            continue;
        }
        if (!open) words.push_back({spelled(node), {}, 1});
        open = true;
        words.back().letters.push_back({cells_[cell].start, end});
        words.back().confidence *= nodes_[node].kept;
        if (nodes_[node].parent == root_ || !in_word(nodes_[nodes_[node].parent]))
            words.back().confidence *= nodes_[nodes_[node].parent].kept;
        end = cells_[cell].before_end;
        cell = cells_[cell].before;
    }
    std::reverse(words.begin(), words.end());
    for (Word& word : words) std::reverse(word.letters.begin(), word.letters.end());
    return words;
}

Search::Ending Search::ending(int32_t node, const Record& record, double log_sum, const Paths& paths) const {
    const double word_score = rewards(record);
    const double score = log_sum + options_.alpha * record.lm_score + word_score + record.boost;
    double kept = committed_kept_;
    for (int32_t above = node;; above = nodes_[above].parent) {
        kept *= nodes_[above].kept;
        if (above == root_) break;
    }
    return {text_of(node), paths.cell(), paths.end(), score, score, log_sum, record.lm_score, word_score, record.boost,
            kept};
}

// Without the space that may stand after it.
int32_t Search::text_of(int32_t node) const {
    return node == root_ || in_word(nodes_[node]) ? node : nodes_[node].parent;
}

// The words of an ending, last one first.
void Search::spots(const Ending& ending, std::vector<Spot>& spots) const {
    spots.clear();
    int32_t cell = ending.cell, end = ending.end;
    bool open = false;
    for (int32_t node = ending.text; node != root_; node = nodes_[node].parent) {
        if (!in_word(nodes_[node])) {
            open = false;
            continue;
        }
        if (!open) spots.push_back({0, 0, end});
        open = true;
        Spot& spot = spots.back();
        spot.key = (spot.key + static_cast<uint64_t>(nodes_[node].symbol)) * 0x9E3779B97F4A7C15u;
        spot.key ^= spot.key >> 29;
        spot.start = cells_[cell].start;
        end = cells_[cell].before_end;
        cell = cells_[cell].before;
    }
}

// Whether the node's text begins with the other's.
bool Search::begins(int32_t node, int32_t with) const {
    while (node > with) node = nodes_[node].parent;  // parents stand before their children
    return node == with;
}

// Adds `share` to the words of `ours` that `theirs` have, too, at an overlapping time.
void Search::agree(const std::vector<Spot>& ours, const std::vector<Spot>& theirs, double share,
                   std::vector<double>& shares) {
    size_t next = 0;
    for (size_t i = 0; i < ours.size(); ++i) {
        while (next < theirs.size() && theirs[next].start >= ours[i].end) ++next;
        for (size_t j = next; j < theirs.size() && theirs[j].end > ours[i].start; ++j) {
            if (theirs[j].key != ours[i].key) continue;
            shares[i] += share;
            break;
        }
    }
}

// The best `count`, with confidences: how the probability divides among all of them.
std::vector<Hypothesis> Search::hypotheses(std::vector<Ending> endings, size_t count) const {
    std::stable_sort(endings.begin(), endings.end(),
                     [](const Ending& a, const Ending& b) { return a.weight > b.weight; });
    std::vector<double> shares;
    std::vector<std::vector<Spot>> heard(endings.size());
    double total = 0;
    for (size_t i = 0; i < endings.size(); ++i) {
        shares.push_back(std::exp(endings[i].weight - endings[0].weight));
        total += shares[i];
        spots(endings[i], heard[i]);
    }
    std::vector<Hypothesis> found;
    for (size_t i = 0; i < std::min(count, endings.size()); ++i) {
        const Ending& ending = endings[i];
        std::vector<double> word_shares(heard[i].size(), 0.0);
        double same = 0, stable = 0;
        for (size_t other = 0; other < endings.size(); ++other) {
            const double share = shares[other] / total;
            if (endings[other].text == ending.text) same += share;
            if (begins(endings[other].text, ending.text)) stable += share;
            agree(heard[i], heard[other], share, word_shares);
        }
        std::vector<Word> words = words_of(ending.text, ending.cell, ending.end);
        for (size_t word = 0; word < words.size(); ++word)
            words[word].confidence *= std::min(1.0, word_shares[words.size() - 1 - word]);
        found.push_back({std::move(words), ending.score, ending.acoustic_score, ending.lm_score, ending.word_score,
                         ending.boost_score, ending.kept * std::min(1.0, same), std::min(1.0, stable)});
    }
    return found;
}

}  // namespace earsight
