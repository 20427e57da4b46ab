/* Inside the tokenizer: the opened vocabulary and one encode call's state. Only the tokenizer*.c files,
 * streamer.c and hf_part.h include this.
 *
 * A token has a text (as the file spells it) and a piece (the bytes it stands for): "▁the" and " the", "Ġthe" and "
 * the", "<0x0A>" and a newline. Merging works on pieces, so both kinds share the table from bytes to ids and the
 * merging itself. */
#ifndef MU_MODEL_TOKENIZER_PART_H
#define MU_MODEL_TOKENIZER_PART_H

#include "base/arena.h"
#include "model/pretokenizer.h"
#include "model/tokenizer.h"

enum mu_tok_type { /* the format's numbers */
                   MU_TOK_NORMAL = 1,
                   MU_TOK_UNKNOWN,
                   MU_TOK_CONTROL,
                   MU_TOK_USER,
                   MU_TOK_UNUSED,
                   MU_TOK_BYTE
};

/* The longest text of a token. Real ones end at 1,024; the bound keeps matching linear whatever a file holds. */
enum { MU_TOK_TEXT_MAX = 8192, MU_TOK_ENDS_MAX = 80 };

/* SentencePiece writes a space as U+2581, and reads that as a space. */
#define MU_TOK_MARK "\xE2\x96\x81"
enum { MU_TOK_MARK_LEN = 3 };
size_t mu_tok_unmark(struct mu_str text, char *out); /* length written, at most text.len */

/* Bytes → id: open addressing, a power of two of slots, at most half full. The seed differs from open to open, so
 * that no file can be made whose tokens all meet in one slot. */
struct mu_tok_slot {
    uint32_t hash;
    int32_t id; /* -1: empty */
};
struct mu_tok_map {
    struct mu_tok_slot *slots;
    uint64_t seed;
    uint32_t mask;
};

/* Tokens found in the text before anything else is done to it, sorted by their bytes. */
struct mu_tok_special {
    struct mu_str text;
    int32_t id;
    bool always;                  /* user-defined: also where special tokens are not to be parsed */
    bool strip_left, strip_right; /* white space before, after it is dropped */
    bool late;                    /* looked for in what the others have left, so not in what they have stripped */
};
struct mu_tok_specials {
    struct mu_tok_special *items;
    uint32_t first[257];     /* items that begin with byte b: first[b] … first[b+1]-1 */
    bool begins_always[256]; /* some item that begins so is `always` */
};

struct mu_tok_merge {    /* byte-level BPE: left and right make id */
    int32_t left, right; /* left -1: empty slot */
    uint32_t rank;
    int32_t id;
};

struct mu_tokenizer {
    const struct mu_gguf *gguf;
    char shown[160];            /* the file for messages: the end of its path */
    const struct mu_str *texts; /* [n_vocab], borrowed */
    bool spm;                   /* SentencePiece's kind: spaces as U+2581, bytes as <0x0A>; else byte-level */
    bool ranked;                /* … merged by the ranks of merges, not by scores */
    bool gemma4;                /* the file's own name for a ranked kind, with rules of its own */
    bool add_bos, add_eos, add_space_prefix, strip_after;
    bool first_space;  /* the space prefix goes before the text only, not behind special tokens */
    bool one_space;    /* … and not before a text that begins with a space */
    bool each_unknown; /* SPM: each unknown character is a token, not each row of them */
    bool whole_words;  /* BPE: a word that is a token is that token, whatever merging would make of it */
    int n_vocab, bos, eos, unk;
    int32_t ends[MU_TOK_ENDS_MAX];
    int n_end;
    uint8_t *types;             /* [n_vocab] enum mu_tok_type */
    char *piece_bytes;          /* all pieces, one after another */
    uint32_t *piece_at;         /* [n_vocab+1] */
    uint32_t piece_max;         /* length of the longest piece that merging can make */
    struct mu_tok_map by_piece; /* tokens that merging can make */
    struct mu_tok_specials specials;
    int32_t byte_ids[256]; /* -1: none */

