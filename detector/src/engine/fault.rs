//! Fault points: places between two steps where a test kills the detector. Nothing of it is in a program built without the feature
//! `fault-points`.
//!
//! `DAVY_FAULT=released:2` kills the process (SIGKILL, as a power cut would) the second time it passes the point `released`.

/// Passes a point; dies there if told so.
#[cfg(not(feature = "fault-points"))]
pub const fn point(_name: &str) {}

/// Passes a point; dies there if told so.
#[cfg(feature = "fault-points")]
pub fn point(name: &str) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let Ok(told) = std::env::var("DAVY_FAULT") else {
        return;
    };
    let (at, times) = told.split_once(':').unwrap_or((&told, "1"));
    if at != name {
        return;
    }
    let passed = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
    if times.parse() == Ok(passed) {
        // No destructor runs, nothing is flushed.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
