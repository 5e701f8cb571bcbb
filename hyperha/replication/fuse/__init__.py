"""The Linux data path: the kernel's FUSE protocol spoken directly over /dev/fuse."""
