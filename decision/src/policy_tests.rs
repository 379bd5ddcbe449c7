//! Policies: asked step by step, and what is refused when they are read.

use super::*;
use crate::reach::{Draws, draw};

/// Every way to say what actions a policy is about, among them one that can err and one that forbids.
const OURS: &str = r#"
    @id("any") permit (principal, action, resource) when { context.mining_seconds == 599 };
    @id("one") permit (principal, action == Davy::Action::"lock", resource) unless { context.throttled };
    @id("some") permit (
        principal,
        action in [Davy::Action::"open_case", Davy::Action::"throttle"],
        resource
    ) when { context.level == "mining" };
    @id("group") permit (principal, action in Davy::Action::"customer_facing", resource)
    when { context has engaged_days && context.engaged_days <= 90 };
    @id("groups") permit (
        principal is Davy::Automation,
        action in [Davy::Action::"customer_facing", Davy::Action::"observe"],
        resource
    ) when { context.burst_droplets >= 5 };
    @id("errs") forbid (principal, action == Davy::Action::"power_down", resource)
    when { context.mining_seconds * 9223372036854775807 > 5 };
    @id("forbids") forbid (principal, action == Davy::Action::"throttle", resource)
    when { context.payment_trouble };
"#;

/// Asking the policies about a step gives what asking all of them gives, errors included.
#[test]
fn what_is_not_about_a_step_changes_nothing() {
    let files = BTreeMap::from([
        ("default.cedar".to_owned(), DEFAULT.to_owned()),
        ("ours.cedar".to_owned(), OURS.to_owned()),
    ]);
    let policies = Policies::new(&files).unwrap();
    let account = AccountId::try_from("account").unwrap();
    let numbers = [0, 1, 5, 90, 91, 100, 599, 600, 1_800, 21_601];
    let mut draws = Draws(11);
    let (mut permitted, mut denied, mut erred) = (0, 0, 0);
    for _ in 0..2_000 {
        let mut situation = draw(&mut draws, &account, &numbers);
        for safety in Safety::ALL {
            if draws.of(&[true, false, false, false, false, false]) {
                situation.safeties.push(safety);
            }
        }
        let (resource, context) = (policies.resource(&situation), context(&situation).unwrap());
        for (slice, asked) in policies.asked.iter().zip(policies.ask(&situation)) {
            let all = Slice {
                policies: policies.set.clone(),
                ..slice.clone()
            };
            assert_eq!(asked, policies.ask_one(&all, &resource, &context));
            permitted += u32::from(asked.permitted);
            denied += u32::from(!asked.permitted && !asked.policies.is_empty());
            erred += u32::from(!asked.errors.is_empty());
        }
    }
    assert!(permitted > 500 && denied > 500 && erred > 500);
}

#[test]
fn what_ships_looks_closer_at_suspects_alone_and_a_policy_without_it_at_nobody() {
    let shipped = Policies::shipped().unwrap();
    let looked =
        [Level::Quiet, Level::Suspect, Level::Mining].map(|level| shipped.look_closer_at(level));
    assert_eq!(looked, [false, true, false]);
    let none = r#"@id("observe") permit (principal, action == Davy::Action::"observe", resource);"#;
    let files = BTreeMap::from([("ours.cedar".to_owned(), none.to_owned())]);
    assert!(
        !Policies::new(&files)
            .unwrap()
            .look_closer_at(Level::Suspect)
    );
}

/// Why the policy that ships and `text`, in a file of its own, cannot be used together.
fn refusal_of(text: &str) -> PolicyError {
    let files = [("default.cedar", DEFAULT), ("ours.cedar", text)];
    let files = files.map(|(file, text)| (file.to_owned(), text.to_owned()));
    match Policies::new(&files.into()) {
        Err(error) => error,
        Ok(_) => panic!("taken: {text}"),
    }
}

