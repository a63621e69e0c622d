#error "a source of a version that is not known"
