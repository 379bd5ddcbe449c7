//! `davyctl`: what the detector knows, from a terminal. Tables for people, `--json` for machines.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use clap::{Args, Parser, Subcommand, ValueEnum};
use davy_proto::v1;
use davy_proto::v1::inventory_client::InventoryClient;
use serde::Serialize;
use tonic::transport::{Channel, Endpoint};

mod guests;
mod model;
mod model_pmu;
mod render;
mod waits;

/// Largest answer read, bytes: the detector's largest list is below it.
const ANSWER_BYTES_MAX: usize = 512 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Shows what Davy's detector knows about droplets and hosts.
#[derive(Parser)]
#[command(version, about, long_about = None)]
struct Cli {
    /// The detector
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "DAVY_DETECTOR",
        default_value = "http://127.0.0.1:7700"
    )]
    detector: String,
    /// Print one JSON document instead of a table
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All tenants as last reported: CPU, rounding modes, verdict, and what the detector would do.
    ///
    /// CPU is on-CPU time in per cent of one CPU over the last window. MODES are the shares of the four
    /// floating-point rounding modes among the window's SAMPLES. DUTY is the share of one CPU used by the threads
    /// whose test has concluded. SINCE says how long the verdict has stood. PLANNED is a proposal: nothing acts.
    Droplets(DropletsArgs),
    /// One tenant in full, with the reasons for its verdict and its last windows.
    Droplet(DropletArgs),
    /// Which hosts report, what was lost or rejected, and which sensors cannot measure.
    Status,
}

#[derive(Args)]
struct DropletsArgs {
    /// Only this host's
    #[arg(long, default_value = "")]
    host: String,
    /// Only this verdict and worse
    #[arg(long, value_enum)]
    at_least: Option<Level>,
}

#[derive(Args)]
struct DropletArgs {
    /// The tenant's key, name or droplet id
    #[arg(value_name = "NAME|KEY|ID")]
    tenant: String,
    /// Only on this host
    #[arg(long, default_value = "")]
    host: String,
    /// How many past windows to show
    #[arg(long, value_name = "WINDOWS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=8640))]
    history: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Level {
    Quiet,
    Suspect,
    Mining,
}

impl From<Level> for v1::VerdictLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Quiet => Self::Quiet,
            Level::Suspect => Self::Suspect,
            Level::Mining => Self::Mining,
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("davyctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli {
        detector,
        json,
        command,
    } = cli;
    let mut inventory = connect(&detector).await?;
    let (now, width) = (now_unix_ns(), width());
    let text = match command {
        Command::Droplets(DropletsArgs { host, at_least }) => {
            let at_least = at_least
                .map_or(v1::VerdictLevel::Unspecified, v1::VerdictLevel::from)
                .into();
            let answer = inventory
                .list_droplets(v1::ListDropletsRequest { host, at_least })
                .await;
            let document =
                model::Droplets::new(answer.map_err(|status| said(&status))?.into_inner());
            if json {
                to_json(&document)?
            } else {
                render::droplets(&document, now, width)
            }
        }
        Command::Droplet(DropletArgs {
            tenant,
            host,
            history,
        }) => {
            let answer = inventory
                .get_droplet(v1::GetDropletRequest {
                    host,
                    tenant,
                    history_max: history,
                })
                .await;
            let document = model::OneDroplet::new(answer.map_err(|status| said(&status))?.into_inner())
                .context("the detector's answer holds no droplet; are davyctl and the detector of one release?")?;
            if json {
                to_json(&document)?
            } else {
                render::droplet(&document, now, width)
            }
        }
        Command::Status => {
            let answer = inventory
                .get_ingest_status(v1::GetIngestStatusRequest {})
                .await;
            let document = model::Status::new(answer.map_err(|status| said(&status))?.into_inner());
            if json {
                to_json(&document)?
            } else {
                render::status(&document, now, width)
            }
        }
    };
    print(&text)
}

async fn connect(url: &str) -> anyhow::Result<InventoryClient<Channel>> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .ok()
        .filter(|endpoint| {
            endpoint.uri().scheme_str() == Some("http") && endpoint.uri().host().is_some()
        })
        .ok_or_else(|| anyhow!("--detector {url:?} is not a URL such as http://127.0.0.1:7700"))?;
    let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(CALL_TIMEOUT).connect().await.map_err(|error| {
        let why = root_cause(&error);
        anyhow!("no detector answers at {url} ({why}); start `davy-detector serve`, or say where it is with --detector")
    })?;
    Ok(InventoryClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX))
}

/// The innermost error's words: a transport error itself says only that it is one.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The detector's own sentence, or what kept it from saying one.
fn said(status: &tonic::Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::Unimplemented => {
            anyhow!("what answers there is no Davy detector, or one of another release")
        }
        _ if status.message().is_empty() => anyhow!("the detector answered {:?}", status.code()),
        _ => anyhow!("{}", status.message()),
    }
}

fn to_json(document: &impl Serialize) -> anyhow::Result<String> {
    let mut text =
        serde_json::to_string_pretty(document).context("the answer cannot be written as JSON")?;
    text.push('\n');
    Ok(text)
}

/// The terminal's width; `None` if the output is no terminal.
fn width() -> Option<u16> {
    comfy_table::Table::new().width()
}

fn now_unix_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("standard output cannot be written")
        }
        _ => Ok(()),
    }
}
