//! Which CPUs are nudged and when, on files a test writes and on the real machine.

use std::path::PathBuf;

use super::*;

/// A directory like `/sys/devices/system/cpu`, removed at the end.
struct Lists(PathBuf);

impl Lists {
    fn make(name: &str, online: &str) -> Self {
        let lists = Self(std::env::temp_dir().join(format!("davy-{name}-{}", std::process::id())));
        std::fs::create_dir_all(&lists.0).unwrap();
        lists.set("online", online);
        lists
    }

    fn set(&self, file: &str, list: &str) {
        std::fs::write(self.0.join(file), format!("{list}\n")).unwrap();
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A CPU that this machine has online.
fn real_cpu() -> u32 {
    online_cpus().unwrap()[0]
}

fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !reached() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn options() -> config::Nudge {
    config::Nudge {
        rest_hz: 50.0,
        ..config::Nudge::default()
    }
}

#[test]
fn a_closer_look_is_never_slower_than_rest() {
    let all = Limit::None;
    assert_eq!(
        pause(2.0, 20.0, false, all),
        Some(Duration::from_millis(500))
    );
    assert_eq!(pause(2.0, 20.0, true, all), Some(Duration::from_millis(50)));
    assert_eq!(pause(2.0, 0.0, true, all), Some(Duration::from_millis(500)));
    assert_eq!(pause(0.0, 20.0, false, all), None);
    assert_eq!(pause(1e-300, 0.0, false, all), Some(Duration::MAX));
}

#[test]
fn a_limit_takes_closer_looks_first_and_then_all() {
    let half = Some(Duration::from_millis(500));
    assert_eq!(pause(2.0, 20.0, true, Limit::Rest), half);
    assert_eq!(pause(2.0, 20.0, false, Limit::Rest), half);
    assert_eq!(pause(2.0, 20.0, true, Limit::Off), None);
}

#[test]
fn excluded_cpus_are_left_alone() {
    assert_eq!(cpus_to_nudge(&[0, 1, 2, 3], &[&[1], &[3, 9]]), vec![0, 2]);
}

#[test]
fn isolated_and_configured_cpus_are_excluded_as_the_files_say() {
    let lists = Lists::make("isolated", "0-7");
    lists.set("isolated", "2-3");
    lists.set("nohz_full", "(null)");
    assert_eq!(selected(&lists.0, &[7]).unwrap(), [0, 1, 4, 5, 6]);
    lists.set("nohz_full", "4-6");
    assert_eq!(selected(&lists.0, &[7]).unwrap(), [0, 1]);
    // A machine without isolation has no such files.
    let bare = Lists::make("bare", "0-2");
    assert_eq!(selected(&bare.0, &[]).unwrap(), [0, 1, 2]);
}

#[test]
fn what_cannot_be_read_excludes_everything() {
    let lists = Lists::make("unreadable", "0-7");
    lists.set("isolated", "what?");
    assert!(selected(&lists.0, &[]).is_err());
    assert!(selected(Path::new("/nonexistent"), &[]).is_err());
}

#[test]
fn this_machines_own_lists_can_be_read() {
    let online = online_cpus().unwrap();
    let selected = selected(Path::new(CPUS), &[online[0]]).unwrap();
    assert!(!selected.contains(&online[0]));
}

#[test]
fn wakings_and_their_cost_are_counted() {
    let nudger = Nudger::start(&options());
    wait_until("wakings", || {
        let cost = nudger.cost(0);
        cost.cpus >= 1 && cost.wakings > 3 && cost.cpu_ns > 0
    });
}

#[test]
fn a_cpu_that_goes_and_comes_is_followed() {
    let cpu = real_cpu();
    let lists = Lists::make("follow", &cpu.to_string());
    let nudger = Nudger::start_in(&options(), &lists.0);
    wait_until("wakings", || nudger.cost(0).wakings > 3);
    lists.set("online", "");
    wait_until("no CPU", || nudger.cost(0).cpus == 0);
    let wakings = nudger.cost(0).wakings;
    std::thread::sleep(Duration::from_millis(200));
    // One may have been on its way.
    assert!(nudger.cost(0).wakings <= wakings + 1);
    lists.set("online", &cpu.to_string());
    wait_until("wakings again", || nudger.cost(0).wakings > wakings + 3);
    assert_eq!(nudger.cost(0).cpus, 1);
}

#[test]
fn limits_hold_until_they_are_lifted() {
    let nudger = Nudger::start(&options());
    wait_until("wakings", || nudger.cost(0).wakings > 3);
    nudger.limit(Limit::Off);
    std::thread::sleep(Duration::from_millis(50));
    let wakings = nudger.cost(0).wakings;
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(nudger.cost(0).wakings, wakings);
    nudger.limit(Limit::None);
    wait_until("wakings again", || nudger.cost(0).wakings > wakings + 3);
}

#[test]
fn after_a_closer_look_a_cpu_rests() {
    let nudger = Nudger::start(&config::Nudge::default());
    wait_until("a CPU that may be nudged", || nudger.cost(0).cpus > 0);
    let cpu = nudger
        .shared
        .cpus()
        .iter()
        .find(|cpu| cpu.wanted)
        .unwrap()
        .number;
    let second = 1_000_000_000;
    nudger.look_closer(&[cpu], 100 * second);
    assert_eq!(nudger.cost(104 * second).closer_looks, 1);
    nudger.look_closer(&[cpu], 106 * second);
    assert_eq!(nudger.cost(107 * second).closer_looks, 0);
    nudger.look_closer(&[cpu], 110 * second);
    assert_eq!(nudger.cost(111 * second).closer_looks, 1);
}

#[test]
fn what_is_nudged_is_said_and_what_is_not() {
    let lists = Lists::make("reach", "0-3");
    lists.set("isolated", "2-3");
    let with = |exclude: &str| config::Nudge {
        exclude_cpus: exclude.to_owned(),
        ..config::Nudge::default()
    };
    let said = reach_in(&with("1"), &lists.0).unwrap();
    assert!(
        said.starts_with("1 of 4 CPUs (2 isolated or nohz_full, 1 excluded"),
        "{said}"
    );
    let none = reach_in(&with("0-1"), &lists.0).unwrap_err();
    assert!(none.starts_with("none of 4 CPUs"), "{none}");
    let unreadable = reach_in(&with(""), &lists.0.join("nowhere")).unwrap_err();
    assert!(unreadable.contains("cannot be read"), "{unreadable}");
}
