/* Says what a file is that is no GGUF: people rename downloads, and a page that says "log in first" is a file, too. */
#include <string.h>
#include <strings.h>

#include "model/gguf_part.h"

struct magic {
    const char *bytes;
    size_t len;
    const char *advice;
};

#define MAGIC(bytes, advice)            \
    {                                   \
        bytes, sizeof bytes - 1, advice \
    }

#define PICKLE                                                                                               \
    "it is a Python pickle (an old PyTorch file), which can run any code when it is read; get the model as " \
    "GGUF or as a folder of .safetensors files"

static const struct magic magics[] = {
    MAGIC("FUGG", "it is a big-endian GGUF file; make it little-endian (gguf-py's gguf_convert_endian.py does)"),
    MAGIC("version https://git-lfs",
          "it is a Git LFS pointer, not the file itself; run 'git lfs pull' in its repository"),
    MAGIC("PK\003\004", "it is a ZIP archive (PyTorch's .bin and .pt files are, and can run any code when they are "
                        "read); get the model as "
                        "GGUF or as a folder of .safetensors files"),
    MAGIC("\x80\002", PICKLE),
    MAGIC("\x80\003", PICKLE),
    MAGIC("\x80\004", PICKLE),
    MAGIC("lmgg", "it is in the GGML format of before 2023; convert it to GGUF"),
    MAGIC("fmgg", "it is in the GGMF format of before 2023; convert it to GGUF"),
    MAGIC("tjgg", "it is in the GGJT format of before 2023; convert it to GGUF"),
    MAGIC("\x1f\x8b", "it is compressed with gzip; decompress it first"),
    MAGIC("\x28\xb5\x2f\xfd", "it is compressed with zstd; decompress it first"),
    MAGIC("\xfd"
          "7zXZ",
          "it is compressed with xz; decompress it first"),
    MAGIC("\x89HDF\r\n", "it is an HDF5 file; convert the model to GGUF"),
};

static int is_html(const uint8_t *p, size_t n)
{
    while (n && (*p == ' ' || *p == '\t' || *p == '\r' || *p == '\n')) p++, n--;
    return (n >= 9 && strncasecmp((const char *)p, "<!doctype", 9) == 0) ||
           (n >= 5 && strncasecmp((const char *)p, "<html", 5) == 0);
}

const char *mu_gguf_sniff(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < sizeof magics / sizeof *magics; i++)
        if (n >= magics[i].len && memcmp(p, magics[i].bytes, magics[i].len) == 0) return magics[i].advice;
    if (is_html(p, n))
        return "it is a web page (a download link that wants a login, or an error page); download the file again";
    /* safetensors: the length of a JSON header, then the header */
    uint64_t header_bytes;
    if (n > 8 && p[8] == '{' && (memcpy(&header_bytes, p, 8), header_bytes >= 2 && header_bytes <= 100u << 20))
        return "it is a safetensors file; name it so (model.safetensors) and put it beside its config.json";
    if (n && p[0] == '{')
        return "it is a JSON file; name the model's .gguf file, or the folder that holds config.json and *.safetensors";
    return NULL;
}
