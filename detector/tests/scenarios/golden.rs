//! Every scenario plays to its timeline. `UPDATE_GOLDEN=1` writes them anew: read the difference before you commit it.

use davy_decision::policy::Policies;
use davy_detector::replay;
use serde_json::Value;

#[test]
fn every_scenario_plays_to_its_timeline() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for (name, text) in crate::scenarios() {
        let played = replay::to_text(&crate::play(&name, &text).timeline);
        let path = crate::dir().join(format!("{name}.txt"));
        if update {
            std::fs::write(&path, &played).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        if kept != played {
            let line = kept.lines().zip(played.lines()).position(|(a, b)| a != b);
            let line = line.unwrap_or_else(|| kept.lines().count().min(played.lines().count()));
            wrong.push(format!(
                "{name}.txt:{}:\n  kept:   {}\n  played: {}",
                line + 1,
                kept.lines().nth(line).unwrap_or("(ends)"),
                played.lines().nth(line).unwrap_or("(ends)")
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nif that is right: UPDATE_GOLDEN=1 cargo test -p davy-detector --test scenarios golden",
        wrong.join("\n")
    );
}

#[test]
fn no_timeline_is_without_its_scenario() {
    let names: Vec<_> = crate::scenarios()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    for entry in std::fs::read_dir(crate::dir()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "txt") {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            assert!(names.contains(&name), "{name}.txt has no scenario");
        }
    }
}

#[test]
fn the_same_scenario_gives_the_same_json_twice() {
    let (name, text) = crate::scenarios().swap_remove(0);
    let json = || replay::to_json(&crate::play(&name, &text).timeline);
    assert!(!json().is_empty());
    assert_eq!(json(), json());
}

#[test]
fn every_release_of_every_scenario_is_right_by_the_oracle() {
    let policies = Policies::shipped().unwrap();
    let (mut throttles, mut power_downs, mut wrong) = (0, 0, Vec::new());
    for (name, text) in crate::scenarios() {
        let lines: Vec<Value> = (text.lines().filter(|line| !line.starts_with('#')))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        match crate::mutants::play(&lines, &policies) {
            Ok(outcome) => {
                throttles += outcome.throttles;
                power_downs += outcome.power_downs;
            }
            Err(why) => wrong.push(format!("{name}: {why}")),
        }
    }
    println!("{throttles} automated throttles and {power_downs} power-downs");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(throttles > 10 && power_downs > 0);
}
