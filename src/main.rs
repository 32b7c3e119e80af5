//! The binary: parse the command line, become what it asks for, turn the outcome into an exit code.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use pgherd::cli::ctl::client::{Cluster, Errand};
use pgherd::cli::{self, Api, Cli, Command, ConfigCommand};
use pgherd::config::{self, Config};
use pgherd::{init, log, node, process};

/// A configuration that will not become right by trying again (`EX_USAGE`): `init` does not restart a node that
/// ended with it.
const EXIT_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        // A signal that reaches PID 1 before it is ready for it would be lost.
        init::block_signals();
    }
    match Cli::parse().command {
        Some(command) => {
            let format = format_of(&command);
            run(command).unwrap_or_else(|failure| report(failure, format))
        }
        // The image's entrypoint without arguments: the first process of a container is a node.
        None if std::process::id() == 1 => init::run_node(init_options()),
        None => help().map_err(Failure::Other).unwrap_or_else(|failure| report(failure, log::Format::Text)),
    }
}

/// How a command failed, by what its caller should do about it.
enum Failure {
    /// Change the environment.
    Configuration(config::Errors),
    /// Look at the chain of causes.
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// How a failure of this command is told: a node's is a line of its log.
fn format_of(command: &Command) -> log::Format {
    if matches!(command, Command::Node) { Config::log_format() } else { log::Format::Text }
}

/// Prints the chain of causes, once, and says it as an exit code.
fn report(failure: Failure, format: log::Format) -> ExitCode {
    let (chain, code) = match failure {
        Failure::Configuration(error) => (anyhow::Error::new(error), ExitCode::from(EXIT_CONFIGURATION)),
        Failure::Other(error) => (error, ExitCode::FAILURE),
    };
    // Nothing can be done about a standard error that is closed, and the code says the rest.
    let text = match format {
        log::Format::Text | log::Format::Patroni => format!("pgherd: {chain:#}\n").into_bytes(),
        log::Format::Json => log::loose_line("pgherd", format, &format!("{chain:#}")),
    };
    std::io::stderr().write_all(&text).map_or(code, |()| code)
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    // The environment of a container holds secrets. A foreign command has all of it anyway, and whoever tests an init wants to
    // look at it; without one `init` hides by itself.
    if !matches!(command, Command::Init(_)) {
        process::hide_memory();
    }
    match command {
        // `init` stays small: no TLS, no runtime.
        Command::Init(args) => Ok(match args.foreign() {
            Some(options) => init::run_foreign(&options),
            None => init::run_node(init_options()),
        }),
        Command::Node => {
            let (config, warnings) = Config::from_env().map_err(Failure::Configuration)?;
            install_tls();
            Ok(node::run(config, warnings)?)
        }
        Command::Agent(args) => agent(&args),
        Command::Supervise(args) => Ok(cli::supervise::supervise(&args)?),
        Command::Units(args) => Ok(cli::supervise::units(&args)?),
        Command::Ctl(verb) => {
            install_tls();
            let config = configuration_if_needed(verb.api())?;
            Ok(block_on(cli::ctl::run(verb, config.as_ref()))?)
        }
        Command::Remove(args) => remove(&args),
        Command::Why(args) => {
            install_tls();
            let url = api_url(&args.api)?;
            print(&block_on(cli::why::run(&args, &url))?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor(args) => in_node(async |config, odd| cli::doctor::run(&args, &config, &odd).await),
        Command::Report => done(in_node(async |config, odd| cli::report::run(&config, &odd).await)),
        Command::Config(ConfigCommand::Check(json)) => check_config(json),
        Command::Drill(cli::drill::Drill::Failover(args)) => {
            done(in_node(async |config, _odd| cli::drill::failover(&args, &config).await))
        }
        Command::RestoreVolume(json) => done(cli::restore_volume(&quiet_configuration()?, json)),
        Command::Health(api) => {
            install_tls();
            let healthy = block_on(cli::is_healthy(&api_url(&api)?))?;
            Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Version(args) => version(&args),
        Command::Ca(args) => done(cli::credentials::ca(&quiet_configuration()?, &args)),
        Command::ClientCert(args) => done(cli::credentials::client_cert(&quiet_configuration()?, &args)),
        Command::PatronictlConfig(args) => {
            done(in_node(async |config, _odd| cli::credentials::patronictl_config(&config, &args).await))
        }
        Command::Completions { shell } => done(cli::completions(shell)),
        Command::Man => done(cli::manual()),
        Command::Demo(args) => {
            install_tls();
            Ok(cli::demo::run(args)?)
        }
    }
}

fn done<E: Into<Failure>>(printed: Result<cli::Printed, E>) -> Result<ExitCode, Failure> {
    printed.map(|_printed| ExitCode::SUCCESS).map_err(Into::into)
}

/// Runs a command that needs the node's environment, and gets what is odd about it.
fn in_node<T>(
    command: impl AsyncFnOnce(Config, Vec<config::Warning>) -> anyhow::Result<T>,
) -> Result<T, Failure> {
    install_tls();
    let (config, odd) = Config::from_env().map_err(Failure::Configuration)?;
    Ok(block_on(command(config, odd))?)
}

/// In the store of an agent's file, or of the node's environment.
fn remove(args: &cli::remove::Args) -> Result<ExitCode, Failure> {
    install_tls();
    let place = match &args.file {
        Some(file) => {
            let read = config::patroni::Agent::from_file(Some(file)).map_err(Failure::Configuration)?;
            cli::remove::Place::of_agent(&read.0)?
        }
        None => cli::remove::Place::of_node(&quiet_configuration()?)?,
    };
    done(block_on(cli::remove::run(args, place)))
}

/// A Patroni process's place.
fn agent(args: &cli::Agent) -> Result<ExitCode, Failure> {
    let (config, warnings) =
        config::patroni::Agent::from_file(args.file.as_deref()).map_err(Failure::Configuration)?;
    if args.validate_config {
        for config::Warning(warning) in warnings {
            writeln!(std::io::stderr(), "pgherd: warning: {warning}").context("could not print")?;
        }
        return done(cli::print("the configuration is complete\n"));
    }
    if std::process::id() == 1 {
        // The first process of a container hears no signal that it has not asked for, and reaps for everybody.
        return Err(anyhow::anyhow!(
            "as the first process of a container say: pgherd init -- pgherd agent FILE"
        )
        .into());
    }
    install_tls();
    Ok(node::machine::run(args.file.clone(), config, warnings)?)
}

fn version(args: &cli::Version) -> Result<ExitCode, Failure> {
    if args.members.is_empty() && !args.cluster {
        let version = env!("CARGO_PKG_VERSION");
        return done(cli::print(&if args.json.json {
            format!("{:#}\n", serde_json::json!({ "pgherd": version }))
        } else {
            format!("pgherd {version}\n")
        }));
    }
    install_tls();
    let config = configuration_if_needed(&args.api)?;
    let cluster = Cluster::new(&args.api, config.as_ref(), Errand::Look)?;
    done(cli::print(&block_on(cli::ctl::read::versions(&cluster, &args.members, args.json))?))
}

/// What is odd about the environment is the node's to say, not every command's.
fn quiet_configuration() -> Result<Config, Failure> {
    Ok(Config::from_env().map_err(Failure::Configuration)?.0)
}

/// The node's environment: needed when no API was named, and used when there is one.
fn configuration_if_needed(api: &Api) -> Result<Option<Config>, Failure> {
    match quiet_configuration() {
        Ok(config) => Ok(Some(config)),
        Err(_not_in_a_node) if api.url.is_some() => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// What `init` needs of the environment. A mistake in it is `node`'s to report: it ends with 64, and so does `init` then.
fn init_options() -> init::InitOptions {
    let defaults = init::InitOptions::default();
    match Config::from_env() {
        Ok((config, _warnings)) => {
            init::InitOptions { restart: config.restart_node, log_format: config.log.format, ..defaults }
        }
        Err(_reported_by_node) => init::InitOptions { log_format: Config::log_format(), ..defaults },
    }
}

/// The one TLS provider of the process.
fn install_tls() {
    pgherd::tls::install_provider();
}

/// Says what is wrong with the environment, and what is odd.
fn check_config(json: cli::ctl::Json) -> Result<ExitCode, Failure> {
    if !json.json {
        configuration()?;
        return done(cli::print("the configuration is complete\n"));
    }
    let (errors, warnings, code) = match Config::from_env() {
        Ok((_config, warnings)) => (Vec::new(), warnings, ExitCode::SUCCESS),
        Err(config::Errors(errors)) => (errors, Vec::new(), ExitCode::from(EXIT_CONFIGURATION)),
    };
    let warnings: Vec<_> = warnings.into_iter().map(|config::Warning(text)| text).collect();
    let told = serde_json::json!({ "complete": errors.is_empty(), "errors": errors, "warnings": warnings });
    cli::print(&format!("{told:#}\n"))?;
    Ok(code)
}

/// The API to ask: this node's own unless another was named.
fn api_url(api: &Api) -> Result<String, Failure> {
    match &api.url {
        Some(url) => Ok(url.clone()),
        None => {
            let config = quiet_configuration()?;
            // TLS is always spoken; plain HTTP only sometimes.
            Ok(format!("https://{}", SocketAddr::new(config.local_address(), config.bound.api)))
        }
    }
}

/// The environment, read; what is odd about it goes to standard error.
fn configuration() -> Result<Config, Failure> {
    let (config, warnings) = Config::from_env().map_err(Failure::Configuration)?;
    for config::Warning(warning) in warnings {
        writeln!(std::io::stderr(), "pgherd: warning: {warning}").context("could not print")?;
    }
    Ok(config)
}

/// Runs a short command to its end. One thread is enough for one request.
fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("could not start the runtime")?.block_on(command)
}

fn help() -> anyhow::Result<ExitCode> {
    print(&Cli::command().render_help().to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("could not print")
}
