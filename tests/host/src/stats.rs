//! KVM's own account of one vCPU, asked for by its VMM: `KVM_GET_STATS_FD` (Documentation/virt/kvm/api.rst, 4.133).

use std::{
    ffi::c_void,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd},
        unix::fs::FileExt,
    },
};

use kvm_ioctls::VcpuFd;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

/// `KVM_GET_STATS_FD`: `_IO(KVMIO, 0xce)`, include/uapi/linux/kvm.h.
struct GetStatsFd;

// SAFETY: the request takes no argument and gives a file descriptor.
unsafe impl Ioctl for GetStatsFd {
    type Output = RawFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::none(0xae, 0xce)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<RawFd> {
        Ok(out)
    }
}

/// A vCPU's statistics.
pub struct Stats {
    file: File,
    /// Name and place of each.
    places: Vec<(String, u64)>,
}

impl Stats {
    /// Those of `vcpu`.
    ///
    /// # Errors
    /// If KVM does not give them.
    pub fn of(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: the vCPU is open as long as it is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        // SAFETY: see the implementation of `Ioctl`.
        let stats = unsafe { rustix::ioctl::ioctl(fd, GetStatsFd) }?;
        // SAFETY: the kernel has just opened it for us alone.
        let file = unsafe { File::from_raw_fd(stats) };
        // struct kvm_stats_header: flags, name_size, num_desc, id_offset, desc_offset, data_offset.
        let header: Vec<u64> = (0..6)
            .map(|at| word(&file, 4 * at))
            .collect::<Result<_, _>>()?;
        let [_, name_bytes, count, _, descriptors, data] = header[..] else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        // struct kvm_stats_desc: flags, exponent and size, offset, bucket_size, name.
        let places = (0..count).map(|index| {
            let at = descriptors + index * (16 + name_bytes);
            let mut name = vec![0; usize::try_from(name_bytes).unwrap_or(0)];
            file.read_exact_at(&mut name, at + 16)?;
            let end = name
                .iter()
                .position(|&byte| byte == 0)
                .unwrap_or(name.len());
            let name = String::from_utf8_lossy(&name[..end]).into_owned();
            Ok((name, data + word(&file, at + 8)?))
        });
        let places = places.collect::<io::Result<_>>()?;
        Ok(Self { file, places })
    }

    /// One of them, now.
    ///
    /// # Errors
    /// If KVM has none of that name.
    pub fn get(&self, name: &str) -> io::Result<u64> {
        let place = self.places.iter().find(|(known, _)| known == name);
        let (_, at) = place.ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, *at)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

fn word(file: &File, at: u64) -> io::Result<u64> {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, at)?;
    Ok(u64::from(u32::from_ne_bytes(bytes)))
}
