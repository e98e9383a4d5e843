/* replay.c - a main for a fuzz target without libFuzzer: runs it over the files of the folders that
 * are given, as an ordinary test. Fails if there was none. */
#include "repair.h"

#include <dirent.h>

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t cap)
{
    (void)data;
    (void)cap;
    return size;
}

static void replay(const char *path)
{
    FILE *file = fopen(path, "rb");
    long size = -1;
    if (file && fseek(file, 0, SEEK_END) == 0) {
        size = ftell(file);
        rewind(file);
    }
    uint8_t *data = size >= 0 ? malloc((size_t)size + 1) : NULL; /* exact but for the empty file */
    if (!data || fread(data, 1, (size_t)size, file) != (size_t)size) {
        fprintf(stderr, "%s: cannot be read\n", path);
        exit(1);
    }
    fclose(file);
    LLVMFuzzerTestOneInput(data, (size_t)size);
    free(data);
}

int main(int argc, char **argv)
{
    size_t count = 0;
    for (int i = 1; i < argc; i++) {
        DIR *folder = opendir(argv[i]);
        for (struct dirent *entry = folder ? readdir(folder) : NULL; entry;
             entry = readdir(folder)) {
            char path[4096];
            snprintf(path, sizeof path, "%s/%s", argv[i], entry->d_name);
            if (entry->d_name[0] != '.') {
                replay(path);
                count++;
            }
        }
        if (folder) {
            closedir(folder);
        }
    }
    printf("%zu inputs\n", count);
    return count == 0;
}
