//! One socket that speaks TLS and plain HTTP: the first byte of a connection tells which.
//!
//! A TLS connection starts with the record type 0x16 and no HTTP method does, so one peeked byte is proof.
//! Connections are bounded in number, in what they may send and in the time that they may take for it, and who does not ask
//! gives way to who does (`places`): a health check must not wait behind a client that holds sockets open. Absent: HTTP/2,
//! which no client of this port speaks.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use tracing::{debug, warn};

use super::Plain;
use super::places::{AllAtWork, Places, Work};

/// What a connection may take to send its first byte, and again to finish the TLS handshake: two round trips to the
/// other end of the world with a lost packet in each.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
/// What a client may take to send the head of a request, idle keep-alive included: a scraper that asks less often
/// opens a new connection.
const HEAD_PATIENCE: Duration = Duration::from_secs(15);
/// How long a connection lives: whatever goes wrong with one (a client that does not read its answer), its place is
/// free again after this. A client that keeps asking just connects anew.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
/// What requests under way may take after `stop`: answers come from memory, so this is for the network only.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);
/// The pause after `accept` has failed (out of descriptors): without it the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections at the same time. A cluster's health checks need a few dozen; more is somebody else's mistake.
const MAX_CONNECTIONS: usize = 512;
/// The head of a request at most: a browser's with all its cookies is a quarter of it.
const MAX_HEAD: usize = 32 * 1024;
/// The first byte of every TLS connection: a handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// What serves a connection.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) router: Router,
    pub(super) tls: Option<Arc<rustls::ServerConfig>>,
    pub(super) plain: Plain,
    pub(super) headers: Arc<HeaderMap>,
}

/// Who is at the other end of a connection; every request carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) address: SocketAddr,
    pub(super) trust: Trust,
}

/// What a caller has proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Nothing.
    Anyone,
    /// It holds a client certificate of the internal CA.
    Member,
}

/// Accepts connections until `stop`, then lets requests under way finish.
pub(super) async fn run(listener: TcpListener, server: Server, stop: CancellationToken) {
    let mut places = Places::new(MAX_CONNECTIONS);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Err(error) => {
                    warn!(%error, "could not accept a connection to the API");
                    sleep(ACCEPT_PAUSE).await;
                }
                Ok((stream, address)) => match places.make_room() {
                    Err(AllAtWork) => debug!(%address, "too many requests to the API: closed one"),
                    Ok(()) => {
                        let work = Work::default();
                        let visit = Visit { server: server.clone(), work: work.clone(), stop: stop.clone() };
                        let task = connections.spawn(serve_connection(stream, address, visit));
                        places.take(address.ip().to_canonical(), work, task);
                    }
                }
            }
        }
    }
    drop(listener);
    // Each connection bounds its own end; the rest is for a busy machine.
    let drained =
        timeout(DRAIN_PATIENCE * 2, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        debug!(open = connections.len(), "closing connections to the API that did not finish");
    }
}

/// What one connection is served with.
struct Visit {
    server: Server,
    work: Work,
    stop: CancellationToken,
}

async fn serve_connection(stream: TcpStream, address: SocketAddr, visit: Visit) {
    let Visit { server, work, stop } = visit;
    let served = tokio::select! {
        // A connection that has not asked anything yet is owed nothing.
        () = stop.cancelled() => return,
        prepared = prepare(stream, &server) => match prepared {
            Ok(Wire::Tls(stream, trust)) => {
                let caller = Caller { address, trust };
                let asked = |request| ask(server.clone(), (caller, work.clone()), request);
                serve_http(stream, stop.clone(), asked).await
            }
            Ok(Wire::Plain(stream)) => match server.plain {
                Plain::Accepted => {
                    let caller = Caller { address, trust: Trust::Anyone };
                    let asked = |request| ask(server.clone(), (caller, work.clone()), request);
                    serve_http(stream, stop.clone(), asked).await
                }
                Plain::Refused => {
                    serve_http(stream, stop.clone(), |_request| std::future::ready(plain_refused())).await
                }
            },
            Err(error) => {
                debug!(%address, %error, "a connection to the API did not get as far as a request");
                return;
            }
        },
    };
    if let Err(error) = served {
        debug!(%address, %error, "a connection to the API broke");
    }
}

/// A connection whose kind is known.
enum Wire {
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>, Trust),
    Plain(TcpStream),
}

async fn prepare(stream: TcpStream, server: &Server) -> io::Result<Wire> {
    // Answers are single small writes: waiting to fill a segment would only delay them.
    stream.set_nodelay(true)?;
    let mut first = [0_u8];
    let peeked =
        timeout(HANDSHAKE_PATIENCE, stream.peek(&mut first)).await.map_err(|_elapsed| silent())??;
    match (peeked, first) {
        (0, _) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        (_, [TLS_HANDSHAKE]) => {
            let tls = server.tls.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
            let acceptor = TlsAcceptor::from(Arc::clone(tls));
            let stream =
                timeout(HANDSHAKE_PATIENCE, acceptor.accept(stream)).await.map_err(|_elapsed| silent())??;
            // rustls has verified the chain before the handshake ended: present means genuine.
            let trust = match stream.get_ref().1.peer_certificates() {
                Some(_verified) => Trust::Member,
                None => Trust::Anyone,
            };
            Ok(Wire::Tls(Box::new(stream), trust))
        }
        (_, _other) => Ok(Wire::Plain(stream)),
    }
}

fn silent() -> io::Error {
    io::Error::from(io::ErrorKind::TimedOut)
}

/// Serves one connection until it closes; after `stop`, or at the end of its life, the request under way is the last.
async fn serve_http<S, A, F>(stream: S, stop: CancellationToken, answer: A) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => {}
        () = sleep(CONNECTION_LIFE) => {}
    }
    connection.as_mut().graceful_shutdown();
    // What does not end politely is dropped, which closes it.
    timeout(DRAIN_PATIENCE, connection).await.unwrap_or(Ok(()))
}

/// Calls the router, which learns who asks.
async fn ask(
    mut server: Server,
    (caller, work): (Caller, Work),
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(work.clone());
    let _until_answered = work.begin();
    // A router is always ready (axum), so it may be called without waiting for it first.
    let mut answer = server.router.call(request).await?;
    for (name, value) in server.headers.iter() {
        answer.headers_mut().insert(name, value.clone());
    }
    Ok(answer)
}

fn plain_refused() -> Result<Response<Body>, Infallible> {
    let mut response = Response::new(Body::from("this port speaks HTTPS only\n"));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    Ok(response)
}
