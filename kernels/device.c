/* Finds the plugin of an accelerator (device.h). What was found, or why nothing was, is kept for the process: all
 * threads see the same. */
#include "kernels/device.h"

#include <dlfcn.h>
#include <libgen.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_NAME "libmuster_cuda.so"

static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER; /* guards the three below */
static bool loaded;
static const struct mu_device_ops *loaded_ops;
static struct mu_err loaded_err;

static enum mu_status load(const char *path, const struct mu_device_ops **ops_out, struct mu_err *err)
{
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    mu_device_ops_fn *get;
    const struct mu_device_ops *ops;
    if (!lib) return mu_fail(err, MU_EUNSUPPORTED, "the GPU plugin %s does not load: %s", path, dlerror());
    *(void **)&get = dlsym(lib, MU_DEVICE_SYMBOL);
    if (!get) {
        dlclose(lib);
        return mu_fail(err, MU_EUNSUPPORTED, "%s is no GPU plugin: it has no " MU_DEVICE_SYMBOL, path);
    }
    ops = get();
    if (ops->abi != MU_DEVICE_ABI) {
        uint32_t abi = ops->abi;
        dlclose(lib);
        return mu_fail(err, MU_EUNSUPPORTED,
                       "the GPU plugin %s has version %u of its interface, this program version %d: "
                       "use those of one build",
                       path, abi, MU_DEVICE_ABI);
    }
    *ops_out = ops; /* stays loaded: its devices may be open anywhere */
    return MU_OK;
}

/* Beside the program; as installed; as built, for the program and for its tests. */
static const char *const places[] = {"", "../lib/muster/", "../kernels/cuda/", "../../kernels/cuda/"};

static enum mu_status find(const struct mu_device_ops **ops_out, struct mu_err *err)
{
    const char *chosen = getenv("MUSTER_DEVICE_PLUGIN");
    char exe[PATH_MAX], path[PATH_MAX + 64];
    ssize_t n;
    if (chosen && strcmp(chosen, "none") == 0) return mu_fail(err, MU_ENOENT, "MUSTER_DEVICE_PLUGIN is \"none\"");
    if (chosen && *chosen) {
        if (strchr(chosen, '/') && access(chosen, F_OK) != 0)
            return mu_fail(err, MU_ENOENT, "there is no GPU plugin %s (MUSTER_DEVICE_PLUGIN)", chosen);
        return load(chosen, ops_out, err);
    }
    n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n > 0) {
        exe[n] = '\0';
        dirname(exe);
        for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
            snprintf(path, sizeof path, "%s/%s" FILE_NAME, exe, places[i]);
            if (access(path, F_OK) == 0) return load(path, ops_out, err);
        }
    }
    /* Last, the loader's own folders; that it is nowhere there is no fault, what it says of another reason is kept. */
    void *lib = dlopen(FILE_NAME, RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        const char *why = dlerror();
        if (!why || strstr(why, FILE_NAME ": cannot open shared object file: No such file"))
            return mu_fail(err, MU_ENOENT,
                           "there is no GPU plugin (" FILE_NAME ") beside the program or in the system's folders");
        return mu_fail(err, MU_EUNSUPPORTED, "the GPU plugin does not load: %s", why);
    }
    enum mu_status st = load(FILE_NAME, ops_out, err);
    dlclose(lib);
    return st;
}

const struct mu_device_ops *mu_device_load(struct mu_err *err)
{
    const struct mu_device_ops *ops;
    pthread_mutex_lock(&load_lock);
    if (!loaded) {
        find(&loaded_ops, &loaded_err);
        loaded = true;
    }
    ops = loaded_ops;
    if (!ops && err) *err = loaded_err;
    pthread_mutex_unlock(&load_lock);
    return ops;
}
