//! `davy-test-provider`: serves the accounts of a scenario as an `AccountDirectory`, for the demo.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use davy_test_provider::Accounts;
use tokio::net::TcpListener;

/// Serves the accounts of a scenario as an AccountDirectory, in the clear: for trying Davy, not for use.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where it is served
    #[arg(long, default_value = "127.0.0.1:7800")]
    listen: SocketAddr,
    /// A scenario's `account` and `droplet_created` lines
    accounts: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let Arguments { listen, accounts } = Arguments::parse();
    let name = accounts.display().to_string();
    let text =
        std::fs::read_to_string(&accounts).with_context(|| format!("{name} cannot be read"))?;
    let accounts = Accounts::read(&name, &text)?;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    accounts.serve(listener).await
}
