// Does an answer depend on what else a server computes at the same time? Greedy answers to the same prompts, first each
// alone, then in several slots whose prompts and tokens share batches. Prints how many are the same, token by token.
//
//   neighbours MODEL TEXT ANSWERS SLOTS THREADS plain|usual
//
// plain: without the host's extra buffer types.

#include <llama.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

constexpr int LONGEST = 24; // tokens of an answer; the shortest has half as many
constexpr int CELLS = 128;  // of a slot

struct Question {
    std::vector<llama_token> prompt;
    size_t tokens; // of its answer
};

struct Host {
    llama_model * model;
    llama_context * context;
    const llama_vocab * vocab;
};

[[noreturn]] void fail(const std::string & what) {
    std::fprintf(stderr, "neighbours: %s\n", what.c_str());
    std::exit(1);
}

std::string read(const char * path) {
    std::ifstream file(path);
    if (!file) fail(std::string("cannot read ") + path);
    return {std::istreambuf_iterator<char>(file), {}};
}

// Prompts of 8 to 47 tokens from all over the text.
std::vector<Question> questions(const Host & host, const std::string & text, size_t count) {
    std::vector<llama_token> all(text.size() + 8);
    const int n = llama_tokenize(host.vocab, text.data(), static_cast<int32_t>(text.size()), all.data(),
                                 static_cast<int32_t>(all.size()), false, false);
    if (n < 100) fail("the text is too short");
    std::vector<Question> made;
    for (size_t i = 0; i < count; i++) {
        const size_t length = 8 + i * 7 % 40, from = i * (static_cast<size_t>(n) - 48) / count;
        made.push_back({{all.begin() + static_cast<long>(from), all.begin() + static_cast<long>(from + length)},
                        LONGEST / 2 + i * 5 % (LONGEST / 2 + 1)});
    }
    return made;
}

// A slot of the server: the question it answers, and what is there of the answer.
struct Slot {
    const Question * question = nullptr;
    std::vector<llama_token> * answer = nullptr;
    int32_t row = -1; // of the batch, that the next token comes from
};

void add(llama_batch & batch, llama_token token, size_t place, int slot, bool wanted) {
    const int i = batch.n_tokens++;
    batch.token[i] = token;
    batch.pos[i] = static_cast<llama_pos>(place);
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = slot;
    batch.logits[i] = wanted;
}

// Answers in `slots` slots. A slot that is done takes the next question, whose prompt shares batches with the others'
// tokens.
std::vector<std::vector<llama_token>> answers(const Host & host, const std::vector<Question> & all, int slots) {
    std::vector<std::vector<llama_token>> made(all.size());
    std::vector<Slot> at_work(static_cast<size_t>(slots));
    llama_batch batch = llama_batch_init(slots * CELLS, 0, 1);
    const int vocabulary = llama_vocab_n_tokens(host.vocab);
    llama_memory_clear(llama_get_memory(host.context), true);
    for (size_t next = 0;;) {
        batch.n_tokens = 0;
        for (int i = 0; i < slots; i++) {
            Slot & slot = at_work[static_cast<size_t>(i)];
            if (slot.question && slot.answer->size() < slot.question->tokens) {
                slot.row = batch.n_tokens;
                add(batch, slot.answer->back(), slot.question->prompt.size() + slot.answer->size() - 1, i, true);
                continue;
            }
            llama_memory_seq_rm(llama_get_memory(host.context), i, -1, -1);
            slot = {};
            if (next == all.size()) continue;
            slot.question = &all[next];
            slot.answer = &made[next++];
            const auto & prompt = slot.question->prompt;
            for (size_t k = 0; k < prompt.size(); k++) add(batch, prompt[k], k, i, k + 1 == prompt.size());
            slot.row = batch.n_tokens - 1;
        }
        if (batch.n_tokens == 0) break;
        if (llama_decode(host.context, batch) != 0) fail("llama_decode");
        for (Slot & slot : at_work) {
            if (!slot.question) continue;
            const float * logits = llama_get_logits_ith(host.context, slot.row);
            llama_token best = 0;
            for (int t = 0; t < vocabulary; t++)
                if (logits[t] > logits[best]) best = t;
            if (logits[best] != logits[best]) fail("NaN among the logits");
            slot.answer->push_back(best);
        }
    }
    llama_batch_free(batch);
    return made;
}

} // namespace

int main(int argc, char ** argv) {
    if (argc != 7) fail("MODEL TEXT ANSWERS SLOTS THREADS plain|usual");
    const int count = std::atoi(argv[3]), slots = std::atoi(argv[4]), threads = std::atoi(argv[5]);
    if (count < 1 || slots < 1 || threads < 1) fail("numbers from 1 on, please");
    llama_backend_init();
    llama_model_params of_model = llama_model_default_params();
    of_model.use_extra_bufts = std::strcmp(argv[6], "plain") != 0;
    of_model.n_gpu_layers = 0;
    Host host{};
    host.model = llama_model_load_from_file(argv[1], of_model);
    if (!host.model) fail(std::string("cannot load ") + argv[1]);
    host.vocab = llama_model_get_vocab(host.model);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(slots * CELLS);
    params.n_batch = params.n_ubatch = params.n_ctx;
    params.n_seq_max = static_cast<uint32_t>(slots);
    params.n_threads = params.n_threads_batch = threads;
    params.kv_unified = true; // as llama-server has it
    host.context = llama_init_from_model(host.model, params);
    if (!host.context) fail("no context");
    const auto all = questions(host, read(argv[2]), static_cast<size_t>(count));
    const auto alone = answers(host, all, 1), together = answers(host, all, slots);
    size_t same = 0, first = 0;
    for (size_t i = 0; i < all.size(); i++) {
        same += alone[i] == together[i];
        first += alone[i][0] == together[i][0];
    }
    std::printf("same %zu of %zu first %zu\n", same, all.size(), first);
    llama_free(host.context);
    llama_model_free(host.model);
    llama_backend_free();
    return 0;
}
