//! The location API of the Flux network: what its answers mean, and when it is asked.
//!
//! Each answer may come from another node of that network with its own, slowly converging copy: empty, short and
//! contradicting answers are normal. Only `ip` is read of a row; everything else may be missing on old nodes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::Url;
use serde_json::Value;
use serde_json::error::Category;
use tracing::debug;

use super::http::{Error, Http, LIST_LIMIT, parse_url};
use super::{Config, Peers, Publisher, parse_address};
use crate::clock::{self, Backoff, Moment};
use crate::process::Timer;
use crate::types::Chain;

/// The platform's own limit; a larger number is a mistake and must not decide about a bootstrap.
const MOST_INSTANCES: u64 = 100;

/// Assumed while nobody has told the desired size.
const ASSUMED_SIZE: usize = 3;

/// How far a pause may be from its nominal length: the nodes of a cluster should not ask in step.
const SPREAD: f64 = 0.1;

/// The URLs and the client for them.
#[derive(Debug)]
struct Api {
    http: Http,
    location: Url,
    specification: Url,
}

impl Api {
    fn new(base: &str, app: &str, config: &Config) -> Result<Self, Error> {
        let base = parse_url(base)?;
        let location = below(&base, ["apps", "location", app])?;
        let specification = below(&base, ["apps", "appspecifications", app])?;
        Ok(Self { http: Http::new(&config.timeouts, &[base])?, location, specification })
    }

    async fn locations(&self) -> Result<BTreeSet<IpAddr>, Error> {
        parse_locations(&self.http.get(&self.location, LIST_LIMIT).await?)
    }

    async fn instances(&self) -> Result<usize, Error> {
        parse_instances(&self.http.get(&self.specification, LIST_LIMIT).await?)
    }
}

/// A name with a slash or a question mark stays one segment.
fn below(base: &Url, path: [&str; 3]) -> Result<Url, Error> {
    let mut url = base.clone();
    match url.path_segments_mut() {
        Ok(mut segments) => segments.pop_if_empty().extend(path),
        Err(()) => return Err(Error::Url { reason: "it has no path".to_owned() }),
    };
    Ok(url)
}

/// Asks and publishes, one request at a time.
#[derive(Debug)]
pub(super) struct Poller {
    url: String,
    app: String,
    config: Config,
    publisher: Publisher,
    /// Built at the first request: what is wrong with it is then published like any other failure.
    api: Option<Api>,
    started: Moment,
    failures: u32,
    /// When the specification is asked for next; `None` when the operator has named the size.
    specification_at: Option<Moment>,
    rng: StdRng,
}

impl Poller {
    pub(super) fn new(url: String, app: String, config: Config, publisher: Publisher) -> Self {
        let started = clock::now();
        let specification_at = config.cluster_size.is_none().then_some(started);
        let rng = StdRng::from_os_rng();
        Self { url, app, config, publisher, api: None, started, failures: 0, specification_at, rng }
    }

    /// Asks for ever.
    pub(super) async fn run(mut self) {
        let mut timer = Timer::default();
        loop {
            self.poll().await;
            let pause = self.pause();
            timer.pause(pause).await;
        }
    }

    /// The specification is asked for only where the list was just answered: a stalled API should not cost two
    /// timeouts a round.
    async fn poll(&mut self) {
        let asked_at = clock::now();
        match self.ask().await {
            Ok(addrs) => {
                self.failures = 0;
                self.publisher.good(addrs, asked_at);
                self.poll_specification().await;
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                self.publisher.failed(Chain(&error).to_string());
            }
        }
    }

    async fn ask(&mut self) -> Result<BTreeSet<IpAddr>, Error> {
        let api = match self.api.take() {
            Some(api) => api,
            None => Api::new(&self.url, &self.app, &self.config)?,
        };
        self.api.insert(api).locations().await
    }

    /// A failure keeps the last size: it is not worth a warning of its own, the list's failure has one.
    async fn poll_specification(&mut self) {
        let now = clock::now();
        let (Some(api), Some(at)) = (&self.api, self.specification_at) else { return };
        if now < at {
            return;
        }
        let timeouts = &self.config.timeouts;
        let pause = match api.instances().await {
            Ok(size) => {
                self.publisher.desired_size(size);
                timeouts.specification
            }
            Err(error) => {
                debug!(reason = Chain(&error).to_string(), "no specification");
                timeouts.specification_retry
            }
        };
        self.specification_at = Some(now + pause);
    }

