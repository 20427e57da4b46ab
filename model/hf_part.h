/* Inside the reader of Hugging Face tokenizers. Only the hf_*.c files include this. */
#ifndef MU_MODEL_HF_PART_H
#define MU_MODEL_HF_PART_H

#include <jansson.h>
#include <unistd.h>

#include "model/hf_tokenizer.h"
#include "model/json_scan.h"
#include "model/tokenizer_part.h"

enum { MU_HF_PATTERNS_MAX = 8 };

struct mu_hf_merge {
    struct mu_str left, right;
};

struct mu_hf {
    const char *folder;
    char shown[160]; /* the folder for messages */
    int n_vocab;     /* 0: not bounded */
    struct mu_arena *arena;

    char *text; /* tokenizer.json, or tokenizer.model: most strings below lie in it */
    size_t text_len;

    /* Small parts, NULL where absent. */
    json_t *added, *normalizer, *pre_tokenizer, *post_processor;       /* of tokenizer.json */
    json_t *config, *specials, *generation, *model_config, *template_; /* files of their own */

    /* The vocabulary: [n_token]; p NULL where no token has that id. */
    struct mu_str *tokens;
    uint8_t *types;
    float *scores;   /* SPM; smaller is merged later */
    bool has_scores; /* from a tokenizer.model */
    int n_token;
    int32_t *by_text; /* hash of a text → id; -1: empty */
    uint32_t by_text_mask;
    uint64_t seed;

    struct mu_hf_merge *merges; /* NULL: from a tokenizer.model, which has scores instead */
    size_t n_merge;
    struct mu_str unk;
    bool byte_fallback, whole_words;
    bool fuse_unk; /* SPM: a row of unknown characters is one token */

    /* What normalizer and pre-tokenizer come to. */
    bool spm, nfc, space_prefix, first_space, one_space;
    struct mu_str patterns[MU_HF_PATTERNS_MAX];
    int n_pattern;
};

#define MU_HF_BAD(h, name, err, fmt, ...) \
    mu_fail((err), MU_EFORMAT, "file '%s/" name "': " fmt, (h)->shown, ##__VA_ARGS__)
#define MU_HF_REFUSE(h, err, fmt, ...)                                                                                \
    mu_fail((err), MU_EUNSUPPORTED, "file '%s/tokenizer.json': " fmt " not supported; use a GGUF file of this model", \
            (h)->shown, ##__VA_ARGS__)

/* hf_vocab.c */
enum mu_status mu_hf_nomem(const struct mu_hf *h, struct mu_err *err);
enum mu_status mu_hf_json_read(struct mu_hf *h, struct mu_err *err);    /* tokenizer.json, as it stands */
enum mu_status mu_hf_vocab_finish(struct mu_hf *h, struct mu_err *err); /* added tokens, types, by_text, scores */
int32_t mu_hf_id_of(const struct mu_hf *h, struct mu_str text);         /* -1: no token */
static inline struct mu_str mu_hf_str(const json_t *j)                  /* NULL or no string: p NULL */
{
    return (struct mu_str){json_string_value(j), json_string_length(j)};
}

/* A number without fraction, of either kind that jansson has for them; -1: it is none, or negative. */
static inline int64_t mu_hf_int(const json_t *j)
{
    double v = json_number_value(j);
    return json_is_number(j) && v >= 0 && v < 9e15 && v == (double)(int64_t)v ? (int64_t)v : -1;
}

/* hf_pre.c: normalizer and pre-tokenizer */
enum mu_status mu_hf_pre_read(struct mu_hf *h, struct mu_err *err);

/* hf_spm.c: tokenizer.model */
enum mu_status mu_hf_spm_read(struct mu_hf *h, struct mu_err *err);

/* hf_special.c: ids, flags and templates into w */
enum mu_status mu_hf_special_put(const struct mu_hf *h, struct mu_gguf_writer *w, struct mu_err *err);

#endif
