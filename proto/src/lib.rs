//! The wire: `davy.v1` as generated from `proto/davy/v1/*.proto`, and the conversions between wire and domain types
//! ([`convert`]). Nothing here does I/O.

pub mod convert;
mod convert_pmu;

/// Messages and services of `davy.v1`.
#[expect(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes,
    rustdoc::invalid_html_tags,
    reason = "generated code; it is documented in the .proto files"
)]
pub mod v1 {
    tonic::include_proto!("davy.v1");
}
