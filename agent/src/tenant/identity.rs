//! Who a droplet is: a pure function from the VMM's command line.
//!
//! | VMM | name | UUID |
//! |---|---|---|
//! | QEMU, also under libvirt | `-name NAME` or `-name guest=NAME,…` (`,,` is a comma) | `-uuid UUID` |
//! | cloud-hypervisor | none of its own; the API socket's file name, or the name of its directory | `--platform uuid=UUID` |
//! | Firecracker | `--id ID` | – |
//!
//! Sources: QEMU `qemu-options.hx` (`-name`, `-uuid`), `util/qemu-option.c` (`,,`, first option without a key);
//! cloud-hypervisor `docs/api.md` and `--help` (`--api-socket`, `--platform`); Firecracker `src/firecracker/src/main.rs`
//! (`--id`, default `anonymous-instance`). What is not recognised is reported without a name, never dropped.

use regex::Regex;

/// A name longer than this is cut, at a character's boundary.
pub const NAME_BYTES_MAX: usize = 255;

/// A virtual machine monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmm {
    /// QEMU, whatever started it.
    Qemu,
    /// cloud-hypervisor.
    CloudHypervisor,
    /// Firecracker.
    Firecracker,
    /// Something else that uses KVM.
    Unknown,
}

impl Vmm {
    /// As on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Firecracker => "firecracker",
            Self::Unknown => "unknown",
        }
    }

    /// From the file name of the program.
    #[must_use]
    pub fn from_program(path: &str) -> Self {
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        let name = path.rsplit('/').next().unwrap_or(path);
        if name.starts_with("qemu-system-") || matches!(name, "qemu" | "qemu-kvm" | "kvm") {
            Self::Qemu
        } else if name.starts_with("cloud-hypervisor") {
            Self::CloudHypervisor
        } else if name.starts_with("firecracker") {
            Self::Firecracker
        } else {
            Self::Unknown
        }
    }
}

/// What is known about a VMM process, read from `/proc`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Its arguments, the program's name first.
    pub argv: Vec<String>,
    /// Where its program lies; empty if unknown.
    pub exe: String,
    /// When it started, in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub start_ticks: u64,
}

/// Who a droplet is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Stable over the droplet's life on this host.
    pub key: String,
    /// What the VMM was told; empty if it has no name.
    pub name: String,
    /// The provider's id, from the name; empty if it does not match.
    pub droplet_id: String,
    /// What runs it.
    pub vmm: Vmm,
}

/// Who the VMM process `tgid` runs; `pattern` has a group `id`.
#[must_use]
pub fn identify(tgid: u32, facts: &ProcessFacts, pattern: Option<&Regex>) -> Identity {
    let program = facts.argv.first().map_or("", String::as_str);
    let vmm = match Vmm::from_program(&facts.exe) {
        Vmm::Unknown => Vmm::from_program(program),
        known => known,
    };
    let argv = facts.argv.get(1..).unwrap_or_default();
    let (name, uuid) = match vmm {
        Vmm::Qemu => (
            value(argv, &["-name", "--name"]).and_then(qemu_guest_name),
            value(argv, &["-uuid", "--uuid"]).map(str::to_owned),
        ),
        Vmm::CloudHypervisor => (
            value(argv, &["--api-socket"]).and_then(socket_name),
            value(argv, &["--platform"]).and_then(|platform| option(platform, "uuid")),
        ),
        Vmm::Firecracker => (
            value(argv, &["--id"])
                .filter(|&id| id != "anonymous-instance")
                .map(str::to_owned),
            None,
        ),
        Vmm::Unknown => (None, None),
    };
    let name = clean(&name.unwrap_or_default());
    let uuid = clean(&uuid.unwrap_or_default()).to_ascii_lowercase();
    let kind = vmm.as_str();
    let key = if !uuid.is_empty() {
        format!("{kind}:{uuid}")
    } else if !name.is_empty() {
        format!("{kind}:{name}")
    } else {
        format!("pid:{tgid}@{}", facts.start_ticks)
    };
    Identity {
        droplet_id: droplet_id(&name, pattern),
        key,
        name,
        vmm,
    }
}

/// The provider's id in `name`; empty without a pattern or a match.
#[must_use]
pub fn droplet_id(name: &str, pattern: Option<&Regex>) -> String {
    pattern
        .and_then(|pattern| pattern.captures(name))
        .and_then(|captures| captures.name("id"))
        .map(|id| id.as_str().to_owned())
        .unwrap_or_default()
}

/// The value of the last of `flags` in `argv`: `--flag VALUE` or `--flag=VALUE`.
fn value<'a>(argv: &'a [String], flags: &[&str]) -> Option<&'a str> {
    let mut found = None;
    let mut arguments = argv.iter();
    while let Some(argument) = arguments.next() {
        if flags.contains(&argument.as_str()) {
            found = arguments.next().map(String::as_str).or(found);
        } else if let Some((flag, value)) = argument.split_once('=')
            && flags.contains(&flag)
        {
            found = Some(value);
        }
    }
    found.filter(|value| !value.is_empty())
}

/// Splits a QEMU option list at single commas; `,,` is a comma.
fn split_options(list: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = list.chars().peekable();
    while let Some(c) = characters.next() {
        if c != ',' {
            if let Some(part) = parts.last_mut() {
                part.push(c);
            }
        } else if characters.next_if_eq(&',').is_some() {
            if let Some(part) = parts.last_mut() {
                part.push(',');
            }
        } else {
            parts.push(String::new());
        }
    }
    parts
}

fn option(list: &str, key: &str) -> Option<String> {
    split_options(list)
        .iter()
        .filter_map(|part| part.split_once('='))
        .find(|(k, _)| *k == key)
        .map(|(_, value)| value.to_owned())
}

