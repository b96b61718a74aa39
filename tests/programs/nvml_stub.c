/* A stand-in for NVIDIA's libnvidia-ml.so.1 with as much of its interface as qctl asks for. What it
 * answers is said by the file that QCTL_NVML_STUB names, which is read anew at every call:
 *
 *   init absent|not_supported|hang        how nvmlInit answers; ok otherwise
 *   gpu UUID KEY=VALUE ...                one GPU a line, in order
 *   xid NUMBER UUID SERIAL                an event; each SERIAL is told once
 *   hang TEXT                             functions whose name contains TEXT never return
 *   slow MILLISECONDS                     every function takes that long
 *
 * Keys: name, memory, used, busy, temperature, power, ecc, pids (with commas), lost, reset, retired,
 * remap_failed, nameless (its UUID is not told), deaf (it registers no events). A value `none` answers
 * "not supported", `garbage` answers all ones.
 *
 * Figures and structures are those of NVIDIA's public API reference for NVML. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, TIMED_OUT = 10, GPU_LOST = 15, RESET_REQUIRED = 16, UNKNOWN = 999 };
enum { MAX_GPUS = 8, TEXT = 8192, EVENT_XID = 8 };

struct gpu { char uuid[80]; char rest[2056]; };
struct script { char init[32]; struct gpu gpus[MAX_GPUS]; int count;
                unsigned long long xid; char xid_gpu[80]; long xid_serial; char hang[64]; long slow; };

static long told_serial = 0;

static void read_script(struct script *script) {
    memset(script, 0, sizeof *script);
    const char *path = getenv("QCTL_NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return;
    char line[2048];
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        struct gpu *gpu = &script->gpus[script->count];
        if (sscanf(line, "init %31s", script->init) == 1) continue;
        if (sscanf(line, "hang %63s", script->hang) == 1) continue;
        if (sscanf(line, "slow %ld", &script->slow) == 1) continue;
        if (sscanf(line, "xid %llu %79s %ld", &script->xid, script->xid_gpu, &script->xid_serial) == 3) continue;
        if (script->count < MAX_GPUS && sscanf(line, "gpu %79s", gpu->uuid) == 1) {
            snprintf(gpu->rest, sizeof gpu->rest, " %s ", line);
            script->count++;
        }
    }
    fclose(file);
}

static void pause_for(long milliseconds) {
    struct timespec time = { milliseconds / 1000, milliseconds % 1000 * 1000000 };
    nanosleep(&time, NULL);
}

/* Begins every function: reads the script, and hangs or dawdles as that says. */
static void begin(struct script *script, const char *name) {
    read_script(script);
    if (script->hang[0] && strstr(name, script->hang)) for (;;) pause();
    if (script->slow) pause_for(script->slow);
}

static int find(const struct gpu *gpu, const char *key, char *value, size_t size) {
    char pattern[64];
    snprintf(pattern, sizeof pattern, " %s=", key);
    const char *at = strstr(gpu->rest, pattern);
    if (!at) return 0;
    at += strlen(pattern);
    size_t length = strcspn(at, " ");
    if (length >= size) length = size - 1;
    memcpy(value, at, length);
    value[length] = 0;
    return 1;
}

/* The GPU behind a handle, unless it is lost. */
static int open_gpu(const struct script *script, void *device, const struct gpu **gpu) {
    intptr_t index = (intptr_t)device - 1;
    if (index < 0 || index >= script->count) return GPU_LOST;
    *gpu = &script->gpus[index];
    char value[64];
    if (find(*gpu, "lost", value, sizeof value) && strcmp(value, "0")) return GPU_LOST;
    if (find(*gpu, "reset", value, sizeof value) && strcmp(value, "0")) return RESET_REQUIRED;
    return SUCCESS;
}

static int number(void *device, const char *name, const char *key, unsigned long long *result) {
    struct script script;
    begin(&script, name);
    const struct gpu *gpu;
    int code = open_gpu(&script, device, &gpu);
    if (code != SUCCESS) return code;
    char value[64];
    if (!find(gpu, key, value, sizeof value) || !strcmp(value, "none")) return NOT_SUPPORTED;
    *result = strcmp(value, "garbage") ? strtoull(value, NULL, 10) : ~0ULL;
    return SUCCESS;
}

int nvmlInit_v2(void) {
    struct script script;
    begin(&script, __func__);
    if (!strcmp(script.init, "absent")) return DRIVER_NOT_LOADED;
    if (!strcmp(script.init, "not_supported")) return NOT_SUPPORTED;
    if (!strcmp(script.init, "unknown")) return UNKNOWN;
    if (!strcmp(script.init, "hang")) for (;;) pause();
    return SUCCESS;
}

int nvmlShutdown(void) { return SUCCESS; }

