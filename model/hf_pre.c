/* What tokenizer.json's normalizer and pre_tokenizer come to: byte-level BPE with a list of patterns, or
 * SentencePiece's kind with or without a space before the text.
 *
 * Patterns are written for Oniguruma, and are rewritten for PCRE2 so that equal patterns come out as equal texts, in
 * the spelling of pretokenizer.c: white space as the Unicode property, control characters and all beyond ASCII as
 * escapes. What the two libraries read differently and is not rewritten is refused. */
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "model/hf_part.h"
#include "model/pretokenizer.h"
#include "model/utf8.h"

enum { SEQUENCE_DEPTH = 4, PATTERN_MAX = 4096, REWRITTEN_MAX = 16 * PATTERN_MAX };

static bool is(const json_t *j, const char *text)
{
    struct mu_str s = mu_hf_str(j);
    return s.p && mu_str_is(s, text);
}

static enum mu_status refuse_type(const struct mu_hf *h, const char *what, const json_t *part, struct mu_err *err)
{
    struct mu_str type = mu_hf_str(json_object_get(part, "type"));
    char shown[48];
    return MU_HF_REFUSE(h, err, "%s '%s' as it is used here is", what,
                        type.p ? mu_str_show(type, shown, sizeof shown) : "without a type");
}

/* ---- the normalizer ---- */

struct normal {
    bool replaces, prepends;
};

static enum mu_status read_normalizer(struct mu_hf *h, const json_t *part, struct normal *n, int depth,
                                      struct mu_err *err)
{
    const json_t *type = json_object_get(part, "type"), *inner;
    size_t i;
    if (!part || json_is_null(part)) return MU_OK;
    if (is(type, "Sequence") && depth < SEQUENCE_DEPTH) {
        json_array_foreach(json_object_get(part, "normalizers"), i, inner)
        {
            enum mu_status st = read_normalizer(h, inner, n, depth + 1, err);
            if (st != MU_OK) return st;
        }
        return MU_OK;
    }
    bool *set = is(type, "NFC")                                                            ? &h->nfc
                : is(type, "Prepend") && is(json_object_get(part, "prepend"), MU_TOK_MARK) ? &n->prepends
                : is(type, "Replace") && is(json_object_get(part, "content"), MU_TOK_MARK) &&
                        is(json_object_get(json_object_get(part, "pattern"), "String"), " ")
                    ? &n->replaces
                    : NULL;
    if (!set) return refuse_type(h, "normalizer", part, err);
    *set = true;
    return MU_OK;
}

/* ---- patterns ---- */

/* Escapes that mean the same in both libraries. */
static bool same_escape(char c)
{
    return strchr("pPdDrntfxzA", c) || (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
           (c >= '{' && c <= '~') || c == ' ';
}

/* p{Name of a script: PCRE2 would take a bare name for the characters that are *also* used with the script. Length of
 * the name; 0: something else. */
static size_t script_name(const char *p, size_t n)
{
    static const char *const others[] = {"White_Space", "Alphabetic", "Any", "Lowercase", "Uppercase", "ASCII"};
    size_t len = 0;
    if (n < 3 || (*p != 'p' && *p != 'P') || p[1] != '{' || p[2] < 'A' || p[2] > 'Z') return 0;
    while (2 + len < n && ((p[2 + len] | 32) >= 'a' && (p[2 + len] | 32) <= 'z')) len++;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (len == strlen(others[i]) && !memcmp(p + 2, others[i], len)) return 0;
    }
    return len > 2 && 2 + len < n && p[2 + len] == '}' ? len : 0;
}

#define WORD "\\p{L}\\p{M}\\p{Nd}\\p{Pc}"

