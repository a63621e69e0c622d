/* Stands in for include/ggml-amx.h. */
const char *ggml_amx_version(void);
