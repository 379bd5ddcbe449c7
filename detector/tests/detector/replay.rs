//! The program `davy-detector replay`: what it prints, with the policy that ships and with a changed one, and how it refuses.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use davy_decision::policy::DEFAULT;
use serde_json::Value;

/// A new account that mines: notice and throttle by the policy that ships, a power-down by people, and the throttle's end.
fn scenario() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios/miner-new-unpaid.jsonl")
}

fn replay(scenario: &Path, arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_davy-detector"));
    let program = program.arg("replay").arg(scenario).args(arguments);
    program.output().unwrap()
}

/// What it prints, if it ends well and complains of nothing.
fn printed(arguments: &[&str]) -> String {
    let output = replay(&scenario(), arguments);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The one line with which it refuses; nothing of a timeline is printed then.
fn refused(scenario: &Path, arguments: &[&str]) -> String {
    let output = replay(scenario, arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

fn entries(lines: &str) -> Vec<Value> {
    let entry = |line| serde_json::from_str(line).unwrap();
    lines.lines().map(entry).collect()
}

fn verbs(entries: &[Value]) -> Vec<&str> {
    let orders = entries.iter().filter(|entry| entry["kind"] == "order");
    orders
        .map(|order| order["data"]["verb"].as_str().unwrap())
        .collect()
}

#[test]
fn a_changed_policy_changes_what_automation_does_and_nothing_else() {
    let shipped = printed(&["--json"]);
    let before = entries(&shipped);
    assert_eq!(
        verbs(&before),
        ["notify", "throttle", "power_down", "unthrottle"]
    );

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("default.cedar"), DEFAULT).unwrap();
    let policy = ["--policy", &dir.path().display().to_string(), "--json"];
    assert_eq!(printed(&policy), shipped, "the same policy, from a file");

    let ours = r#"@id("ours:no-throttle") forbid (principal, action == Davy::Action::"throttle", resource);"#;
    std::fs::write(dir.path().join("ours.cedar"), ours).unwrap();
    let after = entries(&printed(&policy));
    assert_eq!(verbs(&after), ["notify", "power_down"]);
    // The decision says who forbade it.
    let by_ours = (after.iter())
        .filter(|entry| entry["kind"] == "decision")
        .flat_map(|decision| decision["data"]["asked"].as_array().unwrap())
        .filter(|asked| asked["policies"] == serde_json::json!(["ours:no-throttle"]));
    assert!(by_ours.count() > 0, "{after:#?}");
    let said = |entries: &[Value]| {
        let said = entries.iter().filter(|entry| entry["kind"] == "scenario");
        said.cloned().collect::<Vec<_>>()
    };
    assert_eq!(said(&before), said(&after));
}

#[test]
fn without_json_it_prints_the_timeline_for_people() {
    let golden = std::fs::read_to_string(scenario().with_extension("txt")).unwrap();
    assert_eq!(printed(&[]), golden);
}

#[test]
fn what_is_wrong_is_told_with_its_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join("odd.jsonl");
    let lines = "# a remark\n\
                 {\"at\": \"2026-03-02T08:00:00Z\", \"event\": \"fleet\", \"droplets\": 1000}\n\
                 {\"at\": \"2026-03-02T08:00:00Z\", \"event\": \"clock\", \"odd\": 1}\n";
    std::fs::write(&odd, lines).unwrap();
    let text = refused(&odd, &["--json"]);
    let place = format!("davy-detector: {}:3: unknown field `odd`", odd.display());
    assert!(text.starts_with(&place), "{text}");

    let absent = refused(&dir.path().join("absent.jsonl"), &[]);
    assert!(absent.contains("absent.jsonl cannot be read"), "{absent}");

    let bad = dir.path().join("ours.cedar");
    std::fs::write(&bad, "permit (principal, action, resource)").unwrap();
    let text = refused(
        &scenario(),
        &["--policy", &dir.path().display().to_string()],
    );
    assert!(text.contains("ours.cedar: "), "{text}");
}