    fn pause(&mut self) -> Duration {
        let polling_for = clock::now().since(self.started);
        pause(&self.publisher.peers(), self.failures, polling_for, &self.config, self.rng.random())
    }
}

/// How long to wait before the next request, whatever is asked. `jitter` is a random number in `0.0..=1.0`.
pub(super) fn pause(
    peers: &Peers,
    failures: u32,
    polling_for: Duration,
    config: &Config,
    jitter: f64,
) -> Duration {
    let timeouts = &config.timeouts;
    let quick = timeouts.quick.min(config.poll_every);
    let is_short = peers.addrs.len() < peers.desired_size.unwrap_or(ASSUMED_SIZE);
    match peers.fetched_at {
        None => Backoff { base: quick, cap: config.poll_every }.delay(failures.saturating_sub(1), jitter),
        Some(_) if failures == 0 && is_short && polling_for < timeouts.hurry => quick,
        Some(_) => config.poll_every.mul_f64(1.0 - SPREAD + 2.0 * SPREAD * jitter),
    }
}

/// The `data` of an answer that says `success`: a failure of the API comes with HTTP 200 too.
fn data(body: &[u8]) -> Result<Value, Error> {
    let mut answer: Value = serde_json::from_slice(body).map_err(|error| not_json(body, &error))?;
    let data = answer.get_mut("data").map(Value::take).unwrap_or_default();
    match answer.get("status").and_then(Value::as_str) {
        Some("success") => Ok(data),
        Some(_) => Err(Error::Refused { message: message(&data) }),
        None => Err(Error::Shape { what: "status" }),
    }
}

fn not_json(body: &[u8], error: &serde_json::Error) -> Error {
    let is_page = body.trim_ascii_start().first() == Some(&b'<');
    let what = match error.classify() {
        Category::Eof if body.is_empty() => "empty",
        Category::Eof => "cut short",
        Category::Syntax | Category::Io if is_page => "an HTML page",
        Category::Syntax | Category::Io | Category::Data => "garbage",
    };
    Error::NotJson { what }
}

/// The API's own words, shortened: they come from outside and end up in our log.
fn message(data: &Value) -> String {
    const MOST: usize = 200;
    let text = data.get("message").or(Some(data)).and_then(Value::as_str).unwrap_or("no message");
    text.chars().filter(|c| !c.is_control()).take(MOST).collect()
}

fn parse_locations(body: &[u8]) -> Result<BTreeSet<IpAddr>, Error> {
    let data = data(body)?;
    let rows = data.as_array().ok_or(Error::Shape { what: "list" })?;
    if rows.is_empty() {
        return Err(Error::EmptyList);
    }
    let addrs: BTreeSet<_> = rows.iter().filter_map(address_of).collect();
    if addrs.is_empty() {
        return Err(Error::NoAddress { rows: rows.len() });
    }
    Ok(addrs)
}

fn address_of(row: &Value) -> Option<IpAddr> {
    row.get("ip").and_then(Value::as_str).and_then(parse_address)
}

fn parse_instances(body: &[u8]) -> Result<usize, Error> {
    let instances = data(body)?.get("instances").and_then(Value::as_u64);
    let plausible = instances.filter(|n| (1..=MOST_INSTANCES).contains(n));
    plausible
        .and_then(|n| usize::try_from(n).ok())
        .ok_or(Error::Shape { what: "plausible number of instances" })
}

/// The address in an answer of the `hostinfo` service.
pub(super) fn parse_hostinfo(body: &[u8]) -> Result<IpAddr, Error> {
    address_of(&data(body)?).ok_or(Error::Shape { what: "address" })
}

#[cfg(test)]
mod tests {
    use super::super::{Source, Timeouts};
    use super::*;

