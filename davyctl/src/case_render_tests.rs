//! Golden outputs of cases.
