#error "the C++ AMX code must not be compiled any more"
