/* Loads parts of a program, each linked with a host of its own and in a scope of its own, and runs them. `two_hosts
 * PART...` prints what each of them says. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>

int main(int argc, char ** argv) {
    for (int turn = 0; turn < 2; turn++) {
        for (int i = 1; i < argc; i++) {
            void * part = dlopen(argv[i], RTLD_NOW | RTLD_LOCAL);
            int (*run)(void) = NULL;
            if (part) {
                *(void **) &run = dlsym(part, "shim_run");
            }
            if (!run) {
                fprintf(stderr, "%s\n", dlerror());
                return 1;
            }
            printf("%d\n", run());
        }
    }
    return 0;
}
