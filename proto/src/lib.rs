//! The wire: `davy.v1` as generated from `proto/davy/v1/*.proto`, and the conversions between wire and domain types
//! ([`convert`], and `accounts` with the feature of this name). Nothing here does I/O.

#[cfg(feature = "accounts")]
pub mod accounts;
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
