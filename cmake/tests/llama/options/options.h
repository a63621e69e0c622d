// Found by a folder of the target's alone.
#ifdef KNOWN_NOEXCEPT
#    define NOEXCEPT noexcept
#else
#    define NOEXCEPT
#endif
