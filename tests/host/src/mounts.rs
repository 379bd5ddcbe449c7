//! File systems that a test needs and the machine may not have mounted.

use std::path::Path;

use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

/// Where the agent looks for tracefs.
pub const TRACEFS: &str = "/sys/kernel/tracing";

/// Gives the calling thread, and what it starts, a view of mounts of its own.
///
/// # Errors
/// If the kernel refuses it.
pub fn own_mounts() -> rustix::io::Result<()> {
    // SAFETY: only this thread's view of mounts changes; no file descriptor and no memory does.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)
}

/// Mounts tracefs; after [`own_mounts`] for the calling thread alone.
///
/// # Errors
/// If the kernel refuses it.
pub fn mount_tracefs() -> rustix::io::Result<()> {
    mount("tracefs", TRACEFS, "tracefs", MountFlags::empty(), None)
}

/// Hides tracefs behind empty directories; only after [`own_mounts`].
///
/// # Errors
/// If the kernel refuses it.
pub fn hide_tracefs() -> rustix::io::Result<()> {
    for path in [TRACEFS, "/sys/kernel/debug"] {
        mount("none", path, "tmpfs", MountFlags::empty(), None)?;
    }
    Ok(())
}

/// Gives KVM's struct another name in the kernel's BTF, as on a kernel that does not tell of it; only after
/// [`own_mounts`]. `scratch` is a file for that.
///
/// # Errors
/// If BTF cannot be read, or the kernel refuses it.
pub fn hide_kvms_types(scratch: &Path) -> std::io::Result<()> {
    const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
    let name = b"\0kvm_vcpu\0";
    let mut btf = std::fs::read(VMLINUX)?;
    if let Some(at) = btf.windows(name.len()).position(|bytes| bytes == name) {
        btf[at + 1] = b'x';
    }
    std::fs::write(scratch, btf)?;
    mount_bind(scratch, VMLINUX)?;
    Ok(())
}
