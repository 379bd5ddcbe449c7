//! `davyctl`: what the detector knows, from a terminal. Tables for people, `--json` for machines.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use davy_decision::time::Time;
use davy_proto::v1;
use davy_proto::v1::inventory_client::InventoryClient;
use tonic::transport::Channel;

mod accounts;
mod automation;
mod case_render;
mod cases;
mod client;
mod document;
mod guests;
mod model;
mod model_pmu;
mod policy;
mod prose;
mod render;
mod token;
mod waits;

use accounts::AccountsCommand;
use automation::{AuditCommand, SafetyCommand};
use cases::CasesCommand;
use client::{Detector, said};
use document::pretty as to_json;
use policy::PolicyCommand;
use token::{NewToken, TokenCommand};

/// What `davyctl safety check` exits with if a safety is in force.
const NOT_ALLOWED: u8 = 3;

/// Davy from a terminal: droplets and hosts, cases and what people decide on them, the kill switch, policies and the audit log.
///
/// Cases, accounts, safeties and the audit log need a token: set DAVY_TOKEN, or give --token-file. It is sent as it is, so use it on
/// loopback or through a tunnel.
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
    /// A file with your token, which only you may read; without it the token is that in DAVY_TOKEN
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All tenants as last reported: CPU, rounding modes, verdict, and what the detector would do.
    ///
    /// CPU is on-CPU time in per cent of one CPU over the last window. MODES are the shares of the four
    /// floating-point rounding modes among the window's SAMPLES. DUTY is the share of one CPU used by the threads
    /// whose test has concluded. SINCE says how long the verdict has stood. PLANNED is what the evidence
    /// alone leads to; what was decided about the account, and done, is in `davyctl cases`.
    Droplets(DropletsArgs),
    /// One tenant in full, with the reasons for its verdict and its last windows.
    Droplet(DropletArgs),
    /// Which hosts report, what was lost or rejected, which sensors cannot measure, and whether automation is stopped.
    Status,
    /// What people decide: the queue, a case in full, unlock, deny by two, take back.
    #[command(subcommand)]
    Cases(CasesCommand),
    /// Facts about accounts.
    #[command(subcommand)]
    Accounts(AccountsCommand),
    /// Stop automation (the kill switch): from the moment this returns no automated action is released, and one released just before leaves within a second or not at all. `davyctl resume` ends it.
    Stop {
        /// Why, for everybody who asks
        #[arg(required = true, value_name = "WHY")]
        why: Vec<String>,
    },
    /// Let automation go on after a stop.
    Resume,
    /// The safeties, as other automation of the provider's asks them.
    #[command(subcommand)]
    Safety(SafetyCommand),
    /// Policies: checked before they are in force, and compared on decisions that were made.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// The audit log: what happened, in order, each entry bound to the one before it.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Tokens of people and services.
    #[command(subcommand)]
    Token(TokenCommand),
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
        Ok(code) => code,
        Err(error) => {
            eprintln!("davyctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli {
        detector: url,
        json,
        token_file,
        command,
    } = cli;
    let connect = || Detector::connect(&url, token_file.as_deref());
    let width = width();
    let text = match command {
        Command::Droplets(arguments) => droplets(arguments, &connect().await?, json).await?,
        Command::Droplet(arguments) => droplet(arguments, &connect().await?, json).await?,
        Command::Status => status(&connect().await?, json).await?,
        Command::Cases(command) => cases::run(command, &connect().await?, json, width).await?,
        Command::Accounts(AccountsCommand::Import { file }) => {
            let lines = accounts::read_file(&file, Time::from_unix_ms(now_unix_ms()))?;
            accounts::import(lines, &connect().await?, json).await?
        }
        Command::Accounts(AccountsCommand::Show { account }) => {
            accounts::show(account, &connect().await?, json, width).await?
        }
        Command::Stop { why } => {
            automation::switch(&connect().await?, Some(why.join(" ")), json).await?
        }
        Command::Resume => automation::switch(&connect().await?, None, json).await?,
        Command::Safety(command) => {
            let (text, allowed) =
                automation::safety(command, &connect().await?, json, width).await?;
            print(&text)?;
            let code = if allowed {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(NOT_ALLOWED)
            };
            return Ok(code);
        }
        Command::Policy(PolicyCommand::Check { dir }) => policy::check(&dir, json, width)?,
        Command::Policy(PolicyCommand::Diff(arguments)) => {
            let detector = if arguments.history {
                Some(connect().await?)
            } else {
                None
            };
            policy::diff(arguments, detector.as_ref(), json, width).await?
        }
        Command::Audit(command) => {
            automation::audit(command, &connect().await?, json, width).await?
        }
        Command::Token(TokenCommand::New { name, service }) => {
            let token = NewToken::new(name, service)?;
            if json {
                to_json(&token)?
            } else {
                token.in_words()
            }
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn inventory(detector: &Detector) -> InventoryClient<Channel> {
    InventoryClient::new(detector.channel.clone())
        .max_decoding_message_size(client::ANSWER_BYTES_MAX)
}

async fn droplets(
    DropletsArgs { host, at_least }: DropletsArgs,
    detector: &Detector,
    json: bool,
) -> anyhow::Result<String> {
    let at_least = at_least
        .map_or(v1::VerdictLevel::Unspecified, v1::VerdictLevel::from)
        .into();
    let request = v1::ListDropletsRequest { host, at_least };
    let answer = inventory(detector).list_droplets(request).await;
    let document = model::Droplets::new(answer.map_err(|status| said(&status))?.into_inner());
    if json {
        to_json(&document)
    } else {
        Ok(render::droplets(&document, now_unix_ns(), width()))
    }
}

async fn droplet(
    arguments: DropletArgs,
    detector: &Detector,
    json: bool,
) -> anyhow::Result<String> {
    let DropletArgs {
        tenant,
        host,
        history,
    } = arguments;
    let request = v1::GetDropletRequest {
        host,
        tenant,
        history_max: history,
    };
    let answer = inventory(detector).get_droplet(request).await;
    let document = model::OneDroplet::new(answer.map_err(|status| said(&status))?.into_inner())
        .context(
            "the detector's answer holds no droplet; are davyctl and the detector of one release?",
        )?;
    if json {
        to_json(&document)
    } else {
        Ok(render::droplet(&document, now_unix_ns(), width()))
    }
}

async fn status(detector: &Detector, json: bool) -> anyhow::Result<String> {
    let request = v1::GetIngestStatusRequest {};
    let answer = inventory(detector).get_ingest_status(request).await;
    let document = model::Status::new(answer.map_err(|status| said(&status))?.into_inner());
    // Hosts are shown to anybody, automation to those with a token.
    let fleet = if detector.bearer.is_given() {
        let answer = detector
            .automation()
            .get_fleet(v1::GetFleetRequest {})
            .await;
        Some(answer.map_err(|status| said(&status))?.into_inner())
    } else {
        None
    };
    if json {
        let mut document =
            serde_json::to_value(&document).context("the answer cannot be written as JSON")?;
        document["automation"] = match &fleet {
            Some(fleet) => document::unfold(serde_json::to_value(fleet)?),
            None => serde_json::Value::Null,
        };
        return to_json(&document);
    }
    let mut text = render::status(&document, now_unix_ns(), width());
    text.push('\n');
    text += &match &fleet {
        Some(fleet) => render::list(&case_render::fleet(fleet, now_unix_ms()), width()),
        None => "Automation: not shown without a token (DAVY_TOKEN or --token-file)\n".to_owned(),
    };
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

fn now_unix_ms() -> u64 {
    now_unix_ns() / 1_000_000
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
