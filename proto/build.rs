//! Generates the wire types of `davy/v1/*.proto`. `protox` compiles the files, so no `protoc` is needed.

/// Messages that are written as JSON, by the names of their fields.
const IN_JSON: [&str; 20] = [
    "ListCasesResponse",
    "CaseSummary",
    "GetCaseResponse",
    "DropletReview",
    "Comparison",
    "Fact",
    "Link",
    "SafetyLooked",
    "DecisionShown",
    "ActionShown",
    "MessageShown",
    "LetterShown",
    "OpinionShown",
    "GetAccountResponse",
    "ChangeResponse",
    "GetFleetResponse",
    "AuditEntry",
    "Decision",
    "GetPoliciesResponse",
    "CheckResponse",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=davy");
    let descriptors = protox::compile(
        [
            "davy/v1/telemetry.proto",
            "davy/v1/inventory.proto",
            "davy/v1/accounts.proto",
            "davy/v1/power_control.proto",
            "davy/v1/cases.proto",
        ],
        ["."],
    )?;
    // Answers about cases are JSON for programs as they are.
    let mut build = tonic_prost_build::configure();
    for message in IN_JSON {
        build = build.type_attribute(message, "#[derive(serde::Serialize)]");
    }
    build.compile_fds(descriptors)?;
    Ok(())
}
