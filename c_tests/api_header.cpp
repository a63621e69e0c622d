// The same checks as in C, by a C++17 compiler: what the header promises does not depend on the language.
#include "api_header.c"
