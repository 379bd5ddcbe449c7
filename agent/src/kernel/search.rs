//! Every byte of every map that the programs can reach, for tests that search them: element by element, by system calls.
//!
//! The maps are those that the kernel says the loaded programs use, so neither a new map nor a new global escapes. A map
//! of a kind not known here is an error.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, AsRawFd},
};

use aya::{
    Ebpf,
    maps::{MapInfo, MapType},
};

use super::KernelError;

/// `BPF_MAP_LOOKUP_ELEM` and `BPF_MAP_GET_NEXT_KEY`, include/uapi/linux/bpf.h.
const LOOKUP: libc::c_int = 1;
const NEXT_KEY: libc::c_int = 4;

/// The part of `union bpf_attr` for both, include/uapi/linux/bpf.h.
#[repr(C)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value_or_next_key: u64,
    flags: u64,
}

pub(super) fn everything(ebpf: &Ebpf) -> Result<Vec<u8>, KernelError> {
    let mut ids = BTreeSet::new();
    for (name, program) in ebpf.programs() {
        // Those at KVM's tracepoints are loaded while there are guests.
        if program.fd().is_err() {
            continue;
        }
        let maps = program.info().and_then(|info| info.map_ids());
        ids.extend(maps.map_err(KernelError::map(name))?.unwrap_or_default());
    }
    let mut bytes = Vec::new();
    for id in ids {
        let info = MapInfo::from_id(id).map_err(KernelError::map("by its id"))?;
        let name = info.name_as_str().unwrap_or("without a name").to_owned();
        add(&info, &name, &mut bytes)?;
    }
    Ok(bytes)
}

fn add(info: &MapInfo, name: &str, bytes: &mut Vec<u8>) -> Result<(), KernelError> {
    let unknown = |kind: String| KernelError::Map {
        map: name.to_owned(),
        reason: format!("a map of a kind that cannot be searched: {kind}"),
    };
    let kind = info.map_type().map_err(KernelError::map(name))?;
    let value_bytes = info.value_size() as usize;
    let value_bytes = match kind {
        MapType::Array | MapType::Hash => value_bytes,
        // A value per possible CPU, each rounded up (`bpf_map_value_size`, kernel/bpf/syscall.c).
        MapType::PerCpuArray => {
            let cpus = aya::util::nr_cpus().map_err(|(_, error)| error);
            value_bytes.next_multiple_of(8) * cpus.map_err(KernelError::map(name))?
        }
        // Four bytes are no register, and looking at a queue's elements would take them.
        MapType::Queue if value_bytes <= size_of::<u32>() => return Ok(()),
        other => return Err(unknown(format!("{other:?}"))),
    };
    let map = info.fd().map_err(KernelError::map(name))?;
    let fd = u32::try_from(map.as_fd().as_raw_fd()).unwrap_or(u32::MAX);
    let mut value = vec![0; value_bytes];
    let mut key: Option<Vec<u8>> = None;
    let mut next = vec![0; info.key_size() as usize];
    while call(NEXT_KEY, fd, key.as_deref(), &mut next).map_err(KernelError::map(name))? {
        bytes.extend_from_slice(&next);
        // An element of a hash may go between the two calls.
        if call(LOOKUP, fd, Some(&next), &mut value).map_err(KernelError::map(name))? {
            bytes.extend_from_slice(&value);
        }
        key = Some(next.clone());
    }
    Ok(())
}

/// `false`: there is no such element, or none after it.
fn call(command: libc::c_int, map_fd: u32, key: Option<&[u8]>, out: &mut [u8]) -> io::Result<bool> {
    let element = Element {
        map_fd,
        padding: 0,
        key: key.map_or(0, |key| key.as_ptr() as u64),
        value_or_next_key: out.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads a key and writes a value, or a key, of the map's own sizes, for which both slices were made.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw const element,
            size_of::<Element>(),
        )
    };
    if result == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::NotFound => Ok(false),
        error => Err(error),
    }
}
