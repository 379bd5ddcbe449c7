//! Generates the wire types of `davy/v1/*.proto`. `protox` compiles the files, so no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=davy");
    let descriptors = protox::compile(
        [
            "davy/v1/telemetry.proto",
            "davy/v1/inventory.proto",
            "davy/v1/accounts.proto",
            "davy/v1/power_control.proto",
        ],
        ["."],
    )?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