/* The escape at p, a backslash before it. Bytes read; 0: not to be rewritten. */
static size_t rewrite_escape(struct mu_writer *w, const char *p, size_t n, bool in_class)
{
    static const struct {
        char c;
        const char *inside, *outside;
    } table[] = {{'s', "\\p{White_Space}", "\\p{White_Space}"},
                 {'S', "\\P{White_Space}", "\\P{White_Space}"},
                 {'w', WORD, "[" WORD "]"},
                 {'W', NULL, "[^" WORD "]"},
                 {'v', "\\x{000B}", "\\x{000B}"}}; /* PCRE2's are all characters that end lines */
    if (!n || !*p) return 0;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (*p != table[i].c) continue;
        const char *to = in_class ? table[i].inside : table[i].outside;
        if (!to) return 0;
        mu_write_bytes(w, to, strlen(to));
        return 1;
    }
    if (*p == 'u' && n >= 5) { /* four digits; whether they are some is for the compiler */
        mu_write_bytes(w, "\\x{", 3);
        mu_write_bytes(w, p + 1, 4);
        mu_write_u8(w, '}');
        return 5;
    }
    size_t script = script_name(p, n);
    if (script) {
        mu_write_u8(w, '\\');
        mu_write_bytes(w, p, 2);
        mu_write_bytes(w, "sc:", 3);
        mu_write_bytes(w, p + 2, script);
        return 2 + script;
    }
    if (!same_escape(*p)) return 0;
    mu_write_u8(w, '\\');
    mu_write_bytes(w, p, 1);
    return 1;
}

/* A character that stands for itself. Bytes read. */
static size_t rewrite_char(struct mu_writer *w, const char *p, size_t n)
{
    uint32_t cp = 0xFFFD;
    char text[16];
    size_t len = (size_t)mu_utf8_next(p, n, &cp); /* jansson's strings are valid */
    const char *control = cp == '\r' ? "\\r" : cp == '\n' ? "\\n" : cp == '\t' ? "\\t" : NULL;
    if (control)
        mu_write_bytes(w, control, 2);
    else if (cp < 0x80 && cp >= ' ')
        mu_write_bytes(w, p, 1);
    else
        mu_write_bytes(w, text, (size_t)snprintf(text, sizeof text, "\\x{%04X}", cp));
    return len ? len : 1;
}

/* A repeat {n}, {n,} or {n,m} with a sign behind it, where Oniguruma repeats the repeat: "{1,3}+" takes any number and
 * "{3}?" three or none, but PCRE2's are possessive and lazy. "{1,3}?" is lazy in both. */
static bool is_repeated_repeat(const char *p, size_t n)
{
    size_t i = 1;
    if (n < 4 || *p != '{' || p[1] < '0' || p[1] > '9') return false;
    bool range = false;
    for (; i < n && ((p[i] >= '0' && p[i] <= '9') || p[i] == ','); i++) range |= p[i] == ',';
    return i + 1 < n && p[i] == '}' && (p[i + 1] == '+' || (p[i + 1] == '?' && !range));
}

/* "(?i)" but at the very start: to Oniguruma all alternatives that follow are within it, to PCRE2 they are not. Other
 * letters than i mean other things, or nothing, to one of the two. */
static bool is_foreign_option(const char *p, size_t n, bool at_start)
{
    size_t i = 2;
    if (n < 4 || p[0] != '(' || p[1] != '?') return false;
    bool letter = (p[2] | 32) >= 'a' && (p[2] | 32) <= 'z';
    if (!letter && p[2] != '-') return false;
    i += p[i] == '-';
    i += i < n && p[i] == 'i';
    return i == n || !(p[i] == ':' || (at_start && p[i] == ')'));
}

/* Returns NULL, or what cannot be rewritten. */
static const char *rewrite(struct mu_writer *w, struct mu_str s)
{
    bool in_class = false;
    for (size_t i = 0; i < s.len;) {
        const char *p = s.p + i;
        size_t left = s.len - i;
        if (*p == '\\') {
            size_t n = rewrite_escape(w, p + 1, left - 1, in_class);
            if (!n) return "an escape";
            i += 1 + n;
            if (p[1] == 'x' && i < s.len && s.p[i] == '{') mu_write_u8(w, '{'), i++; /* its digits are no repeat */
            continue;
        }
        if (in_class && *p == '[') return "a class within a class";
        if (in_class && left > 1 && !memcmp(p, "&&", 2)) return "an intersection of classes";
        if (!in_class && left > 1 && !memcmp(p, "{,", 2)) return "a repeat without a lower bound";
        if (!in_class && is_repeated_repeat(p, left)) return "a repeat of a repeat";
        if (!in_class && is_foreign_option(p, left, i == 0)) return "an option";
        if (!in_class && (*p == '^' || *p == '$')) return "an anchor";
        if (*p == '[') {
            in_class = true;
            mu_write_u8(w, '[');
            i++;
            if (i < s.len && s.p[i] == '^') mu_write_u8(w, '^'), i++;
            if (i < s.len && s.p[i] == ']') return "a bracket at the start of a class";
            continue;
        }
        if (*p == ']') in_class = false;
        i += rewrite_char(w, p, left);
    }
    return NULL;
}

