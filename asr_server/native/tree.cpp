// The tree of prefixes: what each is worth, how it grows, and what is swept out of it.

#include <cmath>

#include "search.hpp"

namespace earsight {

// False within a word of the lexicon.
bool Search::space(size_t slot, Child& child) {
    Node& node = nodes_[beam_[slot].node];
    if (!may_end(node)) return false;
    if (node.word_gain == UNASKED) {
        scratch_->completed[slot] = completed(beam_[slot].node);
        scratch_->is_completed[slot] = 1;
        node.word_gain = static_cast<float>(scratch_->completed[slot].gain);
    }
    child = {lexicon_ ? Trie::ROOT : NOWHERE, hot_words_ ? Trie::ROOT : NOWHERE, 0, 1, 1};
    if (hot_words_) {
        child.hot = hot_words_->step(node.hot, space_);
        child.weight = hot_words_->weight(child.hot);
    }
    child.gain = std::exp(static_cast<double>(node.word_gain)) * child.weight * node.scale;
    return true;
}

// What is multiplied into the sums of a prefix, as a logarithm.
double Search::bonus(int32_t index) const {
    const Node& node = nodes_[index];
    const Record& record = records_[node.context];
    double bonus = options_.alpha * record.lm_score + rewards(record) + options_.gamma * letters(index) + record.boost;
    if (hot_words_) bonus += hot_words_->potential(node.hot);
    if (weights_ && in_word(node)) bonus += std::log(weight(node.lexicon, node.hot_lexicon));
    return bonus;
}

// For completed words and their letters.
double Search::rewards(const Record& record) const {
    return options_.beta * record.count + options_.gamma * record.letters;
}

// How many the unfinished word of a prefix has.
int32_t Search::letters(int32_t node) const {
    int32_t count = 0;
    for (; in_word(nodes_[node]); node = nodes_[node].parent) ++count;
    return count;
}

int32_t Search::find(int32_t parent, int32_t symbol) const {
    int32_t child = nodes_[parent].first_child;
    while (child != NOWHERE && nodes_[child].symbol != symbol) child = nodes_[child].next_sibling;
    return child;
}

int32_t Search::create(int32_t parent, int32_t symbol, const Child& child, int32_t context) {
    const auto index = static_cast<int32_t>(nodes_.size());
    Node node;
    node.parent = parent;
    node.symbol = symbol;
    node.context = context;
    node.lexicon = child.lexicon;
    node.hot_lexicon = child.hot_lexicon;
    node.hot = child.hot;
    node.scale = 1 / child.weight;
    node.gain = child.gain;
    if (parent != NOWHERE) {
        node.next_sibling = nodes_[parent].first_child;
        nodes_[parent].first_child = index;
    }
    nodes_.push_back(node);
    return index;
}

// Of a character model: the record after one more letter.
Search::Record Search::spelled_on(int32_t context, int32_t symbol) const {
    const Record& before = records_[context];
    Record after = before;
    after.lm_score += model_->score(before.state, model_->unit(symbol), after.state);
    return after;
}

// The record in which the last word of a prefix is completed, as if a space came next.
Search::Record Search::completed(int32_t index) const {
    const Node& node = nodes_[index];
    const Record& before = records_[node.context];
    if (!in_word(node)) return before;
    Record record{before.lm_score, before.boost,   options_.beta, before.count + 1, before.letters + letters(index),
                  before.state};
    if (hot_words_) {
        const int32_t after = hot_words_->step(node.hot, space_);
        record.boost += hot_words_->gained(after);
        record.gain += hot_words_->gained(after);
    }
    if (model_) {
        double score = 0;
        if (spells_) {
            score = model_->score(before.state, model_->unit(space_), record.state);
        } else {
            // With a word list, what is not in it is unknown; UNLISTED is in it, but not in the model.
            const uint32_t word = lexicon_ ? lexicon_->word(node.lexicon) : model_->index(spelled(index));
            score = model_->score(before.state, word == LanguageModel::UNLISTED ? 0 : word, record.state);
            if (word == 0 && !(hot_words_ && hot_words_->words().word(node.hot_lexicon)))
                score += options_.unknown_word_offset;
        }
        record.lm_score += score;
        record.gain += options_.alpha * score;
    }
    return record;
}

int32_t Search::add_record(const Record& record) {
    records_.push_back(record);
    return static_cast<int32_t>(records_.size()) - 1;
}

// Always, except within a word of the lexicon.
bool Search::may_end(const Node& node) const {
    return !options_.lexicon || !in_word(node) || lexicon_->word(node.lexicon) ||
           (hot_words_ && hot_words_->words().word(node.hot_lexicon));
}

// A path's letters with one more, which begins in this frame.
int32_t Search::extended(int32_t cell, int32_t end) {
    const int32_t depth = cell == NOWHERE ? committed_depth_ : cells_[cell].depth;
    cells_.push_back({cell, depth + 1, frame_, end});
    return static_cast<int32_t>(cells_.size()) - 1;
}

void Search::enter(int32_t node) {
    while (node >= 0 && nodes_[node].live++ == 0) {
        nodes_[node].kept = 1;  // it begins anew, even where the last sweep has left it
        node = nodes_[node].parent;
    }
}

void Search::leave(int32_t node) {
    while (node >= 0 && --nodes_[node].live == 0) node = nodes_[node].parent;
}

// Keeps what the beam reaches: its nodes up to the root, their records, and the cells of its paths. Everything keeps
// its order, so parents stay before their children.
void Search::sweep() {
    std::vector<int32_t>& place = scratch_->node_place;
    place.assign(nodes_.size(), NOWHERE);
    int32_t count = 0;
    for (size_t i = static_cast<size_t>(root_); i < nodes_.size(); ++i) {
        if (!nodes_[i].live) continue;
        place[i] = count;
        nodes_[count++] = nodes_[i];
    }
    nodes_.resize(static_cast<size_t>(count));
    root_ = 0;
    std::vector<int32_t>& record_place = scratch_->record_place;
    record_place.assign(records_.size(), NOWHERE);
    for (Node& node : nodes_) {
        node.parent = node.parent < 0 ? node.parent : place[node.parent];
        node.first_child = NOWHERE;
        record_place[node.context] = 0;
    }
    nodes_[0].parent = -1;
    for (int32_t i = count - 1; i > 0; --i) {
        Node& parent = nodes_[nodes_[i].parent];
        nodes_[i].next_sibling = parent.first_child;
        parent.first_child = i;
    }
    int32_t records = 0;
    for (size_t i = 0; i < records_.size(); ++i) {
        if (record_place[i] == NOWHERE) continue;
        record_place[i] = records;
        records_[records++] = records_[i];
    }
    records_.resize(static_cast<size_t>(records));
    for (Node& node : nodes_) node.context = record_place[node.context];
    for (Paths& paths : beam_) paths.node = place[paths.node];

    std::vector<int32_t>& cell_place = scratch_->cell_place;
    cell_place.assign(cells_.size(), NOWHERE);
    for (const Paths& paths : beam_)
        for (const int32_t cell : {paths.blank_cell, paths.label_cell})
            if (cell != NOWHERE) cell_place[cell] = 0;
    for (size_t i = cells_.size(); i-- > 0;) {
        if (cell_place[i] == NOWHERE || cells_[i].before == NOWHERE) continue;
        if (cells_[i].depth <= committed_depth_ + 1)
            cells_[i].before = NOWHERE;
        else
            cell_place[cells_[i].before] = 0;
    }
    int32_t cells = 0;
    for (size_t i = 0; i < cells_.size(); ++i) {
        if (cell_place[i] == NOWHERE) continue;
        cell_place[i] = cells;
        Cell cell = cells_[i];
        if (cell.before != NOWHERE) cell.before = cell_place[cell.before];
        cells_[cells++] = cell;
    }
    cells_.resize(static_cast<size_t>(cells));
    for (Paths& paths : beam_)
        for (int32_t* cell : {&paths.blank_cell, &paths.label_cell})
            if (*cell != NOWHERE) *cell = cell_place[*cell];

    const size_t room = 4 * static_cast<size_t>(std::min<int64_t>(options_.beam_width, 4096)) + 128;
    full_nodes_ = nodes_.size() + std::max(room, nodes_.size());
    full_cells_ = cells_.size() + std::max(room, cells_.size());
}

size_t Search::bytes() const {
    return nodes_.capacity() * sizeof(Node) + records_.capacity() * sizeof(Record) + cells_.capacity() * sizeof(Cell) +
           beam_.capacity() * sizeof(Paths);
}

}  // namespace earsight
