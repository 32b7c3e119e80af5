//! HAProxy's command socket: one order in, its answer checked.

use std::io;
use std::time::Duration;

use camino::Utf8Path;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::decide::Order;
use super::view::{Knowledge, Server};
use super::{Checks, Error};

/// It answers from memory, within a millisecond; the rest is for a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest answer that is read: a refusal is a sentence.
const ANSWER_LIMIT: u64 = 16 * 1024;
/// How health is checked. A server that is up is asked seldom and is down after three misses; one that is about to be up,
/// because it is being promoted, is asked ten times a second. One that refuses a connection is asked soon, and is down when
/// that fails too: a primary that stops does so before it gives the key back.
const CHECKS: &str = "inter 2s fastinter 250ms downinter 100ms fall 3 rise 1 on-marked-down shutdown-sessions \
                      observe layer4 error-limit 1 on-error sudden-death";

/// Has one order obeyed.
///
/// # Errors
/// No answer, or a refusal.
pub(super) async fn obey(path: &Utf8Path, order: &Order, checks: Checks) -> Result<(), Error> {
    let command = command(order, checks);
    let answer = match timeout(PATIENCE, ask(path, &command)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(source)) => return Err(Error::Socket { path: path.to_owned(), source }),
        Err(_elapsed) => return Err(Error::Silent { command }),
    };
    if is_done(order, answer.trim()) {
        return Ok(());
    }
    Err(Error::Refused { command, answer: answer.trim().to_owned() })
}

async fn ask(path: &Utf8Path, command: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(command.as_bytes()).await?;
    stream.write_all(b"\n").await?;
    let mut answer = String::new();
    stream.take(ANSWER_LIMIT).read_to_string(&mut answer).await?;
    Ok(answer)
}

fn command(order: &Order, checks: Checks) -> String {
    match order {
        Order::Add(server, address, api) => {
            let tls = match checks {
                Checks::Plain => "",
                Checks::Tls => "check-ssl verify none ",
            };
            format!(
                "add server {server} {address} check port {api} {tls}{CHECKS} weight 128; enable health {server}"
            )
        }
        Order::Open(server, weight, knowledge) => {
            let open = format!("set server {server} weight {}; {}", weight.0, ready(server));
            match knowledge {
                Knowledge::Known => open,
                Knowledge::Assumed => format!("{open}; set server {server} health down"),
            }
        }
        Order::Resume(server) => ready(server),
        Order::Drain(server) => format!("set server {server} state drain"),
        Order::Weigh(server, weight) => format!("set server {server} weight {}", weight.0),
        Order::Close(server) => {
            format!("set server {server} state maint; shutdown sessions server {server}")
        }
        Order::Remove(server) => format!("del server {server}"),
    }
}

fn ready(server: &Server) -> String {
    format!("set server {server} state ready")
}

/// Most commands say nothing when they are done.
fn is_done(order: &Order, answer: &str) -> bool {
    match order {
        Order::Add(..) => answer.starts_with("New server registered"),
        Order::Remove(_) => answer.starts_with("Server deleted") || answer.starts_with("No such server"),
        Order::Open(..) | Order::Resume(_) | Order::Drain(_) | Order::Weigh(..) | Order::Close(_) => {
            answer.is_empty()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::{Pool, Weight};
    use super::*;
    use crate::types::NodeName;

    fn n2() -> Server {
        Server { pool: Pool::Primary, name: NodeName::from("n2") }
    }

    #[test]
    fn orders_become_commands() {
        let add = Order::Add(n2(), "[2001:db8::2]:5432".parse().unwrap(), 8008);
        assert_eq!(
            command(&add, Checks::Tls),
            "add server primary/n2 [2001:db8::2]:5432 check port 8008 check-ssl verify none inter 2s \
             fastinter 250ms downinter 100ms fall 3 rise 1 on-marked-down shutdown-sessions observe layer4 \
             error-limit 1 on-error sudden-death weight 128; enable health primary/n2"
        );
        let open = |knowledge| command(&Order::Open(n2(), Weight(64), knowledge), Checks::Plain);
        let ready = "set server primary/n2 weight 64; set server primary/n2 state ready";
        assert_eq!(open(Knowledge::Known), ready);
        assert_eq!(open(Knowledge::Assumed), format!("{ready}; set server primary/n2 health down"));
    }

    #[test]
    fn a_server_that_is_gone_already_is_removed() {
        assert!(is_done(&Order::Remove(n2()), "No such server."));
        assert!(!is_done(
            &Order::Remove(n2()),
            "Server still has connections attached to it, cannot remove it."
        ));
        assert!(!is_done(&Order::Close(n2()), "No such server."));
    }
}
