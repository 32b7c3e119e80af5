//! `pgherd init`: the command line of a foreign command (without one, `init` runs a node).

use std::ffi::OsString;

use nix::sys::signal::Signal;

use crate::init::{Audience, ForeignOptions};
use crate::process::signal_number;

/// The highest number of a signal.
const LAST_SIGNAL: i32 = 64;

/// What `init` is to run, if not a node.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pass signals on to the command's whole process group
    #[arg(short, long, requires = "command")]
    group: bool,
    /// Pass another signal on instead, such as TERM:INT or 15:2, or none, such as WINCH:0 (may be repeated)
    #[arg(short, long, value_name = "FROM:TO", value_parser = parse_rewrite, requires = "command")]
    rewrite: Vec<(i32, Option<i32>)>,
    /// Pass this signal on when our own parent dies
    #[arg(short, long, value_name = "SIGNAL", value_parser = parse_parent_death, requires = "command")]
    parent_death: Option<Signal>,
    /// Take this exit code of the command for 0 (may be repeated)
    #[arg(short = 'e', long, value_name = "CODE", requires = "command")]
    forgive: Vec<u8>,
    /// Run this command instead, reaping its orphans and passing signals on
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Args {
    /// The foreign command, if there is one.
    pub fn foreign(self) -> Option<ForeignOptions> {
        if self.command.is_empty() {
            return None;
        }
        let audience = if self.group { Audience::Group } else { Audience::Child };
        Some(ForeignOptions {
            command: self.command,
            audience,
            rewrite: self.rewrite,
            parent_death: self.parent_death,
            forgiven: self.forgive,
        })
    }
}

/// Another signal, or 0 for none.
fn parse_rewrite(text: &str) -> Result<(i32, Option<i32>), String> {
    let (from, to) = text.split_once(':').ok_or_else(|| format!("{text:?} is not FROM:TO"))?;
    let to = if to == "0" { None } else { Some(parse_signal(to)?) };
    Ok((parse_signal(from)?, to))
}

/// `TERM`, `SIGTERM` or `15`, or a real-time signal, which has a number only.
fn parse_signal(text: &str) -> Result<i32, String> {
    let by_number = text.parse().ok().filter(|number| (1..=LAST_SIGNAL).contains(number));
    by_number.map_or_else(|| parse_name(text).map(signal_number), Ok)
}

fn parse_name(text: &str) -> Result<Signal, String> {
    let by_number = text.parse::<i32>().ok().and_then(|number| Signal::try_from(number).ok());
    let by_name = || format!("SIG{}", text.strip_prefix("SIG").unwrap_or(text)).parse().ok();
    by_number.or_else(by_name).ok_or_else(|| format!("{text:?} is not a signal"))
}

/// Not what would reach us only: SIGKILL and SIGSTOP, and what is about our own children and terminal.
fn parse_parent_death(text: &str) -> Result<Signal, String> {
    let signal = parse_name(text)?;
    let ours = [Signal::SIGCHLD, Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGKILL, Signal::SIGSTOP];
    if ours.contains(&signal) { Err(format!("{signal} is never passed on")) } else { Ok(signal) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(parse_rewrite("TERM:INT"), Ok((15, Some(2))));
        assert_eq!(parse_rewrite("SIGTERM:34"), Ok((15, Some(34))));
        assert_eq!(parse_rewrite("WINCH:0"), Ok((28, None)));
        for wrong in ["TERM", "TERM:", "0:1", "65:1", "15:NO", "15:65"] {
            parse_rewrite(wrong).unwrap_err();
        }
        assert_eq!(parse_name("SIGUSR1"), parse_name("10"));
        parse_name("34").unwrap_err();
        assert_eq!(parse_parent_death("TERM"), Ok(Signal::SIGTERM));
        for wrong in ["CHLD", "TTIN", "SIGTTOU", "KILL", "19"] {
            parse_parent_death(wrong).unwrap_err();
        }
    }
}
