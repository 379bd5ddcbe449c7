//! Reads a file of Cedar policies: each has an `@id` of its own and fits the schema, or the file is refused, with the line. Pure.

use std::str::FromStr;

use cedar_policy::{ParseErrors, Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator};
use miette::Diagnostic;

use super::PolicyError;

/// Adds a file's policies under the ids of their `@id` annotations, validated one by one so that the file can be named.
pub(super) fn add(
    set: &mut PolicySet,
    (file, text): (&str, &str),
    schema: &Schema,
    compiled_in: bool,
) -> Result<(), PolicyError> {
    let parsed = PolicySet::from_str(text).map_err(|error| PolicyError::Syntax {
        file: file.to_owned(),
        why: syntax_errors(&error, text),
    })?;
    if parsed.templates().next().is_some() {
        return Err(PolicyError::Template {
            file: file.to_owned(),
        });
    }
    if parsed.policies().next().is_none() {
        return Err(PolicyError::Size(format!(
            "{file} has no policy: write one, or remove the file"
        )));
    }
    for policy in parsed.policies() {
        let bad_id = |why: String| PolicyError::Id {
            file: file.to_owned(),
            why,
        };
        let id = policy
            .annotation("id")
            .ok_or_else(|| bad_id("a policy has no id".to_owned()))?;
        if id.is_empty() || (id.starts_with("safety:") && !compiled_in) {
            return Err(bad_id(format!("a policy has the id {id:?}")));
        }
        let policy: Policy = policy.new_id(PolicyId::new(id));
        validate((file, text), id, &policy, schema)?;
        set.add(policy).map_err(|error| bad_id(error.to_string()))?;
    }
    Ok(())
}

/// Cedar's words, each with the line they are about.
fn syntax_errors(errors: &ParseErrors, text: &str) -> String {
    let said = errors.iter().map(|error| with_line(error, text));
    said.collect::<Vec<_>>().join("; ")
}

fn with_line(error: &dyn Diagnostic, text: &str) -> String {
    let label = error.labels().and_then(|mut labels| labels.next());
    let before = label.and_then(|label| text.as_bytes().get(..label.offset()));
    before.map_or_else(
        || error.to_string(),
        |before| {
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            format!("line {line}: {error}")
        },
    )
}

fn validate(
    (file, text): (&str, &str),
    id: &str,
    policy: &Policy,
    schema: &Schema,
) -> Result<(), PolicyError> {
    let wrong = |why: String| PolicyError::Schema {
        file: file.to_owned(),
        policy: id.to_owned(),
        why,
    };
    let one =
        PolicySet::from_policies([policy.clone()]).map_err(|error| wrong(error.to_string()))?;
    let result = Validator::new(schema.clone()).validate(&one, ValidationMode::Strict);
    let errors: Vec<_> = result
        .validation_errors()
        .map(|error| with_line(error, text))
        .collect();
    if errors.is_empty() {
        Ok(())
    } else {
        Err(wrong(errors.join("; ")))
    }
}
