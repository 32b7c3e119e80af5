//! `pgherd doctor`: what a person would look at when something is odd, looked at in one go, each with what to do about it.
//!
//! Two halves: [`look`] collects facts and concludes nothing; [`judge`] concludes and asks nobody. It runs in a node's
//! environment and changes nothing. What it sees of the network it sees from this node: the other direction is seen by running
//! it on the other node too.

mod judge;
mod look;

use std::process::ExitCode;

use serde_json::{Value, json};

use super::ctl::Json;
use super::print;
use crate::config::{Config, Warning};
use judge::{Finding, Grade};

/// Options of `doctor`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// How to print.
    #[command(flatten)]
    pub json: Json,
}

/// Looks, judges and prints. The exit code is 1 when something is wrong.
///
/// # Errors
/// The node's secrets cannot be used, or standard output cannot be written.
pub async fn run(args: &Args, config: &Config, warnings: &[Warning]) -> anyhow::Result<ExitCode> {
    let findings = judge::judge(warnings, &look::look(config).await?);
    let text = if args.json.json { format!("{:#}\n", as_json(&findings)) } else { in_words(&findings) };
    print(&text)?;
    let wrong = findings.iter().any(|finding| finding.grade == Grade::Wrong);
    Ok(if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What is found, for a report.
///
/// # Errors
/// The node's secrets cannot be used.
pub async fn findings(config: &Config, warnings: &[Warning]) -> anyhow::Result<Value> {
    Ok(as_json(&judge::judge(warnings, &look::look(config).await?)))
}

fn as_json(findings: &[Finding]) -> Value {
    let one = |finding: &Finding| json!({ "grade": finding.grade.word(), "area": finding.area, "seen": finding.seen, "do": finding.remedy });
    findings.iter().map(one).collect()
}

fn in_words(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        text.push_str(&format!("{:<5} {}: {}\n", finding.grade.word(), finding.area, finding.seen));
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!("      {remedy}\n"));
        }
    }
    let count = |grade| findings.iter().filter(|finding| finding.grade == grade).count();
    text.push_str(&format!(
        "{} wrong, {} odd, {} good\n",
        count(Grade::Wrong),
        count(Grade::Odd),
        count(Grade::Good)
    ));
    text
}