static enum mu_status add_pattern(struct mu_hf *h, const char *p, size_t n, struct mu_err *err)
{
    if (h->n_pattern == MU_HF_PATTERNS_MAX)
        return MU_HF_REFUSE(h, err, "a pre-tokenizer of more than %d patterns is", MU_HF_PATTERNS_MAX);
    struct mu_str plain = mu_pre_plain((struct mu_str){p, n});
    char *copy = mu_arena_strndup(h->arena, plain.p, plain.len);
    if (!copy) return mu_hf_nomem(h, err);
    h->patterns[h->n_pattern++] = (struct mu_str){copy, plain.len};
    return MU_OK;
}

static enum mu_status add_regex(struct mu_hf *h, struct mu_str s, struct mu_err *err)
{
    struct mu_writer w;
    char shown[120];
    enum mu_status st;
    if (s.len > PATTERN_MAX) return MU_HF_REFUSE(h, err, "a pattern of %zu bytes is", s.len);
    mu_writer_init(&w, REWRITTEN_MAX);
    const char *what = rewrite(&w, s);
    if (!w.ok)
        st = mu_hf_nomem(h, err);
    else if (what)
        st = MU_HF_REFUSE(h, err, "%s in the pattern '%s' is", what, mu_str_show(s, shown, sizeof shown));
    else
        st = add_pattern(h, (const char *)w.data, w.len, err);
    mu_writer_free(&w);
    return st;
}

/* A text that is to be found as it is. */
static enum mu_status add_literal(struct mu_hf *h, struct mu_str s, struct mu_err *err)
{
    struct mu_writer w;
    enum mu_status st;
    if (s.len > PATTERN_MAX) return MU_HF_REFUSE(h, err, "a text to split at of %zu bytes is", s.len);
    mu_writer_init(&w, REWRITTEN_MAX);
    for (size_t i = 0; i < s.len;) {
        if (s.p[i] > ' ' && s.p[i] < 0x7F && !((s.p[i] | 32) >= 'a' && (s.p[i] | 32) <= 'z') &&
            !(s.p[i] >= '0' && s.p[i] <= '9'))
            mu_write_u8(&w, '\\');
        i += rewrite_char(&w, s.p + i, s.len - i);
    }
    st = w.ok ? add_pattern(h, (const char *)w.data, w.len, err) : mu_hf_nomem(h, err);
    mu_writer_free(&w);
    return st;
}

/* ---- the pre-tokenizer ---- */

struct pre {
    bool byte_level, metaspace, prefix;
};

static enum mu_status read_split(struct mu_hf *h, const json_t *part, const struct normal *n, struct mu_err *err)
{
    const json_t *pattern = json_object_get(part, "pattern"), *behavior = json_object_get(part, "behavior");
    struct mu_str regex = mu_hf_str(json_object_get(pattern, "Regex")),
                  text = mu_hf_str(json_object_get(pattern, "String"));
    bool invert = json_is_true(json_object_get(part, "invert"));
    if (text.p && mu_str_is(text, " ") && n->replaces) return MU_OK; /* there are no spaces any more */
    /* What does not match is kept as a piece here. To drop it ("Removed", inverted) is written for patterns that
     * match everything. */
    bool isolated = (is(behavior, "Isolated") && !invert) || (is(behavior, "Removed") && invert);
    if (!isolated || (!regex.p && !text.p) || (text.p && !text.len)) return refuse_type(h, "pre-tokenizer", part, err);
    return regex.p ? add_regex(h, regex, err) : add_literal(h, text, err);
}

static enum mu_status read_byte_level(struct mu_hf *h, const json_t *part, struct pre *p, struct mu_err *err)
{
    if (json_is_true(json_object_get(part, "add_prefix_space"))) return refuse_type(h, "pre-tokenizer", part, err);
    p->byte_level = true;
    if (json_is_false(json_object_get(part, "use_regex"))) return MU_OK;
    struct mu_str gpt2 = mu_pre_gpt2();
    return add_pattern(h, gpt2.p, gpt2.len, err);
}

