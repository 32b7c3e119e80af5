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
    /// Pass another signal on instead, such as TERM:INT or 15:2 (may be repeated)
    #[arg(short, long, value_name = "FROM:TO", value_parser = parse_rewrite, requires = "command")]
    rewrite: Vec<(i32, i32)>,
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
            forgiven: self.forgive,
        })
    }
}

fn parse_rewrite(text: &str) -> Result<(i32, i32), String> {
    let (from, to) = text.split_once(':').ok_or_else(|| format!("{text:?} is not FROM:TO"))?;
    Ok((parse_signal(from)?, parse_signal(to)?))
}

/// `TERM`, `SIGTERM` or `15`.
fn parse_signal(text: &str) -> Result<i32, String> {
    let by_number = text.parse().ok().filter(|number| (1..=LAST_SIGNAL).contains(number));
    let by_name = || format!("SIG{}", text.strip_prefix("SIG").unwrap_or(text)).parse::<Signal>().ok();
    let number = by_number.or_else(|| by_name().map(signal_number));
    number.ok_or_else(|| format!("{text:?} is not a signal"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(parse_rewrite("TERM:INT"), Ok((15, 2)));
        assert_eq!(parse_rewrite("SIGTERM:34"), Ok((15, 34)));
        for wrong in ["TERM", "TERM:", "0:1", "65:1", "15:NO"] {
            parse_rewrite(wrong).unwrap_err();
        }
    }
}