    fn addrs(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn reason(body: &str) -> String {
        Chain(&parse_locations(body.as_bytes()).unwrap_err()).to_string()
    }

    #[test]
    fn only_the_address_of_a_row_is_needed() {
        let body = r#"{"status":"success","more":1,"data":[{"ip":"203.0.113.7:16137","ports":[1]},{"ip":"198.51.100.9"},
            {"ip":"203.0.113.7"},{"ip":"[2001:db8::1]:16127"},{"ip":"2001:db8::1"},{"ip":"home"},{"ip":7},{},null]}"#;
        let expected = addrs(&["198.51.100.9", "203.0.113.7", "2001:db8::1"]);
        assert_eq!(parse_locations(body.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn every_answer_without_a_list_is_a_failure_with_its_reason() {
        assert_eq!(reason(r#"{"status":"error"}"#), "the API answered with an error: no message");
        let said = r#"{"status":"error","data":{"name":"Error","message":"No Flux App name specified"}}"#;
        assert_eq!(reason(said), "the API answered with an error: No Flux App name specified");
        assert_eq!(reason(r#"{"data":[{"ip":"203.0.113.7"}]}"#), "the answer has no status");
        assert_eq!(reason(r#"{"status":"success","data":{}}"#), "the answer has no list");
        assert_eq!(reason(r#"{"status":"success"}"#), "the answer has no list");
        assert_eq!(reason(r#"{"status":"success","data":[]}"#), "the list is empty");
        assert_eq!(
            reason(r#"{"status":"success","data":[{},{"ip":"x"}]}"#),
            "none of the 2 rows has an address"
        );
        assert_eq!(reason("\n<html>"), "the answer is an HTML page, not JSON");
        assert_eq!(reason(r#"{"status":"succ"#), "the answer is cut short, not JSON");
        assert_eq!(reason(""), "the answer is empty, not JSON");
        assert_eq!(reason("oops"), "the answer is garbage, not JSON");
        assert_eq!(reason(r#"["success",[{"ip":"203.0.113.7"}]]"#), "the answer has no status");
    }

    #[test]
    fn the_number_of_instances_must_be_plausible() {
        let parse =
            |n| parse_instances(format!(r#"{{"status":"success","data":{{"instances":{n}}}}}"#).as_bytes());
        assert_eq!(parse("3").unwrap(), 3);
        for wrong in ["0", "101", "-1", "\"3\"", "null", "2.5"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_name_is_one_segment_of_the_path() {
        for base in ["http://127.0.12.1:1/sub", "http://127.0.12.1:1/sub/"] {
            let url = below(&parse_url(base).unwrap(), ["apps", "location", "a/b?c"]).unwrap();
            assert_eq!(url.as_str(), "http://127.0.12.1:1/sub/apps/location/a%2Fb%3Fc");
        }
    }

    fn config(poll_every: u64) -> Config {
        Config {
            source: Source::Static(BTreeSet::new()),
            advertise: None,
            node_host_ip: None,
            cluster_size: None,
            poll_every: Duration::from_secs(poll_every),
            hostinfo_url: None,
            echo_urls: Vec::new(),
            timeouts: Timeouts::default(),
        }
    }

    #[test]
    fn the_first_list_is_asked_for_quickly_then_less_and_less() {
        let seconds =
            |failures| pause(&Peers::default(), failures, Duration::ZERO, &config(30), 1.0).as_secs();
        assert_eq!([1, 2, 3, 6, 9].map(seconds), [1, 2, 4, 30, 30]);
    }

    #[test]
    fn a_short_list_is_asked_for_quickly_for_two_minutes() {
        let fetched_at = Some(Moment(1));
        let short = Peers { addrs: addrs(&["127.0.12.1", "127.0.12.2"]), fetched_at, ..Peers::default() };
        let full = Peers { desired_size: Some(2), ..short.clone() };
        let seconds = |peers: &Peers, failures, polling_for| {
            pause(peers, failures, Duration::from_secs(polling_for), &config(30), 0.5).as_secs_f64().round()
        };
        assert_eq!(seconds(&short, 0, 119), 1.0);
        assert_eq!(seconds(&short, 0, 120), 30.0);
        assert_eq!(seconds(&short, 1, 0), 30.0, "a failing API is not pressed");
        assert_eq!(seconds(&full, 0, 0), 30.0);
    }

    #[test]
    fn the_nodes_do_not_ask_in_step() {
        let settled = Peers { desired_size: Some(0), fetched_at: Some(Moment(1)), ..Peers::default() };
        let millis = |jitter| pause(&settled, 0, Duration::ZERO, &config(30), jitter).as_millis();
        assert_eq!((millis(0.0), millis(1.0)), (27_000, 33_000));
    }
}
