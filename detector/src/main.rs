//! `davy-detector`: the central service.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use davy_decision::settings::Settings;
use davy_detector::{Config, Server, policy, replay};
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
    /// what is in work is stored. People and the provider's services need tokens (see --config); agents and readers of evidence do
    /// not, and nothing is encrypted: leave it on loopback or behind something that authenticates and encrypts.
    Serve(Serve),
    /// Plays a scenario through the same deciding code, and prints what would have been decided, said and done, and when.
    ///
    /// A scenario is JSON lines, each an event with its time: facts of accounts, droplets created, evidence, what customers and
    /// reviewers do, outages. docs/scenario.md has them all. Nothing is contacted: clock, account directory and control plane are
    /// simulated. In the timeline `>` is what the scenario says, `=` a decision, `·` what happened to a record, `!` an order that
    /// reached the control plane, `x` a person's act that was refused.
    Replay(Replay),
}

#[derive(Args)]
struct Replay {
    /// The scenario, JSON lines
    #[arg(value_name = "SCENARIO")]
    scenario: PathBuf,
    /// Directory of the policies (*.cedar) and settings.toml; without: the policy that ships
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
    /// Print the timeline as JSON lines
    #[arg(long)]
    json: bool,
}

impl Replay {
    fn run(&self) -> anyhow::Result<()> {
        let name = self.scenario.display().to_string();
        let bytes =
            std::fs::read(&self.scenario).with_context(|| format!("{name} cannot be read"))?;
        let events = replay::parse(&name, &bytes)?;
        let held = policy::Held::open(self.policy.clone())?;
        let settings = match &self.policy {
            Some(dir) => policy::read_settings(dir, Settings::default())?,
            None => Settings::default(),
        };
        let world = replay::play(&name, &events, held.now().as_ref().clone(), settings)?;
        let text = if self.json {
            replay::to_json(&world.timeline)
        } else {
            replay::to_text(&world.timeline)
        };
        // A reader that has seen enough (`| head`) is no error.
        match std::io::stdout().lock().write_all(text.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(error).context("standard output cannot be written")
            }
            _ => Ok(()),
        }
    }
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
    let serve = match Cli::parse().command {
        Command::Serve(serve) => serve,
        Command::Replay(replay) => return ended(replay.run()),
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    ended(run(serve).await)
}

fn ended(result: anyhow::Result<()>) -> std::process::ExitCode {
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("davy-detector: {}", in_a_sentence(&error));
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

/// An error with its causes; what one says already its cause does not say again.
fn in_a_sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
