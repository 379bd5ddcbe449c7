//! What the agent watches as one unit.
//!
//! [`identity`] says who a droplet is, [`discover`] finds droplets among the readings, follows the configured
//! control groups and processes, and notices when a tenant is gone.

pub mod discover;
pub mod identity;

use std::path::PathBuf;

use davy_abi::TenantIndex;

/// What kind of thing a tenant is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A VM, run by the process `tgid`.
    Droplet {
        /// The VMM's process.
        tgid: u32,
        /// Which VMM.
        vmm: identity::Vmm,
    },
    /// A control group.
    Cgroup {
        /// Its directory.
        dir: PathBuf,
    },
    /// A process, or a process and its descendants.
    Process {
        /// The process.
        tgid: u32,
    },
}

/// A tenant as the agent knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// What the kernel half calls it.
    pub index: TenantIndex,
    /// Stable over its life on this host, and unique among the tenants of one moment.
    pub key: String,
    /// What it is called; may be empty.
    pub name: String,
    /// The provider's droplet id; may be empty.
    pub droplet_id: String,
    /// What it is.
    pub kind: Kind,
    /// vCPU threads alive at the last look.
    pub vcpus: u32,
    /// Threads alive at the last look.
    pub threads: u32,
    /// It is gone; its last window is still to be closed.
    pub ended: bool,
}
