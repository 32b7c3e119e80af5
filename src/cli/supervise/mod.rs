//! `pgherd supervise FILE`: any list of services under our own PID 1 and on our own units. A container that wants another
//! set of services gets one this way, and every test suite for inits gets something to hold on to.
//!
//! Two processes as for a node: `init`, and a child of it that runs the units.

mod run;
pub mod spec;

use std::process::ExitCode;

use anyhow::Context as _;
use camino::Utf8PathBuf;

use crate::init::{self, InitOptions, RestartNode};
use crate::types::Chain;
use crate::{log, process};

/// The hidden command that runs the units, beneath `init`.
pub const UNITS_COMMAND: &str = "units";

/// What to supervise.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The list of services, as JSON
    #[arg(value_name = "FILE")]
    file: Utf8PathBuf,
    /// How the log's lines look: text or json
    #[arg(long, default_value = "text", value_parser = parse_format)]
    log_format: log::Format,
}

fn parse_format(text: &str) -> Result<log::Format, String> {
    match text {
        "text" => Ok(log::Format::Text),
        "json" => Ok(log::Format::Json),
        other => Err(format!("{other:?} is neither text nor json")),
    }
}

fn format_name(format: log::Format) -> &'static str {
    match format {
        log::Format::Text => "text",
        log::Format::Json => "json",
        log::Format::Patroni => "patroni",
    }
}

/// Becomes `init` for the units.
///
/// # Errors
/// The file cannot be found.
pub fn supervise(args: &Args) -> anyhow::Result<ExitCode> {
    // `init` works in `/`. Links are not followed: behind one of them there may be another file at the next reading.
    let file = camino::absolute_utf8(&args.file).with_context(|| format!("could not find {}", args.file))?;
    anyhow::ensure!(file.exists(), "could not find {file}");
    let arguments = [UNITS_COMMAND, file.as_str(), "--log-format", format_name(args.log_format)];
    Ok(init::run_node(InitOptions {
        restart: RestartNode::Exit,
        log_format: args.log_format,
        args: arguments.map(Into::into).to_vec(),
        ..InitOptions::default()
    }))
}

/// Runs the units, beneath `init`.
///
/// # Errors
/// The list cannot be used, or the process cannot do its work.
pub fn units(args: &Args) -> anyhow::Result<ExitCode> {
    process::reserve_notice_fds().context("could not set descriptors aside")?;
    process::take_name();
    process::raise_open_files();
    // Nothing of it goes to the services.
    drop(process::take_environment());
    let layout = log::Layout::default();
    let config = log::Config { format: args.log_format, level: "info".to_owned(), layout, files: None };
    let _log = log::install(&config).context("could not start the log")?;
    process::Surroundings::look().tell();
    let services = match spec::read(&args.file) {
        Ok(services) => services,
        Err(error) => {
            tracing::error!(error = %Chain(&error), "the list cannot be used");
            return Ok(ExitCode::from(init::CONFIGURATION_ERROR));
        }
    };
    let runtime = process::runtime().context("could not start the runtime")?;
    runtime.block_on(run::run(&args.file, services)).map(ExitCode::from)
}
