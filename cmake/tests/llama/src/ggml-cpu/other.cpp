#include "amx/amx.h"
