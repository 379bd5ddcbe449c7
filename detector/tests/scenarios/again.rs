//! Every decision that any scenario stored can be made again from its JSON, byte for byte.

use davy_decision::{
    decide::{Input, Plan, decide},
    policy::Policies,
};

#[test]
fn every_stored_decision_is_made_again_byte_for_byte() {
    let policies = Policies::shipped().unwrap();
    let mut count = 0;
    for (name, text) in crate::scenarios() {
        for stored in crate::play(&name, &text).decisions {
            let input = serde_json::to_string(&stored.input).unwrap();
            let plan = serde_json::to_string(&stored.plan).unwrap();
            let read: Input = serde_json::from_str(&input).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), input, "{name}");
            let again = serde_json::to_string(&decide(&policies, &read)).unwrap();
            assert_eq!(again, plan, "{name}, decision {}", stored.number);
            let kept: Plan = serde_json::from_str(&plan).unwrap();
            assert_eq!(serde_json::to_string(&kept).unwrap(), plan, "{name}");
            count += 1;
        }
    }
    println!("{count} decisions were made again");
    assert!(count > 100, "only {count} decisions");
}

#[test]
fn another_input_is_another_plan() {
    let policies = Policies::shipped().unwrap();
    let (name, text) = (crate::scenarios().into_iter())
        .find(|(name, _)| name == "miner-new-unpaid")
        .unwrap();
    let world = crate::play(&name, &text);
    let stored = &world.decisions[1];
    let mut changed = stored.input.clone();
    changed.fetch_failed = Some("changed".to_owned());
    assert_ne!(
        serde_json::to_string(&decide(&policies, &changed)).unwrap(),
        serde_json::to_string(&stored.plan).unwrap()
    );
}