fn qemu_guest_name(list: &str) -> Option<String> {
    option(list, "guest").or_else(|| {
        split_options(list)
            .into_iter()
            .next()
            .filter(|first| !first.contains('='))
    })
}

/// cloud-hypervisor is told no name; who runs many of them puts it into the socket's path.
fn socket_name(socket: &str) -> Option<String> {
    const GENERIC: [&str; 7] = [
        "api",
        "ch",
        "clh",
        "clh-api",
        "cloud-hypervisor",
        "socket",
        "vm",
    ];
    let path = option(socket, "path").unwrap_or_else(|| socket.to_owned());
    let path = std::path::Path::new(&path);
    let stem = path.file_stem()?.to_str()?;
    if !GENERIC.contains(&stem) {
        return Some(stem.to_owned());
    }
    Some(path.parent()?.file_name()?.to_str()?.to_owned())
}

/// A command line is the guest owner's text: control characters become `?`, and the length is bounded.
fn clean(text: &str) -> String {
    let mut cleaned = String::new();
    for c in text.chars() {
        let c = if c.is_control() { '?' } else { c };
        if cleaned.len() + c.len_utf8() > NAME_BYTES_MAX {
            break;
        }
        cleaned.push(c);
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(line: &[&str]) -> ProcessFacts {
        ProcessFacts {
            argv: line.iter().map(|&s| s.to_owned()).collect(),
            exe: String::new(),
            start_ticks: 77,
        }
    }

    fn identity(line: &[&str]) -> Identity {
        let pattern = Regex::new("^droplet-(?<id>[0-9]+)$").unwrap();
        identify(5, &facts(line), Some(&pattern))
    }

    #[test]
    fn libvirts_qemu_is_known_by_uuid_and_named_by_guest() {
        let i = identity(&[
            "/usr/bin/qemu-system-x86_64",
            "-name",
            "guest=droplet-42,debug-threads=on",
            "-S",
            "-uuid",
            "4DEA22B3-1d52-d8f3-2516-782e98ab3fa0",
        ]);
        assert_eq!(i.key, "qemu:4dea22b3-1d52-d8f3-2516-782e98ab3fa0");
        assert_eq!(
            (i.name.as_str(), i.droplet_id.as_str()),
            ("droplet-42", "42")
        );
        assert_eq!(i.vmm, Vmm::Qemu);
    }

    #[test]
    fn qemus_plain_name_and_doubled_commas_are_read() {
        let i = identity(&["qemu-system-x86_64", "-name", "a,,b,process=x"]);
        assert_eq!((i.name.as_str(), i.key.as_str()), ("a,b", "qemu:a,b"));
        let i = identity(&["kvm", "--name", "process=x,guest=web"]);
        assert_eq!(i.name, "web");
        let i = identity(&["kvm", "-name", "process=x"]);
        assert_eq!(i.name, "");
    }

    #[test]
    fn an_unknown_name_is_reported_without_a_droplet_id() {
        let i = identity(&["qemu-system-x86_64", "-name", "web1"]);
        assert_eq!((i.name.as_str(), i.droplet_id.as_str()), ("web1", ""));
    }

    #[test]
    fn without_a_name_the_process_itself_is_the_key() {
        assert_eq!(identity(&["qemu-system-x86_64"]).key, "pid:5@77");
        let i = identity(&["/opt/my-vmm", "--id", "x"]);
        assert_eq!((i.key.as_str(), i.vmm), ("pid:5@77", Vmm::Unknown));
        assert_eq!(identity(&[]).key, "pid:5@77");
        assert_eq!(identity(&["qemu-system-x86_64", "-name"]).key, "pid:5@77");
    }

    #[test]
    fn firecracker_is_known_by_its_id() {
        let i = identity(&["firecracker", "--api-sock", "/s", "--id", "droplet-9"]);
        assert_eq!(
            (i.key.as_str(), i.droplet_id.as_str()),
            ("firecracker:droplet-9", "9")
        );
        let i = identity(&["firecracker-v1.7.0-x86_64", "--id=a"]);
        assert_eq!(i.key, "firecracker:a");
        let i = identity(&["firecracker", "--id", "anonymous-instance"]);
        assert_eq!((i.key.as_str(), i.vmm), ("pid:5@77", Vmm::Firecracker));
    }

    #[test]
    fn cloud_hypervisor_is_named_by_its_socket() {
        let i = identity(&["cloud-hypervisor", "--api-socket", "/run/ch/droplet-7.sock"]);
        assert_eq!(
            (i.key.as_str(), i.droplet_id.as_str()),
            ("cloud-hypervisor:droplet-7", "7")
        );
        let i = identity(&[
            "cloud-hypervisor",
            "--api-socket",
            "path=/run/vc/vm/pod1/clh-api.sock",
        ]);
        assert_eq!(i.name, "pod1");
        let i = identity(&[
            "cloud-hypervisor-static",
            "--platform",
            "num_pci_segments=1,uuid=AB-1",
        ]);
        assert_eq!(i.key, "cloud-hypervisor:ab-1");
    }

    #[test]
    fn the_program_wins_over_what_it_calls_itself() {
        let mut f = facts(&["droplet", "-name", "x"]);
        f.exe = "/usr/bin/qemu-system-x86_64 (deleted)".to_owned();
        assert_eq!(identify(5, &f, None).key, "qemu:x");
    }

    #[test]
    fn hostile_names_are_bounded_and_without_control_characters() {
        let long = "ü".repeat(1000);
        let i = identity(&["kvm", "-name", &format!("guest=\u{1b}[2J{long}")]);
        assert!(i.name.len() <= NAME_BYTES_MAX);
        assert!(i.name.starts_with("?[2Jü"));
    }
}
