//! The line between `pgherd demo COMMAND` and the demo that runs: one request and one answer per connection, each one
//! line of JSON, over a Unix socket that only the demo's own user may open.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::place::Place;

/// Enough for an answer that first asks every node who leads.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// A request is a few words.
const LONGEST_LINE: u64 = 4096;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    Add,
    Remove { node: String },
    Stop { node: String },
    Start { node: String },
    Kill { node: String },
    Crash { node: String },
    Api { state: Api },
}

/// The location API, running or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(super) enum Api {
    On,
    Off,
}

/// What came of it, in words for a person.
pub(super) type Answer = Result<String, String>;

/// One order on its way to the task that owns the cluster.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) order: Order,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// Asks the running demo and prints its answer.
pub(super) async fn ask(place: &Place, order: &Order) -> anyhow::Result<ExitCode> {
    let socket = place.socket();
    let none = || format!("no demo runs in {} (start one with: make demo)", place.home);
    let mut stream = UnixStream::connect(&socket).await.with_context(none)?;
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    stream.write_all(&line).await.context("the demo does not listen")?;
    let mut text = String::new();
    let read = timeout(ANSWER_TIMEOUT, stream.read_to_string(&mut text)).await;
    read.context("the demo does not answer")?.context("the demo does not answer")?;
    match serde_json::from_str::<Answer>(&text).context("the demo has ended")? {
        Ok(done) => {
            writeln!(io::stdout(), "{done}")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(refused) => bail!("{refused}"),
    }
}

/// Opens the socket; a dead demo's file is in the way and nobody's.
pub(super) fn listen(place: &Place) -> anyhow::Result<UnixListener> {
    let socket = place.socket();
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {socket}"));
        }
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&socket).with_context(|| format!("cannot listen on {socket}"))?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Accepts for ever, one caller at a time: a person types these.
pub(super) async fn serve(listener: UnixListener, orders: mpsc::Sender<Request>) {
    while let Ok((stream, _)) = listener.accept().await {
        // A caller that went away or wrote nonsense has told itself.
        timeout(ANSWER_TIMEOUT, answer(stream, &orders)).await.ok();
    }
}

async fn answer(mut stream: UnixStream, orders: &mpsc::Sender<Request>) -> anyhow::Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    BufReader::new(read.take(LONGEST_LINE)).read_line(&mut line).await?;
    let answer: Answer = match serde_json::from_str(&line) {
        Ok(order) => {
            let (reply, answered) = oneshot::channel();
            orders.send(Request { order, reply }).await?;
            answered.await?
        }
        Err(error) => Err(format!("that is no order of this version: {error}")),
    };
    write.write_all(&serde_json::to_vec(&answer)?).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_survives_the_wire() {
        for order in [Order::Add, Order::Kill { node: "primary".to_owned() }, Order::Api { state: Api::Off }]
        {
            let line = serde_json::to_string(&order).unwrap();
            assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), order);
        }
    }
}
