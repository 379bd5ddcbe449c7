//! `davy-detector`: the central service.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use davy_detector::{Config, Server};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Davy's detector: takes what the agents measure, decides each droplet's verdict, keeps and serves it.
#[derive(Parser)]
#[command(version, about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the service. No configuration is needed: it keeps its state in one SQLite file.
    ///
    /// It logs to standard error; RUST_LOG sets how much (e.g. RUST_LOG=debug). SIGTERM and SIGINT end it after
    /// what is in work is stored. It has no authentication: leave it on loopback or behind something that has.
    Serve(Serve),
}

#[derive(Args)]
struct Serve {
    /// TOML file; what is given here on the command line goes before it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where agents and davyctl connect (gRPC); port 0 takes any free one [default: 127.0.0.1:7700]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Where Prometheus scrapes /metrics; port 0 takes any free one [default: 127.0.0.1:7701]
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// The SQLite file, made if absent; or postgres://USER@HOST/DATABASE [default: davy.db]
    #[arg(long, value_name = "FILE|URL")]
    database: Option<String>,
    /// Directory of the policies (*.cedar) and settings.toml; without: the policy that ships
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
}

impl Serve {
    fn config(self) -> anyhow::Result<Config> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        config.listen = self.listen.unwrap_or(config.listen);
        config.metrics_listen = self.metrics_listen.unwrap_or(config.metrics_listen);
        config.database = self.database.unwrap_or(config.database);
        config.policy_dir = self.policy.or(config.policy_dir);
        Ok(config)
    }
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let Cli {
        command: Command::Serve(serve),
    } = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match run(serve).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("davy-detector: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(serve: Serve) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be handled")?;
    let server = Server::start(serve.config()?).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    server.shutdown().await;
    Ok(())
}