static enum mu_status read_metaspace(struct mu_hf *h, const json_t *part, struct pre *p, struct mu_err *err)
{
    const json_t *scheme = json_object_get(part, "prepend_scheme"), *split = json_object_get(part, "split");
    if (!is(json_object_get(part, "replacement"), MU_TOK_MARK) || !json_is_false(split))
        return refuse_type(h, "pre-tokenizer", part, err);
    p->metaspace = h->one_space = true;
    p->prefix |= scheme ? !is(scheme, "never") : !json_is_false(json_object_get(part, "add_prefix_space"));
    h->first_space |= is(scheme, "first");
    return MU_OK;
}

/* Behind ByteLevel a pattern sees the byte alphabet, in which only ASCII is what it was: the space is none, and an
 * accented letter is two. Of digits ASCII's are cut alike there (Falcon has it so), and some bytes of letters, over which no
 * merge goes that was learnt so. */
static bool is_of_digits(const json_t *part)
{
    struct mu_str regex = mu_hf_str(json_object_get(json_object_get(part, "pattern"), "Regex"));
    if (is(json_object_get(part, "type"), "Digits")) return true;
    return regex.p && strspn(regex.p, "[0123456789-]{,}+") == regex.len;
}

static enum mu_status read_pre(struct mu_hf *h, const json_t *part, const struct normal *n, struct pre *p, int depth,
                               struct mu_err *err)
{
    const json_t *type = json_object_get(part, "type"), *inner;
    size_t i;
    if (!part || json_is_null(part)) return MU_OK;
    if (is(type, "Sequence") && depth < SEQUENCE_DEPTH) {
        json_array_foreach(json_object_get(part, "pretokenizers"), i, inner)
        {
            enum mu_status st = read_pre(h, inner, n, p, depth + 1, err);
            if (st != MU_OK) return st;
        }
        return MU_OK;
    }
    if (p->byte_level && !is_of_digits(part))
        return MU_HF_REFUSE(h, err, "a pre-tokenizer behind ByteLevel that cuts more than digits is");
    if (is(type, "Split")) return read_split(h, part, n, err);
    if (is(type, "ByteLevel")) return read_byte_level(h, part, p, err);
    if (is(type, "Metaspace")) return read_metaspace(h, part, p, err);
    const char *pattern = NULL;
    if (is(type, "Digits")) {
        bool single = json_is_true(json_object_get(part, "individual_digits"));
        pattern = p->byte_level ? (single ? "[0-9]" : "[0-9]+") : single ? "\\p{N}" : "\\p{N}+";
    } else if (is(type, "Punctuation")) {
        const json_t *behavior = json_object_get(part, "behavior");
        if (is(behavior, "Contiguous")) pattern = "[\\p{P}$+<=>^~|`]+";
        if (!behavior || is(behavior, "Isolated")) pattern = "[\\p{P}$+<=>^~|`]";
    }
    return pattern ? add_pattern(h, pattern, strlen(pattern), err) : refuse_type(h, "pre-tokenizer", part, err);
}

enum mu_status mu_hf_pre_read(struct mu_hf *h, struct mu_err *err)
{
    struct normal n = {0};
    struct pre p = {0};
    enum mu_status st = read_normalizer(h, h->normalizer, &n, 0, err);
    if (st == MU_OK) st = read_pre(h, h->pre_tokenizer, &n, &p, 0, err);
    if (st != MU_OK) return st;
    h->spm = n.replaces || p.metaspace;
    h->space_prefix = n.prepends || p.prefix;
    if (h->spm == p.byte_level)
        return MU_HF_REFUSE(h, err, "a BPE tokenizer that is %s is",
                            h->spm ? "both byte-level and SentencePiece's kind"
                                   : "neither byte-level nor SentencePiece's kind");
    if (h->spm && h->n_pattern) return MU_HF_REFUSE(h, err, "splitting SentencePiece's kind of text by patterns is");
    if (!h->spm && h->space_prefix) return MU_HF_REFUSE(h, err, "a space before byte-level text is");
    return MU_OK;
}
