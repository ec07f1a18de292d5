/* The merge of long pieces, each of its ways by itself: the last one is for texts that nobody knows of, so that no
   text can be given to the counter to try it.

   usage: merging TABLE < pieces    each piece a length (u32) and its bytes
   Prints for each piece: its tokens merged in windows of 256 and of 4,096 bytes, -1 where these cannot be joined, and
   merged without windows. */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "_merge.h"

int main(int count, char **arguments) {
    static weir_units_wide w;
    weir_units u = {w.key, w.least, w.top, w.id, w.next, w.before, w.start};
    weir_vocab v;
    struct stat found;
    uint32_t n;
    int descriptor = count == 2 ? open(arguments[1], O_RDONLY) : -1;
    if (descriptor < 0 || fstat(descriptor, &found) < 0) return 2;
    const uint8_t *base = mmap(NULL, (size_t)found.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
    const char *wrong = base == MAP_FAILED ? "cannot be mapped" : weir_vocab_open(&v, base, (size_t)found.st_size);
    if (wrong) {
        fprintf(stderr, "%s %s\n", arguments[1], wrong);
        return 2;
    }
    while (fread(&n, sizeof n, 1, stdin) == 1) {
        uint8_t *text = malloc(n); /* its own size, so that a sanitizer sees what is read behind it */
        if (text == NULL || fread(text, 1, n, stdin) != n) return 2;
        long long narrow = weir_merge(&v, text, n, 0);
        long long wide = weir_merge_windows(&v, text, n, WEIR_SPAN_WIDE, WEIR_SPAN_WIDE - 4 * WEIR_TOKEN_MAX, 0, &u);
        printf("%lld %lld %lld\n", narrow, wide, (long long)weir_merge_slowly(&v, text, n));
        free(text);
    }
    return 0;
}
