//! `docs/scenario.schema.json` has every event and field that the code takes, and no other: the code is asked, by what it refuses.

use std::collections::BTreeSet;

use davy_detector::replay::event::{GivenFacts, Timed};
use serde_json::{Map, Value, json};

fn schema() -> Value {
    let path = crate::dir().join("../../docs/scenario.schema.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Events of the schema with their properties; `at` and `event` stand for themselves.
fn events(schema: &Value) -> Vec<(String, &Map<String, Value>, BTreeSet<String>)> {
    let referred = schema["oneOf"].as_array().unwrap().iter();
    referred
        .map(|one| {
            let name = one["$ref"].as_str().unwrap();
            let event = schema.pointer(name.trim_start_matches('#')).unwrap();
            assert_eq!(event["additionalProperties"], false, "{name}");
            let required = event["required"].as_array().unwrap();
            let required = required
                .iter()
                .map(|held| held.as_str().unwrap().to_owned());
            (
                event["properties"]["event"]["const"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
                event["properties"].as_object().unwrap(),
                required.collect(),
            )
        })
        .collect()
}

/// The names that an error of serde's lists: ``expected one of `a`, `b` ``, or ``expected `a` or `b` ``.
fn expected(error: &serde_json::Error) -> BTreeSet<String> {
    let text = error.to_string();
    let (_, list) = text.split_once(", expected ").unwrap_or((&text, ""));
    list.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// A value that a property takes.
fn example(schema: &Value, property: &Value) -> Value {
    if let Some(name) = property["$ref"].as_str() {
        let found = schema.pointer(name.trim_start_matches('#')).unwrap();
        return example(schema, found);
    }
    if let Some(first) = property["enum"].get(0).or(property.get("const")) {
        return first.clone();
    }
    if let Some(first) = property["anyOf"].get(0) {
        return example(schema, first);
    }
    match property["type"].as_str().unwrap() {
        "string" if property["format"] == "date-time" => "2026-03-02T08:00:00Z".into(),
        "string" => "x".into(),
        "integer" => property.get("minimum").cloned().unwrap_or(json!(0)),
        "boolean" => true.into(),
        "array" => json!([example(schema, &property["items"])]),
        "object" => {
            let given = property["properties"].as_object();
            let fields = given.into_iter().flatten();
            fields
                .map(|(name, held)| (name.clone(), example(schema, held)))
                .collect::<Map<_, _>>()
                .into()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn the_schema_has_the_codes_events() {
    let odd = json!({"at": "2026-03-02T08:00:00Z", "event": "?"});
    let code = expected(&serde_json::from_value::<Timed>(odd).unwrap_err());
    let schema = schema();
    let written: BTreeSet<_> = events(&schema).into_iter().map(|(name, ..)| name).collect();
    assert!(code.len() > 20, "{code:?}");
    assert_eq!(code, written);
}

#[test]
fn the_schema_has_the_codes_fields() {
    let schema = schema();
    let facts = expected(&serde_json::from_value::<GivenFacts>(json!({"?": 1})).unwrap_err());
    assert!(facts.len() > 10, "{facts:?}");
    for (name, properties, _) in events(&schema) {
        let mut written: BTreeSet<_> = properties.keys().cloned().collect();
        for own in ["at", "event"] {
            assert!(written.remove(own), "{name} without {own}");
        }
        let line = json!({"at": "2026-03-02T08:00:00Z", "event": name, "?": 1});
        let mut code = expected(&serde_json::from_value::<Timed>(line).unwrap_err());
        if name == "account" {
            // Its facts are a struct of their own.
            code = facts.clone();
            code.insert("account".to_owned());
        }
        assert_eq!(code, written, "{name}");
    }
}

#[test]
fn the_schema_has_the_codes_settings() {
    let settings = serde_json::to_value(davy_decision::settings::Settings::default()).unwrap();
    let change = &schema()["$defs"]["event_settings"]["properties"]["change"]["properties"];
    let names =
        |value: &Value| -> BTreeSet<_> { value.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(names(change), names(&settings));
}

#[test]
fn a_fact_that_is_never_none_is_not_null() {
    for (fact, takes) in [
        ("vouched", true),
        ("created_at", false),
        ("run_rate", false),
    ] {
        let line =
            json!({"at": "2026-03-02T08:00:00Z", "event": "account", "account": "a", fact: null});
        assert_eq!(
            serde_json::from_value::<Timed>(line).is_ok(),
            takes,
            "{fact}"
        );
    }
}

#[test]
fn every_event_is_taken_with_all_its_fields_and_without_any_that_may_be_left_out() {
    let schema = schema();
    for (name, properties, required) in events(&schema) {
        let full: Map<_, _> = (properties.iter())
            .map(|(field, held)| (field.clone(), example(&schema, held)))
            .collect();
        let taken =
            |line: &Map<String, Value>| serde_json::from_value::<Timed>(line.clone().into());
        taken(&full).unwrap_or_else(|error| panic!("{name}: {error}: {full:?}"));
        let mut least = full.clone();
        least.retain(|field, _| required.contains(field));
        taken(&least).unwrap_or_else(|error| panic!("{name}: {error}: {least:?}"));
        for field in &required {
            let mut without = full.clone();
            without.remove(field);
            assert!(taken(&without).is_err(), "{name} is taken without {field}");
        }
    }
}

#[test]
fn the_scenarios_are_within_the_schema() {
    let schema = schema();
    let events = events(&schema);
    for (file, text) in crate::scenarios() {
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let line: Map<String, Value> = serde_json::from_str(line).unwrap();
            let (_, properties, required) = (events.iter())
                .find(|(name, ..)| line["event"] == name.as_str())
                .unwrap();
            for field in line.keys() {
                assert!(properties.contains_key(field), "{file}: {field}");
            }
            assert!(
                required.iter().all(|field| line.contains_key(field)),
                "{file}"
            );
        }
    }
}

#[test]
fn the_page_tells_every_event_and_field() {
    let page = std::fs::read_to_string(crate::dir().join("../../docs/scenario.md")).unwrap();
    for (name, properties, _) in events(&schema()) {
        assert!(page.contains(&format!("`{name}`")), "{name}");
        for field in properties.keys() {
            assert!(page.contains(&format!("`{field}`")), "{name}: {field}");
        }
    }
}
