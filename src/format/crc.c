/* crc.c - CRC-32 as zip uses it: polynomial 0xEDB88320, reflected, all ones before and after.
 *
 * isa-l does 16 bytes a step with carry-less multiplication; zlib is the fallback. Both give the
 * same numbers. */
#include "format/format.h"

#ifdef HEFT_HAVE_ISAL
#include <isa-l/crc.h>

uint32_t heft__crc32(uint32_t crc, const void *bytes, size_t length)
{
    return length ? crc32_gzip_refl(crc, bytes, length) : crc;
}
#else
#include <zlib.h>

uint32_t heft__crc32(uint32_t crc, const void *bytes, size_t length)
{
    return length ? (uint32_t)crc32_z(crc, bytes, length) : crc;
}
#endif
