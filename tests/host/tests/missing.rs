//! What is missing is named in one sentence that says what to do; nothing pretends to measure.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::process::Command;

const LOAD: &str = env!("CARGO_BIN_EXE_davy-host-load");

/// What loading says under `wrapper`.
fn said(wrapper: &[&str]) -> String {
    let output = Command::new(wrapper[0])
        .args(&wrapper[1..])
        .args([LOAD, "load"])
        .output()
        .unwrap();
    assert!(!output.status.success(), "it loaded: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The same in a mount namespace after `mount_command`.
fn said_after(mount_command: &str) -> String {
    let script = format!("{mount_command} && exec \"$0\" \"$@\"");
    said(&["unshare", "--mount", "sh", "-c", &script])
}

#[test]
fn the_kernel_half_loads_here() {
    let output = Command::new(LOAD).arg("load").output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn privileges() {
    let said = said(&["setpriv", "--bounding-set=-all", "--inh-caps=-all"]);
    assert!(said.contains("needs root"), "{said}");
}

#[test]
fn the_hosts_pid_namespace() {
    let said = said(&["unshare", "--pid", "--fork"]);
    assert!(said.contains("--pid=host"), "{said}");
}

#[test]
fn btf() {
    let said = said_after("mount -t tmpfs none /sys/kernel/btf");
    assert!(said.contains("CONFIG_DEBUG_INFO_BTF"), "{said}");
}

#[test]
fn btf_that_is_whole() {
    let said = said_after(
        "cp /sys/kernel/btf/vmlinux /dev/shm/davy-btf && mount -t tmpfs none /sys/kernel/btf && \
         head -c 100000 /dev/shm/davy-btf > /sys/kernel/btf/vmlinux; rm -f /dev/shm/davy-btf",
    );
    assert!(said.contains("broken at byte"), "{said}");
}
