#!/bin/busybox sh
# Writes the model-specific registers of AMD's prefetcher, as miners do before they start, then runs its arguments.
# A register that KVM does not know is refused: the attempt is what counts.
insmod /modules/msr.ko
for register in 0xc0011020 0xc0011021 0xc0011022 0xc001102b; do
    printf '\0\0\0\0\0\0\0\0' |
        dd of=/dev/cpu/0/msr bs=8 count=1 seek=$((register)) oflag=seek_bytes conv=notrunc 2>/dev/null
    echo "davy-guest: register $register: $?"
done
exec "$@"
