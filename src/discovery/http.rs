//! Small answers over HTTP: every request is bounded in time and in size.

use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode, Url};

use super::Timeouts;

/// A list of a thousand nodes has a few hundred kilobytes; more is no list.
pub(super) const LIST_LIMIT: usize = 2 * 1024 * 1024;

/// A balancer may redirect once to another scheme and once to another host.
const REDIRECTS: usize = 3;

/// Why a request brought nothing that can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the URL cannot be used: {reason}")]
    Url { reason: String },
    #[error("cannot set up HTTPS")]
    Setup { source: reqwest::Error },
    #[error("cannot ask {host}")]
    Ask { host: String, source: reqwest::Error },
    #[error("no whole answer within {seconds} s from {host}")]
    Slow { host: String, seconds: f64 },
    #[error("{host} answered with status {status}")]
    Status { host: String, status: StatusCode },
    #[error("the answer of {host} is larger than {limit} bytes")]
    TooLarge { host: String, limit: usize },
    #[error("the answer is {what}, not JSON")]
    NotJson { what: &'static str },
    #[error("the API answered with an error: {message}")]
    Refused { message: String },
    #[error("the answer has no {what}")]
    Shape { what: &'static str },
    #[error("the list is empty")]
    EmptyList,
    #[error("none of the {rows} rows has an address")]
    NoAddress { rows: usize },
}

/// One client. Connections are not kept: behind a balancer each request should be free to reach another node.
#[derive(Debug)]
pub(super) struct Http {
    client: Client,
    timeouts: Timeouts,
}

impl Http {
    /// A client for these URLs. The system's certificates are read only when one of them is `https`, so that an image
    /// without certificates can use an API without TLS.
    pub(super) fn new(timeouts: &Timeouts, urls: &[Url]) -> Result<Self, Error> {
        let builder = Client::builder()
            .no_proxy() // the proxy variables of the environment are nobody's configuration here
            .connect_timeout(timeouts.connect)
            .timeout(timeouts.request)
            .pool_max_idle_per_host(0)
            .redirect(Policy::limited(REDIRECTS));
        let builder = match urls.iter().any(|url| url.scheme() == "https") {
            true => builder,
            false => builder.tls_certs_only([]),
        };
        let client = builder.build().map_err(|source| Error::Setup { source })?;
        Ok(Self { client, timeouts: timeouts.clone() })
    }

    /// The body of a good answer of at most `limit` bytes.
    pub(super) async fn get(&self, url: &Url, limit: usize) -> Result<Vec<u8>, Error> {
        let failed = |error| self.failed(url, error);
        let mut response = self.client.get(url.clone()).send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(Error::Status { host: host(url), status: response.status() });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > limit {
                return Err(Error::TooLarge { host: host(url), limit });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The URL is left out of the cause: it is named already, and it may carry a password.
    fn failed(&self, url: &Url, error: reqwest::Error) -> Error {
        if error.is_timeout() && !error.is_connect() {
            return Error::Slow { host: host(url), seconds: self.timeouts.request.as_secs_f64() };
        }
        Error::Ask { host: host(url), source: error.without_url() }
    }
}

/// A URL, or the reason why it is none.
pub(super) fn parse_url(text: &str) -> Result<Url, Error> {
    let url = Url::parse(text).map_err(|error| Error::Url { reason: error.to_string() })?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        scheme => Err(Error::Url { reason: format!("{scheme:?} is neither http nor https") }),
    }
}

fn host(url: &Url) -> String {
    let name = url.host_str().unwrap_or("nobody");
    url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
}