/// Each error names the file in which it is, and what is wrong there.
#[test]
fn what_is_wrong_is_told_with_its_file() {
    type Is = fn(&PolicyError) -> bool;
    let syntax: Is =
        |error| matches!(error, PolicyError::Syntax { file, .. } if file == "ours.cedar");
    let schema: Is = |error| matches!(error, PolicyError::Schema { file, policy, .. } if (file.as_str(), policy.as_str()) == ("ours.cedar", "ours"));
    let id: Is = |error| matches!(error, PolicyError::Id { file, .. } if file == "ours.cedar");
    let template: Is =
        |error| matches!(error, PolicyError::Template { file } if file == "ours.cedar");
    let rest = r#"(principal, action == Davy::Action::"observe", resource)"#;
    let all = [
        (
            syntax,
            format!(r#"@id("ours") permit {rest} when"#),
            "unexpected end of input",
        ),
        (
            syntax,
            format!("// Ours.\n@id(\"ours\") permit {rest}\nwhen {{ true ;\n"),
            "line 3: unexpected token `;`",
        ),
        (
            schema,
            format!(r#"@id("ours") permit {rest} when {{ context.load > 90 }};"#),
            "`load`",
        ),
        (
            schema,
            format!("\n\n@id(\"ours\") permit {rest}\nwhen {{ context.lode > 90 }};"),
            "line 4: ",
        ),
        (
            schema,
            r#"@id("ours") permit (principal, action == Davy::Action::"unplug", resource);"#
                .to_owned(),
            "unplug",
        ),
        (id, format!("permit {rest};"), "a policy has no id"),
        (id, format!(r#"@id("") permit {rest};"#), "the id \"\""),
        (
            id,
            format!(r#"@id("safety:kill_switch") permit {rest};"#),
            "does not begin with \"safety:\"",
        ),
        (
            id,
            format!(r#"@id("safety:of_ours") forbid {rest};"#),
            "the id \"safety:of_ours\"",
        ),
        // As one of the other file.
        (id, format!(r#"@id("observe") permit {rest};"#), "`observe`"),
        (
            template,
            r#"@id("ours") permit (principal == ?principal, action, resource);"#.to_owned(),
            "write a policy for each case",
        ),
    ];
    for (is, text, said) in all {
        let error = refusal_of(&text);
        assert!(is(&error), "{text}: {error:?}");
        let words = error.to_string();
        assert!(words.starts_with("ours.cedar: "), "{words}");
        assert!(words.contains(said), "{text}: {words}");
    }
}

#[test]
fn no_policies_and_too_many_bytes_of_them_are_refused() {
    let size = |files: &BTreeMap<String, String>| match Policies::new(files).unwrap_err() {
        PolicyError::Size(why) => why,
        other => panic!("{other:?}"),
    };
    let none = size(&BTreeMap::new());
    assert!(none.contains("at least one is needed"), "{none}");
    // A comment is as long as any other text; all files count together.
    let padded = |bytes: usize| {
        let small = r#"@id("p") permit (principal, action, resource);//"#;
        let padding = "/".repeat(bytes - DEFAULT.len() - small.len());
        BTreeMap::from([
            ("default.cedar".to_owned(), DEFAULT.to_owned()),
            ("padding.cedar".to_owned(), small.to_owned() + &padding),
        ])
    };
    let long = size(&padded(TEXT_BYTES_MAX + 1));
    assert!(long.contains("2 policy files of 1048577 bytes"), "{long}");
    Policies::new(&padded(TEXT_BYTES_MAX)).unwrap();
}

/// What is compiled in is known by that, and not by a file's name; an empty file may be one that is being written.
#[test]
fn no_files_name_passes_for_the_safeties_and_no_file_is_empty() {
    let named = |file: &str, text: &str| {
        let files = [("default.cedar", DEFAULT), (file, text)];
        Policies::new(
            &files
                .map(|(file, text)| (file.to_owned(), text.to_owned()))
                .into(),
        )
    };
    let vip = r#"@id("safety:vip") permit (principal, action == Davy::Action::"lock", resource);"#;
    let error = named("safeties.cedar", vip).unwrap_err();
    assert!(
        matches!(&error, PolicyError::Id { file, .. } if file == "safeties.cedar"),
        "{error}"
    );
    for empty in ["", "// to be written"] {
        let error = named("ours.cedar", empty).unwrap_err().to_string();
        assert!(error.contains("ours.cedar has no policy"), "{error}");
    }
}
