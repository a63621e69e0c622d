// Loads the library that is its argument, runs it, on a small stack too, and unloads it; twice.

#include <dlfcn.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>

static void (*run)(void);

static void on_small_stack(void) { run(); }

int main(int argc, char ** argv) {
    if (argc != 2) {
        return 2;
    }
    std::setvbuf(stdout, nullptr, _IONBF, 0);
    for (int i = 0; i < 2; i++) {
        void * library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        run = library ? reinterpret_cast<void (*)(void)>(dlsym(library, "run_bystander")) : nullptr;
        if (!run) {
            std::fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        run();
        // Above the top of this stack there is no memory, so nothing may be read there.
        const size_t size = 64 << 10;
        char * stack = static_cast<char *>(mmap(nullptr, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        mprotect(stack, size, PROT_READ | PROT_WRITE);
        ucontext_t here, there;
        getcontext(&there);
        there.uc_stack.ss_sp = stack;
        there.uc_stack.ss_size = size;
        there.uc_link = &here;
        makecontext(&there, on_small_stack, 0);
        swapcontext(&here, &there);
        munmap(stack, 2 * size);
        dlclose(library);
        std::puts("closed");
    }
}
