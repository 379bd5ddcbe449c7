//! What the figures were measured on.

use std::fs;

use serde::Serialize;

/// The machine, as far as it matters here.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The CPU's own name.
    pub cpu: String,
    /// CPUs online.
    pub cpus: usize,
    /// Whether it is itself a virtual machine.
    pub is_virtual: bool,
    /// Kernel release.
    pub kernel: String,
    /// Clock source of the kernel.
    pub clock_source: String,
}

impl Machine {
    /// This one.
    pub fn read() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        Self {
            cpu: field(&info, "model name")
                .unwrap_or("unknown CPU")
                .to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            is_virtual: field(&info, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            clock_source: fs::read_to_string(source)
                .unwrap_or_default()
                .trim()
                .to_owned(),
        }
    }
}

/// The first value of a field in `/proc/cpuinfo`.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuinfo_is_read() {
        let info = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu hypervisor\n";
        assert_eq!(field(info, "model name"), Some("Some CPU @ 2 GHz"));
        assert_eq!(field(info, "vendor_id"), None);
    }
}
