//! One-shots: a command run to its end, with a limit.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::timeout;

use super::child::{Child, Streams, pump, spawn};
use super::{Command, Error, Exit, LogLines};
use crate::log::{self, Stream, Wholeness};

/// What is kept of each stream.
const KEPT_BYTES: usize = 64 * 1024;
/// After SIGINT `pg_basebackup` removes its half-made copy; more than this it does not need.
const INTERRUPT_PATIENCE: Duration = Duration::from_secs(2);
/// How long the output may stay open after the end: only a stray descendant outside the group can hold it.
const OUTPUT_PATIENCE: Duration = Duration::from_millis(200);

/// What a finished one-shot left behind; each stream bounded (its last 64 KiB).
#[derive(Debug, Clone)]
pub struct Output {
    pub exit: Exit,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to its end, at most for `limit` (then SIGINT, 2 s later SIGKILL of it and its process group). Its lines
/// also go to the log, unless it is quiet. Dropping the future kills the child.
///
/// # Errors
/// It could not be started, or ran out of time. An unsuccessful exit is *not* an error.
pub async fn run(command: &Command, limit: Duration) -> Result<Output, Error> {
    let (mut child, streams) = spawn(command)?;
    let (mut stdout, mut stderr) = (Tail::default(), Tail::default());
    let ended = {
        let output = collect(command, streams, &mut stdout, &mut stderr);
        tokio::pin!(output);
        let mut closed = false;
        let ended = timeout(limit, until_exit(&mut child, &mut output, &mut closed)).await;
        if ended.is_err() {
            interrupt(&mut child, &mut output, &mut closed).await;
        }
        if !closed && timeout(OUTPUT_PATIENCE, output).await.is_err() {
            tracing::debug!(name = command.name, "a descendant still holds the output");
        }
        ended
    };
    match ended {
        Ok(exit) => Ok(Output { exit, stdout: stdout.into_text(), stderr: stderr.into_text() }),
        Err(_late) => Err(Error::TimedOut { name: command.name.clone(), limit }),
    }
}

/// Runs a person's own program (an editor, with its arguments) on a file, with the terminal and the environment that the
/// person has.
///
/// # Errors
/// It cannot be started.
#[expect(
    clippy::disallowed_methods,
    reason = "a person's program is given what the person has, not a service's plan"
)]
pub fn with_terminal(program: &str, file: &camino::Utf8Path) -> std::io::Result<std::process::ExitStatus> {
    let mut words = program.split_whitespace();
    let program = words.next().unwrap_or("vi");
    std::process::Command::new(program).args(words).arg(file).status()
}

/// Closed streams are not an end, and an end does not close the streams: both are watched.
async fn until_exit<F>(child: &mut Child, output: &mut Pin<&mut F>, closed: &mut bool) -> Exit
where
    F: Future<Output = ()>,
{
    loop {
        tokio::select! {
            exit = child.exited() => return exit,
            () = output.as_mut(), if !*closed => *closed = true,
        }
    }
}

/// SIGINT, patience, SIGKILL. A process that survives even that (uninterruptible IO) is left to the reaper's thread.
async fn interrupt<F>(child: &mut Child, output: &mut Pin<&mut F>, closed: &mut bool)
where
    F: Future<Output = ()>,
{
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        if let Err(error) = child.signal(signal) {
            tracing::debug!(%error, "the one-shot has just ended");
        }
        if timeout(INTERRUPT_PATIENCE, until_exit(child, output, closed)).await.is_ok() {
            return;
        }
    }
}

async fn collect(command: &Command, streams: Streams, stdout: &mut Tail, stderr: &mut Tail) {
    let feed = async {
        if let Some(feed) = streams.stdin {
            feed.write().await;
        }
    };
    let Some([out, err]) = streams.output else { return feed.await };
    let out = pump(out, |line, whole| stdout.keep(command, Stream::Stdout, (line, whole)));
    let err = pump(err, |line, whole| stderr.keep(command, Stream::Stderr, (line, whole)));
    tokio::join!(feed, out, err);
}

/// The last bytes of a stream.
#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
}

impl Tail {
    fn keep(&mut self, command: &Command, stream: Stream, (line, wholeness): (&[u8], Wholeness)) {
        match command.log {
            LogLines::Yes => log::child_line(&command.name, stream, line, wholeness),
            LogLines::No => {}
        }
        self.bytes.extend(line);
        match wholeness {
            Wholeness::Whole => self.bytes.push_back(b'\n'),
            Wholeness::Partial => {}
        }
        let excess = self.bytes.len().saturating_sub(KEPT_BYTES);
        self.bytes.drain(..excess);
    }

    fn into_text(self) -> String {
        String::from_utf8_lossy(&Vec::from(self.bytes)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn shell(script: &str) -> Command {
        Command::new("test", "/bin/sh").args(["-c", script])
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn output_and_code_come_back() {
        let output = run(&shell("printf one; echo two >&2; exit 3"), LONG).await.unwrap();
        assert_eq!((output.exit, &*output.stdout, &*output.stderr), (Exit::Code(3), "one", "two\n"));
        let output = run(&shell("kill -SEGV $$"), LONG).await.unwrap();
        assert_eq!(output.exit, Exit::Signal(11));
    }

    #[tokio::test]
    async fn only_the_tail_of_much_output_is_kept() {
        let output = run(&shell("yes 0123456789 | head -n 100000; echo end"), LONG).await.unwrap();
        assert_eq!(output.stdout.len(), KEPT_BYTES);
        assert!(output.stdout.ends_with("0123456789\nend\n"));
    }

    #[tokio::test]
    async fn a_secret_goes_in_by_standard_input() {
        let command = shell("read -r x; echo got $x").stdin(secrecy::SecretString::from("hush\n"));
        assert_eq!(run(&command, LONG).await.unwrap().stdout, "got hush\n");
    }

    #[tokio::test]
    async fn out_of_time_it_is_interrupted_then_killed() {
        let start = clock::now();
        let error = run(&shell("exec sleep 60"), Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        assert!(clock::now().since(start) < INTERRUPT_PATIENCE, "SIGINT ends it");
        let stubborn = shell("trap '' INT TERM; while :; do sleep 0.05; done");
        assert!(run(&stubborn, Duration::from_millis(50)).await.is_err());
        assert!(clock::now().since(start) < Duration::from_secs(10));
    }

    #[tokio::test]
    async fn a_daemon_left_behind_does_not_delay_the_result() {
        let start = clock::now();
        let output = run(&shell("sleep 60 & setsid sleep 0.8 & echo done"), LONG).await.unwrap();
        assert_eq!(output.stdout, "done\n");
        assert!(clock::now().since(start) < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn what_cannot_be_executed_is_named() {
        let error = run(&Command::new("x", "/nonexistent/program"), LONG).await.unwrap_err();
        assert_eq!(error.to_string(), "could not start /nonexistent/program");
    }

    #[tokio::test]
    async fn dropping_the_future_kills_the_child() {
        let dir = tempfile::tempdir().unwrap();
        let pidfile = dir.path().join("pid");
        let command =
            shell(&format!("echo $$ > {p}.new; mv {p}.new {p}; exec sleep 60", p = pidfile.display()));
        let started = async {
            while !pidfile.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            output = run(&command, LONG) => panic!("{output:?}"),
            () = started => {}
        }
        let pid = std::fs::read_to_string(&pidfile).unwrap();
        let path = format!("/proc/{}", pid.trim());
        let deadline = clock::now() + Duration::from_secs(5);
        while std::path::Path::new(&path).exists() {
            assert!(clock::now() < deadline, "{path} is still there");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
