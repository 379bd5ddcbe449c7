//! File systems that a test needs and the machine may not have mounted.

use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

/// Where the agent looks for tracefs.
pub const TRACEFS: &str = "/sys/kernel/tracing";

/// Mounts tracefs for the calling thread alone, and what it starts.
///
/// # Errors
/// If the kernel refuses it.
pub fn mount_tracefs() -> rustix::io::Result<()> {
    // SAFETY: only this thread's view of mounts changes; no file descriptor and no memory does.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    mount("tracefs", TRACEFS, "tracefs", MountFlags::empty(), None)
}
