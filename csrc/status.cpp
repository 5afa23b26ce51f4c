// The words of each status code.
#include "dsengine.h"

const char* dse_message(int status) {
  switch (status) {
    case DSE_OK: return "ok";
    case DSE_BAD_ARGUMENT: return "a count or size is out of range";
    case DSE_BAD_BAND: return "bands: a row names no source or channel, or its source times its factor differs in extent from the others";
    case DSE_BAD_OFFSET: return "offset: a crop leaves the patch";
    case DSE_BAD_CODE: return "code: a dihedral code is not 0..7";
    case DSE_BAD_ISA: return "isa: this CPU lacks the instruction set";
    case DSE_BAD_BLOCK: return "a block or one of its streams leaves its buffer";
    case DSE_BAD_CHUNK: return "a chunk could not be read, fails its crc32c or does not decode";
    case DSE_NO_MEMORY: return "out of memory";
    case DSE_NO_CUDA: return "built without CUDA";
    default: return "CUDA error";
  }
}