int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    snprintf(text, size, "550.54.15");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    struct script script;
    begin(&script, __func__);
    *count = script.count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    struct script script;
    begin(&script, __func__);
    if ((int)index >= script.count) return INVALID;
    *device = (void *)(intptr_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    struct script script;
    begin(&script, __func__);
    for (int i = 0; i < script.count; i++)
        if (!strcmp(script.gpus[i].uuid, uuid)) {
            const struct gpu *gpu;
            *device = (void *)(intptr_t)(i + 1);
            return open_gpu(&script, *device, &gpu);
        }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned size) {
    struct script script;
    begin(&script, __func__);
    intptr_t index = (intptr_t)device - 1;
    if (index < 0 || index >= script.count) return GPU_LOST;
    char value[64];
    if (find(&script.gpus[index], "nameless", value, sizeof value)) return UNKNOWN;
    snprintf(text, size, "%s", script.gpus[index].uuid);
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *text, unsigned size) {
    struct script script;
    begin(&script, __func__);
    const struct gpu *gpu;
    int code = open_gpu(&script, device, &gpu);
    if (code != SUCCESS) return code;
    char value[64];
    if (!find(gpu, "name", value, sizeof value)) return NOT_SUPPORTED;
    snprintf(text, size, "%s", value);
    return SUCCESS;
}

struct memory { unsigned version; unsigned long long total, reserved, free, used; };

int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory *memory) {
    int code = number(device, __func__, "memory", &memory->total);
    if (code == SUCCESS) code = number(device, __func__, "used", &memory->used);
    memory->reserved = 0;
    memory->free = memory->total - memory->used;
    return code;
}

int nvmlDeviceGetUtilizationRates(void *device, unsigned rates[2]) {
    unsigned long long busy = 0;
    int code = number(device, __func__, "busy", &busy);
    rates[0] = rates[1] = (unsigned)busy;
    return code;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *degrees) {
    (void)sensor;
    unsigned long long value = 0;
    int code = number(device, __func__, "temperature", &value);
    *degrees = (unsigned)value;
    return code;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    unsigned long long value = 0;
    int code = number(device, __func__, "power", &value);
    *milliwatts = (unsigned)value;
    return code;
}

int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *count) {
    (void)type;
    (void)counter;
    return number(device, __func__, "ecc", count);
}

int nvmlDeviceGetRetiredPagesPendingStatus(void *device, int *pending) {
    unsigned long long value = 0;
    int code = number(device, __func__, "retired", &value);
    *pending = (int)value;
    return code;
}

struct process { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; };

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process *processes) {
    struct script script;
    begin(&script, __func__);
    const struct gpu *gpu;
    int code = open_gpu(&script, device, &gpu);
    if (code != SUCCESS) return code;
    char value[512];
    if (!find(gpu, "pids", value, sizeof value) || !strcmp(value, "none")) return NOT_SUPPORTED;
    unsigned found = 0;
    int hidden = !strcmp(value, "hidden");
    for (char *rest = value, *pid; (pid = strsep(&rest, ",")) != NULL;) {
        if (!*pid) continue;
        if (found < *count)
            processes[found] = (struct process){ (unsigned)strtoul(pid, NULL, 10), hidden ? ~0ULL : 1 << 20,
                                                 ~0U, ~0U };
        found++;
    }
    int fits = found <= *count;
    *count = found;
    return fits ? SUCCESS : INSUFFICIENT_SIZE;
}

int nvmlEventSetCreate(void **set) {
    struct script script;
    begin(&script, __func__);
    *set = (void *)1;
    return SUCCESS;
}

int nvmlEventSetFree(void *set) {
    (void)set;
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set) {
    (void)types;
    (void)set;
    struct script script;
    begin(&script, __func__);
    const struct gpu *gpu;
    int code = open_gpu(&script, device, &gpu);
    char value[64];
    if (code == SUCCESS && find(gpu, "deaf", value, sizeof value)) return NOT_SUPPORTED;
    if (code == SUCCESS) told_serial = script.xid_serial;
    return code;
}

struct event { void *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; };

int nvmlEventSetWait_v2(void *set, struct event *event, unsigned timeout) {
    (void)set;
    for (long waited = 0;; waited += 10) {
        struct script script;
        begin(&script, __func__);
        for (int i = 0; i < script.count; i++)
            if (script.xid_serial > told_serial && !strcmp(script.gpus[i].uuid, script.xid_gpu)) {
                told_serial = script.xid_serial;
                *event = (struct event){ (void *)(intptr_t)(i + 1), EVENT_XID, script.xid, ~0U, ~0U };
                return SUCCESS;
            }
        if (waited >= (long)timeout) return TIMED_OUT;
        pause_for(10);
    }
}

struct field { unsigned id, scope; long long timestamp, latency; int type, code; union { unsigned number; unsigned long long wide; } value; };

int nvmlDeviceGetFieldValues(void *device, int count, struct field *fields) {
    unsigned long long failed = 0;
    int code = number(device, __func__, "remap_failed", &failed);
    if (code != SUCCESS && code != NOT_SUPPORTED) return code;
    for (int i = 0; i < count; i++) {
        fields[i].type = 1; /* unsigned int */
        fields[i].code = code;
        fields[i].value.number = (unsigned)failed;
    }
    return SUCCESS;
}