    uint64_t *unsettled; /* NFC: characters that may not stand as they are; NULL: text is not normalised */

    uint32_t *order;  /* SPM [n_vocab]: smaller merges earlier (the scores, turned round) */
    uint64_t *joints; /* SPM: which characters stand side by side in some token; see tokenizer_spm.c */
    uint32_t joint_mask;

    struct mu_pre *pre;          /* byte-level */
    struct mu_tok_merge *merges; /* byte-level, ranked */
    uint64_t merge_seed;
    uint32_t merge_mask;
};

/* A malformed vocabulary: value (NULL: absent) is where. */
#define MU_TOK_BAD(t, value, err, fmt, ...)                                \
    mu_fail((err), MU_EFORMAT, "file '%s', offset %llu: " fmt, (t)->shown, \
            (value) ? (unsigned long long)(value)->offset : 0ull, ##__VA_ARGS__)
#define MU_TOK_REMEDY "the file is damaged or was converted badly"

static inline struct mu_str mu_tok_piece(const struct mu_tokenizer *t, int32_t id)
{
    return (struct mu_str){t->piece_bytes + t->piece_at[id], t->piece_at[id + 1] - t->piece_at[id]};
}

/* The first piece (not empty) of a whole text, without the space that encoding put in front. */
static inline struct mu_str mu_tok_without_prefix(const struct mu_tokenizer *t, int32_t id, struct mu_str piece)
{
    if (!t->add_space_prefix || piece.p[0] != ' ' || t->types[id] != MU_TOK_NORMAL) return piece;
    return (struct mu_str){piece.p + 1, piece.len - 1};
}

/* tokenizer.c: whether a token of this text is a control token, though its file may call it a user-defined one. */
bool mu_tok_ends_turn(struct mu_str text);

/* tokenizer_vocab.c */
enum mu_status mu_tok_vocab_open(struct mu_tokenizer *t, struct mu_err *err); /* types, pieces, by_piece, byte_ids */
uint64_t mu_tok_hash(const char *p, size_t n, uint64_t seed);
int32_t mu_tok_find(const struct mu_tokenizer *t, const char *p, size_t n, uint64_t hash); /* -1: none */
static inline uint64_t mu_tok_piece_hash(const struct mu_tokenizer *t, const char *p, size_t n)
{
    return mu_tok_hash(p, n, t->by_piece.seed);
}
/* The bytes that a byte-level text stands for ("Ġ" is a space), at most as many as text has. -1: it is no such text. */
int mu_tok_byte_level(struct mu_str text, char *out);
int mu_tok_byte(struct mu_str text); /* "<0x0A>" → 10; -1: no such text */
uint64_t mu_tok_seed(void);

/* tokenizer_ranks.c: tokenizer.ggml.merges */
enum mu_status mu_tok_ranks_open(struct mu_tokenizer *t, struct mu_err *err);

/* tokenizer_special.c */
/* Arrays of ids (checked), or NULL: left, right, those that strip white space; late, those of the second pass. */
enum mu_status mu_tok_specials_open(struct mu_tokenizer *t, const struct mu_gguf_value *left,
                                    const struct mu_gguf_value *right, const struct mu_gguf_value *late,
                                    struct mu_err *err);
/* The longest token that text begins with; NULL: none. n ≥ 1. */
const struct mu_tok_special *mu_tok_special_at(const struct mu_tokenizer *t, const char *text, size_t n,
                                               bool parse_special);

/* One encode call. */
struct mu_tok_sym {
    uint32_t at, len; /* in the piece of text being merged */
    int32_t id;       /* -1: no token is known for it */
    int32_t merged;   /* what it and the symbol to its right make */
    uint32_t key;     /* of that merge: smaller is earlier; MU_TOK_NO_MERGE: they make nothing */
    int32_t prev, next;
};
#define MU_TOK_NO_MERGE     UINT32_MAX
#define MU_TOK_UNKNOWN_CHAR (-1) /* among a call's ids until it ends: an unknown character */

struct mu_tok_seen { /* a word met before in this call and where its ids are */
    const char *p;
    uint32_t len, n_ids;
    size_t at;
};

struct mu_encode {
    const struct mu_tokenizer *t;
    int32_t *ids;
    size_t n_ids, cap_ids;
    struct mu_tok_sym *syms;
    size_t cap_syms;
    uint64_t *heap;
    size_t n_heap, cap_heap;
    struct mu_tok_seen *seen; /* direct-mapped */
    uint32_t seen_mask;
    struct mu_pre_run *run; /* BPE, when first needed */
    bool copies;  /* SPM: the text cannot be used as it is, but with the spaces that go before it and without marks */
    bool unknown; /* SPM: some of ids are MU_TOK_UNKNOWN_CHAR */
    bool started; /* what was encoded so far is not the beginning of the text */
    struct mu_arena *arena; /* of mu_encode_alloc, once it was needed */
};

enum mu_status mu_tok_nomem(struct mu_err *err); /* "out of memory while tokenizing" */
enum mu_status mu_encode_push(struct mu_encode *e, int32_t id, struct mu_err *err);
void *mu_encode_alloc(struct mu_encode *e, size_t n); /* for text that lives as long as the call; NULL: no memory */
/* Whether this word was met before in the call: then its ids are appended again, and *st says how that went. */
bool mu_encode_seen(struct mu_encode *e, const char *p, size_t n, uint64_t hash, enum mu_status *st,
                    struct mu_err *err);
/* The word's ids are e->ids[at..]. p must stay valid until the call ends. */
void mu_encode_remember(struct mu_encode *e, const char *p, size_t n, uint64_t hash, size_t at);

/* tokenizer_merge.c: merges e->syms[0..n) (at, len, id set; in order, without gaps), best key first, the leftmost of
 * equals, until nothing merges. Leaves the result in e->syms[0..*n_out). */
typedef void (*mu_tok_pair)(const struct mu_tokenizer *t, const char *text, const struct mu_tok_sym *left,
                            const struct mu_tok_sym *right, uint32_t *key_out, int32_t *id_out);
enum mu_status mu_encode_syms(struct mu_encode *e, size_t n, struct mu_err *err); /* room for n symbols */
enum mu_status mu_tok_merge_all(struct mu_encode *e, const char *text, size_t n, mu_tok_pair pair, size_t *n_out,
                                struct mu_err *err);

/* tokenizer_ranks.c: the pair that merges by rank make. */
void mu_tok_rank_pair(const struct mu_tokenizer *t, const char *text, const struct mu_tok_sym *left,
                      const struct mu_tok_sym *right, uint32_t *key_out, int32_t *id_out);

/* tokenizer_nfc.c: the table; *text and *n become the text in NFC, where they were not (it lives as long as e). */
enum mu_status mu_tok_nfc_open(struct mu_tokenizer *t, struct mu_err *err);
enum mu_status mu_tok_nfc(struct mu_encode *e, const char **text, size_t *n, struct mu_err *err);

/* tokenizer_spm.c, tokenizer_bpe.c: what the kind needs beside the vocabulary; one stretch of text without special
 * tokens. */
enum mu_status mu_tok_spm_open(struct mu_tokenizer *t, struct mu_err *err);
enum mu_status mu_tok_spm_encode(struct mu_encode *e, const char *text, size_t n, struct mu_err *err);
enum mu_status mu_tok_bpe_open(struct mu_tokenizer *t, struct mu_err *err);
enum mu_status mu_tok_bpe_encode(struct mu_encode *e, const char *text, size_t n, struct mu_err *err);

#endif
