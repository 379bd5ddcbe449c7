#!/bin/busybox sh
# /init of a guest (L2). Its arguments after the word "load" are the load's command line (words of the kernel's
# own may come before it); the load starts when a line comes in on the console.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while [ $# -gt 0 ] && [ "$1" != load ]; do shift; done
shift
echo "davy-guest: booted"
read -r _
echo "davy-guest: starting $*"
"$@"
echo "davy-guest: load ended with $?"
while :; do sleep 3600; done
